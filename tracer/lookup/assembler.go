package lookup

import (
	"time"

	"github.com/zeebo/xxh3"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// Defaults of [Options].
const (
	DefaultGiveUp      = 5 * time.Second // glibc's and Go's timeout (resolv.conf(5))
	DefaultDropWait    = 300 * time.Millisecond
	DefaultLinger      = 100 * time.Millisecond
	DefaultKeepLost    = 10 * time.Second
	DefaultMaxInFlight = 1 << 17
)

// maxHops bounds the hops that one lookup keeps: a routing loop ends there.
const maxHops = 512

// Options say how long an [Assembler] waits, and for how many.
type Options struct {
	// GiveUp is how long after the last attempt a lookup without an answer counts as lost.
	GiveUp time.Duration
	// DropWait is how long after the kernel dropped a lookup's packet, and nothing more was seen of it, it is reported as lost.
	DropWait time.Duration
	// Linger is how long after the answer reached the client further hops are waited for.
	Linger time.Duration
	// KeepLost is how long a lost lookup waits for a late answer.
	KeepLost time.Duration
	// MaxInFlight bounds the lookups held. The oldest is emitted as evicted when there are more.
	MaxInFlight int
	// Ports are the DNS ports: they tell a TCP connection's server from its client. None means 53.
	Ports []uint16
	// Emit gets each lookup when it has ended, and again when more becomes known. It is called by the goroutine that calls the Assembler.
	Emit func(*Lookup)
	// Losses gives the kernel events lost so far; it may be nil.
	Losses func() uint64
}

func (o *Options) setDefaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&o.GiveUp, DefaultGiveUp}, {&o.DropWait, DefaultDropWait}, {&o.Linger, DefaultLinger}, {&o.KeepLost, DefaultKeepLost}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if len(o.Ports) == 0 {
		o.Ports = []uint16{53}
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
}

// Stats are counts since the start.
type Stats struct {
	Lookups   uint64 // begun
	InFlight  int    // held now, ended ones that still wait for a late answer included
	Evicted   uint64 // emitted early because the table was full
	Orphans   uint64 // answers whose query was not seen
	Unmatched uint64 // reads that belong to no lookup in flight
	HopsCut   uint64 // hops beyond the most that one lookup keeps
	Fragments uint64 // later fragments of packets of no lookup in flight

	StreamsCut uint64 // TCP connections forgotten while they lasted: too many at once
}

// key finds a lookup: the client's end, seen from anywhere, and the DNS ID.
type key struct {
	client hop.Endpoint
	id     uint16
	proto  uint8
}

// Assembler puts hops together. It is for one goroutine.
type Assembler struct {
	o         Options
	now       int64
	table     map[key]*Lookup
	questions map[uint64]*list // by question, for upstream queries
	flows     map[flow]*flowState
	ages      list // in flight, oldest first
	wheel     wheel
	free      []*Lookup
	freeFlows []*flowState
	servers   map[uint32]struct{} // network namespaces that answer DNS
	fragments map[packetID]*fragmented
	unplaced  int // lookups held that were dropped before their conntrack entry was in the table
	streams   streams
	askers    askers
	early     earlyErrors
	serial    uint64
	stats     Stats
}

// New makes an assembler.
func New(o Options) *Assembler {
	o.setDefaults()
	return &Assembler{
		o:         o,
		table:     make(map[key]*Lookup),
		questions: make(map[uint64]*list),
		flows:     make(map[flow]*flowState),
		servers:   make(map[uint32]struct{}),
		fragments: make(map[packetID]*fragmented),
	}
}

// Stats gives the counts.
func (a *Assembler) Stats() Stats {
	s := a.stats
	s.InFlight = a.ages.n
	return s
}

// Add takes one packet; it copies what it keeps.
func (a *Assembler) Add(p *hop.Packet) {
	if p.Time > a.now {
		a.Sweep(p.Time)
	}
	switch {
	case p.Transport == uint8(link.TCP):
		a.addTCP(p)
	case p.Later:
		a.addFragment(p)
	case p.Kind == hop.Read && !p.HasHead:
		a.addRead(p)
	case p.Kind == hop.Unreachable:
		a.addUnreachable(p)
	case p.HasHead:
		a.addMessage(p, p.Payload)
	}
}

