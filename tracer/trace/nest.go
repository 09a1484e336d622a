package trace

import (
	"net/netip"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Nested gives the tree for a reader: what happened within a segment hangs below it. The tracer and CoreDNS do not know
// of one another, so all of a trace's SERVER spans and segments are children of the CLIENT span; but CoreDNS's work
// lies within the segment from the query's arrival to the answer's departure, what another node's agent saw lies within
// the segment beyond the client's node, and the packets of an upstream query belong to CoreDNS's attempt. Parents are
// by time there: nothing is moved but for being drawn.
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

// maxAround is how many segments that hold others are looked at: each is held against each child. A lookup has one for
// each attempt.
const maxAround = 64

// adopt hangs the client's children below the segments that go from a query to its answer: below the shortest that
// holds them.
func adopt(client *Node) {
	var around []*Node
	for _, c := range client.Children {
		if !c.Span.From(semconv.ScopeTracer) || c.Span.Kind != KindInternal {
			continue
		}
		if len(around) == maxAround {
			break
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
	attempts := map[netip.AddrPort][]*Node{}
	below := hung{}
	var find func(n, top *Node)
	find = func(n, top *Node) {
		if n.Span.Kind == KindClient && n.Span.From(semconv.ScopePlugin) {
			peer := n.Span.Peer()
			attempts[peer] = append(attempts[peer], n)
			if n != top {
				below[n] = top
			}
		}
		for _, c := range n.Children {
			find(c, top)
		}
	}
	for _, c := range client.Children {
		find(c, c)
	}
	for _, of := range attempts {
		slices.SortStableFunc(of, func(a, b *Node) int { return a.Span.Start.Compare(b.Span.Start) })
	}
	client.Children = slices.DeleteFunc(client.Children, func(c *Node) bool {
		if c.Span.Attributes.String(semconv.Segment) != string(verdict.Upstream) {
			return false
		}
		asked := endpoint(c.Span, semconv.ServerAddress, semconv.ServerPort)
		best := nearest(attempts[asked], c.Span.Start)
		if best == nil || below.top(best) == c {
			return false // nothing hangs below itself
		}
		best.Children = append(best.Children, c)
		below[c] = best
		return true
	})
}

// hung tells what a node hangs below.
type hung map[*Node]*Node

// top gives the node above all that n hangs below. The way up is shortened as it is gone, so that no chain is gone
// along again and again.
func (h hung) top(n *Node) *Node {
	top := n
	for h[top] != nil {
		top = h[top]
	}
	for next := h[n]; next != nil && next != top; n, next = next, h[next] {
		h[n] = top
	}
	return top
}

// nearest gives the node that starts nearest to at, of nodes by start time; nil if there are none.
func nearest(nodes []*Node, at time.Time) *Node {
	i, _ := slices.BinarySearchFunc(nodes, at, func(n *Node, at time.Time) int { return n.Span.Start.Compare(at) })
	switch {
	case len(nodes) == 0:
		return nil
	case i == len(nodes), i > 0 && at.Sub(nodes[i-1].Span.Start) <= nodes[i].Span.Start.Sub(at):
		return nodes[i-1]
	}
	return nodes[i]
}
