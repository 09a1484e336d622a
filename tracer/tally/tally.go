// Package tally counts rows by who asked, what, of whom and where they ended: for tables and pictures. It knows neither
// where rows come from nor how they are shown.
package tally

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// By is what rows are counted by.
type By string

// What rows are counted by.
const (
	Client   By = "client"   // the workload, else the pod, node or address
	Pod      By = "pod"      // the pod, else the node or address
	Name     By = "name"     // the name asked
	Upstream By = "upstream" // the server that a DNS server asked
	Place    By = "place"    // where the lookup ended, and why
	Instance By = "instance" // the DNS server behind the service
	Node     By = "node"     // the client's node
)

// Bys are all of them.
var Bys = []By{Client, Pod, Name, Upstream, Place, Instance, Node}

// Sort is what lines are sorted by, the most first.
type Sort string

// What lines are sorted by.
const (
	Rate     Sort = "rate"
	Time     Sort = "time" // that clients waited, all together
	Failures Sort = "failures"
)

// Sorts are all of them.
var Sorts = []Sort{Rate, Time, Failures}

// Slices is into how many parts of its time a line's counts are cut, for a small picture.
const Slices = 20

// Line is what was counted of one client, name, upstream or place.
type Line struct {
	Key string `json:"key"`
	// Lookups is how many there were; Rate is the same for each second.
	Lookups int     `json:"lookups"`
	Rate    float64 `json:"rate"`
	// Failed had no answer (Lost) or one that says that the server could not give one; NXDomain got that answer.
	Failed   int `json:"failed"`
	Lost     int `json:"lost"`
	NXDomain int `json:"nxdomain"`
	// Again are those that were asked more than once; Searches those that continue a search path.
	Again    int `json:"again"`
	Searches int `json:"searches"`
	// P50 and P99 are quantiles of how long they took, Waited is the sum; in nanoseconds.
	P50    time.Duration `json:"p50Nanos"`
	P99    time.Duration `json:"p99Nanos"`
	Waited time.Duration `json:"waitedNanos"`
	// Spark are the lookups in each slice of the time.
	Spark []int `json:"spark,omitempty"`

	times []time.Duration
}

// count is one thing that is counted in a line.
type count struct {
	key    string
	took   time.Duration
	result string
	failed bool
}

// Failed tells whether a result says that the client got nothing it could use: no answer, or a server's failure.
func Failed(result string) bool {
	switch result {
	case output.Lost, "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP":
		return true
	}
	return false
}

// Host gives an address without its port.
func Host(address string) string {
	if a, err := netip.ParseAddrPort(address); err == nil {
		return a.Addr().Unmap().String()
	}
	return address
}

// Key gives what a row is counted under; "" if under nothing. Of upstreams a row may have several: see [Lines].
func (b By) Key(r *output.Row) string {
	c := &r.Client
	switch b {
	case Client:
		if c.Workload != "" {
			return c.Namespace + "/" + c.Workload
		}
		return Pod.Key(r)
	case Pod:
		if c.Pod != "" {
			return c.Namespace + "/" + c.Pod
		}
		return cmp.Or(c.Node, r.Node, Host(c.Address))
	case Name:
		return strings.ToLower(r.Name)
	case Place:
		if r.Verdict.Where == "answered" {
			return "answered"
		}
		return r.Verdict.Where + ": " + r.Verdict.Cause
	case Instance:
		if r.Instance != nil && r.Instance.Pod != "" {
			return r.Instance.Namespace + "/" + r.Instance.Pod
		}
		return Host(r.AnsweredBy)
	case Node:
		return cmp.Or(c.Node, r.Node)
	}
	return ""
}

// counts appends what a row counts for.
func (b By) counts(list []count, r *output.Row) []count {
	if b == Upstream {
		if r.Own {
			return append(list, count{Host(r.Server), time.Duration(r.Total), r.Result, Failed(r.Result)})
		}
		for _, u := range r.Upstreams {
			list = append(list, count{Host(u.Address), time.Duration(u.Nanos), u.Result, u.Failed || Failed(u.Result)})
		}
		return list
	}
	key := b.Key(r)
	if r.Own || r.Connect || key == "" {
		return list
	}
	return append(list, count{key, time.Duration(r.Total), r.Result, Failed(r.Result)})
}

