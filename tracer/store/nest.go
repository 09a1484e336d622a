package store

import (
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Nested gives the tree for a reader: what happened within a segment hangs below it. The tracer and CoreDNS do not know of one another, so all of a
// trace's SERVER spans and segments are children of the CLIENT span; but CoreDNS's work lies within the segment from the query's arrival to the
// answer's departure, what another node's agent saw lies within the segment beyond the client's node, and the packets of an
// upstream query belong to CoreDNS's attempt. Parents are by time there: nothing is moved but for being drawn.
func (t *Trace) Nested() []*Node {
	roots := make([]*Node, len(t.Roots))
	for i, r := range t.Roots {
		roots[i] = clone(r)
	}
	client := t.Client()
	if client == nil {
		return roots
	}
	for _, r := range roots {
		if r.Span == client {
			adoptUpstreams(r)
			adopt(r)
		}
	}
	return roots
}

func clone(n *Node) *Node {
	c := &Node{Span: n.Span, Children: make([]*Node, len(n.Children))}
	for i, child := range n.Children {
		c.Children[i] = clone(child)
	}
	return c
}

// adopt hangs the client's children below the segments that go from a query to its answer: below the shortest that holds them.
func adopt(client *Node) {
	var around []*Node
	for _, c := range client.Children {
		if !c.Span.From(semconv.ScopeTracer) || c.Span.Kind != KindInternal {
			continue
		}
		switch c.Span.Attributes.String(semconv.Segment) {
		case string(verdict.CoreDNS):
			around = append(around, c)
		case string(verdict.BetweenNodes):
			if c.Span.SameSender(client.Span) {
				around = append(around, c)
			}
		}
	}
	client.Children = slices.DeleteFunc(client.Children, func(c *Node) bool {
		middle := c.Span.Start.Add(c.Span.Duration() / 2) // clocks may differ by a little
		var best *Node
		for _, a := range around {
			s := a.Span
			if s.SameSender(c.Span) || middle.Before(s.Start) || middle.After(s.End) {
				continue
			}
			// CoreDNS's own span ends only when its write has returned, after the answer has left.
			if !c.Span.From(semconv.ScopePlugin) && s.Duration() <= c.Span.Duration() {
				continue
			}
			if best == nil || s.Duration() < best.Span.Duration() {
				best = a
			}
		}
		if best != nil {
			best.Children = append(best.Children, c)
		}
		return best != nil
	})
}

// adoptUpstreams hangs what was seen of a server's own queries on the network below CoreDNS's attempt that made it.
func adoptUpstreams(client *Node) {
	var attempts []*Node
	var find func(*Node)
	find = func(n *Node) {
		if n.Span.Kind == KindClient && n.Span.From(semconv.ScopePlugin) {
			attempts = append(attempts, n)
		}
		for _, c := range n.Children {
			find(c)
		}
	}
	find(client)
	client.Children = slices.DeleteFunc(client.Children, func(c *Node) bool {
		if c.Span.Attributes.String(semconv.Segment) != string(verdict.Upstream) {
			return false
		}
		asked := endpoint(c.Span, semconv.ServerAddress, semconv.ServerPort)
		var best *Node
		var distance time.Duration
		for _, a := range attempts {
			if a.Span.Peer() != asked {
				continue
			}
			if d := c.Span.Start.Sub(a.Span.Start).Abs(); best == nil || d < distance {
				best, distance = a, d
			}
		}
		if best == nil {
			return false
		}
		best.Children = append(best.Children, c)
		return true
	})
}
