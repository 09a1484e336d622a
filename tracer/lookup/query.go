package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// addQuery takes a hop of a query over UDP.
func (a *Assembler) addQuery(p *hop.Packet) {
	k := keyOf(p.Src, p)
	e := a.findQuery(k, p)
	if e == nil && p.Tracked && p.Conntrack.OrigSrc != p.Src && p.Conntrack.ReplyDst == p.Src {
		// The source was translated here: the same lookup under another name.
		before := k
		before.client = p.Conntrack.OrigSrc
		if e = a.findQuery(before, p); e != nil {
			a.alias(e, k)
		}
	}
	if e != nil && e.done() && e.restarts(p) && !e.retried() && !a.unreadAnswer(e) {
		a.finish(e) // the client asks the same anew
		e = nil
	}
	if e == nil {
		if !begins(p) {
			a.stats.Stale++
			return
		}
		e = a.begin(p, k)
	}
	a.queryHop(e, p)
}

// begins says whether a query's hop may be the first that is seen of a lookup. A packet that is dropped without a
// device and without its sender waited in a socket: it was seen before, and reported.
func begins(p *hop.Packet) bool { return p.NetNS != 0 }

// retried says that the answer was none that ends a client's asking: glibc and musl ask the same again, from the same
// port with the same ID, after SERVFAIL, NOTIMP and REFUSED.
func (e *entry) retried() bool { return retries(e.Body.Rcode) }

func retries(rcode uint16) bool {
	switch rcode {
	case dnswire.RcodeSuccess, dnswire.RcodeNXDomain:
		return false
	}
	return true
}

// restarts says whether a query's hop is that of a query sent anew, after the lookup's answer, and not one of the
// answered query that is told late.
func (e *entry) restarts(p *hop.Packet) bool {
	if p.Kind != hop.In && p.Kind != hop.Out && (p.Kind != hop.Drop || !p.Local) {
		return false
	}
	first := &e.Hops[0]
	if !p.Local && (p.Kind != first.Kind || p.NetNS != first.NetNS || p.IfIndex != first.IfIndex) ||
		e.comesFurther(&p.Hop) {
		return false
	}
	answered := int64(0)
	for i := range e.Hops {
		if h := &e.Hops[i]; h.Answer && h.Kind != hop.Unreachable {
			answered = h.Time
			break
		}
	}
	return p.Time > answered
}

// queryHop adds a hop of a query to its lookup.
func (a *Assembler) queryHop(e *entry, p *hop.Packet) {
	if e.Transport == link.TCP && len(e.Hops) > 0 {
		if had := e.serverHad(); had != 0 && p.Time > had {
			a.stats.Stale++
			return
		}
	}
	fresh, attempts := len(e.Hops) == 0, e.Attempts
	switch {
	case fresh:
	case e.done():
		if !e.restarts(p) || e.askedAgain != 0 && !e.startsAttempt(p) {
			break
		}
		if !a.unreadAnswer(e) {
			e.reopen()
		} else if e.askedAgain == 0 {
			e.askedAgain = p.Time // the answer is in its socket, and ends the asking when it is read
		}
		a.attempt(e, p)
	case e.startsAttempt(p):
		a.attempt(e, p)
	}
	if p.Local && e.Process == nil {
		e.Process, e.ClientNetNS = p.Process, p.NetNS // another CPU's record came first
		a.untranslate(e, p)
		a.know(e)
		if !e.AskedBefore && e.Revision == 0 && len(e.Hops) > 0 {
			a.reported.continues(e, e.Hops[0].Time) // whom it asks, is known only now
		}
	}
	p.Hop.Attempt = uint8(e.Attempts - 1)
	if e.Attempts == attempts {
		p.Hop.Attempt = e.attemptOf(&p.Hop)
	}
	a.keep(e, &p.Hop)
	a.followFragments(e, p)
	a.seeEntry(e, p)
	if e.past == nil && e.Process != nil {
		a.relate(e)
	}
	if p.Kind == hop.Drop {
		a.queryDropped(e, p, fresh)
		return
	}
	if e.Ending == Dropped {
		// A copy went on; or another CPU's record came late.
		if !e.progressed(&p.Hop) {
			return
		}
		e.Ending = InFlight
	}
	e.went(p.Dst)
	e.Translated = p.Src
	a.winsClash(e, &p.Hop)
	if p.Kind == hop.In && e.Transport == link.UDP && (e.ServerProcess == nil || e.readAt() <= p.Time) {
		a.waitForRead(e, p.Src, p.NetNS, p.Time)
	}
	if !e.done() && e.Ending != GaveUp { // a copy that comes after the give-up ends no wait for a late answer
		a.schedule(e, e.lastQuery+int64(a.o.GiveUp))
	}
}

// serverHad gives since when the server is known to have a query, in ns since 1970; 0 where it is not. What TCP sends
// again after that, because the acknowledgement was lost or late, changes nothing.
func (e *entry) serverHad() int64 {
	for i := range e.Hops {
		if h := &e.Hops[i]; h.Kind == hop.Read && !h.Answer || h.Answer && h.Kind != hop.Unreachable {
			return h.Time
		}
	}
	return 0
}

