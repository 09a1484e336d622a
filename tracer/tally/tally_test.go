package tally

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/printable"
)

var update = flag.Bool("update", false, "write the golden files anew")

var at = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// some gives 20 s of lookups: a busy client that is well, one that loses each fifth, and one that is nobody's.
func some() []*output.Row {
	var rows []*output.Row
	add := func(i int, change func(*output.Row)) {
		r := &output.Row{
			Time:    at.Add(time.Duration(i) * 100 * time.Millisecond),
			TraceID: fmt.Sprintf("%032x", len(rows)), Server: "10.96.0.10:53",
			Client: output.Client{Namespace: "shop", Workload: "cart", Pod: "cart-1", Address: "10.244.1.1:1000",
				Node: "node-1"}, Attempts: 1,
			Name: "web.shop.svc.cluster.local.", Type: "A", Result: "NOERROR", Total: int64(400 * time.Microsecond),
			Verdict:  output.Verdict{Where: "answered", Cause: "answered"},
			Instance: &output.Instance{Namespace: "kube-system", Pod: "coredns-1"},
		}
		change(r)
		rows = append(rows, r)
	}
	for i := range 200 {
		add(i, func(*output.Row) {})
		if i%2 == 0 {
			add(i, func(r *output.Row) {
				r.Client.Workload = "checkout-with-a-name-that-is-as-long-as-names-of-workloads-may-be"
				r.Client.Pod, r.Name, r.Total = "c-1", "API.stripe.com.", int64(30*time.Millisecond)
				r.Upstreams = []output.Upstream{{Address: "192.0.2.1:53", Nanos: int64(29 * time.Millisecond), Result: "NOERROR"}}
				if i%10 == 0 {
					r.Result, r.Total, r.Attempts, r.Instance = output.Lost, int64(5*time.Second), 2, nil
					r.Verdict = output.Verdict{Where: "between-nodes", Cause: "not-seen-further"}
					r.Upstreams = nil
				}
			})
		}
		if i > 150 {
			add(i, func(r *output.Row) {
				r.Client, r.Result, r.Name, r.SearchStep = output.Client{Address: "[fd00::1]:5"}, "NXDOMAIN", "x\x1b[2J.example.", 1
			})
		}
	}
	return rows
}

func TestGolden(t *testing.T) {
	for _, by := range Bys {
		for _, width := range []int{80, 200} {
			name := fmt.Sprintf("testdata/%s.%d.txt", by, width)
			t.Run(name, func(t *testing.T) {
				got := Table(Lines(some(), by, Failures, at, 20*time.Second), by, width, 20)
				if *update {
					if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("not as %s (-update writes it anew):\n%s", name, got)
				}
				for l := range strings.Lines(got) {
					if n := printable.Width(strings.TrimSuffix(l, "\n")); n > width {
						t.Errorf("%d cells: %s", n, l)
					}
					if strings.ContainsAny(l, "\x1b\x07") {
						t.Errorf("a control character: %q", l)
					}
				}
			})
		}
	}
}

func TestLines(t *testing.T) {
	for sort, first := range map[Sort]string{Rate: "shop/cart", Time: "shop/checkout", Failures: "shop/checkout"} {
		lines := Lines(some(), Client, sort, at, 20*time.Second)
		if len(lines) != 3 || !strings.HasPrefix(lines[0].Key, first) {
			t.Errorf("by %s %s comes first, want %s", sort, lines[0].Key, first)
		}
	}
	l := Lines(some(), Client, Failures, at, 20*time.Second)[0]
	if l.Lookups != 100 || l.Rate != 5 || l.Failed != 20 || l.Lost != 20 || l.Again != 20 ||
		l.P50 != 30*time.Millisecond || l.P99 != 5*time.Second ||
		l.Waited != 20*5*time.Second+80*30*time.Millisecond {
		t.Errorf("%+v", l)
	}
	sum := 0
	for _, n := range l.Spark {
		sum += n
	}
	if sum != l.Lookups || l.Spark[0] != 5 || l.Spark[Slices-1] != 5 {
		t.Errorf("over the time: %v", l.Spark)
	}
	if up := Lines(some(), Upstream, Rate, at, 20*time.Second); len(up) != 1 || up[0].Key != "192.0.2.1" ||
		up[0].Lookups != 80 || up[0].P50 != 29*time.Millisecond {
		t.Errorf("upstreams: %+v", up)
	}
}

func TestWindow(t *testing.T) {
	w := Window{Keep: 10 * time.Second, Max: 100}
	for _, r := range some() {
		w.Add(r)
	}
	rows, dropped := w.Rows(at.Add(20 * time.Second))
	if len(rows) != 100 || dropped != 249 {
		t.Errorf("%d rows, %d dropped", len(rows), dropped)
	}
	last := *rows[99]
	last.Revision, last.Result = 1, "SERVFAIL"
	w.Add(&last)
	rows, _ = w.Rows(at.Add(20 * time.Second))
	if len(rows) != 100 || rows[99].Result != "SERVFAIL" {
		t.Errorf("%d rows, the last %s", len(rows), rows[len(rows)-1].Result)
	}
	if rows, _ = w.Rows(at.Add(29 * time.Second)); len(rows) == 0 || rows[0].Time.Before(at.Add(19*time.Second)) {
		t.Errorf("%d rows, the first of %v", len(rows), rows[0].Time)
	}
	if rows, _ = w.Rows(at.Add(time.Hour)); len(rows) != 0 || len(w.at) != 0 {
		t.Errorf("%d rows and %d keys after an hour", len(rows), len(w.at))
	}
}

// TestWindowStaysWithinItsBytes: also of rows whose names and answers are as long as somebody makes them.
func TestWindowStaysWithinItsBytes(t *testing.T) {
	const bound = 4 << 20
	w := Window{Keep: time.Hour, Max: 1 << 20, MaxBytes: bound}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	usual := some()[:10]
	before, total := heap(), 0
	for i := range 20_000 {
		r := *usual[i%10]
		r.TraceID, r.Name = fmt.Sprintf("%032x", i), strings.Repeat("x", i%250)+fmt.Sprint(i)
		for n := range i % 60 {
			r.Answers = append(r.Answers, fmt.Sprintf("2001:db8::%x:%x", i, n))
		}
		total += r.Bytes()
		w.Add(&r)
		if i%7 == 0 { // told again, and longer
			again := r
			again.Revision, again.Verdict.Text = 1, strings.Repeat("y", 500)
			w.Add(&again)
		}
	}
	if total < 2*bound {
		t.Fatalf("only %d bytes were tried", total)
	}
	grown := int64(heap()) - int64(before) //nolint:gosec // a heap of a test
	rows, dropped := w.Rows(at)
	t.Logf("%d rows in %d bytes, %d dropped", len(rows), grown, dropped)
	if grown > bound*5/4 || w.bytes > bound || len(rows) < 100 || int(dropped)+len(rows) != 20_000 {
		t.Errorf("%d rows in %d bytes (counted %d), %d dropped; want at most %d", len(rows), grown, w.bytes, dropped, bound)
	}
	if w.Rows(at.Add(100 * time.Hour)); w.bytes != 0 {
		t.Errorf("%d bytes of no rows", w.bytes)
	}
}

func BenchmarkLines(b *testing.B) {
	rows := some()
	b.ReportAllocs()
	for b.Loop() {
		Lines(rows, Client, Rate, at, 20*time.Second)
	}
}
