package lookup

import (
	"bytes"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// People think of one lookup where the network sees several: the A and the AAAA of a getaddrinfo, the names of a search path, a further try from another port
// or at the next server, TCP after a truncated answer. What belongs together is concluded from one process's questions, shortly one after the other.

// RelationKind says what an earlier lookup of the same process is to this one.
type RelationKind string

// The relations.
const (
	// Retry: the same question, not answered; now from another port, or at another server.
	Retry RelationKind = "retry"
	// Pair: the same name, A beside AAAA.
	Pair RelationKind = "pair"
	// Search: the name before it in a search path, which does not exist.
	Search RelationKind = "search"
	// Truncated: the same question, whose answer did not fit UDP.
	Truncated RelationKind = "truncated"
)

// Relation is what an earlier lookup is to this one.
type Relation struct {
	Kind    RelationKind
	TraceID link.TraceID
	SpanID  link.SpanID
}

// How long after an earlier lookup one may still belong to it.
const (
	pairWindow   = int64(50 * time.Millisecond)
	searchWindow = int64(2 * time.Second)
	retryWindow  = int64(15 * time.Second)
)

// Bounds of what is remembered.
const (
	maxAskers     = 8192
	recentOfAsker = 8
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
	start     int64
	answered  bool
	truncated bool
	nxdomain  bool
	relation  Relation // by which a later one names it
	group     link.TraceID
	search    int // how many names of the search path went before
	attempt   int
	lookup    *Lookup // while it is in flight
}

type askers struct {
	recent map[asker]*[recentOfAsker]*past
	at     map[asker]int
}

// relate finds out what a lookup that begins belongs to, and remembers it for those that follow.
func (a *Assembler) relate(l *Lookup) {
	if l.Process == nil || l.Serves != nil {
		return
	}
	s := &a.askers
	if s.recent == nil || len(s.recent) >= maxAskers {
		s.recent, s.at = make(map[asker]*[recentOfAsker]*past), make(map[asker]int)
	}
	who := asker{l.ClientNetNS, l.Process.PID}
	ring := s.recent[who]
	if ring == nil {
		ring = new([recentOfAsker]*past)
		s.recent[who] = ring
	}
	start := l.Start()
	p := &past{name: dnswire.AppendLower(nil, l.Name), typ: l.Type, transport: l.Transport, client: l.Client, start: start, lookup: l, attempt: 1}
	key := l.Key()
	p.relation.TraceID = key.TraceID(link.EpochOfNanos(start))
	p.relation.SpanID = p.relation.TraceID.ClientSpanID()
	p.group = p.relation.TraceID
	n := s.at[who]
	for i := 1; i <= recentOfAsker; i++ {
		before := ring[(n-i+2*recentOfAsker)%recentOfAsker]
		if before == nil {
			break
		}
		kind := p.relationTo(before)
		if kind == "" {
			continue
		}
		l.Related = append(l.Related, Relation{kind, before.relation.TraceID, before.relation.SpanID})
		p.group = before.group
		p.search = max(p.search, before.search)
		switch kind {
		case Search:
			p.search = before.search + 1
		case Retry:
			p.attempt = before.attempt + 1
		case Pair:
			l.Paired = l.Paired || before.client == l.Client
			if before.lookup != nil && before.client == l.Client {
				before.lookup.Paired = true
			}
		}
		break
	}
	l.Group, l.SearchStep, l.AttemptOfGroup = p.group, p.search, p.attempt
	l.past = p
	ring[n%recentOfAsker] = p
	s.at[who] = (n + 1) % recentOfAsker
}

func (p *past) relationTo(b *past) RelationKind {
	age := p.start - b.start
	same := bytes.Equal(p.name, b.name) // both in lower case
	switch {
	case same && p.typ == b.typ && b.truncated && p.transport == link.TCP && age <= retryWindow:
		return Truncated
	case same && p.typ == b.typ && !b.answered && age <= retryWindow:
		return Retry
	case same && addressTypes(p.typ, b.typ) && age <= pairWindow:
		return Pair
	case b.nxdomain && p.typ == b.typ && age <= searchWindow && sameStart(p.name, b.name):
		return Search
	}
	return ""
}

func addressTypes(a, b uint16) bool {
	return a == dnswire.TypeA && b == dnswire.TypeAAAA || a == dnswire.TypeAAAA && b == dnswire.TypeA
}

// sameStart says whether two names in wire form may be one name with two suffixes of a search path: behind the labels that they
// share at their start, one has nothing more, or what one has ends what the other has (shop.svc.cluster.local, svc.cluster.local, cluster.local).
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

// remember tells the past what became of a lookup.
func (l *Lookup) remember() {
	p := l.past
	if p == nil {
		return
	}
	key := l.Key()
	from, _ := window(l.Hops, 0)
	id := key.TraceID(link.EpochOfNanos(from))
	if p.group == p.relation.TraceID {
		p.group = id
	}
	p.relation.TraceID, p.relation.SpanID = id, id.ClientSpanID()
	p.answered = l.Ending == Answered
	p.truncated = p.answered && l.Flags.Truncated()
	p.nxdomain = p.answered && l.Body.Rcode == dnswire.RcodeNXDomain
}