func (a *Assembler) queryDropped(e *entry, p *hop.Packet, first bool) {
	if first {
		if x := a.early.take(p, keyOf(p.Src, p)); x != nil {
			a.keep(e, x)
		}
	}
	lay := e.unread.socket != nil && e.unread.netns == p.NetNS && p.Fragment == (hop.Fragment{})
	a.leave(&e.unread)
	if p.Reason.Harmless() || e.AnswerSeen || e.done() {
		return
	}
	if e.Ending == GaveUp && lay && p.Time > e.gaveUpAt {
		return // it lay in a socket until that ended, and nobody waited any more: it was lost because nobody read it
	}
	e.Ending = Dropped
	a.findClash(e, &p.Hop)
	a.findHolder(e, &p.Hop)
	if e.serving != nil {
		e.serving.Dropped = p.Reason
	}
	a.schedule(e, p.Time+int64(a.o.DropWait))
}

// attempt begins a further attempt.
func (a *Assembler) attempt(e *entry, p *hop.Packet) {
	e.Attempts = min(e.Attempts+1, 255)
	e.lastQuery = p.Time
	e.cut = false
	e.Close = nil
	switch e.Ending {
	case Dropped, GaveUp, Closed:
		e.Ending = InFlight
		if e.AnswerSeen && e.Transport == link.UDP {
			// What was seen of an answer was lost with the attempt before.
			e.AnswerSeen, e.Delivered = false, false
			e.Body, e.Flags = dnswire.Body{}, 0
		}
	}
}

// begin starts a lookup with its first hop.
func (a *Assembler) begin(p *hop.Packet, k key) *entry {
	a.makeRoom()
	e := a.alloc()
	e.Transport = link.Transport(p.Transport)
	e.ID, e.Type, e.Class = p.Head.ID, p.Head.Type, p.Head.Class
	e.Opcode, e.Questions, e.Malformed = p.Head.Flags.Opcode(), p.Head.Questions, p.Head.Malformed
	e.Name = append(e.Name, p.Head.Name...)
	e.Client, e.Translated, e.Server, e.Proxied = p.Src, p.Src, p.Dst, p.Proxied
	e.went(p.Dst)
	e.Attempts = 1
	e.lastQuery = p.Time
	e.QuerySize = p.PayloadLen
	e.lossesBefore = a.lossesBefore(p.Time)
	a.stats.Lookups++
	for x := a.table.get(&k); x != nil; x = x.next {
		if x.e.same(&p.Head) {
			e.second, x.e.first = true, true
		}
	}
	a.alias(e, k)
	a.ages.push(&e.age)
	e.questionHash = k.question
	a.indexQuestion(e)
	switch {
	case p.Local:
		e.Process, e.ClientNetNS = p.Process, p.NetNS
		a.untranslate(e, p)
		a.findServed(e, p.NetNS)
	case p.Kind == hop.Out && e.Transport == link.TCP:
		// A segment that the kernel sends of itself tells no process; but where its first device is, there it comes from.
		a.findServed(e, p.NetNS)
	case p.Kind == hop.Drop && p.IfIndex == 0 && p.NetNS != 0:
		e.ClientNetNS = p.NetNS // dropped before it had a device: it was sent here
		e.Process = p.Process
	}
	a.know(e)
	a.reported.continues(e, p.Time)
	a.owners.add(e)
	a.charge(e)
	return e
}

// know puts a lookup to its client's socket, and takes from there what is known of who sends.
func (a *Assembler) know(e *entry) {
	a.joinSocket(e)
	if e.ClientNetNS == 0 {
		return
	}
	a.addressOf(e.ClientNetNS, e.Client.Addr)
	a.sentBy(e)
}

// untranslate finds out whom the process really asked, and from where, where the packet was translated before it had a
// device: the service address in a namespace that translates for itself, as a node does for its own processes. The
// answer is translated back only after its last device.
func (a *Assembler) untranslate(e *entry, p *hop.Packet) {
	ct := &p.Conntrack
	if !p.Tracked || ct.ReplyDst != p.Src || ct.ReplySrc != p.Dst || ct.OrigSrc == p.Src && ct.OrigDst == p.Dst {
		return
	}
	e.Client, e.Server = ct.OrigSrc, ct.OrigDst
	e.went(ct.OrigDst)
	if e.Client != p.Src {
		k := keyOf(e.Client, p)
		a.alias(e, k)
	}
}

// progressed says whether a hop comes after everything that ended the attempt before it.
func (e *entry) progressed(h *hop.Hop) bool {
	for i := range e.Hops {
		x := &e.Hops[i]
		if x.Attempt == h.Attempt && (x.Kind == hop.Drop && !x.Reason.Harmless() || x.Kind == hop.Unreachable) &&
			x.Time > h.Time {
			return false
		}
	}
	return true
}