// addMessage takes a hop of one DNS message.
func (a *Assembler) addMessage(p *hop.Packet, message []byte) {
	switch {
	case p.Answer:
		a.addAnswer(p, message)
	case p.Head.Questions == 1:
		a.addQuery(p, message)
	}
}

// addUnreachable takes an ICMP error about a query or an answer. What it quotes has the addresses as they were where it was refused.
func (a *Assembler) addUnreachable(p *hop.Packet) {
	end := p.Src
	if p.Answer {
		end = p.Dst
	}
	k := key{end, p.Head.ID, p.Transport}
	l := a.find(k, &p.Head)
	if l == nil {
		if !p.Answer {
			a.early.add(p, k)
		}
		return
	}
	p.Hop.Attempt = uint8(l.Attempts - 1)
	a.keep(l, &p.Hop)
	if l.AnswerSeen || p.Answer || l.Ending == Answered {
		return
	}
	l.Ending = Dropped
	a.schedule(l, p.Time+int64(a.o.DropWait))
}

func (a *Assembler) addQuery(p *hop.Packet, message []byte) {
	k := key{p.Src, p.Head.ID, p.Transport}
	l := a.find(k, &p.Head)
	if l == nil && p.Tracked && p.Conntrack.OrigSrc != p.Src && p.Conntrack.ReplyDst == p.Src {
		// The source was translated here: the same lookup under another name.
		if l = a.find(key{p.Conntrack.OrigSrc, p.Head.ID, p.Transport}, &p.Head); l != nil {
			a.index(l, k)
		}
	}
	if l != nil && l.done() && p.Kind != hop.Drop && !l.sameWalk(&p.Hop) {
		// The same port and ID ask the same again right after the answer: glibc does, after a SERVFAIL. The trace link takes it
		// for a further attempt, and so it is.
		l.reopen()
	}
	if l == nil {
		l = a.begin(p, k, message)
	} else if l.startsAttempt(&p.Hop) {
		l.Attempts = min(l.Attempts+1, 255)
		l.lastQuery = p.Time
		l.cut = false
		if l.Ending == Dropped || l.Ending == GaveUp {
			l.Ending = InFlight
		}
	}
	if p.Local && l.Process == nil {
		l.Process, l.ClientNetNS = p.Process, p.NetNS // another CPU's record came first
		a.untranslate(l, p)
	}
	p.Hop.Attempt = l.attemptOf(&p.Hop)
	a.keep(l, &p.Hop)
	a.followFragments(l, p)
	if l.past == nil && l.Process != nil {
		a.relate(l)
	}
	switch {
	case p.Kind == hop.Drop:
		if len(l.Hops) == 1 {
			if e := a.early.take(p, k); e != nil {
				a.keep(l, e)
			}
		}
		a.leave(&l.unread, true)
		if !p.Reason.Harmless() && !l.AnswerSeen {
			l.Ending = Dropped
			a.findClash(l, &p.Hop)
			if l.serving != nil {
				l.serving.Dropped = p.Reason
			}
			a.schedule(l, p.Time+int64(a.o.DropWait))
		}
		return
	case l.Ending == Dropped:
		// A copy went on; or another CPU's record came late.
		if !l.progressed(&p.Hop) {
			return
		}
		l.Ending = InFlight
	}
	l.Translated = p.Src
	a.winsClash(l, &p.Hop)
	if p.Kind == hop.In {
		a.waitForRead(l, p.Src, p.NetNS)
	}
	if p.Kind == hop.Read {
		l.ServerNetNS, l.ServerProcess = p.NetNS, p.Process
		a.serves(p.NetNS)
	}
	if !l.done() {
		a.schedule(l, l.lastQuery+int64(a.o.GiveUp))
	}
}

