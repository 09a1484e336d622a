package lookup

import (
	"slices"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A read from a UDP socket is seen without the datagram that was read. But a socket hands out what it got in the order
// in which that came: the first lookup of that peer which was delivered there and not read yet is the one. A packet may
// come to a socket by a way that no hook sees (bpf_redirect_peer, macvlan); then what else is known decides: who was
// asked, what was seen on its way, the size.

// pending is a lookup's place in one of a socket's queues.
type pending struct {
	links
	socket *socket
	netns  uint32
	since  int64 // when the query, or the last copy of it, came there, in ns since 1970
}

// waitForRead puts a query that arrived in a namespace, at a time in ns since 1970, in the queue of those that may be
// read there.
func (a *Assembler) waitForRead(e *entry, src hop.Endpoint, netns uint32, at int64) {
	p := &e.unread
	p.netns, p.since = netns, max(p.since, at)
	if p.socket != nil && p.socket.id.end == src {
		return // it was queued on its way already
	}
	a.leave(p)
	p.socket = a.socketOf(socketID{src, uint8(e.Transport)})
	p.socket.unread.push(&p.links)
}

// arrives notes that an answer has come to the client's network namespace, where its socket will hand it out: one to
// the lookup's question, a copy of one, or m, which is none.
func (a *Assembler) arrives(e *entry, p *hop.Packet, m *Mismatch) {
	if e.Transport != link.UDP || e.socket == nil {
		return
	}
	x := a.addresses[p.NetNS]
	if x != nil {
		x.arrivals = true
	}
	if p.Time < e.readEarly {
		e.readEarly = 0 // another CPU's record of its read came first
		return
	}
	s := e.socket
	s.netns = p.NetNS
	for i := range s.arrived {
		if y := &s.arrived[i]; y.skb == p.SKB && y.of() == e && y.mismatch == m {
			y.src = p.Src // at another device of the namespace
			return
		}
	}
	if len(s.arrived) == maxArrived {
		s.arrived = append(s.arrived[:0], s.arrived[1:]...)
	}
	at := len(s.arrived)
	for at > 0 && s.arrived[at-1].time > p.Time {
		at--
	}
	s.arrived = slices.Insert(s.arrived, at, arrival{
		time: p.Time, skb: p.SKB, src: p.Src, size: p.PayloadLen, e: e, serial: e.serial, mismatch: m,
		id: e.ID, question: e.questionHash, rcode: p.Head.Flags.Rcode(),
	})
}

// gone notes that the kernel dropped what may have come to a socket.
func (s *socket) gone(skb uint64) {
	s.arrived = slices.DeleteFunc(s.arrived, func(x arrival) bool { return x.skb == skb })
}

// maxUnread is how many answers in a row may stay unread before reads in a network namespace count as out of sight: a
// client may read by ways that no hook sees.
const maxUnread = 4

// readsAt says whether reads in a network namespace are seen, as far as is known.
func (a *Assembler) readsAt(netns uint32) bool {
	x := a.addresses[netns]
	return a.o.ReadsSeen && x != nil && x.unread < maxUnread
}

// unread says whether an answer to the lookup, or a copy of it, came to the client, whose reads are seen, and was not
// read yet.
func (a *Assembler) unread(e *entry) bool {
	if e.socket == nil || len(e.socket.arrived) == 0 || !a.readsAt(e.ClientNetNS) {
		return false
	}
	for i := range e.socket.arrived {
		if x := &e.socket.arrived[i]; x.of() == e && x.mismatch == nil {
			return true
		}
	}
	return false
}

// readUntil gives until when a lookup's answer is waited for to be read, in ns since 1970; 0 where none is to be read.
// Each read of the socket brings its turn nearer.
func (a *Assembler) readUntil(e *entry) int64 {
	if !a.unread(e) {
		return 0
	}
	last := e.socket.read
	for i := range e.socket.arrived {
		if x := &e.socket.arrived[i]; x.of() == e {
			last = max(last, x.time)
		}
	}
	return last + int64(a.o.Linger+a.o.GiveUp)
}

// unreadAnswer says whether the lookup's answer is one that the client was not handed yet.
func (a *Assembler) unreadAnswer(e *entry) bool { return !e.ReadByClient && a.unread(e) }

func (a *Assembler) leave(p *pending) {
	if p.socket == nil {
		return
	}
	p.socket.unread.remove(&p.links)
	a.dropSocket(p.socket)
	p.socket, p.since = nil, 0
}

// addRead takes a read without the packet: of a query by a server, or of an answer by a client.
func (a *Assembler) addRead(p *hop.Packet) {
	if e := a.readByServer(p); e != nil {
		h := p.Hop
		h.Attempt = uint8(e.Attempts - 1)
		h.Dst.Addr = e.lastQueryDst().Addr // the socket may be bound to no address
		a.leave(&e.unread)
		a.serverRead(e, &h)
		return
	}
	// Of what is too short for a DNS header, no packet was taken for a message.
	if p.PayloadLen != 0 && p.PayloadLen < dnswire.HeaderSize || !a.readByClient(p) {
		a.stats.Unmatched++
	}
}

// serverRead notes that a server has read the query.
func (a *Assembler) serverRead(e *entry, h *hop.Hop) {
	a.keep(e, h)
	e.ServerProcess, e.ServerNetNS = h.Process, h.NetNS
	if e.Final && !e.done() && e.Ending != InFlight && link.EpochOfNanos(h.Time) != e.FirstEpoch {
		e.readLate = true
		a.schedule(e, h.Time+int64(a.o.DropWait))
	}
	if h.Process != nil {
		a.serves(h.NetNS, h.Process)
		a.worksOn(e, h.NetNS, h.Process)
	}
}

// clientRead notes that the client was handed the answer: whatever was seen or not seen before, it has it.
func (a *Assembler) clientRead(e *entry, h *hop.Hop) {
	a.keep(e, h)
	e.ReadByClient = true
	if !e.done() {
		e.deliver()
		if e.serving != nil && !e.serving.Answered {
			e.serving.Answered, e.serving.End = true, h.Time
		}
	}
	e.remember()
	a.schedule(e, h.Time+int64(a.o.Linger))
}

// readByServer finds the lookup whose query was read; nil where it was none that waits to be.
func (a *Assembler) readByServer(p *hop.Packet) *entry {
	s := a.sockets.get(socketID{p.Src, p.Transport})
	if s == nil {
		return nil
	}
	s.served = max(s.served, p.Time)
	for l := s.unread.first; l != nil; l = l.next {
		if e := l.e; e.unread.netns == p.NetNS && !e.answeredSince(e.unread.since) && e.readAs(p) {
			return e
		}
	}
	// The query came by a way that is out of sight. It is one for this port that nobody has read.
	n := 0
	for l := s.open.first; l != nil && n < maxByID; l, n = l.next, n+1 {
		e := l.e
		if e.answeredSince(e.lastQuery) || e.ServerProcess != nil && e.readAt() >= e.lastQuery || e.Connect ||
			e.Ending == Dropped || !e.readAs(p) {
			continue
		}
		return e
	}
	return nil
}

const minProxyHeader = 16 // bytes: haproxy's proxy-protocol.txt, section 2.2

// answeredSince says whether an answer to the query was seen after a time, in ns since 1970.
func (e *entry) answeredSince(t int64) bool {
	if !e.AnswerSeen {
		return false
	}
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if h := &e.Hops[i]; h.Answer && h.Kind != hop.Unreachable {
			return h.Time >= t
		}
	}
	return true
}

