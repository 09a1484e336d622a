package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// watchedWithin is how near in time another lookup seen on a node must be to show that the node was watched.
const watchedWithin = 30 * time.Second

// Others is what the traces of other lookups tell of the network, ordered so that each question costs little however
// many there are. Nil tells nothing.
type Others struct {
	nodes map[netip.Addr]string
	seen  map[string][]seenOf
}

// seenOf is when a node's tracer saw something of a lookup, in order.
type seenOf struct {
	trace *Trace
	at    []time.Time
}

// NewOthers reads traces, of which the first that names an address's node is believed.
func NewOthers(traces []*Trace) *Others {
	o := &Others{nodes: map[netip.Addr]string{}, seen: map[string][]seenOf{}}
	for _, t := range traces {
		for _, s := range t.Spans { // by time
			if !s.From(semconv.ScopeTracer) {
				continue
			}
			node := s.String(semconv.K8SNodeName)
			of := o.seen[node]
			if len(of) == 0 || of[len(of)-1].trace != t {
				of = append(of, seenOf{trace: t})
			}
			last := &of[len(of)-1]
			last.at = append(last.at, s.Start)
			o.seen[node] = of
		}
		server := t.Server()
		if server == nil {
			continue
		}
		node := server.String(semconv.K8SNodeName)
		if node == "" {
			continue
		}
		is := func(a netip.Addr) {
			if _, ok := o.nodes[a]; !ok && a.IsValid() {
				o.nodes[a] = node
			}
		}
		is(t.Translated().Addr())
		for _, a := range addressesOf(server) {
			is(a.Addr())
		}
	}
	return o
}

// nodeOf gives the node of the CoreDNS with that address: by the addresses that its own spans name, or by lookups that
// were translated to that address and came to it; "" if it is not known.
func (o *Others) nodeOf(address netip.Addr) string {
	if o == nil {
		return ""
	}
	return o.nodes[address]
}

// VerdictAmong is [Trace.Verdict] with what other lookups tell of the network: on which node the server is, and whether
// that node was watched at the time. Only then can a lookup that left one node be said not to have come to the other.
func (t *Trace) VerdictAmong(others *Others) Verdict {
	v := t.Verdict()
	if !v.Lost() || v.Where != string(verdict.BetweenNodes) || v.Certainty == Certain {
		return v
	}
	if v.Cause == string(verdict.CauseVanished) {
		return v // the client's agent has asked that of the node, and says so
	}
	server := t.Translated()
	if !server.IsValid() {
		server = t.Asked().Address
	}
	node := others.nodeOf(server.Addr())
	if node == "" || node == t.Asker().Node || t.seenOn(node) {
		return v
	}
	before, after := t.watched(node, others)
	if before == 0 || after == 0 {
		why := "where no tracer was watching"
		switch {
		case before > 0:
			why = "whose tracer saw other lookups before this one and none since"
		case after > 0:
			why = "whose tracer saw other lookups since this one and none before"
		}
		v.Evidence = append(slices.Clone(v.Evidence),
			fmt.Sprintf("%s is on %s, %s: whether the query came there is not known", server, node, why))
		return v
	}
	v.Joined = true
	v.Cause = string(verdict.CauseVanished)
	v.Text = fmt.Sprintf(
		"the query left %s for %s on %s and never arrived: the tracer there was watching and did not see it",
		t.Asker().Node, server, node)
	v.Evidence = append(slices.Clone(v.Evidence), fmt.Sprintf(
		"the tracer on %s saw other lookups within %v of this one, %d before and %d after",
		node, watchedWithin, before, after))
	return v
}

// seenOn tells whether the tracer on a node saw the lookup.
func (t *Trace) seenOn(node string) bool {
	return slices.ContainsFunc(t.Spans, func(s *Span) bool {
		return s.From(semconv.ScopeTracer) && s.Node() == node
	})
}

// watched counts the other lookups that the tracer on a node saw just before t's query was sent and just after it was
// sent last. A tracer that saw one before may have died before the query came, and one that saw one after may have come
// later.
func (t *Trace) watched(node string, others *Others) (before, after int) {
	first, last := t.Start(), t.lastSent()
	since := last.Add(clockGuard)
	for _, o := range others.seen[node] {
		if o.trace.ID == t.ID {
			continue
		}
		// Spans end when the tracer saw something, or when it called the lookup lost.
		n := len(o.at)
		if i := sort.Search(n, func(i int) bool { return o.at[i].After(first) }); i > 0 &&
			first.Sub(o.at[i-1]) <= watchedWithin {
			before++
		}
		if i := sort.Search(n, func(i int) bool { return o.at[i].After(since) }); i < n &&
			o.at[i].Sub(last) <= watchedWithin {
			after++
		}
	}
	return before, after
}

// lastSent gives when the client's agent saw the query last on its way, or when the client asked if it saw no more.
func (t *Trace) lastSent() time.Time {
	last := t.Start()
	c := t.Client()
	if c == nil {
		return last
	}
	for _, s := range t.Spans {
		own := s.Parent == c.SpanID && s.SameSender(c) && s.Stage() != "" && s.Stage() != verdict.Upstream
		if own && !s.IsAnswer() && !s.IsTurn() && s.End.After(last) {
			last = s.End
		}
	}
	return last
}