// begin starts a lookup with its first hop.
func (a *Assembler) begin(p *hop.Packet, k key, message []byte) *Lookup {
	if a.ages.n >= a.o.MaxInFlight {
		a.evict(a.ages.head)
	}
	l := a.alloc()
	l.Transport = link.Transport(p.Transport)
	l.ID, l.Type, l.Class = p.Head.ID, p.Head.Type, p.Head.Class
	l.Name = append(l.Name, p.Head.Name...)
	l.Client, l.Translated, l.Server = p.Src, p.Src, p.Dst
	l.Attempts = 1
	l.lastQuery = p.Time
	l.QuerySize = len(message)
	if a.o.Losses != nil {
		l.lossesBefore = a.o.Losses()
	}
	a.stats.Lookups++
	a.index(l, k)
	a.ages.push(&l.age)
	a.indexQuestion(l)
	switch {
	case p.Local:
		l.Process, l.ClientNetNS = p.Process, p.NetNS
		a.untranslate(l, p)
		a.findServed(l, p.NetNS)
	case p.Kind == hop.Out && l.Transport == link.TCP:
		// A segment that the kernel sends of itself tells no process; but where its first device is, there it comes from.
		a.findServed(l, p.NetNS)
	case p.Kind == hop.Drop && p.IfIndex == 0 && p.NetNS != 0:
		l.ClientNetNS = p.NetNS // dropped before it had a device: it was sent here
		l.Process = p.Process
	}
	return l
}

// untranslate finds out whom the process really asked, and from where, where the packet was translated before it had a device: the service address in a
// namespace that translates for itself, as a node does for its own processes. The answer is translated back only after its last device.
func (a *Assembler) untranslate(l *Lookup, p *hop.Packet) {
	ct := &p.Conntrack
	if !p.Tracked || ct.ReplyDst != p.Src || ct.ReplySrc != p.Dst || ct.OrigSrc == p.Src && ct.OrigDst == p.Dst {
		return
	}
	l.Client, l.Server = ct.OrigSrc, ct.OrigDst
	if l.Client != p.Src {
		a.index(l, key{l.Client, p.Head.ID, p.Transport})
	}
}

func (a *Assembler) addAnswer(p *hop.Packet, message []byte) {
	l := a.find(key{p.Dst, p.Head.ID, p.Transport}, &p.Head)
	if l == nil {
		a.stats.Orphans++
		return
	}
	p.Hop.Attempt = uint8(l.Attempts - 1)
	a.keep(l, &p.Hop)
	a.followFragments(l, p)
	if p.Kind == hop.Drop {
		if !p.Reason.Harmless() && (!l.Delivered || (l.deliveredSKB == p.SKB && !l.ReadByClient)) {
			l.Delivered = false // it came, and there was nobody to take it
			l.Ending = Dropped
			a.schedule(l, p.Time+int64(a.o.DropWait))
		}
		return
	}
	first := !l.AnswerSeen
	l.AnswerSeen = true
	if first {
		l.AnsweredBy = p.Src
		l.AnswerSize = p.PayloadLen
	}
	l.AnswerSource = p.Src
	if !l.Body.Complete {
		l.Flags = p.Head.Flags
		l.Body = dnswire.ParseBody(message, p.Head)
	}
	if p.Local {
		l.ServerProcess, l.ServerNetNS = p.Process, p.NetNS
		a.serves(p.NetNS)
	}
	if l.serving != nil && first {
		l.serving.Answered, l.serving.End, l.serving.Rcode = true, p.Time, l.Body.Rcode
	}
	switch {
	case p.Kind == hop.Read:
		l.ReadByClient = true
		l.deliver()
	case l.ClientNetNS != 0:
		// The client is in sight: answered when the answer arrives where it was asked. A packet that never leaves the namespace arrives, too (loopback).
		if p.Kind != hop.In || p.NetNS != l.ClientNetNS {
			break
		}
		a.waitForClient(l)
		if p.Fragment.Bytes != 0 && l.Arrived(&p.Hop) < p.PayloadLen+udpHeader {
			break // the rest is still to come
		}
		l.deliver()
		l.deliveredSKB = p.SKB
	case p.Kind == hop.Out:
		l.deliver()
	}
	if l.done() {
		l.remember()
		a.schedule(l, p.Time+int64(a.o.Linger))
	} else if !l.cut { // else its first fragment alone goes on
		l.Ending = InFlight
		a.schedule(l, p.Time+int64(a.o.GiveUp))
	}
}

// maxServers bounds the namespaces remembered as those of servers.
const maxServers = 4096

func (a *Assembler) serves(netns uint32) {
	if _, known := a.servers[netns]; !known && len(a.servers) < maxServers {
		a.servers[netns] = struct{}{}
	}
}

