package joined

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// When a lookup is shown. Agents send what they have once a second, each at its own moment.
const (
	// settle is how long nothing must have come of a lookup, before it is shown; a drop that was seen is shown at once.
	settle = 1500 * time.Millisecond
	// settleAtMost bounds that for one of which ever more comes.
	settleAtMost = 6 * time.Second
	// settleAlone is the same for a lookup of which the agent on the client's node has said nothing yet: of one without an
	// answer that agent speaks only when none can be expected any more.
	settleAlone = 12 * time.Second
	// reconsider is how long the verdict on a lookup that was lost on its way is looked at again: others may yet show that
	// the other node was watched.
	reconsider = 30 * time.Second

	tick = 200 * time.Millisecond
)

// How many other lookups tell whether a node was watched: so many of each node.
const othersPerNode = 50

// Rows is a store's lookups as rows. It implements [rowapi.Source]; its methods are safe for concurrent use.
type Rows struct {
	Store *store.Store

	missed atomic.Uint64
}

// Handler answers with the rows of s, and its counts, where [rowapi.Client] asks; all else is otherwise's.
func Handler(s *store.Store, otherwise http.Handler) http.Handler {
	rows := &Rows{Store: s}
	h := rowapi.Handler(rows, func() any { return rows.Stats() })
	mux := http.NewServeMux()
	mux.Handle(rowapi.PathLookups, h)
	mux.Handle(rowapi.PathStats, h)
	mux.Handle("/", otherwise)
	return mux
}

// Stats are the counts of [Rows].
type Stats struct {
	store.Stats
	// Nodes are the nodes whose agents have sent what the store keeps now.
	Nodes []string `json:"nodes"`
	// RowsMissed counts lookups that the store let go before a follower had been told of them.
	RowsMissed uint64 `json:"rowsMissed"`
}

// Stats gives the store's own counts.
func (r *Rows) Stats() Stats {
	s := Stats{Stats: r.Store.Stats(), Nodes: []string{}, RowsMissed: r.missed.Load()}
	have := map[string]bool{}
	for _, t := range r.Store.Traces(trace.Filter{}) {
		for _, sp := range t.Spans {
			if node := sp.String(semconv.K8SNodeName); node != "" && sp.From(semconv.ScopeTracer) && !have[node] {
				have[node] = true
				s.Nodes = append(s.Nodes, node)
			}
		}
	}
	slices.Sort(s.Nodes)
	return s
}

// Lookups implements [rowapi.Source]. Each call looks for itself; what it remembers is bounded by what the store keeps.
func (r *Rows) Lookups(ctx context.Context, f *output.Filter, n int, follow bool, give func(*output.Row) error,
	idle func()) error {
	w := r.Store.Watch() // before the past is read, so that nothing falls between
	defer w.Close()
	l := newLook(r.Store, f)
	past := l.past()
	if n < 0 {
		past = nil // it is told, though not here: only what corrects it is new
	} else if n > 0 && len(past) > n {
		past = past[len(past)-n:]
	}
	for _, row := range past {
		if err := give(row); err != nil {
			return err
		}
	}
	idle()
	if !follow {
		return nil
	}
	var before uint64
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			changed, missed := w.Take()
			rows := l.rows(changed, now)
			r.missed.Add(missed - before + l.gone)
			before, l.gone = missed, 0
			for _, row := range rows {
				if err := give(row); err != nil {
					return err
				}
			}
			if len(rows) > 0 {
				idle()
			}
		}
	}
}

// look is one reader's view: what it has been told, and what waits.
type look struct {
	store   *store.Store
	filter  *output.Filter
	told    map[link.TraceID][]*told
	waiting map[link.TraceID]*waiting
	again   map[trace.Key]time.Time // lost on their way: until when they are looked at again
	twins   map[trace.Twin]trace.Key
	asked   map[trace.Asking]trace.Key // of lookups whose client an agent saw, the last

	others   *trace.Others
	othersAt time.Time
	pruned   time.Time
	againAt  time.Time

	gone uint64 // lookups that the store let go while they waited
}

func newLook(s *store.Store, f *output.Filter) *look {
	return &look{
		store: s, filter: f, told: map[link.TraceID][]*told{}, waiting: map[link.TraceID]*waiting{},
		again: map[trace.Key]time.Time{}, twins: map[trace.Twin]trace.Key{}, asked: map[trace.Asking]trace.Key{},
	}
}

// told is what was said of a lookup.
type told struct {
	key                  trace.Key
	id                   link.TraceID // under which it was said
	result, where, cause string
	revision             int
	given                bool // the filter let it through
}

// waiting is a lookup that has changed: first and last when that came to be known, and next when it is to be looked at.
type waiting struct{ first, last, next time.Time }

