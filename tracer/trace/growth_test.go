package trace

import (
	"fmt"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestNothingGrowsMoreThanLinearly: a trace of twice as many spans, of whatever kind and shape, is joined, judged and
// drawn in twice the time.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 4000
	id := traceID(1)
	number := func(i int) link.SpanID { return link.SpanID{1, byte(i >> 16), byte(i >> 8), byte(i)} }
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	one := &Resource{Attributes: Attributes{{semconv.K8SNodeName, "node-1"}}}
	make1 := func(i int, kind Kind, scope *Scope) *Span {
		return &Span{
			TraceID: id, SpanID: number(i), Parent: id.ClientSpanID(), Kind: kind,
			Name: fmt.Sprint(i), Scope: scope, Resource: one,
			Start: at.Add(time.Duration(i) * time.Microsecond), End: at.Add(time.Duration(i+1) * time.Microsecond),
		}
	}
	port := func(s *Span, address, port string, n int) *Span {
		s.Attributes = append(s.Attributes, Attribute{address, "10.0.0.1"}, Attribute{port, int64(n)})
		return s
	}
	for name, span := range map[string]func(i, n int) *Span{
		"below one another": func(i, _ int) *Span {
			s := make1(i, KindInternal, tracer)
			s.Parent = number(i - 1)
			return s
		},
		"in a circle": func(i, n int) *Span {
			s := make1(i, KindInternal, tracer)
			s.Parent = number((i + 1) % n)
			return s
		},
		"of one ID": func(i, _ int) *Span {
			s := make1(i, KindClient, tracer)
			s.SpanID = id.ClientSpanID()
			s.Resource = &Resource{Attributes: Attributes{{semconv.SenderAddress, fmt.Sprint(i)}}}
			return s
		},
		"servers, each of a pod and node of its own": func(i, _ int) *Span {
			s := make1(i, KindServer, plugin)
			s.Resource = &Resource{Attributes: Attributes{
				{semconv.K8SPodName, fmt.Sprint("p", i)}, {semconv.K8SNodeName, fmt.Sprint("n", i)}, {semconv.HostIP,
					fmt.Sprintf("10.1.%d.%d", i>>8, i&0xff)},
			}}
			return s
		},
		"upstream queries, each made by what the next one asked": func(i, _ int) *Span {
			if i%2 == 0 {
				s := port(make1(i, KindClient, plugin), semconv.NetworkPeerAddress, semconv.NetworkPeerPort, i/2)
				s.Parent = number(i - 1)
				return s
			}
			s := port(make1(i, KindInternal, tracer), semconv.ServerAddress, semconv.ServerPort, i/2+2)
			s.Attributes = append(s.Attributes, Attribute{semconv.Segment, string(verdict.Upstream)})
			return s
		},
		"links": func(i, _ int) *Span {
			s := make1(i, KindServer, plugin)
			s.Links = []Link{{TraceID: traceID(i), SpanID: number(i)}}
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				client := make1(0, KindClient, tracer)
				client.SpanID, client.Parent = id.ClientSpanID(), link.SpanID{}
				client.Attributes = Attributes{{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCertainty, Inferred}}
				spans := []*Span{client}
				for i := 1; i < n; i++ {
					spans = append(spans, span(i, n))
				}
				return func() {
					tr := New(spans)
					tr.Nested()
					tr.Missing()
					tr.Contradicted()
					tr.Copies()
					for _, l := range tr.Lookups() {
						l.VerdictAmong(NewOthers([]*Trace{tr}))
					}
					FromOTLP(ToOTLP(tr.Spans))
				}
			})
		})
	}
	t.Run("traces", func(t *testing.T) {
		growth.Linear(t, n, func(n int) func() {
			var all []*Trace
			for i := range n {
				s := make1(i, KindClient, tracer)
				s.TraceID = traceID(i)
				s.SpanID = s.TraceID.ClientSpanID()
				s.Resource = &Resource{Attributes: Attributes{{semconv.K8SNodeName, fmt.Sprint("n", i)}}}
				s.Attributes = Attributes{
					{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCertainty, Inferred},
					{semconv.ServerAddress, "10.96.0.10"}, {semconv.ServerPort, int64(53)},
				}
				all = append(all, New([]*Span{s}))
			}
			return func() {
				lookups := AllLookups(all)
				shadows, others := Shadows(lookups), NewOthers(all)
				for _, l := range lookups {
					if !shadows[l] {
						l.VerdictAmong(others)
					}
				}
			}
		})
	})
}
