// Package past keeps the last lookups that an agent has seen, so that observe can be asked later what happened a minute ago; and serves them, and those
// that come, over a Unix socket.
package past

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Defaults of [New].
const (
	DefaultAll  = 4096
	DefaultLost = 1024
)

// Stats are the agent's counts, and those of who reads its rows.
type Stats struct {
	pipeline.Stats
	// RowsMissed counts the rows that came faster than a follower took them.
	RowsMissed uint64
}

// Past is the last lookups, and apart from them the last lost ones, which would else be pushed out by the answered. A lookup is copied in, without allocation
// once the ring has turned, and becomes a row only when somebody asks. Add is for one goroutine.
type Past struct {
	node  string
	guard time.Duration

	mu   sync.Mutex
	all  ring
	lost ring

	subscribers atomic.Int32
	missed      atomic.Uint64 // rows, by all subscriptions ever
	subMu       sync.Mutex
	subs        map[*Subscription]struct{}
}

type ring struct {
	slots []kept
	next  int
	full  bool
}

// kept is a lookup with its verdict.
type kept struct {
	lookup  lookup.Lookup
	verdict verdict.Verdict
	origin  *origin.Origin
}

// New makes an empty past of at most so many lookups, and so many lost ones beside.
func New(all, lost int, node string, guard time.Duration) *Past {
	return &Past{
		node: node, guard: guard, subs: make(map[*Subscription]struct{}),
		all: ring{slots: make([]kept, all)}, lost: ring{slots: make([]kept, lost)},
	}
}

// Add takes a judged lookup. It never waits for a reader longer than for the copy of one lookup.
func (p *Past) Add(r pipeline.Result) {
	if r.Lookup.Confirms {
		return
	}
	p.mu.Lock()
	to := &p.all
	if r.Verdict.Lost() {
		to = &p.lost
	}
	to.put(r)
	p.mu.Unlock()
	if p.subscribers.Load() == 0 {
		return
	}
	row := output.NewRow(r.Lookup, r.Verdict, r.Origin, p.node, p.guard)
	p.subMu.Lock()
	defer p.subMu.Unlock()
	for s := range p.subs {
		select {
		case s.rows <- row:
		default:
			s.missed.Add(1)
			p.missed.Add(1)
		}
	}
}

func (r *ring) put(x pipeline.Result) {
	if len(r.slots) == 0 {
		return
	}
	k := &r.slots[r.next]
	hops, name, related := k.lookup.Hops[:0], k.lookup.Name[:0], k.lookup.Related[:0]
	k.lookup = *x.Lookup
	k.lookup.Hops = append(hops, x.Lookup.Hops...)
	k.lookup.Name = append(name, x.Lookup.Name...)
	k.lookup.Related = append(related, x.Lookup.Related...)
	k.lookup.Body.Answers = slices.Clone(x.Lookup.Body.Answers)
	k.lookup.Forget()
	k.verdict, k.origin = *x.Verdict, x.Origin
	if r.next++; r.next == len(r.slots) {
		r.next, r.full = 0, true
	}
}

// Rows gives the rows of the past that a filter takes, the last n of them (0: all), in order of time.
func (p *Past) Rows(f *output.Filter, n int) []*output.Row {
	var rows []*output.Row
	for _, r := range []*ring{&p.all, &p.lost} {
		for i := range len(r.slots) {
			p.mu.Lock()
			var row *output.Row
			if i < r.next || r.full {
				k := &r.slots[i]
				row = output.NewRow(&k.lookup, &k.verdict, k.origin, p.node, p.guard)
			}
			p.mu.Unlock()
			if row != nil && f.Takes(row) {
				rows = append(rows, row)
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b *output.Row) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return a.Revision - b.Revision
	})
	if n > 0 && len(rows) > n {
		rows = rows[len(rows)-n:]
	}
	return rows
}

// Subscription gets every row from now on.
type Subscription struct {
	past   *Past
	rows   chan *output.Row
	missed atomic.Uint64
}

// Subscribe starts a subscription; close it.
func (p *Past) Subscribe() *Subscription {
	s := &Subscription{past: p, rows: make(chan *output.Row, 4096)}
	p.subMu.Lock()
	p.subs[s] = struct{}{}
	p.subMu.Unlock()
	p.subscribers.Add(1)
	return s
}

// Rows gives the rows as they come.
func (s *Subscription) Rows() <-chan *output.Row { return s.rows }

// Missed counts the rows that came faster than they were taken.
func (s *Subscription) Missed() uint64 { return s.missed.Load() }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.past.subscribers.Add(-1)
	s.past.subMu.Lock()
	defer s.past.subMu.Unlock()
	delete(s.past.subs, s)
}
