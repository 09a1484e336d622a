// Package store keeps the last traces in memory: what a Jaeger does for a cluster, for one terminal.
//
// A [Store] takes spans as they come, by OTLP ([Receiver]) or from the same process ([Store.Add]), and files them by trace ID.
// It is bounded in spans: the trace that began to arrive first is the first to go, and what went is counted ([Stats]). A [Trace] is what has been
// filed under one ID, joined into a tree when it is asked for: spans of one lookup come from several programs, in no order.
package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
)

// DefaultSpans is how many spans a store keeps when its [Limits] do not say: some 100 MB.
const DefaultSpans = 100_000

// Limits bound a store. The zero value is usable.
type Limits struct {
	// Spans is how many spans are kept at most, over all traces; 0 means [DefaultSpans].
	Spans int
	// SpansPerTrace is how many spans one trace may have; 0 means a tenth of Spans.
	SpansPerTrace int
}

// Stats is what a store has seen and what it has let go.
type Stats struct {
	Traces         int    `json:"traces"`         // kept now
	Spans          int    `json:"spans"`          // kept now
	SpansReceived  uint64 `json:"spansReceived"`  // since the start
	SpansDuplicate uint64 `json:"spansDuplicate"` // same trace and span ID and sender as one kept already
	SpansRefused   uint64 `json:"spansRefused"`   // no valid ID, or a trace over its bound
	TracesEvicted  uint64 `json:"tracesEvicted"`  // made room for newer ones
	SpansEvicted   uint64 `json:"spansEvicted"`
}

// Store is a bounded set of traces. It is safe for concurrent use. Make one with [New].
type Store struct {
	limits Limits

	mu       sync.RWMutex
	traces   map[link.TraceID]*entry
	order    *list.List // of *entry: oldest in front
	stats    Stats
	received time.Time     // when spans came last
	changed  chan struct{} // closed, and made anew, when spans come
	watches  []*Watch
}

// entry is a trace as it is kept.
type entry struct {
	id    link.TraceID
	spans []*Span // in order of arrival; a slice handed out is never written to again, only appended behind
	place *list.Element
}

// New gives an empty store. It panics if a limit is negative.
func New(l Limits) *Store {
	if l.Spans < 0 || l.SpansPerTrace < 0 {
		panic("store: negative limit")
	}
	if l.Spans == 0 {
		l.Spans = DefaultSpans
	}
	if l.SpansPerTrace == 0 {
		l.SpansPerTrace = max(1, l.Spans/10)
	}
	l.SpansPerTrace = min(l.SpansPerTrace, l.Spans)
	return &Store{limits: l, traces: map[link.TraceID]*entry{}, order: list.New(), changed: make(chan struct{})}
}

// Receive files the spans of td and gives how many of them it refused.
func (s *Store) Receive(td ptrace.Traces) (refused int) { return s.Add(FromOTLP(td)...) }

// Add files spans, which the caller must not change any more, and gives how many of them it refused.
func (s *Store) Add(spans ...*Span) (refused int) {
	if len(spans) == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range spans {
		if !s.add(sp) {
			refused++
		}
	}
	for s.stats.Spans > s.limits.Spans {
		s.evict(s.order.Front().Value.(*entry))
	}
	s.received = time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
	return refused
}

func (s *Store) add(sp *Span) bool {
	s.stats.SpansReceived++
	if sp.TraceID == (link.TraceID{}) || sp.SpanID == (link.SpanID{}) {
		s.stats.SpansRefused++
		return false
	}
	e := s.traces[sp.TraceID]
	if e == nil {
		e = &entry{id: sp.TraceID}
		e.place = s.order.PushBack(e)
		s.traces[sp.TraceID] = e
		s.stats.Traces++
	}
	for _, have := range e.spans {
		if have.SpanID == sp.SpanID && sameSender(have, sp) {
			s.stats.SpansDuplicate++ // an exporter that did not hear the acknowledgement sends again
			return true
		}
	}
	if len(e.spans) >= s.limits.SpansPerTrace {
		s.stats.SpansRefused++
		return false
	}
	e.spans = append(e.spans, sp)
	s.stats.Spans++
	for _, w := range s.watches {
		w.changed[e.id] = struct{}{}
	}
	return true
}

// sameSender tells a span sent twice from two agents that gave their spans the same, derived, ID.
func sameSender(a, b *Span) bool {
	return a.Kind == b.Kind && a.Start.Equal(b.Start) && a.End.Equal(b.End) && a.Name == b.Name
}

func (s *Store) evict(e *entry) {
	s.order.Remove(e.place)
	delete(s.traces, e.id)
	s.stats.Traces--
	s.stats.Spans -= len(e.spans)
	s.stats.TracesEvicted++
	s.stats.SpansEvicted += uint64(len(e.spans))
	for _, w := range s.watches {
		w.evicted(e.id)
	}
}

// Stats gives the store's own figures.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.stats
}

// Trace gives the trace with that ID, nil if there is none.
func (s *Store) Trace(id link.TraceID) *Trace {
	s.mu.RLock()
	e := s.traces[id]
	var spans []*Span
	if e != nil {
		spans = slices.Clip(e.spans)
	}
	s.mu.RUnlock()
	if spans == nil {
		return nil
	}
	return NewTrace(spans)
}

// Has tells whether the store keeps a trace with that ID.
func (s *Store) Has(id link.TraceID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.traces[id] != nil
}

// Traces gives the traces that f lets through, the one that began to arrive last first. A filter's limit counts from there.
func (s *Store) Traces(f Filter) []*Trace {
	s.mu.RLock()
	kept := make([][]*Span, 0, len(s.traces))
	for at := s.order.Back(); at != nil; at = at.Prev() {
		spans := at.Value.(*entry).spans
		kept = append(kept, slices.Clip(spans))
	}
	s.mu.RUnlock()

	var found []*Trace
	for _, spans := range kept {
		if f.Limit > 0 && len(found) == f.Limit {
			break
		}
		if t := NewTrace(spans); f.Match(t) {
			found = append(found, t)
		}
	}
	return found
}

// Clear forgets all traces and sets the figures to zero.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.traces)
	s.order.Init()
	s.stats = Stats{}
}

// Changed gives a channel that is closed when spans come after the call.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// ErrTimeout says that what was waited for did not come.
var ErrTimeout = errors.New("not seen in time")

// Await waits until a trace that f lets through satisfies done, and gives the newest such. When ctx ends first, the error
// wraps [ErrTimeout] and the context's, and tells how many traces f let through.
func (s *Store) Await(ctx context.Context, f Filter, done func(*Trace) bool) (*Trace, error) {
	for {
		changed := s.Changed()
		let := s.Traces(f)
		for _, t := range let {
			if done(t) {
				return t, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("trace %w: of %d candidates none is whole: %w", ErrTimeout, len(let), context.Cause(ctx))
		}
	}
}

// Settle waits until no span has come for quiet. When ctx ends first, the error wraps [ErrTimeout] and the context's.
func (s *Store) Settle(ctx context.Context, quiet time.Duration) error {
	begin := time.Now()
	for {
		s.mu.RLock()
		last := s.received
		s.mu.RUnlock()
		if last.Before(begin) {
			last = begin
		}
		left := quiet - time.Since(last)
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return fmt.Errorf("a quiet %v %w: %w", quiet, ErrTimeout, context.Cause(ctx))
		}
	}
}