// startsAttempt says whether the query was sent again: a packet passes each device and direction once. One that passes
// twice with a lower hop limit goes round in a loop.
func (e *entry) startsAttempt(p *hop.Packet) bool {
	if p.Time < e.lastQuery {
		return false
	}
	last := uint8(e.Attempts - 1)
	if died := e.diedAtSender(last); died != 0 {
		if e.ClientNetNS != 0 && p.NetNS != e.ClientNetNS {
			return false // a copy of an earlier attempt: what is sent anew is seen first where it is sent
		}
		return p.Kind != hop.Drop && p.Time > died || p.Kind == hop.Drop && p.Time > died+sameDrop
	}
	sent := p.Local || e.Connect && p.NetNS == e.ClientNetNS && p.NetNS != 0 // the kernel sends a SYN again of itself
	if p.Kind == hop.Drop && sent && p.Time > e.lastQuery+sameDrop {
		return !e.carries(p.SKB, last) // its sender's kernel drops it before it has left
	}
	if p.Kind != hop.In && p.Kind != hop.Out || e.ClientNetNS != 0 && p.NetNS != e.ClientNetNS {
		return false // where the client is in sight, what it sends is seen there first: two of it later on are a copy
	}
	if _, goesOn := e.goesOn(&p.Hop); goesOn {
		return false
	}
	for i := range e.Hops {
		x := &e.Hops[i]
		if !x.Answer && x.Attempt == last && x.Kind == p.Kind && x.NetNS == p.NetNS && x.IfIndex == p.IfIndex {
			return p.Local || x.SKB != p.SKB || x.TTL <= p.TTL || x.TTL == 0
		}
	}
	return false
}

// sameDrop is how far apart two records of one packet's drop may be, in ns.
const sameDrop = int64(1e6)

// diedAtSender gives when an attempt's packet was dropped before it had left its sender, in ns since 1970; 0 where it
// was not. What comes after that is sent anew.
func (e *entry) diedAtSender(attempt uint8) int64 {
	died := int64(0)
	for i := range e.Hops {
		x := &e.Hops[i]
		switch {
		case x.Attempt != attempt || x.Kind == hop.Unreachable || x.Answer:
		case x.Kind != hop.Drop || x.Reason.Harmless() || x.NetNS == 0:
			return 0
		default:
			died = max(died, x.Time)
		}
	}
	return died
}

// carries says whether a hop of an attempt's query is of a packet, by its identity in the kernel.
func (e *entry) carries(skb uint64, attempt uint8) bool {
	for i := range e.Hops {
		if x := &e.Hops[i]; x.SKB == skb && !x.Answer && x.Attempt == attempt {
			return true
		}
	}
	return false
}

// goesOn says whether a hop is one of an earlier attempt's packet that comes further while the last one is already on
// its way, and gives that attempt: the kernel knows the packet by the same address, and it was not at that place yet.
func (e *entry) goesOn(h *hop.Hop) (attempt uint8, ok bool) {
	if e.Attempts < 2 || h.SKB == 0 {
		return 0, false
	}
	last := uint8(e.Attempts - 1)
	for i := len(e.Hops) - 1; i >= 0 && !ok; i-- {
		if x := &e.Hops[i]; x.SKB == h.SKB && !x.Answer && h.Time-x.Time < onItsWay {
			attempt, ok = x.Attempt, x.Attempt != last
			if !ok {
				return 0, false
			}
		}
	}
	if !ok {
		return 0, false
	}
	for i := range e.Hops {
		x := &e.Hops[i]
		if !x.Answer && x.Attempt == attempt && x.Kind == h.Kind && x.NetNS == h.NetNS && x.IfIndex == h.IfIndex {
			return 0, false
		}
	}
	return attempt, true
}

// comesFurther says whether a hop is one of the last attempt's packet, at a place where it was not yet.
func (e *entry) comesFurther(h *hop.Hop) bool {
	last, same := uint8(e.Attempts-1), false
	for i := range e.Hops {
		x := &e.Hops[i]
		if x.Answer || x.Attempt != last {
			continue
		}
		if x.Kind == h.Kind && x.NetNS == h.NetNS && x.IfIndex == h.IfIndex {
			return false
		}
		same = same || x.SKB == h.SKB && h.SKB != 0 && x.Kind != hop.Drop && h.Time-x.Time < onItsWay
	}
	return same
}

// onItsWay is how long a packet may take from one place to the next, in ns, while another one of its lookup is sent.
const onItsWay = int64(100e6)

// attemptOf gives the attempt that a query's hop belongs to: that of the same packet, else the last.
func (e *entry) attemptOf(h *hop.Hop) uint8 {
	last := uint8(e.Attempts - 1)
	if last == 0 {
		return last
	}
	if h.Time < e.lastQuery && h.Kind != hop.Drop {
		return last - 1 // another CPU's record came late
	}
	if a, ok := e.goesOn(h); ok {
		return a
	}
	if h.SKB == 0 || h.Kind != hop.Drop {
		return last
	}
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if x := &e.Hops[i]; x.SKB == h.SKB && !x.Answer {
			return x.Attempt
		}
	}
	return last
}
