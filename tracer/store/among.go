package store

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// watchedWithin is how near in time another lookup seen on a node must be to show that the node was watched.
const watchedWithin = 30 * time.Second

// VerdictAmong is [Trace.Verdict] with what traces of other lookups tell of the network: on which node the server is, and whether that
// node was watched at the time. Only then can a lookup that left one node be said not to have come to the other.
func (t *Trace) VerdictAmong(others []*Trace) Verdict {
	v := t.Verdict()
	if !v.Lost() || v.Where != string(verdict.BetweenNodes) || v.Certainty == Certain {
		return v
	}
	server := t.Translated()
	if !server.IsValid() {
		server = t.Asked().Address
	}
	node := nodeOf(server.Addr(), others)
	if node == "" || node == t.Asker().Node {
		return v
	}
	seen := 0
	for _, o := range others {
		if o.ID != t.ID && o.Start().Sub(t.Start()).Abs() <= watchedWithin && o.seenByTracerOn(node) {
			seen++
		}
	}
	if seen == 0 {
		v.Evidence = append(slices.Clone(v.Evidence), fmt.Sprintf("%s is on %s, where no tracer was watching: whether the query came there is not known", server, node))
		return v
	}
	v.Joined = true
	v.Cause = string(verdict.CauseVanished)
	v.Text = fmt.Sprintf("the query left %s for %s on %s and never arrived: the tracer there was watching and did not see it", t.Asker().Node, server, node)
	v.Evidence = append(slices.Clone(v.Evidence), fmt.Sprintf("the tracer on %s saw %d other %s within %v of this one", node, seen, map[bool]string{true: "lookup", false: "lookups"}[seen == 1], watchedWithin))
	return v
}

// nodeOf gives the node of the CoreDNS with that address: by its own spans, of lookups that were translated to that address.
func nodeOf(address netip.Addr, traces []*Trace) string {
	for _, t := range traces {
		s := t.Server()
		if s == nil {
			continue
		}
		if node := s.String(semconv.K8SNodeName); node != "" && (t.Translated().Addr() == address || s.String(semconv.K8SPodIP) == address.String()) {
			return node
		}
	}
	return ""
}

func (t *Trace) seenByTracerOn(node string) bool {
	return slices.ContainsFunc(t.Spans, func(s *Span) bool {
		return s.From(semconv.ScopeTracer) && s.String(semconv.K8SNodeName) == node
	})
}
