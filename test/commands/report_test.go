package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/page"
	"github.com/dnstrail/dnstrail/tracer/report"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// reported gives what report says of the store's past.
func (s *scene) reported(t *testing.T, since time.Time, args ...string) *report.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.store.Settle(ctx, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"report", "--store", "http://" + s.api, "--since", (time.Since(since) + time.Second).String(),
		"-o", "json"}, args...)
	out, err := s.run(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	r := new(report.Report)
	if err := json.Unmarshal([]byte(out), r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return r
}

// onThePage holds what the store's page is told against what the lab made.
func (s *scene) onThePage(t *testing.T, since time.Time, lookups, lost int) {
	t.Helper()
	resp, err := http.Get("http://" + s.api + page.PathView + "?since=" + (time.Since(since) + time.Second).String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v page.View
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	if v.Lookups != lookups || v.Lost != lost || !v.Whole {
		t.Errorf("the page: %d lookups, %d lost; want %d and %d", v.Lookups, v.Lost, lookups, lost)
	}
	for _, st := range v.Stages {
		want := 0
		if st.Stage == "between-nodes" {
			want = lost
		}
		if st.Lost != want {
			t.Errorf("the page: %d lost at %s, want %d", st.Lost, st.Stage, want)
		}
		if st.Stage == "upstream" && (st.Lookups < 25 || st.P99 < 250*time.Millisecond) {
			t.Errorf("the page: %d lookups upstream, one in a hundred of them %v or more", st.Lookups, st.P99)
		}
		if st.Stage == "node" && (st.Lookups < lookups*9/10 || st.P50 <= 0 || st.P50 > 100*time.Millisecond) {
			t.Errorf("the page: %d lookups on the node, half of them %v or more", st.Lookups, st.P50)
		}
	}
	if want := []page.NodePair{{From: "node-1", To: "node-2", Lookups: lookups, Failed: lost, Lost: lost}}; !slices.Equal(
		v.Nodes, want) {
		t.Errorf("the page: from node to node %+v, want %+v", v.Nodes, want)
	}
	for _, r := range v.Rows[:5] {
		resp, err := http.Get("http://" + s.api + page.PathWalk + r.TraceID)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), r.Name) || !strings.Contains(string(body), "The walk, to scale") {
			t.Errorf("the walk of %s: %v\n%s", r.TraceID, err, body)
		}
	}
}

