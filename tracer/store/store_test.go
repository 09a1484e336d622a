package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

var at = time.Date(2026, 11, 21, 12, 1, 7, 113_000_000, time.UTC)

func traceID(n int) link.TraceID { return link.TraceID{0: byte(n >> 8), 1: byte(n), 15: 0xaa} }

func span(n, id, parent int) *trace.Span {
	s := &trace.Span{
		TraceID: traceID(n), SpanID: link.SpanID{6: byte(id >> 8), 7: byte(id)}, Name: "s", Kind: trace.KindInternal,
		Start: at.Add(time.Duration(id) * time.Millisecond), End: at.Add(time.Duration(id+1) * time.Millisecond),
	}
	if parent != 0 {
		s.Parent = link.SpanID{6: byte(parent >> 8), 7: byte(parent)}
	}
	return s
}

func TestOldestTraceGoesFirstAndIsCounted(t *testing.T) {
	s := New(Limits{Spans: 10, SpansPerTrace: 4})
	for n := 1; n <= 4; n++ {
		for id := 1; id <= 3; id++ {
			s.Add(span(n, id, 0))
		}
	}
	if s.Trace(traceID(1)) != nil {
		t.Error("the oldest trace is still there")
	}
	for _, n := range []int{2, 3, 4} {
		if got := s.Trace(traceID(n)); got == nil || len(got.Spans) != 3 {
			t.Errorf("trace %d: %v, want 3 spans", n, got)
		}
	}
	if got, want := s.Stats(), (Stats{Traces: 3, Spans: 9, Bytes: s.Stats().Bytes, SpansReceived: 12, TracesEvicted: 1,
		SpansEvicted: 3}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestOneTraceCannotTakeTheWholeStore(t *testing.T) {
	s := New(Limits{Spans: 10, SpansPerTrace: 4})
	s.Add(span(1, 1, 0))
	refused := 0
	for id := 1; id <= 20; id++ {
		refused += s.Add(span(2, id, 0))
	}
	if refused != 16 || s.Stats().SpansRefused != 16 {
		t.Errorf("refused %d, counted %d, want 16", refused, s.Stats().SpansRefused)
	}
	if s.Trace(traceID(1)) == nil {
		t.Error("another trace had to go")
	}
}

func TestSpanSentTwiceCountsOnce(t *testing.T) {
	s := New(Limits{})
	s.Add(span(1, 1, 0))
	s.Add(span(1, 1, 0))
	if got := s.Stats(); got.Spans != 1 || got.SpansDuplicate != 1 {
		t.Errorf("%+v", got)
	}
}

func TestZeroIDsAreRefused(t *testing.T) {
	s := New(Limits{})
	if got := s.Add(&trace.Span{SpanID: link.SpanID{1}}, &trace.Span{TraceID: link.TraceID{1}}); got != 2 {
		t.Errorf("refused %d, want 2", got)
	}
}

func TestAwait(t *testing.T) {
	s := New(Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go func() {
		s.Add(span(1, 1, 0))
		s.Add(span(2, 1, 0))
		s.Add(span(1, 2, 1))
	}()
	got, err := s.Await(ctx, trace.Filter{}, func(t *trace.Trace) bool { return len(t.Spans) == 2 })
	if err != nil || got.ID != traceID(1) {
		t.Fatalf("%v, %v", got, err)
	}

	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Await(short, trace.Filter{}, func(*trace.Trace) bool { return false }); !errors.Is(err, ErrTimeout) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestSettle(t *testing.T) {
	s := New(Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var last time.Time
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5 {
			time.Sleep(20 * time.Millisecond)
			s.Add(span(i+1, 1, 0))
			last = time.Now()
		}
	}()
	if err := s.Settle(ctx, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-done
	if since := time.Since(last); since < 200*time.Millisecond {
		t.Errorf("settled %v after the last span", since)
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Settle(short, time.Minute); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
}

func TestManyWritersAndReaders(t *testing.T) {
	s := New(Limits{Spans: 500})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				s.Add(span(w*500+i+1, 1, 0), span(w*500+i+1, 2, 1))
			}
		})
		wg.Go(func() {
			for range 50 {
				for _, tr := range s.Traces(trace.Filter{Limit: 10}) {
					_ = tr.Verdict()
				}
			}
		})
	}
	wg.Wait()
	got := s.Stats()
	if got.Spans > 500 || got.SpansReceived != 4000 || uint64(got.Spans)+got.SpansEvicted != 4000 {
		t.Errorf("%+v", got)
	}
}

// A lookup through a cache miss has about 16 spans with 12 attributes each.
func BenchmarkReceive(b *testing.B) {
	var spans []*trace.Span
	for i := 1; i <= 16; i++ {
		s := span(1, i, 1)
		for k := range 12 {
			s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.All[k].Name, Value: fmt.Sprint("value ", k)})
		}
		spans = append(spans, s)
	}
	td := trace.ToOTLP(spans)
	s := New(Limits{})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		got := trace.FromOTLP(td)
		for _, sp := range got {
			sp.TraceID = link.TraceID{0: byte(n >> 16), 1: byte(n >> 8), 2: byte(n), 15: 1}
		}
		s.Add(got...)
	}
}