// deliver notes that the answer has come where it was going.
func (l *Lookup) deliver() {
	l.Delivered = true
	if l.reported == Dropped || l.reported == GaveUp {
		l.Late = l.Final || l.reported == GaveUp
	}
	l.Ending = Answered
}

// reopen makes an answered lookup wait for the answer to a further attempt. What was known of the first answer is overwritten by the next.
func (l *Lookup) reopen() {
	l.Ending = InFlight
	l.AnswerSeen, l.Delivered, l.ReadByClient = false, false, false
	l.Body, l.Flags = dnswire.Body{}, 0
}

func (l *Lookup) done() bool { return l.Ending == Answered }

// progressed says whether a hop comes after everything that ended the attempt before it.
func (l *Lookup) progressed(h *hop.Hop) bool {
	for i := range l.Hops {
		x := &l.Hops[i]
		if x.Attempt == h.Attempt && (x.Kind == hop.Drop && !x.Reason.Harmless() || x.Kind == hop.Unreachable) && x.Time > h.Time {
			return false
		}
	}
	return true
}

// sameWalk says that a query's hop may belong to an answered lookup: the answer overtook the record of it.
func (l *Lookup) sameWalk(h *hop.Hop) bool {
	for i := range l.Hops {
		if x := &l.Hops[i]; x.Answer {
			return h.Time < x.Time
		}
	}
	return true
}

// startsAttempt says whether the query was sent again: a packet passes each device and direction once.
func (l *Lookup) startsAttempt(h *hop.Hop) bool {
	if h.Kind != hop.In && h.Kind != hop.Out {
		return false
	}
	last := uint8(l.Attempts - 1)
	for i := range l.Hops {
		x := &l.Hops[i]
		if !x.Answer && x.Attempt == last && x.Kind == h.Kind && x.NetNS == h.NetNS && x.IfIndex == h.IfIndex {
			return true
		}
	}
	return false
}

// attemptOf gives the attempt that a query's hop belongs to: that of the same packet, else the last.
func (l *Lookup) attemptOf(h *hop.Hop) uint8 {
	last := uint8(l.Attempts - 1)
	if last == 0 || h.SKB == 0 || h.Kind != hop.Drop {
		return last
	}
	for i := len(l.Hops) - 1; i >= 0; i-- {
		if x := &l.Hops[i]; x.SKB == h.SKB && !x.Answer {
			return x.Attempt
		}
	}
	return last
}

// keep adds a hop. A dropped packet that has lost its device gets that of the same packet's last hop.
func (a *Assembler) keep(l *Lookup, h *hop.Hop) {
	if len(l.Hops) >= maxHops {
		a.stats.HopsCut++
		return
	}
	if h.Kind == hop.Drop && h.IfIndex == 0 {
		for i := len(l.Hops) - 1; i >= 0; i-- {
			if x := &l.Hops[i]; x.SKB == h.SKB && x.SKB != 0 && x.Kind != hop.Drop {
				h.IfIndex, h.Dev = x.IfIndex, x.Dev
				if h.NetNS == 0 {
					h.NetNS = x.NetNS
				}
				break
			}
		}
	}
	l.Hops = append(l.Hops, *h)
}

func (a *Assembler) find(k key, h *dnswire.Head) *Lookup {
	for l := a.table[k]; l != nil; l = l.chain {
		if h.Questions == 0 || (l.Type == h.Type && l.Class == h.Class && dnswire.EqualName(l.Name, h.Name)) {
			return l
		}
	}
	return nil
}

// index makes a lookup findable by another key. Only the first key's chain is walked by find, so that a second lookup with the
// same end and ID, and another question, goes in front of the chain.
func (a *Assembler) index(l *Lookup, k key) {
	if l.nkeys == len(l.keys) {
		return
	}
	if l.nkeys == 0 {
		l.chain = a.table[k]
	} else if a.table[k] != nil {
		return // taken: the translated end is used by another lookup with the same ID
	}
	l.keys[l.nkeys] = k
	l.nkeys++
	a.table[k] = l
}

func (a *Assembler) unindex(l *Lookup) {
	for _, k := range l.keys[:l.nkeys] {
		head := a.table[k]
		switch {
		case head == l && l.chain == nil, head == l && k != l.keys[0]:
			delete(a.table, k)
		case head == l:
			a.table[k] = l.chain
		default:
			for x := head; x != nil; x = x.chain {
				if x.chain == l {
					x.chain = l.chain
					break
				}
			}
		}
	}
	l.nkeys = 0
}