// past tells everything that the store has, and gives what of it the filter takes, in order of time.
func (l *look) past() []*output.Row {
	traces := l.store.Traces(trace.Filter{})
	now := time.Now()
	l.setOthers(traces, now)
	var lookups []*trace.Trace
	for _, t := range traces {
		if t.OfServer() {
			continue
		}
		if t.Client() == nil {
			// Its client's agent may yet speak.
			ends := slices.MaxFunc(t.Spans, func(a, b *trace.Span) int { return a.End.Compare(b.End) }).End
			if w := (&waiting{ends, ends, ends}); now.Before(ready(t, w)) {
				l.waiting[t.ID] = w
				continue
			}
		}
		lookups = append(lookups, t.Lookups()...)
	}
	shadows := trace.Shadows(lookups)
	for _, t := range slices.Backward(lookups) { // the last is to be the one that stays
		if t.Client() != nil && !shadows[t] {
			l.asked[t.Asking()] = t.Key()
		}
	}
	var rows []*output.Row
	for _, t := range lookups {
		if shadows[t] || l.readLate(t) {
			continue
		}
		if twin := t.Twin(); twin != (trace.Twin{}) {
			l.twins[twin] = t.Key()
		}
		if row := l.tell(t, now); row != nil {
			rows = append(rows, row)
		}
	}
	byTime(rows)
	return rows
}

func byTime(rows []*output.Row) {
	slices.SortStableFunc(rows, func(a, b *output.Row) int { return a.Time.Compare(b.Time) })
}

// rows gives what is to be shown now.
func (l *look) rows(changed []link.TraceID, now time.Time) []*output.Row {
	for _, id := range changed {
		l.wait(id, now)
	}
	var rows []*output.Row
	show := func(t *trace.Trace) {
		if row := l.tell(t, now); row != nil {
			rows = append(rows, row)
		}
	}
	for id, w := range l.waiting {
		if now.Before(w.next) {
			continue
		}
		t := l.store.Trace(id)
		if t == nil {
			delete(l.waiting, id)
			if l.told[id] == nil {
				l.gone++
			}
			continue
		}
		if t.OfServer() {
			delete(l.waiting, id)
			if served := t.Whole(l.store.Trace); served.ID != id {
				l.wait(served.ID, now) // it may tell more of the lookup that it was made for
			}
			continue
		}
		done := true
		for _, t := range t.Lookups() {
			if t.Client() != nil {
				l.asked[t.Asking()] = t.Key()
			}
			if at := ready(t, w); now.Before(at) {
				if done || at.Before(w.next) {
					w.next = at
				}
				done = false
			} else if !l.shadowed(t) && !l.readLate(t) {
				show(t)
			}
		}
		if done {
			delete(l.waiting, id)
		}
	}
	if now.Sub(l.againAt) >= time.Second {
		l.againAt = now
		for key, until := range l.again {
			t := l.lookup(key)
			if t == nil || now.After(until) || l.shadowed(t) {
				delete(l.again, key) // a copy goes on where the linked one is told
				continue
			}
			show(t)
		}
	}
	l.prune(now)
	byTime(rows)
	return rows
}

// wait notes that something has come of a lookup.
func (l *look) wait(id link.TraceID, now time.Time) {
	if w := l.waiting[id]; w != nil {
		w.last, w.next = now, now
		return
	}
	l.waiting[id] = &waiting{now, now, now}
}

// lookup gives the lookup with that key as the store has it now; nil if it is gone.
func (l *look) lookup(key trace.Key) *trace.Trace {
	t := l.store.Trace(key.ID)
	if t == nil {
		return nil
	}
	for _, one := range t.Lookups() {
		if one.Key() == key {
			return one
		}
	}
	return nil
}

// ready says when a lookup is settled enough to be shown, if nothing more comes of its trace.
func ready(t *trace.Trace, w *waiting) time.Time {
	quiet := w.last.Add(settle)
	if atMost := w.first.Add(settleAtMost); atMost.Before(quiet) {
		quiet = atMost
	}
	if t.Client() == nil {
		if s := t.Server(); s != nil && s.Parent == (link.SpanID{}) {
			return quiet // CoreDNS was told that no tracer runs
		}
		return w.last.Add(settleAlone)
	}
	if v := t.Verdict(); v.Lost() && v.Certainty == trace.Certain && !t.Copy() && len(t.Copies()) == 0 {
		return w.last
	}
	return quiet
}

// shadowed says whether a lookup is none of its own: the copy, at an epoch boundary, of one that is shown.
func (l *look) shadowed(t *trace.Trace) bool {
	twin := t.Twin()
	if twin == (trace.Twin{}) {
		return false
	}
	mine := t.Key()
	key, ok := l.twins[twin]
	if !ok {
		// The row shall have the ID under which CoreDNS's side is, where that has come: it is the one to be explained.
		for _, id := range t.Copies() {
			other := l.lookup(trace.Key{ID: id, Server: mine.Server})
			if other != nil && trace.Shadows([]*trace.Trace{t, other})[t] {
				l.twins[twin] = other.Key()
				if l.waiting[id] == nil {
					now := time.Now()
					l.waiting[id] = &waiting{now, now, now}
				}
				return true
			}
		}
		l.twins[twin] = mine
		return false
	}
	if key == mine {
		return false
	}
	other := l.lookup(key)
	if other == nil {
		l.twins[twin] = mine
		return false
	}
	if trace.Shadows([]*trace.Trace{t, other})[t] {
		return true
	}
	// CoreDNS's side has come to this one: it goes on where the other was told.
	l.twins[twin] = mine
	l.move(key, mine)
	return false
}

