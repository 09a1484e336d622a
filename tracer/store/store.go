// Package store keeps the last traces in memory: what a Jaeger does for a cluster, for one terminal.
//
// A [Store] takes spans as they come, by OTLP ([Store.Receive]) or from the same process ([Store.Add]), and files them
// by trace ID. It is bounded in spans: the trace that began to arrive first is the first to go, and what went is
// counted ([Stats]). What has been filed under one ID is joined into a [trace.Trace] when it is asked for.
package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// DefaultSpans is how many spans a store keeps when its [Limits] do not say: some 100 MB.
const DefaultSpans = 100_000

// DefaultBytes is how much memory a store's spans take when its [Limits] do not say.
const DefaultBytes = 128 << 20

// Limits bound a store. The zero value is usable.
type Limits struct {
	// Spans is how many spans are kept at most, over all traces; 0 means [DefaultSpans].
	Spans int
	// SpansPerTrace is how many spans one trace may have; 0 means a tenth of Spans.
	SpansPerTrace int
	// Bytes is how much memory the spans kept may take, with all that they bring along; 0 means [DefaultBytes]. One trace
	// may take a sixteenth of it.
	Bytes int64
}

// Stats is what a store has seen and what it has let go.
type Stats struct {
	Traces         int    `json:"traces"`         // kept now
	Spans          int    `json:"spans"`          // kept now
	SpansReceived  uint64 `json:"spansReceived"`  // since the start
	SpansDuplicate uint64 `json:"spansDuplicate"` // same trace and span ID and sender as one kept already
	SpansRefused   uint64 `json:"spansRefused"`   // no valid ID, or a trace over its bound
	SpansForeign   uint64 `json:"spansForeign"`   // of a node or pod for which their sender may not speak
	ValuesCut      uint64 `json:"valuesCut"`      // attributes, links and events beyond what a span may have
	Bytes          int64  `json:"bytes"`          // kept now
	TracesEvicted  uint64 `json:"tracesEvicted"`  // made room for newer ones
	SpansEvicted   uint64 `json:"spansEvicted"`
}

// Store is a bounded set of traces. It is safe for concurrent use. Make one with [New].
type Store struct {
	limits Limits

	mu       sync.RWMutex
	traces   map[link.TraceID]*entry
	order    *list.List // of *entry: oldest in front
	senders  map[string]*sender
	shared   map[any]*held // what several spans share, by its pointer
	seed     maphash.Seed
	stats    Stats
	received time.Time     // when spans came last
	changed  chan struct{} // closed, and made anew, when spans come
	watches  []*Watch
}

// entry is a trace as it is kept.
type entry struct {
	id    link.TraceID
	spans []*trace.Span // in order of arrival; a slice handed out is never written to again, only appended behind
	place *list.Element

	parts   []part // of each sender that has sent spans of it
	telling bool
	bytes   int64
	seen    map[uint64]struct{} // hashes of the spans, once there are more than a few
}

// part is what one sender has sent of a trace.
type part struct {
	from  *sender
	at    *list.Element // in one of its lists
	bytes int64
	late  int // spans beyond the half of what a trace may have
}

// New gives an empty store. It panics if a limit is negative.
func New(l Limits) *Store {
	if l.Spans < 0 || l.SpansPerTrace < 0 || l.Bytes < 0 {
		panic("store: negative limit")
	}
	if l.Bytes == 0 {
		l.Bytes = DefaultBytes
	}
	if l.Spans == 0 {
		l.Spans = DefaultSpans
	}
	if l.SpansPerTrace == 0 {
		l.SpansPerTrace = max(1, l.Spans/10)
	}
	l.SpansPerTrace = min(l.SpansPerTrace, l.Spans)
	return &Store{
		limits: l, traces: map[link.TraceID]*entry{}, order: list.New(), senders: map[string]*sender{},
		shared: map[any]*held{}, seed: maphash.MakeSeed(), changed: make(chan struct{}),
	}
}

// Receive files the spans of td, which come from c, and gives how many of them it refused. What a span says of itself
// is kept only if c may say it, and each resource tells from now on who sent it ([semconv.SenderAddress]).
func (s *Store) Receive(td ptrace.Traces, c access.Caller) (refused int) {
	spans, cut := trace.Read(td)
	received := len(spans)
	spans = signed(spans, c, time.Now())
	foreign := received - len(spans)
	s.mu.Lock()
	s.stats.SpansReceived += uint64(foreign)
	s.stats.SpansForeign += uint64(foreign)
	s.stats.ValuesCut += uint64(cut)
	s.mu.Unlock()
	return foreign + s.addFrom(senderKey(c), spans)
}

// Add files spans, which the caller must not change any more, and gives how many of them it refused.
func (s *Store) Add(spans ...*trace.Span) (refused int) { return s.addFrom("", spans) }

func (s *Store) addFrom(key string, spans []*trace.Span) (refused int) {
	if len(spans) == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.sender(key)
	for _, sp := range spans {
		if !s.add(sp, from) {
			refused++
		}
		for s.stats.Spans > s.limits.Spans || s.stats.Bytes > s.limits.Bytes {
			s.evict(s.leastTelling())
		}
	}
	s.forget(from)
	s.received = time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
	return refused
}

// few is how many spans of a trace are looked through for one that was sent twice, before their hashes are kept.
const few = 16

