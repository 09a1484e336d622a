package joined

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestNothingGrowsMoreThanLinearly: whatever a sender has as much of as it likes, a reader is told twice as much in
// twice the time: what is past, what comes, and what is looked at again.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 2000
	traceOf := func(i int) (id link.TraceID) {
		binary.BigEndian.PutUint64(id[:], uint64(i)+1)
		return id
	}
	of := func(i int, s *trace.Span) *trace.Span {
		derived := s.SpanID == s.TraceID.ClientSpanID()
		s.TraceID = traceOf(i)
		if derived {
			s.SpanID = s.TraceID.ClientSpanID()
		}
		s.Start = at.Add(time.Duration(i) * time.Millisecond)
		s.End = s.Start.Add(time.Millisecond)
		return s
	}
	lost := func() *trace.Span { return clientSpan(1, verdict.BetweenNodes, verdict.CauseNoAnswer, trace.Inferred) }
	for name, make1 := range map[string]func(i int) []*trace.Span{
		"answered": func(i int) []*trace.Span {
			return []*trace.Span{of(i, clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain))}
		},
		"lost between nodes": func(i int) []*trace.Span { return []*trace.Span{of(i, lost())} },
		"lost between nodes that are all different": func(i int) []*trace.Span {
			s := of(i, lost())
			s.Resource = resource(fmt.Sprint("node-", i))
			return []*trace.Span{s}
		},
		"seen by servers alone, on nodes that are all different": func(i int) []*trace.Span {
			s := of(i, serverSpan(1, link.SpanID{}))
			s.Resource = resource(fmt.Sprint("node-", i))
			return []*trace.Span{s}
		},
		"of one client, port and ID": func(i int) []*trace.Span {
			return []*trace.Span{of(i, clientSpan(1, verdict.Node, verdict.CausePolicyDrop, trace.Certain)),
				of(i, serverSpan(1, link.SpanID{}))}
		},
		"nodes of one trace": func(i int) []*trace.Span {
			s := of(0, dropSpan(1))
			s.SpanID = link.SpanID{1, byte(i >> 16), byte(i >> 8), byte(i)}
			s.Resource = resource(fmt.Sprint("node-", i))
			return []*trace.Span{s}
		},
		"servers of one trace": func(i int) []*trace.Span {
			s := of(0, serverSpan(1, link.TraceID{}.ClientSpanID()))
			s.SpanID = link.SpanID{1, byte(i >> 16), byte(i >> 8), byte(i)}
			s.Resource = &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SPodName, Value: fmt.Sprint("pod-", i)}}}
			return []*trace.Span{s}
		},
		"that serve one another": func(i int) []*trace.Span {
			s := of(i, clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain))
			s.Links = []trace.Link{{TraceID: traceOf(i + 1), SpanID: traceOf(i + 1).ClientSpanID()}}
			return []*trace.Span{s}
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				s := store.New(store.Limits{Spans: 1 << 30, SpansPerTrace: 1 << 30, Bytes: 1 << 40})
				var all []*trace.Span
				for i := range n {
					all = append(all, make1(i)...)
				}
				return func() {
					w := s.Watch()
					defer w.Close()
					l := newLook(s, &output.Filter{})
					s.Add(all...)
					now := time.Now()
					changed, _ := w.Take()
					l.rows(changed, now)
					for range 5 { // it is settled, and what was lost is looked at again
						now = now.Add(5 * time.Second)
						l.rows(nil, now)
					}
					newLook(s, &output.Filter{}).past()
					(&Rows{Store: s}).Stats()
				}
			})
		})
	}
}
