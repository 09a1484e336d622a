package metrics

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

func count(m *Metrics, workload string, lost bool, at time.Time) {
	l := &lookup.Lookup{Ending: lookup.Answered, Final: true, ClientNetNS: 1, Attempts: 2,
		Hops: []hop.Hop{{Time: 1}, {Time: 2e6}}}
	v := verdict.Verdict{Where: verdict.Answered, Cause: verdict.CauseAnswered}
	l.Counts = true
	if lost {
		l.Ending = lookup.Dropped
		v.Where, v.Cause = verdict.Node, verdict.CausePolicyDrop
	}
	m.Count(l, &v, &origin.Origin{Namespace: "shop", Workload: workload}, "4bf92f3577b34da6a3ce929d0e0e4736", at)
}

func TestSeriesAreBoundedAndExpire(t *testing.T) {
	m := New(3, "v1")
	now := time.Now()
	m.Tick(now, pipeline.Stats{}, export.Stats{})
	for i := range 10 {
		count(m, fmt.Sprintf("w%d", i), false, now)
	}
	count(m, "bad \xff name", true, now)
	m.Untold(&origin.Origin{Namespace: "shop", Workload: "w1"}, now)
	if got := testutil.CollectAndCount(m.duration); got != 5 {
		t.Errorf("%d series of durations, want three clients, and the others answered and lost", got)
	}
	if got := testutil.ToFloat64(m.lost.WithLabelValues(Other, Other, "node", "policy-drop")); got != 1 {
		t.Errorf("%v lost under %s", got, Other)
	}
	m.Tick(now.Add(idle+time.Minute), pipeline.Stats{}, export.Stats{})
	if got := testutil.ToFloat64(m.active); got != 0 {
		t.Errorf("%v clients after they were idle", got)
	}
	for name, vec := range map[string]prometheus.Collector{"duration": m.duration, "lost": m.lost, "retries": m.retries,
		"untold": m.untold} {
		want := 0
		if name == "duration" {
			want = 2 // of those without series of their own: answered, and lost
		} else if name != "untold" {
			want = 1
		}
		if got := testutil.CollectAndCount(vec); got != want {
			t.Errorf("%s has %d series after all clients were idle, want %d", name, got, want)
		}
	}
	count(m, "new", false, now.Add(idle+2*time.Minute))
	if got := testutil.ToFloat64(m.active); got != 1 {
		t.Errorf("%v clients after one asked again", got)
	}
}

func TestTheHandlerServesWhatIsCounted(t *testing.T) {
	m := New(0, "v1")
	count(m, "cart", true, time.Now())
	count(m, "broken \xff", false, time.Now())
	m.Tick(time.Now(), pipeline.Stats{Kernel: bpf.Losses{RingFull: 3}}, export.Stats{Sent: 5})
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text")
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	body := w.Body.String()
	for _, want := range []string{
		`dnstrail_lookups_lost_total{cause="policy-drop",client_namespace="shop",client_workload="cart",where="node"} 1`,
		`dnstrail_losses_total{kind="ring_full"} 3`,
		`dnstrail_spans_total{outcome="sent"} 5`,
		`dns_lookup_duration_seconds_count{client_namespace="shop",client_workload="cart",error_type="policy-drop"} 1`,
		`trace_id="4bf92f3577b34da6a3ce929d0e0e4736"`,
		`dnstrail_lookup_retries_total{client_namespace="shop",client_workload="cart"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in what is served", want)
		}
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestRcodesAreFew: a server chooses the rcode, so it must not choose how many series there are.
func TestRcodesAreFew(t *testing.T) {
	m := New(0, "v1")
	for rcode := range uint16(1 << 12) {
		l := &lookup.Lookup{
			Ending: lookup.Answered, Final: true, ClientNetNS: 1, Counts: true, Attempts: 1, AnswerSeen: true,
			Hops: []hop.Hop{{Time: 1}, {Time: 2e6}},
		}
		l.Body.Rcode = rcode
		v := verdict.Verdict{Where: verdict.Answered, Cause: verdict.CauseAnswered}
		m.Count(l, &v, &origin.Origin{Namespace: "shop", Workload: "cart"}, "", time.Now())
	}
	if got := testutil.CollectAndCount(m.duration); got > 20 {
		t.Errorf("%d series from one client", got)
	}
}
