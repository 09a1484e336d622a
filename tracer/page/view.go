package page

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/tally"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// DefaultBytes is how much memory the lookups take that views are made of, where nothing else is said.
const DefaultBytes = 32 << 20

const (
	// maxKept is how many lookups a view is made of at most, the last that came. One takes about 1 KiB.
	maxKept = 20_000
	// maxLines is how many lines a table has, and maxRows how many lookups are shown.
	maxLines = 50
	maxRows  = 100
	// linger is how long rows are followed after the last reader has gone.
	linger = 20 * time.Second
)

// feed follows rows while somebody looks on: one for all readers.
type feed struct {
	source rowapi.Source
	bytes  int

	making sync.Mutex // one view is made at a time: what it takes is not bounded by the readers

	mu      sync.Mutex
	window  *tally.Window
	readers int
	ready   chan struct{} // closed when the past has been read
	stop    context.CancelFunc
	idle    *time.Timer
}

// enter begins to follow, where nobody does; what it gives ends it.
func (f *feed) enter() (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers++
	if f.idle != nil {
		f.idle.Stop()
		f.idle = nil
	}
	if f.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		window, ready := &tally.Window{Keep: maxSince, Max: maxKept, MaxBytes: f.bytes}, make(chan struct{})
		f.window, f.ready, f.stop = window, ready, stop
		go f.follow(ctx, window, ready)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.readers--; f.readers == 0 {
			f.idle = time.AfterFunc(linger, f.end)
		}
	}
}

// end stops following, unless somebody looks on again.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers == 0 && f.stop != nil {
		f.stop()
		f.window, f.stop, f.idle = nil, nil, nil
	}
}

// past gives what is closed when the past has been read.
func (f *feed) past() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready
}

func (f *feed) follow(ctx context.Context, window *tally.Window, ready chan struct{}) {
	read := sync.OnceFunc(func() { close(ready) })
	defer read()
	filter := &output.Filter{Since: time.Now().Add(-maxSince)}
	_ = f.source.Lookups(ctx, filter, maxKept, true, func(r *output.Row) error { // ctx ends it
		kept := *r
		kept.Hops, kept.Verdict.Evidence = nil, nil
		f.mu.Lock()
		window.Add(&kept)
		f.mu.Unlock()
		return ctx.Err()
	}, read)
}

// View is what the page shows: of the lookups that the filters take, from From on for Seconds.
type View struct {
	From    time.Time `json:"from"`
	Seconds float64   `json:"seconds"`
	// Whole is false where there were more lookups than are looked at: then From is when the first of those began.
	Whole bool `json:"whole"`

	Lookups int           `json:"lookups"`
	Rate    float64       `json:"rate"`
	Failed  int           `json:"failed"`
	Lost    int           `json:"lost"`
	P50     time.Duration `json:"p50Nanos"`
	P99     time.Duration `json:"p99Nanos"`
	Spark   []int         `json:"spark"`

	Stages    []StageView  `json:"stages"`
	Clients   []tally.Line `json:"clients"`
	Names     []tally.Line `json:"names"`
	Upstreams []tally.Line `json:"upstreams"`
	Instances []tally.Line `json:"instances"`
	Nodes     []NodePair   `json:"nodes"`
	Rows      []RowView    `json:"rows"`
}

// StageView is what is known of one stage.
type StageView struct {
	Stage string `json:"stage"`
	// Lookups spent time there; P50 and P99 are of how long.
	Lookups int           `json:"lookups"`
	Rate    float64       `json:"rate"`
	P50     time.Duration `json:"p50Nanos"`
	P99     time.Duration `json:"p99Nanos"`
	// Lost ended there without an answer; Causes say why, the most first.
	Lost   int          `json:"lost"`
	Causes []CauseCount `json:"causes"`
}

// CauseCount is how often lookups ended for a cause.
type CauseCount struct {
	Cause string `json:"cause"`
	Lost  int    `json:"lost"`
}

// NodePair is what became of the lookups from the clients on one node to the DNS servers on another; To is "" where it
// is not known which server was asked.
type NodePair struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Lookups int    `json:"lookups"`
	Failed  int    `json:"failed"`
	Lost    int    `json:"lost"`
}

// RowView is a lookup as a row of the page.
type RowView struct {
	Time    time.Time     `json:"time"`
	Client  string        `json:"client"`
	Name    string        `json:"name"`
	Type    string        `json:"type"`
	Result  string        `json:"result"`
	Total   time.Duration `json:"totalNanos"`
	Where   string        `json:"where"`
	Cause   string        `json:"cause"`
	Text    string        `json:"text,omitempty"`
	TraceID string        `json:"traceID"`
	Server  string        `json:"server"`
}

// takes tells whether a row is of a client's lookup that the query asks for. at is what [serverNodes] gives.
func (q *query) takes(r *output.Row, at map[string]string) bool {
	return !r.Own && !r.Connect && q.filter.Takes(r) &&
		(q.instance == "" || tally.Instance.Key(r) == q.instance) &&
		(q.serverNode == "" || serverNode(r, at) == q.serverNode) &&
		(q.upstream == "" || slices.ContainsFunc(
			r.Upstreams, func(u output.Upstream) bool { return tally.Host(u.Address) == q.upstream }))
}