// readAs says whether what a server read can be the lookup's query: it went to that socket, and has its size, or that
// and more for a load balancer's header.
func (e *entry) readAs(p *hop.Packet) bool {
	to := e.lastQueryDst()
	if to.Port != p.Dst.Port || !unspecified(p.Dst.Addr) && p.Dst != to && !e.goes(p.Dst) {
		return false
	}
	return p.PayloadLen == 0 || p.PayloadLen == e.QuerySize || p.PayloadLen >= e.QuerySize+minProxyHeader
}

// readByClient takes a client's read; false where it belongs to no lookup in flight.
func (a *Assembler) readByClient(p *hop.Packet) bool {
	s := a.readingSocket(p)
	if s == nil {
		return false
	}
	s.read = max(s.read, p.Time)
	if i := s.next(p); i >= 0 {
		x, among := s.arrived[i], len(s.arrived) > 1
		s.arrived = slices.Delete(s.arrived, 0, i+1) // what came before was read, too, or is out of reach
		if x := a.addresses[p.NetNS]; x != nil {
			x.unread = 0
		}
		e := x.of()
		switch {
		case x.mismatch != nil:
			x.mismatch.Read, x.mismatch.unread = true, false
		case e == nil, e.ReadByClient && e.done():
			// A copy: the client takes it for the answer to what it has asked again.
			if e = s.asksAgain(&x, p.Src, p.Time); e != nil {
				e.Body.Rcode = x.rcode
				a.readAnswer(e, p)
			}
		case e.askedAgain > p.Time, e.Attempts > 1 && e.lastQuery > p.Time && !e.retried():
			a.split(e, p)
		default:
			e.ReadAmong = among
			a.readAnswer(e, p)
		}
		return true
	}
	return a.readUnseen(s, p)
}