func (s *Store) add(sp *trace.Span, from *sender) bool {
	s.stats.SpansReceived++
	if sp.TraceID == (link.TraceID{}) || sp.SpanID == (link.SpanID{}) {
		s.stats.SpansRefused++
		return false
	}
	e := s.traces[sp.TraceID]
	if e != nil && s.duplicate(e, sp) {
		s.stats.SpansDuplicate++ // an exporter that did not hear the acknowledgement sends again
		return true
	}
	if e == nil {
		e = &entry{id: sp.TraceID}
		e.place = s.order.PushBack(e)
		s.traces[sp.TraceID] = e
		s.stats.Traces++
	}
	p := e.part(from)
	bytes := sizeOf(sp)
	if p == nil || !s.room(e, p, bytes) {
		s.stats.SpansRefused++
		return false
	}
	if p.at == nil {
		bytes += partBytes
		p.at = from.list(e.telling).PushBack(e)
	}
	if len(e.spans) == 0 {
		bytes += entryBytes
	}
	e.spans = append(e.spans, sp)
	if e.seen != nil {
		e.seen[s.hash(sp)] = struct{}{}
	}
	p.bytes += bytes
	e.bytes += bytes
	s.charge(from, bytes)
	s.hold(sp, from)
	s.stats.Spans++
	if !e.telling && tells(sp) {
		for i := range e.parts {
			if p := &e.parts[i]; p.at != nil {
				p.from.plain.Remove(p.at)
				p.at = p.from.telling.PushBack(e)
			}
		}
		e.telling = true
	}
	for _, w := range s.watches {
		w.changed[e.id] = struct{}{}
	}
	return true
}

// part gives what from has sent of the trace; nil if as many others have sent of it as may.
func (e *entry) part(from *sender) *part {
	for i := range e.parts {
		if e.parts[i].from == from {
			return &e.parts[i]
		}
	}
	if len(e.parts) == maxParts {
		return nil
	}
	e.parts = append(e.parts, part{from: from})
	return &e.parts[len(e.parts)-1]
}

// duplicate tells a span sent twice. Two agents may give their spans the same, derived, ID, and those are none; nor
// does the copy that another sender makes keep the right one out.
func (s *Store) duplicate(e *entry, sp *trace.Span) bool {
	if e.seen == nil && len(e.spans) >= few {
		e.seen = make(map[uint64]struct{}, 2*few)
		for _, have := range e.spans {
			e.seen[s.hash(have)] = struct{}{}
		}
	}
	if e.seen != nil {
		_, ok := e.seen[s.hash(sp)]
		return ok
	}
	for _, have := range e.spans {
		if have.SpanID == sp.SpanID && have.Kind == sp.Kind && have.Start.Equal(sp.Start) && have.End.Equal(sp.End) &&
			have.Name == sp.Name && have.Sender() == sp.Sender() {
			return true
		}
	}
	return false
}

// hash gives what tells a span from another one, by a seed that nobody outside knows.
func (s *Store) hash(sp *trace.Span) uint64 {
	return maphash.Comparable(s.seed, struct {
		id         link.SpanID
		kind       trace.Kind
		start, end int64
		name, from string
	}{sp.SpanID, sp.Kind, sp.Start.UnixNano(), sp.End.UnixNano(), sp.Name, sp.Sender()})
}

// room tells whether a trace may have one more span of a sender. When half of what it may have is used up, each of the
// senders that are known may use an eighth of it: one that fills a trace leaves room for what others know of it.
func (s *Store) room(e *entry, p *part, bytes int64) bool {
	most := s.limits.SpansPerTrace
	if len(e.spans) >= most || e.bytes+bytes > s.limits.Bytes/16 {
		return len(e.spans) == 0
	}
	if p.from.key == "" || len(e.spans) < most/2 && e.bytes < s.limits.Bytes/32 {
		return true
	}
	p.late++
	return p.late <= max(1, most/8)
}

func (s *Store) evict(e *entry) {
	s.order.Remove(e.place)
	delete(s.traces, e.id)
	for _, sp := range e.spans {
		s.release(sp)
	}
	for _, p := range e.parts {
		if p.at != nil {
			p.from.list(e.telling).Remove(p.at)
		}
		s.charge(p.from, -p.bytes)
		s.forget(p.from)
	}
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
func (s *Store) Trace(id link.TraceID) *trace.Trace {
	s.mu.RLock()
	e := s.traces[id]
	var spans []*trace.Span
	if e != nil {
		spans = slices.Clip(e.spans)
	}
	s.mu.RUnlock()
	if spans == nil {
		return nil
	}
	return trace.New(spans)
}

// Has tells whether the store keeps a trace with that ID.
func (s *Store) Has(id link.TraceID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.traces[id] != nil
}

// Traces gives the traces that f lets through, the one that began to arrive last first. A filter's limit counts from
// there.
func (s *Store) Traces(f trace.Filter) []*trace.Trace {
	s.mu.RLock()
	kept := make([][]*trace.Span, 0, len(s.traces))
	for at := s.order.Back(); at != nil; at = at.Prev() {
		spans := at.Value.(*entry).spans
		kept = append(kept, slices.Clip(spans))
	}
	s.mu.RUnlock()

	var found []*trace.Trace
	for _, spans := range kept {
		if f.Limit > 0 && len(found) == f.Limit {
			break
		}
		if t := trace.New(spans); f.Match(t) {
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
	clear(s.senders)
	clear(s.shared)
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

// Await waits until a trace that f lets through satisfies done, and gives the newest such. When ctx ends first, the
// error wraps [ErrTimeout] and the context's, and tells how many traces f let through.
func (s *Store) Await(ctx context.Context, f trace.Filter, done func(*trace.Trace) bool) (*trace.Trace, error) {
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
