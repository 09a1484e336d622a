package trace

import (
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// queryOf gives the CLIENT span of trace n: a server's own query where served names what it was made for.
func queryOf(n int, served link.TraceID) *Span {
	c := span(n, 1, 0)
	c.SpanID, c.Kind, c.Scope = c.TraceID.ClientSpanID(), KindClient, &Scope{Name: semconv.ScopeTracer}
	if served != (link.TraceID{}) {
		c.Attributes = Attributes{{semconv.ServerQuery, true}, {semconv.ServedTraceID, served.String()}}
	}
	return c
}

// upstreamIn gives the span of a server's own query in the trace of the lookup that it serves.
func upstreamIn(n, id int, own link.TraceID) *Span {
	s := span(n, id, 0)
	s.Parent, s.Scope = s.TraceID.ClientSpanID(), &Scope{Name: semconv.ScopeTracer}
	s.Attributes = Attributes{{semconv.Segment, string(verdict.Upstream)}}
	s.Links = []Link{{own, own.ClientSpanID(), "", Attributes{{semconv.ServedRelation, semconv.ServedBy}}}}
	return s
}

func serverIn(n, id int) *Span {
	s := span(n, id, 0)
	s.Parent, s.Kind, s.Scope = s.TraceID.ClientSpanID(), KindServer, &Scope{Name: semconv.ScopePlugin}
	return s
}

func TestALookupIsWholeByWhicheverOfItsTracesItIsFound(t *testing.T) {
	traces := map[link.TraceID]*Trace{}
	add := func(spans ...*Span) { traces[spans[0].TraceID] = New(spans) }
	// A client asks dnsmasq, which asks a cache, which asks CoreDNS. The agent beside the last sees the cache as its
	// client.
	add(queryOf(1, link.TraceID{}), upstreamIn(1, 2, traceID(2)))
	add(queryOf(2, traceID(1)), serverIn(2, 3), upstreamIn(2, 4, traceID(3)))
	add(queryOf(3, traceID(2)), serverIn(3, 5))
	get := func(id link.TraceID) *Trace { return traces[id] }
	for n := range 3 {
		whole := traces[traceID(n+1)].Whole(get)
		if whole.ID != traceID(1) || len(whole.Spans) != 7 || len(whole.Roots) != 1 || len(whole.Missing()) != 0 {
			t.Errorf("from trace %d: %v, %d spans, %d roots", n+1, whole.ID, len(whole.Spans), len(whole.Roots))
		}
		if whole.OfServer() || len(whole.Servers()) != 0 {
			t.Errorf("from trace %d: the server of an upstream query is taken for the client's", n+1)
		}
	}
	if lone := New([]*Span{queryOf(9, link.TraceID{})}); lone.Whole(get) != lone {
		t.Error("a trace that nothing else belongs to is another one")
	}
}

func TestATraceThatDoesNotSayWhomItServesIsNoPart(t *testing.T) {
	traces := map[link.TraceID]*Trace{
		traceID(2): New([]*Span{queryOf(2, traceID(8))}),
		traceID(3): New([]*Span{queryOf(3, link.TraceID{})}),
		traceID(4): New([]*Span{serverIn(4, 4)}),
	}
	client := New([]*Span{
		queryOf(1, link.TraceID{}),
		upstreamIn(1, 2, traceID(2)), upstreamIn(1, 3, traceID(3)), upstreamIn(1, 4, traceID(4)),
		upstreamIn(1, 5, traceID(5)),
	})
	if got := client.Whole(func(id link.TraceID) *Trace { return traces[id] }); got != client {
		t.Errorf("%d spans of %d", len(got.Spans), len(client.Spans))
	}
}

func TestTracesThatServeEachOtherStillEnd(t *testing.T) {
	traces := map[link.TraceID]*Trace{
		traceID(1): New([]*Span{queryOf(1, traceID(2)), upstreamIn(1, 2, traceID(2))}),
		traceID(2): New([]*Span{queryOf(2, traceID(1)), upstreamIn(2, 3, traceID(1))}),
	}
	if got := traces[traceID(1)].Whole(func(id link.TraceID) *Trace { return traces[id] }); len(got.Spans) != 4 {
		t.Errorf("%d spans", len(got.Spans))
	}
}