// split ends a lookup whose answer was read before the client asked again, which another CPU's record told first: what
// was taken for a further attempt is a lookup of its own.
func (a *Assembler) split(e *entry, read *hop.Packet) {
	from := e.lastQuery
	if e.askedAgain > read.Time {
		from = e.askedAgain
	}
	var again []hop.Hop
	e.seen = window{}
	e.Hops = slices.DeleteFunc(e.Hops, func(h hop.Hop) bool {
		if h.Time < from || h.Kind == hop.Read && h.Answer {
			return false
		}
		again = append(again, h)
		return true
	})
	q := hop.Packet{Transport: uint8(e.Transport), HasHead: true, PayloadLen: e.QuerySize}
	q.Head.ID, q.Head.Type, q.Head.Class, q.Head.Name = e.ID, e.Type, e.Class, slices.Clone(e.Name)
	q.Head.Flags, q.Head.Questions = dnswire.Flags(e.Opcode)<<11, e.Questions
	e.Attempts--
	for i := range e.Hops {
		if h := &e.Hops[i]; !h.Answer && int(h.Attempt) == e.Attempts-1 {
			e.lastQuery = h.Time
			break
		}
	}
	e.askedAgain = 0
	a.readAnswer(e, read)
	a.finish(e)
	for i := range again {
		q.Hop = again[i]
		a.Add(&q)
	}
}

// asksAgain gives the lookup in flight that a late copy of an earlier answer answers; nil where there is none.
func (s *socket) asksAgain(x *arrival, from hop.Endpoint, at int64) *entry {
	n := 0
	for l := s.open.last; l != nil && n < maxByID; l, n = l.prev, n+1 {
		e := l.e
		if e.ID == x.id && e.questionHash == x.question && !e.Connect && !e.ReadByClient && e.goes(from) &&
			e.Start() <= at {
			return e
		}
	}
	return nil
}

// next gives which of what came to a socket it hands out now; -1 where that is none.
func (s *socket) next(p *hop.Packet) int {
	best := -1
	for i := range s.arrived {
		x := &s.arrived[i]
		if p.PayloadLen != 0 && p.PayloadLen != x.size && p.PayloadLen < 512 || x.time > p.Time {
			continue // a reader's buffer may be too small for it
		}
		e := x.of()
		if x.src == p.Src || e != nil && (e.goes(p.Src) || e.AnswerSource == p.Src) ||
			e == nil && s.asksAgain(x, p.Src, p.Time) != nil {
			return i
		}
		if best < 0 && x.mismatch == nil {
			best = i
		}
	}
	if best >= 0 && s.awaits(p.Src) {
		return -1 // that server's answer came unseen
	}
	return best
}

