// Package past keeps the last lookups that an agent has seen, so that observe can be asked later what happened a minute
// ago; and serves them, and those that come, over a Unix socket.
package past

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Defaults of [New].
const (
	DefaultAll   = 4096
	DefaultLost  = 1024
	DefaultBytes = 48 << 20 // of memory, of which lost ones take a quarter at most
)

// Stats are the agent's counts, and those of who reads its rows.
type Stats struct {
	pipeline.Stats
	// RowsMissed counts the rows that came faster than a follower took them.
	RowsMissed uint64
}

// Past is the last lookups, and apart from them the last lost ones, which would else be pushed out by the answered. A
// lookup is copied in, without allocation once the ring has turned, and becomes a row only when somebody asks. Add is
// for one goroutine.
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

// ring holds the last lookups, as many as it has slots and bytes.
type ring struct {
	slots []kept
	next  int           // where the next one goes
	n     int           // held, the last of them before next
	bytes int           // of memory that all slots take beside themselves
	most  int           // of those
	spare lookup.Lookup // what has fallen out: its memory is for the next
}

// kept is a lookup with its verdict.
type kept struct {
	lookup  lookup.Lookup
	verdict verdict.Verdict
	origin  *origin.Origin
}

// New makes an empty past of at most so many lookups, and so many lost ones beside, that take at most so many bytes.
func New(all, lost, bytes int, node string, guard time.Duration) *Past {
	return &Past{
		node: node, guard: guard, subs: make(map[*Subscription]struct{}),
		all:  ring{slots: make([]kept, all), most: bytes / 4 * 3},
		lost: ring{slots: make([]kept, lost), most: bytes / 4},
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
	var row *output.Row
	p.subMu.Lock()
	defer p.subMu.Unlock()
	for s := range p.subs {
		if s.filter != nil && !s.filter.TakesName(r.Lookup.Question()) {
			continue
		}
		if row == nil {
			row = output.NewRow(r.Lookup, r.Verdict, r.Origin, p.node, p.guard)
		}
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
	r.bytes -= k.room()
	if cap(k.lookup.Hops) == 0 {
		k.lookup, r.spare = r.spare, lookup.Lookup{}
	}
	x.Lookup.CopyTo(&k.lookup)
	k.verdict, k.origin = *x.Verdict, x.Origin
	r.bytes += k.room()
	r.n = min(r.n+1, len(r.slots))
	r.next = (r.next + 1) % len(r.slots)
	for r.bytes > r.most && r.n > 1 {
		oldest := &r.slots[(r.next-r.n+len(r.slots))%len(r.slots)]
		r.bytes -= oldest.room()
		r.spare = oldest.lookup
		*oldest = kept{}
		r.n--
	}
}

// room gives the memory that a slot takes beside itself, in bytes.
func (k *kept) room() int {
	n := k.lookup.Room()
	for _, text := range k.verdict.Evidence {
		n += len(text) + int(unsafe.Sizeof(text))
	}
	return n + len(k.verdict.Text)
}

// Rows gives the rows of the past that a filter takes, the last n of them (0: all), in order of time.
func (p *Past) Rows(f *output.Filter, n int) []*output.Row {
	var rows []*output.Row
	for _, r := range []*ring{&p.all, &p.lost} {
		for i := range len(r.slots) {
			p.mu.Lock()
			var row *output.Row
			if (r.next-1-i+len(r.slots))%len(r.slots) < r.n {
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
	filter *output.Filter
	rows   chan *output.Row
	missed atomic.Uint64
}

// Subscribe starts a subscription; close it. Rows of names that f does not take are left out, so that others' floods
// do not push out what is asked for; the rest of f is the subscriber's to apply. A nil f takes all.
func (p *Past) Subscribe(f *output.Filter) *Subscription {
	s := &Subscription{past: p, filter: f, rows: make(chan *output.Row, 4096)}
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
