// Package past keeps the last lookups that an agent has seen: observe can be asked later what happened a minute ago,
// over a Unix socket, and package hindsight finds what others ask back for. It is the one copy for both.
package past

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Defaults of [Options].
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
// lookup is copied in once, without allocation in the long run, and becomes a row or spans only when somebody asks.
// Add, Expire, Find and Newest are for one goroutine.
type Past struct {
	o Options

	mu    sync.Mutex // Add and Expire hold it while they change what follows, Rows while it reads
	all   ring
	lost  ring
	index map[uint64]*Kept // the newest of a question
	// The newest of the queries that a server made to answer a lookup, by that one's trace ID.
	served map[link.TraceID]*Kept

	subscribers atomic.Int32
	missed      atomic.Uint64 // rows, by all subscriptions ever
	subMu       sync.Mutex
	subs        map[*Subscription]struct{}
}

// Options say how much a [Past] keeps.
type Options struct {
	// All is how many lookups there are rows of, and Lost how many lost ones beside; 0: those are among the others.
	All, Lost int
	// Bytes of memory, at most: a quarter of them for lost ones beside.
	Bytes int
	// Reach is how long lookups are kept however many there are, as far as Bytes allow: those who ask back find them by
	// [Past.Find]. None are if it is 0.
	Reach time.Duration
	Node  string
	Guard time.Duration
}

// ring is the last lookups of one kind, the oldest first.
type ring struct {
	queue []*Kept // a power of two of places; from head on
	head  int
	n     int
	gone  int // how many ever were let go: the number of the oldest that is held
	bytes int
	most  int   // of those
	least int   // so many are held however old they are
	free  *Kept // one that was let go: its memory is for the next
	early uint64
}

// Kept is a lookup as it was reported, with its verdict.
type Kept struct {
	lookup  lookup.Lookup
	verdict verdict.Verdict
	judge   *verdict.Judge
	origin  *origin.Origin

	// Sent says that its spans are on their way. It is the adding goroutine's.
	Sent bool

	hash         uint64 // of its question; 0: it is not to be found
	row          bool   // there is a row of it
	at           int64  // when it was added, in ns since 1970
	newer, older *Kept  // of the same question
	after, prior *Kept  // of those that serve the same lookup
	serves       bool   // it is among such
	room         int    // bytes that it takes in all
}

// New makes an empty past.
func New(o Options) *Past {
	p := &Past{
		o: o, subs: make(map[*Subscription]struct{}), index: map[uint64]*Kept{}, served: map[link.TraceID]*Kept{},
		all:  ring{most: o.Bytes / 4 * 3, least: o.All},
		lost: ring{most: o.Bytes / 4, least: o.Lost},
	}
	if o.Lost == 0 {
		p.all.most = o.Bytes
	}
	return p
}

// Fill makes k a copy of a judged lookup, in the memory that k has.
func (k *Kept) Fill(r *pipeline.Result) {
	r.Lookup.CopyTo(&k.lookup)
	k.verdict, k.judge, k.origin = *r.Verdict, r.Judge, r.Origin
	k.room = bytesOfPlace + int(unsafe.Sizeof(*k)) + k.lookup.Room() + len(k.verdict.Text)
	for _, text := range k.verdict.Evidence {
		k.room += len(text) + int(unsafe.Sizeof(text))
	}
}

// bytesOfPlace is roughly what a lookup's place in a ring and the index takes.
const bytesOfPlace = 64

// Result gives the lookup. What it gives is k's own: of one that a [Past] holds, until the next Add.
func (k *Kept) Result() pipeline.Result {
	return pipeline.Result{Lookup: &k.lookup, Verdict: &k.verdict, Judge: k.judge, Origin: k.origin}
}

// Room gives the bytes of memory that it takes.
func (k *Kept) Room() int { return k.room }

// Older gives the one of the same question that was added before; nil if there is none.
func (k *Kept) Older() *Kept { return k.older }

// Prior gives the one that serves the same lookup and was added before; nil if there is none.
func (k *Kept) Prior() *Kept { return k.prior }

// Add takes a judged lookup. A hash other than 0 is that of its question (see [link.Key.QuestionHash]), by which it is
// found; sent says that its spans are on their way. It never waits for a reader longer than it takes to make one row.
func (p *Past) Add(r pipeline.Result, hash uint64, sent bool) {
	to := &p.all
	if p.o.Lost > 0 && r.Verdict.Lost() {
		to = &p.lost
	}
	serves := r.Lookup.Serves != nil && r.Lookup.Final
	if p.o.Reach == 0 {
		hash, serves = 0, false
	}
	row := !r.Lookup.Confirms
	if hash != 0 || serves || row && to.least > 0 {
		p.keep(to, &r, hash, sent, row, serves)
	}
	if row {
		p.tell(&r)
	}
}