// readAnswer notes that the client read the lookup's answer.
func (a *Assembler) readAnswer(e *entry, p *hop.Packet) {
	h := p.Hop
	h.Answer = true
	h.Dst = e.Client // the socket may be bound to no address
	h.Attempt = uint8(e.Attempts - 1)
	if !e.done() && h.Time < e.lastQuery {
		h.Attempt = e.attemptOf(&h) // another CPU's record: the client has asked again since
		a.keep(e, &h)
		if e.AnswerSeen && !e.answeredSince(e.lastQuery) && e.Transport == link.UDP {
			// What was seen is what was read, and answers nothing that was asked since.
			e.AnswerSeen, e.Delivered, e.ReadUnseen, e.ReadInferred, e.readBlind = false, false, false, false, false
			e.Body, e.Flags = dnswire.Body{}, 0
		}
		return
	}
	a.clientRead(e, &h)
}

// readUnseen puts a read to the lookup whose answer came by a way that is out of sight. It may have been seen before
// that.
func (a *Assembler) readUnseen(s *socket, p *hop.Packet) bool {
	var best *entry
	rank, n, waiting := 0, 0, 0
	for l := s.open.first; l != nil && n < maxByID; l, n = l.next, n+1 {
		e := l.e
		if e.ReadByClient && e.Mismatch != nil && e.Mismatch.unread {
			waiting++ // what came may have been that
		}
		if e.ReadByClient || e.Connect || !e.goes(p.Src) && e.AnswerSource != p.Src || e.unlike(p) ||
			e.Ending == Dropped && (e.answerDropped(p.Time) || !e.AnswerSeen && e.Attempts+e.AttemptsBefore == 1) {
			continue
		}
		r := 1
		switch {
		case e.AnswerSeen, e.Mismatch != nil && e.Mismatch.like(p):
			r = 3 // something is on its way to it
		case e.Ending == InFlight:
			r = 2 // it waits
		}
		waiting++
		if e.Mismatch != nil && e.Mismatch.unread && !e.Mismatch.like(p) {
			waiting++
		}
		if r > rank {
			best, rank = e, r
		}
	}
	if best == nil {
		return false
	}
	if best.Mismatch != nil && !best.AnswerSeen && best.Mismatch.like(p) {
		best.Mismatch.Arrived, best.Mismatch.Read, best.Mismatch.unread = true, true, false
		return true
	}
	// Where arrivals are seen, something else may have come that was not; of several lookups, another may have been
	// answered.
	x := a.addresses[p.NetNS]
	best.ReadUnseen = true
	best.ReadInferred = waiting > 1 || x != nil && x.arrivals || s.astray != 0
	// What was read may have been no answer to the question, too, until one is seen that was on its way.
	best.readBlind = !best.ReadInferred && !best.AnswerSeen
	best.ReadInferred = best.ReadInferred || best.readBlind
	best.readEarly, best.readSize = p.Time, p.PayloadLen
	s.guesses++
	a.readAnswer(best, p)
	return true
}

// misread takes back a read of what was not seen coming, when the lookup's answer turns out to be of another size: it
// was that of another lookup of the socket.
func (a *Assembler) misread(e *entry, size int) {
	if !e.ReadUnseen || e.AnswerSeen || e.readSize == 0 || e.readSize == size || size >= 512 || e.socket == nil {
		return
	}
	s := e.socket
	if p, ok := e.giveBack(); ok {
		e.ReadByClient = true // not its own again
		a.readUnseen(s, &p)
		e.ReadByClient = false
	}
}

