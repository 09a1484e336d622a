package dnstrail

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

func pod(ns, workload, name string) *identity.Client {
	return identity.NewClient(identity.Description{
		Kind: identity.Pod, Namespace: ns, Pod: name, WorkloadKind: "Deployment", Workload: workload, Node: "node-1",
	})
}

func answered(c *identity.Client) *clientQuery {
	return &clientQuery{client: c, server: "dns://:53", rcode: "NOERROR", plugin: "cache", written: true,
		total: time.Millisecond}
}

// counts gives client_requests_total by client_namespace/client_workload/client_pod, kinds other than pod in front.
func counts(t *testing.T, table *clientTable) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(table)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "coredns_dnstrail_client_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			l := labels(m)
			out[strings.Trim(fmt.Sprintf("%s/%s/%s", l["client_namespace"], l["client_workload"], l["client_pod"]),
				"/")] += m.GetCounter().GetValue()
		}
	}
	return out
}

func labels(m *dto.Metric) map[string]string {
	out := map[string]string{}
	for _, p := range m.GetLabel() {
		out[p.GetName()] = p.GetValue()
	}
	return out
}

func TestMetricNamesPassPromlint(t *testing.T) {
	table := newClientTable()
	q := answered(pod("shop", "cart", "cart-1"))
	q.searchMiss, q.upstream = true, time.Millisecond
	m := table.with(clientOptions{})
	m.observe(q)
	q.written = false
	m.observe(q)
	problems, err := testutil.CollectAndLint(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n := testutil.CollectAndCount(table); n != 9 {
		t.Errorf("%d series, want 6 of the client, the duration of the rest, and 2 of the table", n)
	}
}

func TestWorkloadIsTheClient(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{})
	m.observe(answered(pod("shop", "cart", "cart-1")))
	m.observe(answered(pod("shop", "cart", "cart-2")))
	m.observe(answered(pod("shop", "web", "web-1")))
	m.observe(answered(identity.NewClient(identity.Description{Kind: identity.Node, Node: "node-1"})))
	got := counts(t, table)
	for name, want := range map[string]float64{"shop/cart": 2, "shop/web": 1, "": 1} {
		if got[name] != want {
			t.Errorf("%q: %v queries, want %v (all: %v)", name, got[name], want, got)
		}
	}
}

func TestPodsAreToldApartWhenAsked(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{pods: true})
	one := pod("shop", "cart", "cart-1")
	m.observe(answered(one))
	m.observe(answered(pod("shop", "cart", "cart-1"))) // told anew: the same pod
	m.observe(answered(pod("shop", "cart", "cart-2")))
	m.observe(answered(identity.NewClient(identity.Description{Kind: identity.Node, Node: "node-1"})))
	got := counts(t, table)
	for name, want := range map[string]float64{"shop/cart/cart-1": 2, "shop/cart/cart-2": 1, "node-1": 1} {
		if got[name] != want {
			t.Errorf("%q: %v queries, want %v (all: %v)", name, got[name], want, got)
		}
	}
}