// TestReport: on a lab that is well report finds nothing; of seven planted problems it names each and no other, with
// the numbers of those who made them: the lab's upstream and the clients. What it says that a lower ndots saves is what
// its patch saves, put in and measured.
func TestReport(t *testing.T) {
	pod := func(workload string) lab.PodSpec {
		return lab.PodSpec{Node: "node-1", Namespace: "shop", Workload: lab.Workload{Kind: "Deployment", Name: workload}}
	}
	s := upWith(t, cluster.Config{
		Pods: []lab.PodSpec{pod("stuck"), pod("bulky"), pod("poller")},
		Zones: []cluster.Zone{
			{Name: "example.org", Chain: "errors\n    cache 30\n    forward . " + lab.UpstreamV6.String()},
			{Name: "example.net", Chain: "errors\n    cache {\n        success 9984 30 1\n    }\n    forward . " +
				lab.UpstreamV4.String()},
		},
	})
	cart, stuck, bulky, poller := s.Clients[0], s.Clients[1], s.Clients[2], s.Clients[3]
	in := func(p *lab.Pod, format string, args ...any) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, _ := p.Run(ctx, "sh", "-c", fmt.Sprintf(format, args...)) // of some it is meant to fail
		return out
	}
	begin := time.Now()
	in(cart, "for i in $(seq 40); do dig +short kubernetes.default.svc.cluster.local; done")
	r := s.reported(t, begin)
	for _, f := range r.Findings {
		if f.Kind == report.Queue {
			t.Logf("this machine is busy: %s", f.Text)
			continue
		}
		t.Errorf("of a lab that is well: %s: %s", f.Kind, f.Text)
	}
	for _, kind := range []report.Kind{report.Losses, report.SearchPath, report.Retries, report.Conntrack} {
		if r.Lookups != 40 || !slices.Contains(r.Well, kind) {
			t.Errorf("%d lookups, well: %v, not enough: %v", r.Lookups, r.Well, r.NotEnough)
		}
	}

	begin = time.Now()
	const resolved, stale, batches, batch, lost, onePort, truncated, polled, rounds = 15, 5, 5, 5, 6, 60, 10, 15, 6
	in(cart, "for i in $(seq %d); do getent ahosts www.example.com; done", resolved)
	in(cart, "for i in $(seq %d); do getent ahosts ledger.corp; done", stale)
	slow := in(cart, "for n in $(seq %d); do for i in $(seq %d); do dig delay-250ms.n$n-$i.example.org & done; wait; done",
		batches, batch)
	in(stuck, "for i in $(seq %d); do dig -b '%s#5353' +short kubernetes.default.svc.cluster.local; done", onePort,
		stuck.V4)
	in(bulky, "for i in $(seq %d); do dig +noedns +short size-2000.example.com; done", truncated)
	in(poller, "for n in $(seq %d); do for i in $(seq %d); do dig +short ttl-1.n$i.example.net & done; wait; sleep 1.3; "+
		"done", rounds, polled)
	undo, err := s.Underlay.Drop(lab.DropRule{Hook: lab.Switched, DstPort: 53, Proto: unix.IPPROTO_UDP})
	if err != nil {
		t.Fatal(err)
	}
	in(cart, "for i in $(seq %d); do dig +tries=1 +time=1 lost$i.example.com & done; wait", lost)
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	in(cart, "dig +short kubernetes.default.svc.cluster.local") // that the other node was watched shows by this
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := s.store.Await(ctx, trace.Filter{Name: "lost1.example.com"}, func(tr *trace.Trace) bool {
		return tr.Client() != nil && tr.Verdict().Lost()
	}); err != nil {
		t.Fatal(err)
	}
	r = s.reported(t, begin)

	planted := map[report.Kind]bool{}
	find := func(kind report.Kind, who string) *report.Finding {
		t.Helper()
		planted[kind] = true
		i := slices.IndexFunc(r.Findings, func(f report.Finding) bool {
			return f.Kind == kind &&
				strings.Contains(f.Who, who)
		})
		if i < 0 {
			t.Errorf("no finding %s of %q; not enough seen: %v", kind, who, r.NotEnough)
			for _, f := range r.Findings {
				t.Logf("%s %s: %s", f.Kind, f.Who, f.Text)
			}
			return &report.Finding{}
		}
		return &r.Findings[i]
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 0.05*want {
			t.Errorf("%s is %g, want %g within 5 %%", what, got, want)
		}
	}
	// 1. A search path that asks for nothing.
	path := find(report.SearchPath, "shop/cart")
	near("what ndots 2 saves", float64(path.Queries), resolved*6)
	// 2. A name that does not exist.
	near("queries for a name that never exists", float64(find(report.NeverThere, "shop/cart").Queries), stale*8)
	// 3. A slow upstream, by the clients' own watches and the upstream's count.
	up := find(report.Upstreams, lab.UpstreamV6.String())
	near("the slow upstream's queries", up.Number("queries"), float64(s.asked("delay-250ms.")))
	near("the slow upstream's queries", up.Number("queries"), batches*batch)
	near("the slow upstream's median", up.Number("p50"), median(t, slow, batches*batch).Seconds())
	// 4. Lookups lost between the nodes.
	near("lookups lost between the nodes", find(report.Losses, "between-nodes").Number("lost"), lost)
	// 5. A client that asks from one port.
	ports := find(report.Ports, "shop/stuck")
	near("lookups from one port", ports.Number("lookups"), onePort)
	near("ports", ports.Number("ports"), 1)
	// 6. Answers that do not fit.
	cut := find(report.Truncation, "")
	near("truncated answers", cut.Number("truncated"), truncated)
	near("lookups over TCP", cut.Number("over TCP"), truncated)
	// 7. A TTL too short for the cache. Had it kept each answer for 30 s, each name would have been asked for once.
	cached := find(report.Cache, "example.net")
	near("lookups of the zone", cached.Number("lookups"), rounds*polled)
	near("queries that a longer TTL saves", cached.Number("saved queries"), float64(s.asked("ttl-1.")-polled))
	near("queries that a longer TTL saves", cached.Number("saved queries"), (rounds-1)*polled)
	for _, f := range r.Findings {
		if !planted[f.Kind] {
			if f.Kind == report.Queue {
				t.Logf("this machine is busy: %s", f.Text)
				continue
			}
			t.Errorf("nobody planted %s: %s", f.Kind, f.Text)
		}
	}
	s.onThePage(t, begin, r.Lookups, lost)
	// Each piece of evidence is a lookup that explain tells.
	for _, f := range r.Findings {
		if out, err := s.run(t, "explain", f.Evidence[0], "--store", s.api); err != nil || out == "" {
			t.Errorf("%s: explain %s: %v", f.Kind, f.Evidence[0], err)
		}
	}
	since := (time.Since(begin) + time.Second).String()
	text, err := s.run(t, "report", "--store", "http://"+s.api, "--since", since)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + text)
	reads(t, text, "lookups in ", "change   ", "well ", "not enough seen:")
	html, err := s.run(t, "report", "--store", "http://"+s.api, "--since", since, "-o", "html")
	if err != nil || strings.Count(html, "<li data-kind=") < len(planted) {
		t.Errorf("%v\n%s", err, html)
	}
	// An agent knows its node's side, and says what it cannot judge.
	text, err = s.run(t, "report", "--socket", filepath.Join(filepath.Dir(s.IdentityFile), "node-1.sock"))
	if err != nil {
		t.Fatal(err)
	}
	reads(t, text, "lookups in ", "search-path: shop/cart asks 90 of its ", "not enough seen:", "failover")

	// The patch for the first of them, put in: the same is asked with as many queries less as it said.
	var patch struct {
		Spec struct {
			Template struct {
				Spec struct {
					DNSConfig struct {
						Options []struct{ Name, Value string } `json:"options"`
					} `json:"dnsConfig"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if err := yaml.UnmarshalStrict([]byte(path.Patch), &patch); err != nil {
		t.Fatalf("%v in\n%s", err, path.Patch)
	}
	cart.ResolvOptions = ""
	for _, o := range patch.Spec.Template.Spec.DNSConfig.Options {
		cart.ResolvOptions += strings.TrimSuffix(o.Name+":"+o.Value, ":") + " "
	}
	before := s.queries("www.example.com.")
	in(cart, "for i in $(seq %d); do getent ahosts www.example.com; done", resolved)
	if err := s.store.Settle(ctx, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	after := s.queries("www.example.com.") - before
	near("queries saved by the patch", float64(before-after), float64(path.Queries))
	t.Logf("%d lookups of www.example.com: %d queries before the patch, %d after; the report said %d less", resolved,
		before, after, path.Queries)
}

// queries gives how many clients' queries there were for names that begin so.
func (s *scene) queries(prefix string) (n int) {
	for _, tr := range s.store.Traces(trace.Filter{}) {
		if tr.Client() != nil && strings.HasPrefix(tr.Name(), prefix) {
			n++
		}
	}
	return n
}

// asked gives how many queries the lab's upstream got for names that begin so.
func (s *scene) asked(prefix string) (n int) {
	for _, q := range s.Upstream.Queries("") {
		if strings.HasPrefix(q.Name, prefix) {
			n++
		}
	}
	return n
}

// median gives the median of the n query times that dig printed.
func median(t *testing.T, digs string, n int) time.Duration {
	t.Helper()
	var took []int
	for _, m := range regexp.MustCompile(`Query time: (\d+) msec`).FindAllStringSubmatch(digs, -1) {
		ms, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, ms)
	}
	if len(took) != n {
		t.Fatalf("%d query times, want %d, in:\n%s", len(took), n, digs)
	}
	slices.Sort(took)
	return time.Duration(took[n/2]) * time.Millisecond
}
