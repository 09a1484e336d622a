package lookup

import (
	"encoding/binary"
	"slices"
	"sort"
	"time"

	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// DNS over TCP (RFC 7766): a stream of messages, each behind its length; several may share a segment, one may span
// several. Every hop shows every segment again. The first hop that shows bytes not seen before feeds them to the
// stream, which finds the messages in them; at every hop, a message has passed when its last byte has.

// Bounds of what is kept of streams.
const (
	maxStreams  = 8192
	streamIdle  = 30 * time.Second
	maxMessages = 16384     // of one direction, the newest; older ones are no longer followed
	maxPartial  = 1<<16 + 1 // bytes of a message not yet whole: its length has 16 bits
)

// TCP's flags.
const (
	tcpFIN = 1 << 0
	tcpSYN = 1 << 1
	tcpRST = 1 << 2
	tcpACK = 1 << 4
)

// streams are the connections in sight, by the client's end.
type streams struct {
	conns  map[hop.Endpoint]*conn
	masked map[hop.Endpoint]hop.Endpoint // clients' ends before their source was translated
	swept  int64
	gaps   []*held  // of streams in which something is missing
	held   int      // packets held in all of them
	began  []*entry // by the segment that is taken now
}

// before gives a client's end as it was before translation, where that was seen.
func (st *streams) before(p *hop.Packet, end hop.Endpoint) hop.Endpoint {
	if p.Tracked && p.Conntrack.ReplyDst == end && p.Conntrack.OrigSrc != end {
		if st.masked == nil || len(st.masked) >= maxStreams {
			st.masked = make(map[hop.Endpoint]hop.Endpoint)
		}
		st.masked[end] = p.Conntrack.OrigSrc
		return p.Conntrack.OrigSrc
	}
	if from, ok := st.masked[end]; ok {
		return from
	}
	return end
}

// conn is one connection.
type conn struct {
	seen    int64
	end     hop.Endpoint // the client's
	query   stream
	answer  stream
	connect *entry // the handshake, while it lasts: see connect.go
	serial  uint64 // of connect: an entry that was let go is used again
	opened  bool
	process *hop.Process // who opened it, and where; nil and 0 where that was not seen
	netns   uint32
	strays  [4]strayAnswer // the last answers to nothing that was asked
	nstrays int
}

// strayAnswer is an answer that came to no question: another CPU's record of the question may come late.
type strayAnswer struct {
	id   uint16
	time int64 // ns since 1970
}

// strayed says whether an answer to what was asked at a time, in ns since 1970, has gone by already.
func (c *conn) strayed(id uint16, asked int64) bool {
	return slices.ContainsFunc(c.strays[:], func(x strayAnswer) bool { return x.id == id && x.time > asked })
}

// stream is one direction of a connection.
type stream struct {
	synced   bool
	begun    bool    // its SYN was seen
	first    uint32  // the sequence number of its first byte, where begun
	since    int64   // when the first of it that was taken was seen, in ns since 1970
	next     uint32  // the sequence number of the next byte to take
	held     *held   // what came before its turn; nil where nothing did
	partial  []byte  // the start of a message that is not whole, its length included
	missing  int     // bytes of that message that went by without being captured
	from     uint32  // where it started
	torn     uint32  // behind the segment of it that was dropped last; from where none was
	tearing  hop.Hop // the first drop of a part of it, in the order of its bytes
	tornAt   uint32  // the first byte of it that was dropped
	tears    bool    // a segment was dropped once
	got      uint32  // behind the last byte that was read, where read is set
	read     bool
	arrived  arrived
	reached  []reached
	behind   bool // what of it came before its turn was noted of a lookup once
	messages []message
	cut      int  // bytes that were not captured
	lost     bool // where messages begin was lost, and no one has asked for it yet
	found    func(m *message, data []byte)
	proxied  hop.Endpoint // the client that a load balancer's header at its start names
	opening  bool         // what partial holds may be the start of such a header
}

// message is where in a stream a message lies, and whose it is.
type message struct {
	start, end uint32       // sequence numbers, end exclusive
	mark       uint32       // it has passed where the byte before this one has: end, or that of a dropped part's segment
	gap        uint32       // with torn: its first byte that was dropped
	torn       bool         // and was not seen since: what comes behind it is of no use yet
	head       dnswire.Head // its name lives until found returns
	size       int
	e          *entry // nil: of no lookup
	serial     uint64 // of e: an entry that was let go is used again
}

// of gives the lookup that the message is of; nil if it was let go.
func (m *message) of() *entry {
	if m.e == nil || m.e.serial != m.serial {
		return nil
	}
	return m.e
}

// addTCP takes a hop of one segment.
func (a *Assembler) addTCP(p *hop.Packet) {
	toServer := a.toServer(p)
	end := p.Dst
	if toServer {
		end = p.Src
	}
	end = a.streams.before(p, end)
	if p.Kind == hop.Read {
		a.readTCP(p, end, toServer)
		return
	}
	c := a.conn(end, p.Time)
	s := &c.answer
	if toServer {
		s = &c.query
	}
	a.handshake(c, p, toServer)
	if toServer && p.Local && p.Process != nil && c.process == nil {
		c.process, c.netns = p.Process, p.NetNS
	}
	seq := p.Seq
	if p.TCPFlags&tcpSYN != 0 {
		seq++
		switch {
		case s.begun && seq == s.first: // at another hop, sent again, or a copy of it
		case s.synced && !s.begun && p.Time < s.since && int32(s.next-seq) >= 0:
			s.begun, s.first = true, seq // another CPU's record of what followed came first
		default:
			if !s.fresh() {
				a.streams.unhold(s)
			}
			*s = stream{
				synced: true, next: seq, begun: true, first: seq, since: p.Time, held: s.held,
				messages: s.messages[:0], partial: s.partial[:0],
			}
			if s.held != nil {
				a.inTurn(s.held)
			}
		}
	}
	if p.PayloadLen > 0 && !a.hold(c, s, p, seq, toServer) {
		a.segment(c, s, p, seq, toServer)
		if s.held != nil {
			a.inTurn(s.held)
		}
	}
	if p.TCPFlags&(tcpRST|tcpFIN) != 0 {
		a.closing(c, p, toServer)
	}
}

// readTCP takes a read of a part of a stream: its range is that of Seq and PayloadLen. A message was read when its last
// byte was.
func (a *Assembler) readTCP(p *hop.Packet, end hop.Endpoint, toServer bool) {
	c := a.streams.conns[end]
	if c == nil {
		return
	}
	c.seen = p.Time
	s := &c.answer
	if toServer {
		s = &c.query
	}
	// It was read when all before its end had come, whatever the order of the records.
	if !a.hold(c, s, p, p.Seq+uint32(p.PayloadLen), toServer) {
		a.streamRead(s, p, toServer)
	}
}

func (a *Assembler) streamRead(s *stream, p *hop.Packet, toServer bool) {
	end := p.Seq + uint32(p.PayloadLen)
	s.hasRead(p.Seq, end)
	s.ending(p.Seq, end, func(m *message) {
		e := m.of()
		if e == nil || m.head.Flags.Response() == toServer || int32(end-m.end) < 0 {
			return // a message of which a part is still to be read stands where that part does
		}
		h := p.Hop
		h.Answer = !toServer
		h.Attempt = uint8(e.Attempts - 1)
		if toServer {
			a.serverRead(e, &h)
		} else if !e.ReadByClient && e.whole() {
			a.clientRead(e, &h)
		}
	})
}

// hasRead notes that bytes were read: all before them had come, whatever was dropped of them once.
func (s *stream) hasRead(from, to uint32) {
	if !s.read || int32(to-s.got) > 0 {
		s.read, s.got = true, to
	}
	if s.arrived.known {
		s.arrived.come(s.arrived.to, to)
	}
	if !s.tears {
		return
	}
	s.within(from, to, func(m *message) {
		if int32(to-m.end) >= 0 {
			m.torn, m.mark = false, m.end
		}
	})
}

// whole says that all messages of the answer have come: a zone transfer has more than one.
func (e *entry) whole() bool {
	return !e.transfer() || e.soas >= 2 || e.Body.Rcode != dnswire.RcodeSuccess
}

// transfer says whether the question is for a zone transfer (RFC 5936, RFC 1995).
func (e *entry) transfer() bool { return e.Type == dnswire.TypeAXFR || e.Type == dnswire.TypeIXFR }

// messageFound puts a message that is whole to its lookup.
func (a *Assembler) messageFound(c *conn, p *hop.Packet, m *message, data []byte, toServer bool) {
	if m.head.Flags.Response() == toServer {
		return
	}
	q := *p
	q.Head, q.HasHead, q.Answer, q.PayloadLen, q.Payload = m.head, true, !toServer, m.size, data
	var e *entry
	if toServer {
		q.Proxied = c.query.proxied
		k := keyOf(c.end, &q)
		e = a.findQuery(k, &q)
		if e != nil && (e.done() || e.Final) {
			a.finish(e) // the same asked again on the connection
			e = nil
		}
		if e == nil && p.NetNS != 0 {
			if !q.Local && c.process != nil && c.netns == p.NetNS && p.Kind == hop.Out {
				q.Local, q.Process = true, c.process // the kernel sends it of itself; the process is the connection's
			}
			e = a.begin(&q, k)
			a.streams.began = append(a.streams.began, e)
			e.AnswerUnseen = !c.answer.synced && !c.answer.fresh() || // until a message begins where a segment does
				c.nstrays > 0 && c.strayed(e.ID, q.Time)
			if e.Process == nil && c.process != nil {
				e.Process, e.ClientNetNS = c.process, c.netns
				a.know(e)
			}
		}
	} else {
		e = a.findAnswer(keyOf(c.end, &q), &q)
		if e == nil {
			c.strays[c.nstrays%len(c.strays)] = strayAnswer{q.Head.ID, q.Time}
			c.nstrays++
			a.stray(&q)
			return
		}
		e.Messages++
		if e.transfer() {
			e.soas += dnswire.CountSOA(data, m.head)
		}
		if !e.Body.Complete {
			e.Flags, e.Body = m.head.Flags, dnswire.ParseBody(data, m.head)
		}
	}
	if e != nil {
		m.e, m.serial = e, e.serial
	}
}

// toServer says whether a segment goes from the client to the server: to a DNS port, or, behind a service on another
// port, to the end that accepted the connection.
func (a *Assembler) toServer(p *hop.Packet) bool {
	to, from := slices.Contains(a.o.Ports, p.Dst.Port), slices.Contains(a.o.Ports, p.Src.Port)
	switch {
	case to != from:
		return to
	case p.Tracked && slices.Contains(a.o.Ports, p.Conntrack.OrigDst.Port):
		return p.Src == p.Conntrack.OrigSrc || p.Src == p.Conntrack.ReplyDst
	case p.TCPFlags&tcpSYN != 0:
		return p.TCPFlags&tcpACK == 0
	case a.streams.conns[p.Src] != nil:
		return true
	case a.streams.conns[p.Dst] != nil:
		return false
	}
	return p.Src.Port > p.Dst.Port // a client's port is an ephemeral one, mostly
}

func (a *Assembler) conn(end hop.Endpoint, now int64) *conn {
	st := &a.streams
	if st.conns == nil {
		st.conns = make(map[hop.Endpoint]*conn)
	}
	c := st.conns[end]
	if c == nil {
		if len(st.conns) >= maxStreams || now-st.swept > int64(streamIdle) {
			a.sweepStreams(now)
		}
		c = &conn{end: end}
		st.conns[end] = c
	}
	c.seen = now
	return c
}

// closing takes the end of a connection. What was asked on it and not answered never will be; but a record of the
// answer may come late from another CPU. A client that has said all it has to say may still wait for answers (RFC 7766,
// section 6.2.3 and 6.2.4).
func (a *Assembler) closing(c *conn, p *hop.Packet, toServer bool) {
	reset := p.TCPFlags&tcpRST != 0
	if p.Kind == hop.Drop || toServer && !reset {
		return
	}
	s := a.sockets.get(socketID{c.end, p.Transport})
	if s == nil {
		return
	}
	for l := s.open.first; l != nil; {
		e := l.e
		l = l.next
		if e.Connect || e.AnswerSeen && e.whole() || e.Ending != InFlight || e.Close != nil && e.Ending == Closed {
			continue
		}
		if e.ClientNetNS != 0 && !toServer && (p.Kind != hop.In || p.NetNS != e.ClientNetNS) && !p.Local {
			continue // it is on its way to the client
		}
		if !toServer && int32(p.Seq+uint32(p.PayloadLen)-c.answer.next) > 1 {
			e.AnswerUnseen = true // the end comes behind bytes that were not seen; a FIN has a number of its own
		}
		e.Close = &Close{Reset: reset, ByServer: !toServer, Time: p.Time, NetNS: p.NetNS}
		if p.Local {
			e.Close.Process = p.Process
		}
		e.Ending = Closed
		if !toServer {
			a.stopsWork(e) // of a client that is gone the server may not know yet
		}
		a.schedule(e, p.Time+int64(a.o.DropWait))
	}
}

// sweepStreams forgets connections that were idle, and any of them if that is not enough.
func (a *Assembler) sweepStreams(now int64) {
	st := &a.streams
	st.swept = now
	for _, c := range st.conns {
		if now-c.seen > int64(streamIdle) {
			st.forget(c)
		}
	}
	for _, c := range st.conns {
		if len(st.conns) < maxStreams {
			break
		}
		a.stats.StreamsCut++
		st.forget(c)
	}
}

// feed takes the bytes of a segment that were not seen before and finds the messages in them. size is that of the whole
// segment, of which data was captured.
func (s *stream) feed(seq uint32, data []byte, size int, now int64) {
	switch {
	case s.synced && s.early(seq):
		return // something is missing in between
	case !s.synced:
		if len(s.messages) > 0 && int32(seq-s.next) < 0 {
			return // it was gone by when the boundaries were lost
		}
		// The connection is older than the tracer: a segment that starts with a message starts the stream.
		if len(data) < 2+dnswire.HeaderSize {
			return
		}
		n := int(binary.BigEndian.Uint16(data))
		if _, err := dnswire.ParseHead(data[2:min(2+n, len(data))]); err != nil {
			return
		}
		s.synced, s.next, s.since = true, seq, now
	}
	skip := int(int32(s.next - seq))
	if skip >= size {
		return // seen before, at another hop
	}
	at := s.next
	s.next = seq + uint32(size)
	captured := data[min(skip, len(data)):]
	lost := size - skip - len(captured)
	if s.begun && (at == s.first || s.opening) {
		captured, at = s.header(captured, at)
	}
	for len(captured) > 0 {
		n := s.take(captured, at)
		captured, at = captured[n:], at+uint32(n)
	}
	switch {
	case lost == 0:
	case s.opening:
		s.cut += lost
		s.lose()
	default:
		s.cut += lost
		s.skip(lost, at)
	}
}

// header takes from the start of a stream the header of a load balancer, where there is one, in however many segments.
// It gives what lies behind it, and where that begins.
func (s *stream) header(data []byte, at uint32) (rest []byte, from uint32) {
	if s.opening {
		data, at = append(slices.Clip(s.partial), data...), s.first // not its own bytes: they are fed again
		s.partial = s.partial[:0]
	}
	n, client, more := dnswire.ProxyStream(data)
	s.opening = more
	if more {
		s.partial = append(s.partial[:0], data...)
		s.from, s.torn = s.first, s.first
		return nil, at
	}
	if client.IsValid() {
		s.proxied = hop.EndpointOf(client)
	}
	return data[n:], at + uint32(n)
}

// take adds bytes to the message in the making, as many as belong to it, and gives how many those were.
func (s *stream) take(data []byte, at uint32) int {
	if len(s.partial) == 0 {
		s.from, s.torn = at, at
	}
	want := 2
	if len(s.partial) >= 2 {
		want += int(binary.BigEndian.Uint16(s.partial)) - s.missing
	} else if len(s.partial)+len(data) >= 2 {
		var prefix [2]byte
		copy(prefix[copy(prefix[:], s.partial):], data)
		want += int(binary.BigEndian.Uint16(prefix[:]))
	}
	n := min(want-len(s.partial), len(data))
	if n <= 0 {
		s.whole(at)
		return 0
	}
	s.partial = append(s.partial, data[:n]...)
	if len(s.partial) >= 2 && len(s.partial)+s.missing == 2+int(binary.BigEndian.Uint16(s.partial)) {
		s.whole(at + uint32(n))
	}
	return n
}

// skip steps over bytes that went by without being captured. If they reach beyond the message in the making, the
// boundaries of those that follow are lost.
func (s *stream) skip(n int, at uint32) {
	if len(s.partial) < 2 {
		s.lose()
		return
	}
	rest := 2 + int(binary.BigEndian.Uint16(s.partial)) - len(s.partial) - s.missing
	s.missing += min(n, rest)
	if n >= rest {
		s.whole(at + uint32(rest))
	}
	if n > rest {
		s.lose()
	}
}

// lose gives up the boundaries: the stream starts anew with a segment that starts with a message.
func (s *stream) lose() {
	s.synced, s.opening, s.partial, s.missing, s.lost = false, false, s.partial[:0], 0, true
}

// whole ends the message in the making.
func (s *stream) whole(end uint32) {
	size := len(s.partial) + s.missing - 2
	data := s.partial[min(2, len(s.partial)):]
	s.missing = 0
	defer func() { s.partial = s.partial[:0] }()
	var head dnswire.Head
	if err := head.Parse(data); err != nil {
		if size > 0 {
			s.lose() // what was taken for a length was none
		}
		return
	}
	if len(s.messages) == maxMessages {
		s.messages = slices.Delete(s.messages, 0, maxMessages/2)
	}
	m := message{start: s.from, end: end, mark: end, head: head, size: size}
	if int32(s.torn-s.from) > 0 && int32(end-s.torn) > 0 {
		m.mark, m.gap, m.torn = s.torn, s.tornAt, true
	}
	if s.found != nil {
		s.found(&m, data)
	}
	m.head.Name = nil
	s.messages = append(s.messages, m)
}

// ending calls f for every message whose last byte is in a range of sequence numbers, end exclusive.
func (s *stream) ending(from, to uint32, f func(*message)) {
	i := sort.Search(len(s.messages), func(i int) bool { return int32(s.messages[i].mark-from) > 0 })
	for ; i < len(s.messages) && int32(to-s.messages[i].mark) >= 0; i++ {
		f(&s.messages[i])
	}
}

// arrived is what of a stream has come to its reader's network namespace: all before to, and the parts behind it that
// came before their turn.
type arrived struct {
	known bool
	to    uint32
	ahead []span
}

// span is a range of sequence numbers, end exclusive.
type span struct{ from, to uint32 }

const maxAhead = 64 // parts of one stream: the first of a window's that its loss leaves apart

// come notes that a part has come, and says whether all before it has.
func (x *arrived) come(from, to uint32) bool {
	if int32(from-x.to) > 0 {
		if len(x.ahead) < maxAhead {
			x.ahead = append(x.ahead, span{from, to})
		}
		return false
	}
	x.to = later(x.to, to)
	for again := true; again; {
		again = false
		x.ahead = slices.DeleteFunc(x.ahead, func(s span) bool {
			if int32(s.from-x.to) > 0 {
				return false
			}
			again = again || int32(s.to-x.to) > 0
			x.to = later(x.to, s.to)
			return true
		})
	}
	return true
}

// without takes back a part that came before its turn.
func (x *arrived) without(from, to uint32) {
	for i := 0; i < len(x.ahead); i++ {
		s := &x.ahead[i]
		before, behind := span{s.from, from}, span{to, s.to}
		if int32(s.to-from) <= 0 || int32(to-s.from) <= 0 {
			continue
		}
		switch rest := int32(behind.to-behind.from) > 0; {
		case int32(before.to-before.from) > 0:
			*s = before
			if rest && len(x.ahead) < maxAhead {
				x.ahead = append(x.ahead, behind)
			}
		case rest:
			*s = behind
		default:
			x.ahead = slices.Delete(x.ahead, i, i+1)
			i--
		}
	}
}

// comes notes that a segment of answers has come to the client, and says whether it came before its turn. What came
// before its turn earlier has its turn now, where nothing before it is missing any more.
func (s *stream) comes(seq, end uint32) (behind bool) {
	x := &s.arrived
	if !x.known {
		x.known, x.to = true, seq
		if s.begun {
			x.to = s.first
		}
	}
	before := x.to
	if !x.come(seq, end) {
		return true
	}
	if s.behind || int32(x.to-end) > 0 {
		s.within(before, x.to, func(m *message) {
			if e := m.of(); e != nil && int32(x.to-m.end) >= 0 {
				e.Behind = false
			}
		})
	}
	return false
}

// reached is what of a stream of queries has come to a network namespace.
type reached struct {
	netns uint32
	arrived
}

// maxReached bounds the namespaces that a stream is followed to: two nodes and a pod, and one more.
const maxReached = 4

// reaches notes that a segment of queries has come to a network namespace. What had come there before its turn has its
// turn now, where nothing before it is missing any more.
func (s *stream) reaches(netns, seq, end uint32) {
	i := slices.IndexFunc(s.reached, func(x reached) bool { return x.netns == netns })
	if i < 0 {
		if len(s.reached) == maxReached {
			return
		}
		x := reached{netns, arrived{known: true, to: seq}}
		if s.begun {
			x.to = s.first
		}
		i, s.reached = len(s.reached), append(s.reached, x)
	}
	x := &s.reached[i]
	before := x.to
	if !x.come(seq, end) || int32(x.to-end) <= 0 {
		return
	}
	s.within(before, x.to, func(m *message) {
		if e := m.of(); e != nil && e.AheadAt == netns && int32(x.to-m.end) >= 0 {
			e.AheadAt = 0
		}
	})
}

// lacks says whether bytes before an end have not come to a network namespace.
func (s *stream) lacks(netns, end uint32) bool {
	for i := range s.reached {
		if x := &s.reached[i]; x.netns == netns {
			return int32(x.to-end) < 0
		}
	}
	return false
}

// misses notes that a segment of queries, which had come to a network namespace, was dropped there.
func (s *stream) misses(netns, seq, end uint32) {
	for i := range s.reached {
		x := &s.reached[i]
		if x.netns != netns {
			continue
		}
		x.without(seq, end)
		if int32(x.to-seq) <= 0 || int32(x.to-end) > 0 && s.read && int32(s.got-end) >= 0 {
			return
		}
		to := x.to
		x.to = seq
		if int32(to-end) > 0 {
			x.come(end, to)
		}
		s.within(seq, to, func(m *message) {
			if e := m.of(); e != nil && e.AheadAt == 0 {
				e.AheadAt = netns
			}
		})
		return
	}
}

// goes notes that a segment of answers, which may have come to the client, was dropped there: what came behind it waits
// for it.
func (s *stream) goes(seq, end uint32) {
	x := &s.arrived
	x.without(seq, end)
	if !x.known || int32(x.to-seq) <= 0 {
		return
	}
	to := x.to
	x.to = seq
	if int32(to-end) > 0 {
		x.come(end, to)
	}
	s.within(seq, to, func(m *message) {
		if e := m.of(); e != nil {
			e.Behind, s.behind = true, true
		}
	})
}

// passed adds the hop to every message whose last byte is in the segment; a drop, to every message it tore.
func (a *Assembler) passed(c *conn, s *stream, p *hop.Packet, seq uint32, toServer bool) {
	end := seq + uint32(p.PayloadLen)
	if toServer && p.Kind == hop.In && p.NetNS != 0 {
		s.reaches(p.NetNS, seq, end)
	}
	atClient := !toServer && p.Kind == hop.In && p.NetNS == c.netns && p.NetNS != 0
	behind := atClient && s.comes(seq, end)
	through := func(m *message) {
		e := m.of()
		if e == nil {
			return
		}
		q := *p
		q.Answer, q.PayloadLen, q.Payload = !toServer, m.size, nil
		q.Partial = int32(seq-m.start) > 0
		q.Head.Flags = m.head.Flags
		if toServer {
			switch {
			case p.Kind == hop.Drop:
			case p.Kind == hop.In && s.lacks(p.NetNS, m.end):
				e.AheadAt = p.NetNS
			default:
				e.AheadAt = 0
			}
			a.queryHop(e, &q)
		} else {
			// Where a part of it was dropped once, it stands where that part does, and the rest may not have come.
			if (behind || atClient && int32(s.arrived.to-m.end) < 0) && !e.Delivered {
				e.Behind, s.behind = true, true
			}
			a.answerSegment(e, &q)
		}
	}
	if p.Kind != hop.Drop {
		if s.tears {
			s.mend(seq, end)
		}
		s.ending(seq, end, func(m *message) {
			if m.torn {
				m.mark = m.gap + 1 // its end may be there already when the rest of it comes
				return
			}
			through(m)
		})
		return
	}
	if s.read {
		if int32(s.got-end) >= 0 {
			return // a copy of what has been read
		}
		seq = later(seq, s.got)
	}
	if !p.Reason.Harmless() && p.NetNS != 0 {
		switch {
		case toServer:
			s.misses(p.NetNS, seq, end)
		case p.NetNS == c.netns:
			s.goes(seq, end)
		}
	}
	s.ending(seq, end, through)
	s.tear(seq, end)
	// The message that goes on behind the segment was torn.
	i := sort.Search(len(s.messages), func(i int) bool { return int32(s.messages[i].mark-end) > 0 })
	if i < len(s.messages) && int32(end-s.messages[i].start) > 0 {
		through(&s.messages[i])
		s.messages[i].mark = end // what comes behind is of no use without it
	} else if i == len(s.messages) && len(s.partial) > 0 && int32(end-s.from) > 0 {
		if s.torn == s.from || int32(seq-s.tornAt) < 0 {
			s.tornAt, s.tearing = later(seq, s.from), p.Hop
		}
		s.torn, s.tears = end, true
	}
}

// within calls f for every message of which a byte is in a range of sequence numbers, end exclusive.
func (s *stream) within(from, to uint32, f func(*message)) {
	i := sort.Search(len(s.messages), func(i int) bool { return int32(s.messages[i].end-from) > 0 })
	for ; i < len(s.messages) && int32(to-s.messages[i].start) > 0; i++ {
		f(&s.messages[i])
	}
}

// tear notes that a segment was dropped.
func (s *stream) tear(from, to uint32) {
	s.within(from, to, func(m *message) {
		if first := later(from, m.start); !m.torn || int32(first-m.gap) < 0 {
			m.torn, m.gap = true, first
			s.tears = true
		}
	})
}

// mend notes that a segment goes on, which may be what was dropped before.
func (s *stream) mend(from, to uint32) {
	s.within(from, to, func(m *message) {
		if m.torn && int32(m.gap-from) >= 0 && int32(to-m.gap) > 0 {
			m.torn = false
		}
	})
}

// later gives the later of two sequence numbers.
func later(a, b uint32) uint32 {
	if int32(a-b) > 0 {
		return a
	}
	return b
}

// answerSegment adds a hop of an answer's message. Of a zone transfer, the last one ends the lookup.
func (a *Assembler) answerSegment(e *entry, p *hop.Packet) {
	if e.transfer() && e.Messages > 1 && !e.whole() && p.Kind != hop.Drop {
		a.schedule(e, p.Time+int64(a.o.GiveUp)) // it goes on
		return
	}
	a.answerHop(e, p)
	if e.done() && !e.whole() {
		e.Ending, e.Delivered = InFlight, false
		a.schedule(e, p.Time+int64(a.o.GiveUp))
	}
}
