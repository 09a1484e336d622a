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
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// When a lookup is shown. Agents send what they have once a second, each at its own moment.
const (
	// settle is how long nothing must have come of a lookup, before it is shown; a drop that was seen is shown at once.
	settle = 1500 * time.Millisecond
	// settleAtMost bounds that for one of which ever more comes.
	settleAtMost = 6 * time.Second
	// settleAlone is the same for a lookup of which the agent on the client's node has said nothing yet: of one without an answer that agent speaks
	// only when none can be expected any more.
	settleAlone = 12 * time.Second
	// reconsider is how long the verdict on a lookup that was lost on its way is looked at again: others may yet show that the other node was watched.
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
	for _, t := range r.Store.Traces(store.Filter{}) {
		for _, sp := range t.Spans {
			if node := sp.String(semconv.K8SNodeName); node != "" && sp.From(semconv.ScopeTracer) && !slices.Contains(s.Nodes, node) {
				s.Nodes = append(s.Nodes, node)
			}
		}
	}
	slices.Sort(s.Nodes)
	return s
}

// Lookups implements [rowapi.Source]. Each call looks for itself; what it remembers is bounded by what the store keeps.
func (r *Rows) Lookups(ctx context.Context, f *output.Filter, n int, follow bool, give func(*output.Row) error, idle func()) error {
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
	told    map[link.TraceID]*told
	waiting map[link.TraceID]*waiting
	again   map[link.TraceID]time.Time // lost on their way: until when they are looked at again
	twins   map[store.Twin]link.TraceID

	others   []*store.Trace
	othersAt time.Time
	pruned   time.Time
	againAt  time.Time

	gone uint64 // lookups that the store let go while they waited
}

func newLook(s *store.Store, f *output.Filter) *look {
	return &look{
		store: s, filter: f, told: map[link.TraceID]*told{}, waiting: map[link.TraceID]*waiting{},
		again: map[link.TraceID]time.Time{}, twins: map[store.Twin]link.TraceID{},
	}
}

// told is what was said of a lookup.
type told struct {
	id                   link.TraceID // under which it was said
	result, where, cause string
	revision             int
	given                bool // the filter let it through
}

// waiting is a lookup that has changed: first and last when that came to be known, and next when it is to be looked at.
type waiting struct{ first, last, next time.Time }

// past tells everything that the store has, and gives what of it the filter takes, in order of time.
func (l *look) past() []*output.Row {
	traces := l.store.Traces(store.Filter{})
	shadows := store.Shadows(traces)
	l.setOthers(traces, time.Now())
	var rows []*output.Row
	for _, t := range traces {
		if twin := t.Twin(); twin != (store.Twin{}) && !shadows[t.ID] {
			l.twins[twin] = t.ID
		}
	}
	now := time.Now()
	for _, t := range traces {
		if shadows[t.ID] {
			continue
		}
		if t.Client() == nil {
			// Its client's agent may yet speak.
			ends := slices.MaxFunc(t.Spans, func(a, b *store.Span) int { return a.End.Compare(b.End) }).End
			if w := (&waiting{ends, ends, ends}); now.Before(ready(t, w)) {
				l.waiting[t.ID] = w
				continue
			}
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
		if w := l.waiting[id]; w != nil {
			w.last, w.next = now, now
			continue
		}
		l.waiting[id] = &waiting{now, now, now}
	}
	var rows []*output.Row
	show := func(t *store.Trace) {
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
		if w.next = ready(t, w); now.Before(w.next) {
			continue
		}
		delete(l.waiting, id)
		if !l.shadowed(t) {
			show(t)
		}
	}
	if now.Sub(l.againAt) >= time.Second {
		l.againAt = now
		for id, until := range l.again {
			t := l.store.Trace(id)
			if t == nil || now.After(until) {
				delete(l.again, id)
				continue
			}
			show(t)
		}
	}
	l.prune(now)
	byTime(rows)
	return rows
}

// ready says when a trace is settled enough to be shown, if nothing more comes.
func ready(t *store.Trace, w *waiting) time.Time {
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
	if v := t.Verdict(); v.Lost() && v.Certainty == store.Certain && !t.Copy() {
		return w.last
	}
	return quiet
}

// shadowed says whether a trace is no lookup of its own: the copy, at an epoch boundary, of one that is shown.
func (l *look) shadowed(t *store.Trace) bool {
	twin := t.Twin()
	if twin == (store.Twin{}) {
		return false
	}
	id, ok := l.twins[twin]
	if !ok {
		l.twins[twin] = t.ID
		return false
	}
	if id == t.ID {
		return false
	}
	other := l.store.Trace(id)
	if other == nil {
		l.twins[twin] = t.ID
		return false
	}
	if store.Shadows([]*store.Trace{t, other})[t.ID] {
		return true
	}
	// CoreDNS's side has come to this one: it goes on where the other was told.
	l.twins[twin] = t.ID
	if was := l.told[id]; was != nil {
		l.told[t.ID] = was
	}
	delete(l.waiting, id)
	return false
}

// tell notes what is said of a trace; it gives a row where that is new and the filter takes it, or where it corrects a row that was given.
func (l *look) tell(t *store.Trace, now time.Time) *output.Row {
	v := t.Verdict()
	if v.Lost() && v.Where == string(verdict.BetweenNodes) && v.Certainty != store.Certain {
		if now.Sub(l.othersAt) >= time.Second {
			l.setOthers(l.store.Traces(store.Filter{Since: t.Start().Add(-reconsider)}), now)
		}
		v = t.VerdictAmong(l.others)
		if _, known := l.again[t.ID]; !known && v.Cause != string(verdict.CauseVanished) {
			l.again[t.ID] = now.Add(reconsider)
		}
	}
	row := Row(t, v, 0)
	if row == nil {
		return nil
	}
	was := l.told[t.ID]
	if was == nil {
		is := &told{id: t.ID, result: row.Result, where: v.Where, cause: v.Cause, given: l.filter.Takes(row)}
		l.told[t.ID] = is
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
func (l *look) setOthers(traces []*store.Trace, now time.Time) {
	l.others, l.othersAt = nil, now
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
			l.others = append(l.others, t)
		}
	}
}

// nodesOf gives the nodes whose agents, or whose CoreDNS, sent spans of a trace.
func nodesOf(t *store.Trace) []string {
	var nodes []string
	for _, s := range t.Spans {
		if node := s.String(semconv.K8SNodeName); node != "" && !slices.Contains(nodes, node) {
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
	for twin, id := range l.twins {
		if !l.store.Has(id) {
			delete(l.twins, twin)
		}
	}
}