// Sweep emits what has ended by now, in ns since 1970. Call it when no packet comes, too.
func (a *Assembler) Sweep(now int64) {
	a.now = max(a.now, now)
	a.wheel.advance(a.now, a.expire)
}

// Flush emits everything that is still in flight as it stands: at the end of a run.
func (a *Assembler) Flush() {
	for l := a.ages.head; l != nil; l = a.ages.head {
		a.finish(l)
	}
}

// expire is called when a lookup's deadline has come.
func (a *Assembler) expire(l *Lookup) {
	switch l.Ending {
	case Answered:
		a.finish(l)
	case Dropped:
		if l.reported != Dropped {
			a.report(l, false)
			a.schedule(l, max(l.lastQuery+int64(a.o.GiveUp), a.now+1))
			return
		}
		a.giveUp(l)
	case InFlight:
		l.Ending = GaveUp
		a.giveUp(l)
	default:
		a.release(l)
	}
}

// giveUp reports a lost lookup for good, and keeps it for a late answer.
func (a *Assembler) giveUp(l *Lookup) {
	if l.Final {
		a.release(l)
		return
	}
	a.report(l, true)
	a.schedule(l, a.now+int64(a.o.KeepLost))
}

// finish reports a lookup that has ended, if it is not yet reported so, and lets it go.
func (a *Assembler) finish(l *Lookup) {
	if !l.Final || l.reported != l.Ending {
		a.report(l, true)
	}
	a.release(l)
}

func (a *Assembler) evict(age *Lookup) {
	a.stats.Evicted++
	if age.Ending == InFlight {
		age.Ending = Evicted
	}
	a.finish(age)
}

func (a *Assembler) report(l *Lookup, final bool) {
	// Nearly always they are in order: two CPUs' records may not be.
	for i := 1; i < len(l.Hops); i++ {
		for k := i; k > 0 && l.Hops[k].Time < l.Hops[k-1].Time; k-- {
			l.Hops[k], l.Hops[k-1] = l.Hops[k-1], l.Hops[k]
		}
	}
	l.FinalBefore = l.Final
	l.Final = l.Final || final
	l.Confirms = l.Revision > 0 && l.reported == Dropped && (l.Ending == Dropped || l.Ending == GaveUp) && len(l.Hops) == l.reportedHops
	if a.o.Losses != nil {
		l.EventsLost = a.o.Losses() - l.lossesBefore
	}
	a.o.Emit(l)
	if l.Final && !l.FinalBefore {
		l.finalHops = len(l.Hops)
	}
	l.reported, l.reportedHops = l.Ending, len(l.Hops)
	l.Revision++
}

func (a *Assembler) release(l *Lookup) {
	if l.past != nil {
		l.past.lookup = nil
	}
	l.Handshake = 0
	a.wheel.remove(l)
	a.ages.remove(&l.age)
	a.unindex(l)
	a.unindexQuestion(l)
	a.unwait(l)
	a.forgetFragments(l)
	if l.unplaced {
		a.unplaced--
	}
	if len(a.free) < 4096 {
		a.free = append(a.free, l)
	}
}

func (a *Assembler) alloc() *Lookup {
	var l *Lookup
	if n := len(a.free); n > 0 {
		l = a.free[n-1]
		a.free = a.free[:n-1]
		*l = Lookup{Hops: l.Hops[:0], Name: l.Name[:0], Related: l.Related[:0], Fragments: l.Fragments[:0], packets: l.packets[:0]}
	} else {
		l = &Lookup{Hops: make([]hop.Hop, 0, 24)}
	}
	l.slot = -1
	l.age.l, l.timer.l, l.question.l = l, l, l
	l.unread.l, l.undelivered.l = l, l
	return l
}

func (a *Assembler) schedule(l *Lookup, deadline int64) {
	l.deadline = deadline
	a.wheel.put(l, a.now)
}

func hashQuestion(l *Lookup) uint64 {
	var buf [link.MaxQName + 2]byte
	b := dnswire.AppendLower(buf[:0], l.Name)
	return xxh3.Hash(append(b, byte(l.Type>>8), byte(l.Type)))
}