// Lines counts rows that began from a time on for so long, sorted. A server's own queries count for upstreams alone.
func Lines(rows []*output.Row, by By, sort Sort, from time.Time, long time.Duration) []Line {
	lines := map[string]*Line{}
	var counts []count
	for _, r := range rows {
		counts = by.counts(counts[:0], r)
		for i := range counts {
			c := &counts[i]
			l := lines[c.key]
			if l == nil {
				l = &Line{Key: c.key, Spark: make([]int, Slices)}
				lines[c.key] = l
			}
			l.Lookups++
			l.Waited += c.took
			l.times = append(l.times, c.took)
			if c.failed {
				l.Failed++
			}
			switch c.result {
			case output.Lost:
				l.Lost++
			case "NXDOMAIN":
				l.NXDomain++
			}
			if by != Upstream {
				if r.Attempts > 1 || r.Try > 1 {
					l.Again++
				}
				if r.SearchStep > 0 {
					l.Searches++
				}
			}
			if long > 0 {
				l.Spark[min(Slices-1, max(0, int(float64(r.Time.Sub(from))/float64(long)*Slices)))]++
			}
		}
	}
	list := make([]Line, 0, len(lines))
	for _, l := range lines {
		l.P50, l.P99 = Quantile(l.times, 0.5), Quantile(l.times, 0.99)
		l.times = nil
		if long > 0 {
			l.Rate = float64(l.Lookups) / long.Seconds()
		}
		list = append(list, *l)
	}
	slices.SortFunc(list, func(a, b Line) int {
		first := cmp.Compare(b.Lookups, a.Lookups)
		switch sort {
		case Time:
			first = cmp.Compare(b.Waited, a.Waited)
		case Failures:
			first = cmp.Compare(b.Failed, a.Failed)
		}
		return cmp.Or(first, cmp.Compare(b.Lookups, a.Lookups), cmp.Compare(a.Key, b.Key))
	})
	return list
}

// Quantile gives the p-quantile (nearest rank) of times, which it sorts; 0 of none.
func Quantile(times []time.Duration, p float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[min(len(times)-1, int(p*float64(len(times))))]
}

// Window keeps the rows of the last while. It is for one goroutine.
type Window struct {
	// Keep is how long a row is kept after its lookup began; Max is how many are kept, the last, and MaxBytes how much
	// memory they take. 0 of one does not bound it.
	Keep     time.Duration
	Max      int
	MaxBytes int

	bytes   int
	rows    []*output.Row // in the order in which they came
	at      map[string]int
	gone    int // how many before the first of rows
	dropped uint64
}

func key(r *output.Row) string { return cmp.Or(r.OwnTraceID, r.TraceID) + " " + r.Server }

// Add keeps a row; one with a higher revision takes the place of the earlier one. The row is not to be changed after.
func (w *Window) Add(r *output.Row) {
	if w.at == nil {
		w.at = map[string]int{}
	}
	k := key(r)
	if at, known := w.at[k]; r.Revision > 0 && known {
		w.bytes += weight(r) - weight(w.rows[at-w.gone])
		w.rows[at-w.gone] = r
	} else {
		w.bytes += weight(r)
		w.at[k] = w.gone + len(w.rows)
		w.rows = append(w.rows, r)
	}
	n, bytes := 0, w.bytes
	for n < len(w.rows) && (w.Max > 0 && len(w.rows)-n > w.Max || w.MaxBytes > 0 && bytes > w.MaxBytes) {
		bytes -= weight(w.rows[n])
		n++
	}
	w.dropped += uint64(n) // #nosec G115 -- not negative
	w.drop(n)
}

// weight gives about how much memory a row takes in a window: itself, its key and its places.
func weight(r *output.Row) int {
	return r.Bytes() + len(r.TraceID) + len(r.OwnTraceID) + len(r.Server) + entry
}

// entry is about what a map's entry and a slice's element take, with the room that both leave.
const entry = 96

// drop lets go of the first n.
func (w *Window) drop(n int) {
	for i, r := range w.rows[:n] {
		if k := key(r); w.at[k] == w.gone+i {
			delete(w.at, k)
		}
		w.bytes -= weight(r)
		w.rows[i] = nil
	}
	w.rows, w.gone = w.rows[n:], w.gone+n
}

// Rows gives those that are kept at a time, and how many rows were let go before their time. They come nearly by time;
// the slice is good until the next call.
func (w *Window) Rows(now time.Time) (rows []*output.Row, dropped uint64) {
	n := 0
	for w.Keep > 0 && n < len(w.rows) && w.rows[n].Time.Before(now.Add(-w.Keep)) {
		n++
	}
	w.drop(n)
	return w.rows, w.dropped
}