// readLate says whether a lookup is none of its own, but what CoreDNS made of one that nobody waits for any more.
func (l *look) readLate(t *trace.Trace) bool {
	if t.Client() != nil {
		return false
	}
	key, known := l.asked[t.Asking()]
	if !known {
		return false
	}
	earlier := l.lookup(key)
	return earlier != nil && t.ReadLate(earlier)
}

// before gives what was told of a lookup. What was told by CoreDNS's word alone was told of the client's lookup, when
// its agent speaks.
func (l *look) before(t *trace.Trace) *told {
	key := t.Key()
	for _, was := range l.told[t.ID] {
		if was.key == key {
			return was
		}
	}
	if t.Client() != nil {
		for _, s := range t.Servers() {
			if was := l.move(trace.Key{ID: t.ID, Pod: trace.ServerName(s)}, key); was != nil {
				return was
			}
		}
	}
	return nil
}

// move notes that what was told of one lookup is of another; nil if nothing was.
func (l *look) move(from, to trace.Key) *told {
	i := slices.IndexFunc(l.told[from.ID], func(was *told) bool { return was.key == from })
	if i < 0 {
		return nil
	}
	was := l.told[from.ID][i]
	l.told[from.ID] = slices.Delete(l.told[from.ID], i, i+1)
	was.key = to
	l.told[to.ID] = append(l.told[to.ID], was)
	return was
}

// tell notes what is said of a trace; it gives a row where that is new and the filter takes it, or where it corrects a
// row that was given.
func (l *look) tell(t *trace.Trace, now time.Time) *output.Row {
	t = t.Whole(l.store.Trace)
	v := t.Verdict()
	if v.Lost() && v.Where == string(verdict.BetweenNodes) && v.Certainty != trace.Certain {
		if now.Sub(l.othersAt) >= time.Second {
			l.setOthers(l.store.Traces(trace.Filter{Since: t.Start().Add(-reconsider)}), now)
		}
		v = t.VerdictAmong(l.others)
		if _, known := l.again[t.Key()]; !known && v.Cause != string(verdict.CauseVanished) {
			l.again[t.Key()] = now.Add(reconsider)
		}
	}
	row := Row(t, v, 0)
	if row == nil {
		return nil
	}
	was := l.before(t)
	if was == nil {
		is := &told{key: t.Key(), id: t.ID, result: row.Result, where: v.Where, cause: v.Cause, given: l.filter.Takes(row)}
		l.told[t.ID] = append(l.told[t.ID], is)
		if !is.given {
			return nil
		}
		return row
	}
	if was.result == row.Result && was.where == v.Where && was.cause == v.Cause {
		return nil
	}
	was.result, was.where, was.cause = row.Result, v.Where, v.Cause
	was.revision++
	row.Revision, row.TraceID = was.revision, was.id.String()
	if was.given = was.given || l.filter.Takes(row); !was.given {
		return nil
	}
	return row
}

// setOthers keeps, of each node, the newest traces that show that it was watched: traces come newest first.
func (l *look) setOthers(traces []*trace.Trace, now time.Time) {
	var others []*trace.Trace
	count := map[string]int{}
	for _, t := range traces {
		wanted := false
		for _, node := range nodesOf(t) {
			if count[node] < othersPerNode {
				count[node]++
				wanted = true
			}
		}
		if wanted {
			others = append(others, t)
		}
	}
	l.others, l.othersAt = trace.NewOthers(others), now
}

// nodesOf gives the nodes whose agents, or whose CoreDNS, sent spans of a trace.
func nodesOf(t *trace.Trace) []string {
	var nodes []string
	have := map[string]bool{}
	for _, s := range t.Spans {
		if node := s.String(semconv.K8SNodeName); node != "" && !have[node] {
			have[node] = true
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// prune forgets what the store has forgotten, every now and then.
func (l *look) prune(now time.Time) {
	if now.Sub(l.pruned) < 10*time.Second {
		return
	}
	l.pruned = now
	for id := range l.told {
		if !l.store.Has(id) {
			delete(l.told, id)
		}
	}
	for asking, key := range l.asked {
		if !l.store.Has(key.ID) {
			delete(l.asked, asking)
		}
	}
	for twin, key := range l.twins {
		if !l.store.Has(key.ID) {
			delete(l.twins, twin)
		}
	}
}