func TestNamespacesLeftOutAreCountedTogether(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts clientOptions
		want map[string]float64
	}{
		{"excluded", clientOptions{excluded: []string{"b"}}, map[string]float64{"a/w": 1, "c/w": 1, otherClient: 1}},
		{"included", clientOptions{included: []string{"b"}}, map[string]float64{"b/w": 1, otherClient: 2}},
		{"both", clientOptions{included: []string{"a", "b"}, excluded: []string{"b"}},
			map[string]float64{"a/w": 1, otherClient: 2}},
	} {
		table := newClientTable()
		m := table.with(tt.opts)
		for _, ns := range []string{"a", "b", "c"} {
			m.observe(answered(pod(ns, "w", "w-1")))
		}
		if got := counts(t, table); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestClientsBeyondTheLimitAreCountedTogether(t *testing.T) {
	table := newClientTable()
	now := time.Now()
	table.now = func() time.Time { return now }
	m := table.with(clientOptions{max: 2, idle: time.Minute})
	late := pod("ns", "late", "late-1")
	for range 3 {
		for _, c := range []*identity.Client{pod("ns", "a", "a-1"), pod("ns", "b", "b-1"), late} {
			m.observe(answered(c))
		}
	}
	if got := counts(t, table); got["ns/a"] != 3 || got["ns/b"] != 3 || got[otherClient] != 3 || len(got) != 3 {
		t.Fatalf("at the limit: %v", got)
	}
	// When others have gone quiet there is room for it.
	now = now.Add(2 * time.Minute)
	if got := counts(t, table); got[otherClient] != 3 || len(got) != 1 {
		t.Fatalf("after the idle time: %v", got)
	}
	m.observe(answered(late))
	if got := counts(t, table); got["ns/late"] != 1 || got[otherClient] != 3 {
		t.Fatalf("with room again: %v", got)
	}
}

func TestIdleClientsLoseTheirSeriesAndBusyOnesDoNot(t *testing.T) {
	table := newClientTable()
	now := time.Now()
	table.now = func() time.Time { return now }
	m := table.with(clientOptions{idle: time.Minute})
	busy, quiet := pod("ns", "busy", "busy-1"), pod("ns", "quiet", "quiet-1")
	q := answered(quiet)
	q.searchMiss, q.upstream, q.written = true, time.Millisecond, false
	m.observe(q)
	for range 5 {
		m.observe(answered(busy))
		now = now.Add(30 * time.Second)
		counts(t, table)
	}
	if got := counts(t, table); got["ns/busy"] != 5 || len(got) != 1 {
		t.Errorf("got %v, want only the busy one", got)
	}
	// requests and duration of the busy one, duration of the rest, clients, expired
	if n := testutil.CollectAndCount(table); n != 5 {
		t.Errorf("%d series are left, want 5", n)
	}
	if got := testutil.ToFloat64(table.vecs.expired); got != 1 {
		t.Errorf("%v expired, want 1", got)
	}
	m.observe(answered(quiet))
	if got := counts(t, table); got["ns/quiet"] != 1 {
		t.Errorf("a client that asks again is counted as %v", got)
	}
}

func TestReloadKeepsTheCounters(t *testing.T) {
	table := newClientTable()
	opts := func() clientOptions { return clientOptions{included: []string{"ns", "other"}} }
	a := table.with(opts())
	a.observe(answered(pod("ns", "a", "a-1")))
	if b := table.with(clientOptions{included: []string{"other", "ns"}}); a != b {
		t.Error("the same options gave other metrics")
	}
	c := table.with(clientOptions{included: []string{"ns"}})
	c.observe(answered(pod("ns", "a", "a-1")))
	if got := counts(t, table); got["ns/a"] != 2 {
		t.Errorf("got %v, want 2 for ns/a", got)
	}
}

func TestLabelValuesThatAreNotUTF8BreakNothing(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{idle: time.Minute})
	q := answered(pod("n\xff", "w\xfe", "p"))
	q.server, q.plugin, q.rcode = "s\xff", "p\xff", "r\xff"
	m.observe(q)
	if got := counts(t, table); got["n\uFFFD/w\uFFFD"] != 1 {
		t.Errorf("got %v", got)
	}
	table.now = func() time.Time { return time.Now().Add(time.Hour) }
	counts(t, table)
	if got := counts(t, table); len(got) != 0 {
		t.Errorf("such a series cannot be dropped: %v", got)
	}
}

func TestUnansweredAndMissesAndUpstream(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{})
	c := pod("ns", "a", "a-1")
	q := answered(c)
	q.written, q.plugin, q.rcode = false, "erratic", "NOERROR"
	m.observe(q)
	q = answered(c)
	q.searchMiss, q.rcode = true, "NXDOMAIN"
	m.observe(q)
	q = answered(c)
	q.upstream = 20 * time.Millisecond
	m.observe(q)
	const want = `
# HELP coredns_dnstrail_client_requests_total Queries by client, by the rcode on the wire (` + "`none`" +
		` where no answer was written) and by the plugin that answered or ended them.
# TYPE coredns_dnstrail_client_requests_total counter
coredns_dnstrail_client_requests_total{client_kind="pod",client_namespace="ns",client_pod="",client_workload="a",client_workload_kind="Deployment",plugin="cache",rcode="NOERROR",server="dns://:53"} 1
coredns_dnstrail_client_requests_total{client_kind="pod",client_namespace="ns",client_pod="",client_workload="a",client_workload_kind="Deployment",plugin="cache",rcode="NXDOMAIN",server="dns://:53"} 1
coredns_dnstrail_client_requests_total{client_kind="pod",client_namespace="ns",client_pod="",client_workload="a",client_workload_kind="Deployment",plugin="erratic",rcode="none",server="dns://:53"} 1
# HELP coredns_dnstrail_client_search_path_misses_total NXDOMAIN answers by client to names that a resolver's search list made.
# TYPE coredns_dnstrail_client_search_path_misses_total counter
coredns_dnstrail_client_search_path_misses_total{client_kind="pod",client_namespace="ns",client_pod="",client_workload="a",client_workload_kind="Deployment"} 1
# HELP coredns_dnstrail_client_unanswered_total Queries by client that got no answer, by the plugin that ended them.
# TYPE coredns_dnstrail_client_unanswered_total counter
coredns_dnstrail_client_unanswered_total{client_kind="pod",client_namespace="ns",client_pod="",client_workload="a",client_workload_kind="Deployment",plugin="erratic"} 1
`
	if err := testutil.CollectAndCompare(table, strings.NewReader(want), "coredns_dnstrail_client_requests_total",
		"coredns_dnstrail_client_search_path_misses_total", "coredns_dnstrail_client_unanswered_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(table, "coredns_dnstrail_client_upstream_duration_seconds"); n != 1 {
		t.Errorf("%d upstream histograms, want 1", n)
	}
}

