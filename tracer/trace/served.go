package trace

import (
	"slices"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// A DNS server that asks another one to answer its client makes a lookup of its own, whose trace ID the other server
// derives. Both traces name each other. To who reads them both are one lookup: the client's.

// Bounds of [Trace.Whole]: what is received may name anything.
const (
	maxServedDepth = 8
	maxServing     = 64
)

// OfServer tells whether the trace is of a query that a DNS server made for itself: it is no client's lookup.
func (t *Trace) OfServer() bool {
	if t.client == nil {
		return false
	}
	yes, _ := t.client.Attributes.Bool(semconv.ServerQuery)
	return yes
}

// Served gives the trace of the lookup that the trace's query was made to answer; false where it was made for none, or
// where that is not known.
func (t *Trace) Served() (link.TraceID, bool) {
	if !t.OfServer() {
		return link.TraceID{}, false
	}
	id, err := ParseID(t.client.Attributes.String(semconv.ServedTraceID))
	return id, err == nil
}

// Whole gives the client's lookup that t belongs to, with the traces of the queries that servers made to answer it:
// each hangs below the span of the same query as it stands in the lookup's trace. Get gives a trace by its ID, nil
// where it is not there. It is t itself where nothing else belongs to it. The spans of the other traces keep their
// trace ID.
func (t *Trace) Whole(get func(link.TraceID) *Trace) *Trace {
	for range maxServedDepth {
		id, ok := t.Served()
		if !ok {
			break
		}
		served := get(id)
		if served == nil {
			break
		}
		t = served
	}
	spans := t.Spans
	seen := map[link.TraceID]bool{t.ID: true}
	for todo := []*Trace{t}; len(todo) > 0; todo = todo[1:] {
		for _, s := range todo[0].Spans {
			if s.Stage() != verdict.Upstream || !s.From(semconv.ScopeTracer) {
				continue
			}
			for _, l := range s.Links {
				if !l.served() || seen[l.TraceID] || len(seen) > maxServing {
					continue
				}
				seen[l.TraceID] = true
				serving := get(l.TraceID)
				if serving == nil {
					continue
				}
				if id, ok := serving.Served(); !ok || id != todo[0].ID {
					continue // it does not say so itself
				}
				spans = append(slices.Clip(spans), serving.below(s)...)
				todo = append(todo, serving)
			}
		}
	}
	if len(spans) == len(t.Spans) {
		return t
	}
	return join(t.ID, spans)
}

// ServedBy tells whether a query with that trace ID was made to answer the lookup.
func (t *Trace) ServedBy(id link.TraceID) bool {
	return slices.ContainsFunc(t.Spans, func(s *Span) bool {
		return slices.ContainsFunc(s.Links, func(l Link) bool { return l.TraceID == id && l.served() })
	})
}

// served tells whether the link is to a server's own query.
func (l *Link) served() bool { return l.Attributes.String(semconv.ServedRelation) == semconv.ServedBy }

// below gives copies of the spans, of which the roots are children of a span of another trace.
func (t *Trace) below(up *Span) []*Span {
	spans := make([]*Span, len(t.Spans))
	for i, s := range t.Spans {
		c := *s
		if c.Parent == (link.SpanID{}) {
			c.Parent = up.SpanID
		}
		spans[i] = &c
	}
	return spans
}

// has tells whether a span was sent under the trace's own ID: see [Trace.Whole].
func (t *Trace) has(s *Span) bool { return s.TraceID == t.ID }