// claim takes for a lookup the read that another one of its socket was given: its answer was on the way before that
// read, which another CPU's record told first, and nothing was seen of an answer to the other.
func (a *Assembler) claim(e *entry, p *hop.Packet) {
	n := 0
	for l := e.socket.open.first; l != nil && n < maxByID; l, n = l.next, n+1 {
		x := l.e
		if x == e || !x.ReadUnseen || x.AnswerSeen || x.readEarly < p.Time || !e.goes(p.Src) ||
			x.readSize != 0 && x.readSize != p.PayloadLen {
			continue
		}
		i := slices.IndexFunc(x.Hops, func(h hop.Hop) bool { return h.Kind == hop.Read && h.Time == x.readEarly })
		if i < 0 || !e.goes(x.Hops[i].Src) {
			continue
		}
		e.readSize = x.readSize
		read, _ := x.giveBack()
		e.ReadUnseen, e.ReadInferred, e.readEarly = true, true, read.Time
		a.readAnswer(e, &read)
		return
	}
}

// giveBack takes the read of what was not seen coming from a lookup, which waits for its answer again.
func (e *entry) giveBack() (p hop.Packet, ok bool) {
	for i := range e.Hops {
		if h := &e.Hops[i]; h.Kind == hop.Read && h.Answer && h.Time == e.readEarly {
			p = hop.Packet{Hop: *h, Transport: uint8(e.Transport), PayloadLen: e.readSize}
			p.Answer, p.Dst = false, e.Client
			e.Hops, e.seen = slices.Delete(e.Hops, i, i+1), window{}
			if up := e.serving; up != nil && up.End == p.Time {
				up.Answered, up.End = false, 0
			}
			e.reopen()
			return p, true
		}
	}
	return p, false
}

// like says whether what was read can be the answer that was none.
func (m *Mismatch) like(p *hop.Packet) bool {
	return m.unread && (p.PayloadLen == 0 || m.size == p.PayloadLen)
}

// unlike says that what was read is of another size than the lookup's answer. A reader's buffer may be too small for
// it.
func (e *entry) unlike(p *hop.Packet) bool {
	return e.AnswerSeen && p.PayloadLen != 0 && p.PayloadLen != e.AnswerSize && p.PayloadLen < 512
}

// answerDropped says whether the kernel dropped the answer before a time, in ns since 1970, and no other one was seen
// on its way.
func (e *entry) answerDropped(before int64) bool {
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if h := &e.Hops[i]; h.Answer && h.Kind == hop.Drop && !h.Reason.Harmless() {
			return h.Time < before && !e.answeredBeside(h)
		}
	}
	return false
}

// answeredBeside says whether more answers passed a place that the dropped one passed than were seen dropped.
func (e *entry) answeredBeside(drop *hop.Hop) bool {
	i := slices.IndexFunc(e.Hops, func(h hop.Hop) bool { return passes(&h) && h.SKB == drop.SKB })
	if i < 0 {
		return false
	}
	place, passed, dropped := &e.Hops[i], 0, 0
	for i := range e.Hops {
		switch x := &e.Hops[i]; {
		case !x.Answer:
		case x.Kind == hop.Drop && !x.Reason.Harmless():
			dropped++
		case passes(x) && x.Kind == place.Kind && x.NetNS == place.NetNS && x.IfIndex == place.IfIndex:
			passed++
		}
	}
	return passed > dropped
}

// passes says whether a hop is of an answer that passes a device.
func passes(h *hop.Hop) bool { return h.Answer && (h.Kind == hop.In || h.Kind == hop.Out) }

func (e *entry) lastQueryDst() hop.Endpoint {
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if h := &e.Hops[i]; !h.Answer && h.Kind != hop.Drop && h.Kind != hop.Unreachable && h.Kind != hop.Read {
			return h.Dst
		}
	}
	return e.Server
}