func TestExemplarsCarryTheTrace(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{})
	q := answered(pod("ns", "a", "a-1"))
	q.traceID, q.upstream = link.TraceID{1, 2, 3}, time.Millisecond
	m.observe(q)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(table)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range families {
		if f.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		for _, metric := range f.GetMetric() {
			h := metric.GetHistogram()
			for _, b := range h.GetBucket() {
				if e := b.GetExemplar(); e != nil && e.GetLabel()[0].GetName() == "trace_id" &&
					e.GetLabel()[0].GetValue() == q.traceID.String() {
					found++
				}
			}
			if labels(metric)["client_workload"] == "a" && (h.GetSchema() != 4 || len(h.GetPositiveSpan()) == 0) {
				t.Errorf("%s: no native buckets of schema 4 (factor 1.05): %v", f.GetName(), h)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d exemplars with the trace ID, want one of each histogram", found)
	}
}

func TestExemplarsAreRationed(t *testing.T) {
	table := newClientTable()
	m := table.with(clientOptions{})
	q := answered(pod("ns", "a", "a-1"))
	for i := range 1000 {
		q.traceID, q.total = link.TraceID{1, byte(i >> 8), byte(i)}, time.Duration(i%2*8+2)*time.Millisecond // two buckets
		m.observe(q)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(table)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "coredns_dnstrail_client_request_duration_seconds" {
			continue
		}
		for _, metric := range f.GetMetric() {
			h := metric.GetHistogram()
			if h.GetSampleCount() == 0 {
				continue // of the rest
			}
			if n := len(h.GetExemplars()); n != 2 || h.GetSampleCount() != 1000 {
				t.Errorf("%d exemplars of %d queries, want one a bucket and second: 2 of 1000", n, h.GetSampleCount())
			}
		}
	}
}

// Queries count while clients come and go and the metrics are read: for -race.
func TestMetricsUnderChurn(t *testing.T) {
	table := newClientTable()
	var mu sync.Mutex
	now := time.Now()
	table.now = func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Second); return now }
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		m := table.with(clientOptions{pods: g%2 == 0, max: 50, idle: 10 * time.Second})
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				q := answered(pod("ns", fmt.Sprint("w-", i%40), fmt.Sprint("w-", i%40, "-", i%100)))
				q.searchMiss, q.written, q.upstream = i%3 == 0, i%5 != 0, time.Duration(i%2)*time.Millisecond
				m.observe(q)
			}
		})
	}
	for range 30 {
		counts(t, table)
	}
	close(stop)
	wg.Wait()
	if n := len(table.series); n > 50 {
		t.Errorf("%d clients, more than the limit of 50", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, tt := range []struct {
		name  string
		opts  clientOptions
		trace bool
	}{
		{"workload", clientOptions{}, false},
		{"pod", clientOptions{pods: true}, false},
		{"with exemplar", clientOptions{}, true},
	} {
		b.Run(tt.name, func(b *testing.B) {
			m := newClientTable().with(tt.opts)
			clients := make([]*identity.Client, 256)
			for i := range clients {
				clients[i] = pod("shop", fmt.Sprint("cart-", i%64), fmt.Sprint("cart-", i%64, "-", i))
			}
			q := answered(nil)
			if tt.trace {
				q.traceID = link.TraceID{1}
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				q.client = clients[i&255]
				q.total = time.Duration(i&1023) * time.Microsecond
				m.observe(q)
				i++
			}
		})
	}
}

// BenchmarkClientMemory reports what the series of a client cost: of one that sees all latencies from 50 us to some
// seconds, answers and failures, cache hits and upstreams.
func BenchmarkClientMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 500
	for b.Loop() {
		before := heap()
		m := newClientTable().with(clientOptions{})
		for c := range n {
			q := answered(pod("shop", fmt.Sprint("cart-", c), "x"))
			for i := range 400 {
				q.rcode, q.plugin = "NOERROR", [...]string{"cache", "kubernetes", "forward"}[i%3]
				if i%5 == 0 {
					q.rcode = "NXDOMAIN"
				}
				q.searchMiss = i%5 == 0
				q.total = time.Duration(50*math.Exp(float64(i)/40)) * time.Microsecond
				q.upstream = 0
				if i%3 == 2 {
					q.upstream = q.total / 2
				}
				m.observe(q)
			}
		}
		after := heap()
		b.ReportMetric(float64(after-before)/n, "B/client")
		runtime.KeepAlive(m)
	}
}

// TestRcodesAreFew: an upstream chooses the rcode, so it must not choose how many series there are.
func TestRcodesAreFew(t *testing.T) {
	table := newClientTable()
	observe := func(rcode int) {
		q := answered(pod("shop", "cart", "cart-1"))
		q.rcode = semconv.RcodeLabel(rcode)
		table.with(clientOptions{}).observe(q)
	}
	for rcode := range 1 << 12 {
		observe(rcode)
	}
	if got := testutil.CollectAndCount(table.vecs.requests); got > 25 {
		t.Errorf("%d series from one client", got)
	}
}