func (p *Past) keep(to *ring, r *pipeline.Result, hash uint64, sent, row, serves bool) {
	now := time.Now().UnixNano()
	p.mu.Lock()
	defer p.mu.Unlock()
	k := to.free
	if k == nil {
		k = &Kept{}
	}
	to.free = nil
	k.Fill(r)
	k.hash, k.at, k.Sent, k.row, k.newer, k.older = hash, now, sent, row, nil, nil
	k.serves, k.after, k.prior = serves, nil, nil
	if hash != 0 {
		if k.older = p.index[hash]; k.older != nil {
			k.older.newer = k
		}
		p.index[hash] = k
	}
	if serves {
		id := k.lookup.Serves.TraceID
		if k.prior = p.served[id]; k.prior != nil {
			k.prior.after = k
		}
		p.served[id] = k
	}
	to.push(k)
	p.expire(to, now)
	for to.bytes > to.most && to.n > 1 {
		if old := to.queue[to.head]; (old.hash != 0 || old.serves) && now-old.at < int64(p.o.Reach) {
			to.early++
		}
		p.drop(to)
	}
}

// Expire lets go what is older than it need be.
func (p *Past) Expire(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(&p.all, now.UnixNano())
	p.expire(&p.lost, now.UnixNano())
}

func (p *Past) expire(r *ring, now int64) {
	for r.n > r.least && now-r.queue[r.head].at >= int64(p.o.Reach) {
		p.drop(r)
	}
}

// Find gives the newest lookup with a question, by its hash; [Kept.Older] the others. Nil if there is none.
func (p *Past) Find(hash uint64) *Kept { return p.index[hash] }

// Serving gives the newest of the queries that a server made to answer a lookup, by that one's trace ID (see
// [lookup.Lookup.Serves]); [Kept.Prior] the others. Nil if there is none.
func (p *Past) Serving(id link.TraceID) *Kept { return p.served[id] }

// Newest gives the lookups that are held, the newest first; lost ones that are held beside, last.
func (p *Past) Newest() iter.Seq[*Kept] {
	return func(yield func(*Kept) bool) {
		for _, r := range []*ring{&p.all, &p.lost} {
			for i := r.n - 1; i >= 0; i-- {
				if !yield(r.at(i)) {
					return
				}
			}
		}
	}
}

// Held gives how many lookups are held, the bytes that they take, and how many of those that could be found were let go
// before their time, ever, because there was no room.
func (p *Past) Held() (lookups, bytes int, early uint64) {
	return p.all.n + p.lost.n, p.all.bytes + p.lost.bytes, p.all.early + p.lost.early
}

// at gives the i'th that is held, from 0.
func (r *ring) at(i int) *Kept { return r.queue[(r.head+i)&(len(r.queue)-1)] }

func (r *ring) push(k *Kept) {
	if r.n == len(r.queue) {
		queue := make([]*Kept, max(64, 2*len(r.queue)))
		for i := range r.n {
			queue[i] = r.at(i)
		}
		r.queue, r.head = queue, 0
	}
	r.queue[(r.head+r.n)&(len(r.queue)-1)] = k
	r.n++
	r.bytes += k.room
}

// drop lets the oldest go.
func (p *Past) drop(r *ring) {
	k := r.queue[r.head]
	r.queue[r.head] = nil
	r.head = (r.head + 1) & (len(r.queue) - 1)
	r.n--
	r.gone++
	r.bytes -= k.room
	if k.older != nil {
		k.older.newer = k.newer
	}
	switch {
	case k.newer != nil:
		k.newer.older = k.older
	case k.hash == 0:
	case k.older != nil:
		p.index[k.hash] = k.older
	default:
		delete(p.index, k.hash)
	}
	k.newer, k.older = nil, nil
	if k.prior != nil {
		k.prior.after = k.after
	}
	switch {
	case !k.serves:
	case k.after != nil:
		k.after.prior = k.prior
	case k.prior != nil:
		p.served[k.lookup.Serves.TraceID] = k.prior
	default:
		delete(p.served, k.lookup.Serves.TraceID)
	}
	k.after, k.prior = nil, nil
	r.free = k
}

// tell gives a lookup's row to those who follow.
func (p *Past) tell(r *pipeline.Result) {
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
			row = output.NewRow(r.Lookup, r.Verdict, r.Origin, p.o.Node, p.o.Guard)
		}
		select {
		case s.rows <- row:
		default:
			s.missed.Add(1)
			p.missed.Add(1)
		}
	}
}

// Rows gives the rows of the past that a filter takes, the last n of them (0: all), in order of time.
func (p *Past) Rows(f *output.Filter, n int) []*output.Row {
	var rows []*output.Row
	for _, r := range []*ring{&p.all, &p.lost} {
		for i := 0; ; i++ {
			var row *output.Row
			p.mu.Lock() // for one row only: who adds must not wait for all
			i = max(i, r.gone, r.gone+r.n-r.least)
			done := i-r.gone >= r.n
			if !done {
				if k := r.at(i - r.gone); k.row {
					row = output.NewRow(&k.lookup, &k.verdict, k.origin, p.o.Node, p.o.Guard)
				}
			}
			p.mu.Unlock()
			if done {
				break
			}
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