// make makes a view of what is kept.
func (f *feed) make(q *query, now time.Time) *View {
	v := &View{From: now.Add(-q.since).UTC(), Whole: true}
	f.mu.Lock()
	var kept []*output.Row
	if f.window != nil {
		rows, dropped := f.window.Rows(now)
		kept = slices.Clone(rows)
		v.Whole = dropped == 0 && len(rows) < maxKept
	}
	f.mu.Unlock()
	if len(kept) > 0 && !v.Whole {
		if first := kept[0].Time; first.After(v.From) {
			v.From = first
		} else {
			v.Whole = true // what was let go is of an earlier time
		}
	}
	q.filter.Since = v.From
	at := serverNodes(kept)
	rows := slices.DeleteFunc(kept, func(r *output.Row) bool { return !q.takes(r, at) })
	long := now.Sub(v.From)
	v.fill(rows, at, long)
	return v
}

// fill counts rows that began in so long from v.From on.
func (v *View) fill(rows []*output.Row, at map[string]string, long time.Duration) {
	v.Seconds = long.Seconds()
	v.Spark = make([]int, tally.Slices)
	var times []time.Duration
	for _, r := range rows {
		v.Lookups++
		times = append(times, time.Duration(r.Total))
		if tally.Failed(r.Result) {
			v.Failed++
		}
		if r.Result == output.Lost {
			v.Lost++
		}
		if long > 0 {
			v.Spark[min(tally.Slices-1, max(0, int(float64(r.Time.Sub(v.From))/float64(long)*tally.Slices)))]++
		}
	}
	if long > 0 {
		v.Rate = float64(v.Lookups) / long.Seconds()
	}
	v.P50, v.P99 = tally.Quantile(times, 0.5), tally.Quantile(times, 0.99)
	v.stages(rows)
	lines := func(by tally.By) []tally.Line {
		list := tally.Lines(rows, by, tally.Rate, v.From, long)
		return list[:min(len(list), maxLines)]
	}
	v.Clients, v.Names, v.Upstreams, v.Instances = lines(tally.Client), lines(tally.Name), lines(tally.Upstream),
		lines(tally.Instance)
	v.nodes(rows, at)
	v.Rows = []RowView{}
	for _, r := range slices.Backward(rows) {
		if len(v.Rows) == maxRows {
			break
		}
		v.Rows = append(v.Rows, RowView{
			r.Time, r.Client.Name(), r.Name, r.Type, r.Result,
			time.Duration(r.Total), r.Verdict.Where, r.Verdict.Cause, r.Verdict.Text, r.TraceID, r.Server,
		})
	}
}

func (v *View) stages(rows []*output.Row) {
	times := map[string][]time.Duration{}
	lost := map[string]map[string]int{}
	for _, r := range rows {
		for _, s := range r.Stages {
			times[s.Stage] = append(times[s.Stage], time.Duration(s.Nanos))
		}
		if r.Result == output.Lost {
			if lost[r.Verdict.Where] == nil {
				lost[r.Verdict.Where] = map[string]int{}
			}
			lost[r.Verdict.Where][r.Verdict.Cause]++
		}
	}
	for _, name := range trace.Stages {
		s := StageView{Stage: name, Lookups: len(times[name]), Causes: []CauseCount{}}
		if v.Seconds > 0 {
			s.Rate = float64(s.Lookups) / v.Seconds
		}
		s.P50, s.P99 = tally.Quantile(times[name], 0.5), tally.Quantile(times[name], 0.99)
		for cause, n := range lost[name] {
			s.Lost += n
			s.Causes = append(s.Causes, CauseCount{cause, n})
		}
		slices.SortFunc(s.Causes, func(a, b CauseCount) int {
			return cmp.Or(cmp.Compare(b.Lost, a.Lost), strings.Compare(a.Cause, b.Cause))
		})
		v.Stages = append(v.Stages, s)
	}
}

// serverNodes gives the nodes of DNS servers by the addresses that queries were translated to.
func serverNodes(rows []*output.Row) map[string]string {
	at := map[string]string{}
	for _, r := range rows {
		if i := r.Instance; i != nil && i.Node != "" && i.Address != "" {
			at[i.Address] = i.Node
		}
	}
	return at
}

// serverNode gives the node of the DNS server that a lookup was for; "" where it is not known. Of a lost one it is
// known by the address that the query was translated to, where another lookup tells whose that is.
func serverNode(r *output.Row, at map[string]string) string {
	if r.Instance == nil {
		return ""
	}
	return cmp.Or(r.Instance.Node, at[r.Instance.Address])
}

// nodes counts by the client's node and the server's.
func (v *View) nodes(rows []*output.Row, at map[string]string) {
	pairs := map[[2]string]*NodePair{}
	for _, r := range rows {
		from, to := tally.Node.Key(r), serverNode(r, at)
		if from == "" {
			continue
		}
		p := pairs[[2]string{from, to}]
		if p == nil {
			p = &NodePair{From: from, To: to}
			pairs[[2]string{from, to}] = p
		}
		p.Lookups++
		if tally.Failed(r.Result) {
			p.Failed++
		}
		if r.Result == output.Lost {
			p.Lost++
		}
	}
	v.Nodes = []NodePair{}
	for _, p := range pairs {
		v.Nodes = append(v.Nodes, *p)
	}
	slices.SortFunc(v.Nodes, func(a, b NodePair) int {
		return cmp.Or(strings.Compare(a.From, b.From),
			strings.Compare(a.To, b.To))
	})
	v.Nodes = v.Nodes[:min(len(v.Nodes), maxPairs)]
}

// maxPairs is how many pairs of nodes are told of.
const maxPairs = 1024
