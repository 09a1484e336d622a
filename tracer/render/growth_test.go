package render

import (
	"io"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestGrowth: one trace of as many spans as somebody likes to send, each of a kind that something is looked up for. To
// keep, join, judge, tell and draw twice as many takes about twice as long.
func TestGrowth(t *testing.T) {
	id := link.TraceID{1}
	spanID := func(i int) link.SpanID { return link.SpanID{1, byte(i >> 16), byte(i >> 8), byte(i)} }
	resource := &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: "node-1"}}}
	elsewhere := &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: "node-2"}}}
	tracer, plugin := &trace.Scope{Name: semconv.ScopeTracer}, &trace.Scope{Name: semconv.ScopePlugin}
	at := time.Unix(1_800_000_000, 0).UTC()
	make1 := func(i int) *trace.Span {
		return &trace.Span{
			TraceID: id, SpanID: spanID(i), Parent: id.ClientSpanID(), Kind: trace.KindInternal, Name: "x",
			Start: at.Add(time.Duration(i) * time.Microsecond),
			End:   at.Add(time.Duration(i+1) * time.Microsecond), Resource: resource, Scope: tracer,
		}
	}
	segment := func(i int, stage verdict.Where) *trace.Span {
		s := make1(i)
		s.Attributes = trace.Attributes{{Key: semconv.Segment, Value: string(stage)}}
		return s
	}
	address := func(s *trace.Span, address, port string) {
		s.Attributes = append(s.Attributes, trace.Attribute{Key: address, Value: "10.0.0.1"},
			trace.Attribute{Key: port, Value: int64(53)})
	}
	for name, span := range map[string]func(i, n int) *trace.Span{
		"chained": func(i, _ int) *trace.Span {
			s := make1(i)
			s.Parent = spanID(i - 1)
			return s
		},
		"chained backwards": func(i, n int) *trace.Span {
			s := make1(i)
			s.Parent = spanID(i + 1)
			return s
		},
		"in a circle": func(i, n int) *trace.Span {
			s := make1(i)
			s.Parent = spanID((i + 1) % n)
			return s
		},
		"segments": func(i, _ int) *trace.Span { return segment(i, verdict.Node) },
		"around": func(i, n int) *trace.Span {
			s := segment(i, verdict.CoreDNS)
			s.End = at.Add(time.Duration(2*n) * time.Microsecond)
			if i%2 == 0 {
				s.Resource = elsewhere
			}
			return s
		},
		"attempts": func(i, n int) *trace.Span {
			if i%2 == 0 {
				s := make1(i)
				s.Kind, s.Scope = trace.KindClient, plugin
				address(s, semconv.NetworkPeerAddress, semconv.NetworkPeerPort)
				return s
			}
			s := segment(i, verdict.Upstream)
			address(s, semconv.ServerAddress, semconv.ServerPort)
			return s
		},
		"drops": func(i, _ int) *trace.Span {
			s := segment(i, verdict.Node)
			s.Name, s.Status = verdict.Dropped, trace.StatusError
			s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.DropReason, Value: "NETFILTER_DROP"})
			return s
		},
		"servers": func(i, _ int) *trace.Span {
			s := make1(i)
			s.Kind, s.Scope = trace.KindServer, plugin
			return s
		},
		"plugins": func(i, _ int) *trace.Span {
			s := make1(i)
			s.Scope = plugin
			s.Attributes = trace.Attributes{{Key: semconv.PluginName, Value: "cache"}}
			return s
		},
		"one ID": func(i, _ int) *trace.Span {
			s := make1(i)
			s.SpanID, s.Kind = id.ClientSpanID(), trace.KindClient
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, 2000, func(n int) func() {
				client := make1(0)
				client.SpanID, client.Parent, client.Kind = id.ClientSpanID(), link.SpanID{}, trace.KindClient
				client.End = at.Add(time.Duration(n) * time.Microsecond)
				client.Attributes = trace.Attributes{
					{Key: semconv.VerdictWhere, Value: string(verdict.Node)}, {Key: semconv.VerdictCertainty, Value: trace.Inferred},
				}
				spans := []*trace.Span{client}
				for i := 1; i < n; i++ {
					spans = append(spans, span(i, n))
				}
				return func() {
					s := store.New(store.Limits{Spans: 10 * n, SpansPerTrace: 10 * n, Bytes: 1 << 30})
					if refused := s.Add(spans...); refused > 0 {
						t.Fatalf("%d spans refused", refused)
					}
					tr := s.Trace(id)
					story := explain.Tell(tr, []*trace.Trace{tr})
					if err := Story(io.Discard, story, Options{}); err != nil {
						t.Fatal(err)
					}
					if err := Page(io.Discard, story, Options{}); err != nil {
						t.Fatal(err)
					}
					joined.Row(tr, story.Verdict, 0)
				}
			})
		})
	}
}
