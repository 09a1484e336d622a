package lookup

import (
	"bytes"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// People think of one lookup where the network sees several: the A and the AAAA of a getaddrinfo, the names of a search
// path, a further try from another port or at the next server, TCP after a truncated answer. What belongs together is
// concluded from one process's questions, shortly one after the other.

// RelationKind says what an earlier lookup of the same process is to this one.
type RelationKind string

// The relations.
const (
	// Retry: the same question, not answered or answered with a failure; now from another port, or at another server.
	Retry RelationKind = "retry"
	// Pair: the same name, A beside AAAA.
	Pair RelationKind = "pair"
	// Search: the name before it in a search path, which does not exist or was asked from the same socket at once.
	Search RelationKind = "search"
	// Truncated: the same question, whose answer did not fit UDP, or whose socket was given up for such an answer.
	Truncated RelationKind = "truncated"
)

// Relation is what an earlier lookup is to this one.
type Relation struct {
	Kind    RelationKind
	TraceID link.TraceID
	SpanID  link.SpanID
}

// How long after an earlier lookup one may still belong to it. What decides is who asked what, and what has come of it;
// the time only ends that, and is long enough for a busy machine.
const (
	atOnce       = int64(50 * time.Millisecond)
	pairWindow   = int64(2 * time.Second)
	searchWindow = int64(2 * time.Second)
	retryWindow  = int64(15 * time.Second)
)

// Bounds of what is remembered.
const (
	maxAskers     = 8192
	recentOfAsker = 16 // A and AAAA of every name of a search path, which some clients ask at once, and the name before
)

// asker is a process in a network namespace.
type asker struct {
	netns uint32
	pid   uint32
}

// past is a lookup that may turn out to belong to a later one. It outlives the lookup, and is told what becomes of it.
type past struct {
	name      []byte // lower case
	typ       uint16
	transport link.Transport
	client    hop.Endpoint
	id        uint16
	related   []Relation
	start     int64
	answered  bool
	truncated bool
	nxdomain  bool
	failed    bool     // answered so that a resolver asks again, or the next server
	relation  Relation // by which a later one names it
	// What the relation's trace ID was made of, which may change.
	epoch      link.Epoch
	translated hop.Endpoint
	group      link.TraceID
	search     int // how many names of the search path went before
	attempt    int
	paired     bool   // it has its A or AAAA beside it
	lookup     *entry // while it is in flight
	gone       bool   // it is not among what its process has begun last
}

type askers struct {
	recent map[asker]*recent
	free   []*past // to be used again: nobody knows of them any more
}

// giveBack takes what nobody knows of any more.
func (s *askers) giveBack(p *past) {
	if p.gone && p.lookup == nil && len(s.free) < maxFree {
		s.free = append(s.free, p)
	}
}

// recent is what a process has begun last, as a ring.
type recent struct {
	ring [recentOfAsker]*past
	at   int // where the next one goes
}

// of gives what a process has begun last; nil where nothing is remembered.
func (s *askers) of(who asker) *[recentOfAsker]*past {
	if r := s.recent[who]; r != nil {
		return &r.ring
	}
	return nil
}

// relate finds out what a lookup that begins belongs to, and remembers it for those that follow.
func (a *Assembler) relate(l *entry) {
	if l.Process == nil || l.Serves != nil || l.Own || isProbe(l) {
		return // what a server asks for itself is no step of a resolver
	}
	s := &a.askers
	if s.recent == nil || len(s.recent) >= maxAskers {
		s.recent = make(map[asker]*recent)
	}
	who := asker{l.ClientNetNS, l.Process.PID}
	r := s.recent[who]
	if r == nil {
		r = &recent{}
		s.recent[who] = r
	}
	start := l.Start()
	var p *past
	if n := len(s.free); n > 0 {
		p, s.free = s.free[n-1], s.free[:n-1]
	} else {
		p = &past{}
	}
	*p = past{
		name: dnswire.AppendLower(p.name[:0], l.Name), typ: l.Type, transport: l.Transport, client: l.Client, id: l.ID,
		start: start, lookup: l, attempt: 1,
	}
	key := l.Key()
	p.epoch, p.translated = link.EpochOfNanos(start), l.Translated
	p.relation.TraceID = key.TraceID(p.epoch)
	p.relation.SpanID = p.relation.TraceID.ClientSpanID()
	p.group = p.relation.TraceID
	p.related = p.relate(&r.ring, r.at)
	l.Related = append(l.Related, p.related...)
	l.Group, l.SearchStep, l.AttemptOfGroup = p.group, p.search, p.attempt
	l.past = p
	if old := r.ring[r.at]; old != nil {
		old.gone = true
		s.giveBack(old)
	}
	r.ring[r.at] = p
	r.at = (r.at + 1) % recentOfAsker
}

// isProbe says whether a question is the one by which servers see that their upstream is alive: the name servers of the
// root. Where it is down they ask for ever, which is no client that tries again.
func isProbe(l *entry) bool { return len(l.Name) == 1 && l.Type == dnswire.TypeNS }

// relate gives what a lookup belongs to of those that its process began before, the youngest of which is left of
// ring[next]: one of each kind at most, that which says most first.
func (p *past) relate(ring *[recentOfAsker]*past, next int) []Relation {
	var again, pair, search *past
	kind := RelationKind("")
	asked := false // the question itself was asked before: what lies behind that is settled
	for i := 1; i <= recentOfAsker; i++ {
		b := ring[uint(next-i)%recentOfAsker]
		if b == nil || p.start-b.start > retryWindow {
			break
		}
		age := p.start - b.start
		switch {
		case p.id == b.id && p.typ == b.typ && p.client == b.client && p.transport == b.transport && p.same(b):
			// The lookup itself: sent again after a failure, or at the same time to another server.
			if b.answered {
				b.identify()
			}
			p.group, p.search, p.attempt, p.paired = b.group, b.search, b.attempt, b.paired
			return b.related
		case !asked && p.typ == b.typ && p.same(b):
			asked = true
			switch {
			case p.transport == link.TCP && b.transport == link.UDP && b.givenUpForTCP(ring):
				again, kind = b, Truncated
			case !b.answered || b.failed:
				again, kind = b, Retry
			}
		case addressTypes(p.typ, b.typ) && p.transport == b.transport && b.wantsPair(age) && p.same(b):
			// The nearest in time, but the same socket before all others.
			if pair == nil || pair.client != p.client && b.client == p.client {
				pair = b
			}
		case search == nil && !asked && p.typ == b.typ && b.leadsTo(p, age) && !p.same(b) && sameStart(p.name, b.name):
			search = b
		}
	}
	var all []Relation
	if again != nil {
		all = append(all, again.as(kind))
		p.group, p.search, p.attempt = again.group, again.search, again.attempt
		if kind == Retry {
			p.attempt++
		}
	}
	if pair != nil {
		all = append(all, pair.as(Pair))
		if again == nil {
			p.group, p.search = pair.group, pair.search
		}
		pair.paired, p.paired = true, true
		if pair.client == p.client && (pair.waits() || p.start-pair.start <= atOnce) {
			p.lookup.Paired = true
			if pair.lookup != nil {
				pair.lookup.Paired = true
			}
		}
	}
	// A question that is asked again is the same step of the search as before.
	if search != nil && !asked {
		all = append(all, search.as(Search))
		if pair == nil {
			p.group, p.search = search.group, search.search+1
		}
	}
	return all
}

// same says whether two lookups ask for one name.
func (p *past) same(b *past) bool { return bytes.Equal(p.name, b.name) } // both in lower case

// wantsPair says whether a lookup may still get the other of A and AAAA beside it: a resolver asks both at once, or the
// one as soon as the other is answered.
func (p *past) wantsPair(age int64) bool { return !p.paired && (age <= pairWindow || p.waits()) }

// waits says whether the answer is yet to come.
func (p *past) waits() bool { return p.lookup != nil && p.lookup.Ending == InFlight }

// as gives what a later lookup says of this one. While it is in flight its trace ID may still change: source
// translation is seen on the way.
func (p *past) as(kind RelationKind) Relation {
	if p.lookup != nil {
		p.lookup.remember()
	}
	p.identify()
	p.relation.Kind = kind
	return p.relation
}

// givenUpForTCP says whether the answer was truncated, or did not come before another question of the same socket was
// answered so: glibc closes the socket then and asks both again over TCP.
func (p *past) givenUpForTCP(ring *[recentOfAsker]*past) bool {
	if p.truncated || p.answered {
		return p.truncated
	}
	for _, b := range ring {
		if b != nil && b.truncated && b.client == p.client && b.transport == p.transport {
			return true
		}
	}
	return false
}

// gaveUpForTCP says whether a lookup's socket was given up for another answer that was truncated.
func (a *Assembler) gaveUpForTCP(e *entry) bool {
	if e.past == nil || e.Process == nil {
		return false
	}
	ring := a.askers.of(asker{e.ClientNetNS, e.Process.PID})
	return ring != nil && !e.past.answered && e.past.givenUpForTCP(ring)
}

// leadsTo says whether a resolver that walks its search path may ask p after b, or, from the same socket, beside it.
func (p *past) leadsTo(next *past, age int64) bool {
	if p.client == next.client && p.transport == next.transport && age <= atOnce {
		return true
	}
	return p.nxdomain && age <= searchWindow
}

func addressTypes(a, b uint16) bool {
	return a == dnswire.TypeA && b == dnswire.TypeAAAA || a == dnswire.TypeAAAA && b == dnswire.TypeA
}

// sameStart says whether two names in wire form may be one name with two suffixes of a search path: behind the labels
// that they share at their start, one has nothing more, or what one has ends what the other has
// (shop.svc.cluster.local, svc.cluster.local, cluster.local).
func sameStart(a, b []byte) bool {
	i := 0
	for i < len(a) && i < len(b) && a[i] != 0 && a[i] == b[i] {
		end := i + int(a[i]) + 1
		if end > len(a) || end > len(b) || string(a[i:end]) != string(b[i:end]) {
			break
		}
		i = end
	}
	if i == 0 || i >= len(a) || i >= len(b) {
		return false
	}
	a, b = a[i:], b[i:]
	if len(a) == len(b) {
		return false
	}
	// Either may be the root label alone, which ends everything.
	return bytes.HasSuffix(a, b) || bytes.HasSuffix(b, a)
}

// identify finds out the trace ID of an answered lookup, or of one that has just been asked of, as far as it is known
// by now.
func (p *past) identify() {
	if p.lookup != nil {
		p.lookup.identify()
	}
}

// identify tells the past the trace ID, as far as it is known by now.
func (e *entry) identify() {
	p := e.past
	from := e.seen.from
	if e.seen.hops != len(e.Hops) {
		from, _ = windowOf(e.Hops, 0)
	}
	// Made anew only where what it is made of has changed: on its way the client's end may be translated.
	if epoch := link.EpochOfNanos(from); epoch != p.epoch || e.Translated != p.translated {
		p.epoch, p.translated = epoch, e.Translated
		key := e.Key()
		id := key.TraceID(epoch)
		if p.group == p.relation.TraceID {
			p.group = id
		}
		p.relation.TraceID, p.relation.SpanID = id, id.ClientSpanID()
	}
}

// remember tells the past what became of a lookup.
func (e *entry) remember() {
	p := e.past
	if p == nil {
		return
	}
	p.answered = e.Ending == Answered
	p.truncated = p.answered && e.Flags.Truncated()
	p.nxdomain = p.answered && e.Body.Rcode == dnswire.RcodeNXDomain
	switch e.Body.Rcode {
	case dnswire.RcodeFormErr, dnswire.RcodeServFail, dnswire.RcodeNotImp, dnswire.RcodeRefused:
		p.failed = p.answered
	default:
		p.failed = false
	}
}
