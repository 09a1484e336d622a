package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
		if st.Stage == "upstream" && (st.Lookups < 25 || st.P50 < 200*time.Millisecond) {
			t.Errorf("the page: %d lookups upstream, half of them %v or more", st.Lookups, st.P50)
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

// TestReport: on a lab that is well report finds nothing; of planted problems it names each, with the lab's own
// numbers. What it says that a lower ndots saves is what a pod with that ndots saves.
func TestReport(t *testing.T) {
	s := up(t, lab.PodSpec{
		Node: "node-1", Namespace: "shop", Workload: lab.Workload{Kind: "Deployment",
			Name: "frugal"}, ResolvOptions: "ndots:2",
	})
	frugal := s.Clients[1]
	if _, err := frugal.Start(lab.Command{Path: "sleep", Args: []string{"600"}}); err != nil {
		t.Fatal(err)
	}
	in := func(p *lab.Pod, format string, args ...any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _ = p.Run(ctx, "sh", "-c", fmt.Sprintf(format, args...)) // of some it is meant to fail
	}
	begin := time.Now()
	in(s.pod, "for i in $(seq 40); do dig +short kubernetes.default.svc.cluster.local; done")
	r := s.reported(t, begin)
	for _, f := range r.Findings {
		if f.Kind == report.Queue {
			t.Logf("this machine is busy: %s", f.Text)
			continue
		}
		t.Errorf("of a lab that is well: %s: %s", f.Kind, f.Text)
	}
	if r.Lookups != 40 || !slices.Contains(r.Well, report.Losses) || !slices.Contains(r.Well, report.SearchPath) {
		t.Errorf("%d lookups, well: %v, not enough: %v", r.Lookups, r.Well, r.NotEnough)
	}

	begin = time.Now()
	const resolved, stale, slow, lost = 15, 5, 25, 6
	in(s.pod, "for i in $(seq %d); do getent ahosts www.example.com; done", resolved)
	in(frugal, "for i in $(seq %d); do getent ahosts www.example.com; done", resolved)
	in(s.pod, "for i in $(seq %d); do getent ahosts ledger.corp; done", stale)
	in(frugal, "for i in $(seq %d); do dig +short delay-250ms.n$i.example.com & done; wait", slow)
	undo, err := s.Underlay.Drop(lab.DropRule{Hook: lab.Switched, DstPort: 53, Proto: unix.IPPROTO_UDP})
	if err != nil {
		t.Fatal(err)
	}
	in(s.pod, "for i in $(seq %d); do dig +tries=1 +time=1 lost$i.example.com & done; wait", lost)
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	in(s.pod, "dig +short kubernetes.default.svc.cluster.local") // that the other node was watched shows by this
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := s.store.Await(ctx, trace.Filter{Name: "lost1.example.com"}, func(tr *trace.Trace) bool {
		return tr.Client() != nil && tr.Verdict().Lost()
	}); err != nil {
		t.Fatal(err)
	}
	r = s.reported(t, begin)

	find := func(kind report.Kind, who string) *report.Finding {
		t.Helper()
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
	path := find(report.SearchPath, "shop/cart")
	asks := func(workload string) (n int) {
		for _, tr := range s.store.Traces(trace.Filter{}) {
			if tr.Client() != nil && tr.Asker().Workload == "Deployment/"+workload &&
				strings.HasPrefix(tr.Name(), "www.example.com.") {
				n++
			}
		}
		return n
	}
	near("what ndots 2 saves", float64(path.Queries), float64(asks("cart")-asks("frugal")))
	near("what ndots 2 saves", float64(path.Queries), resolved*6)
	if path.Number("ndots") != 2 || !strings.Contains(path.Patch, `value: "2"`) {
		t.Errorf("ndots %g:\n%s", path.Number("ndots"), path.Patch)
	}
	near("queries for a name that never exists", float64(find(report.NeverThere, "shop/cart").Queries), stale*8)
	near("lookups lost between the nodes", find(report.Losses, "between-nodes").Number("lost"), lost)
	up := find(report.Upstreams, lab.UpstreamV4.String())
	if p50 := up.Number("p50"); p50 < 0.250 || p50 > 1 { // 25 at once, on a machine that may be busy
		t.Errorf("the slow upstream's median is %g s, want 0.25 and somewhat more", p50)
	}
	if slices.ContainsFunc(r.Findings, func(f report.Finding) bool {
		return f.Kind == report.SearchPath &&
			strings.Contains(f.Who, "frugal")
	}) {
		t.Error("the workload with ndots 2 is told of, too")
	}
	s.onThePage(t, begin, r.Lookups, lost)
	// Each piece of evidence is a lookup that explain tells.
	for _, f := range r.Findings {
		if out, err := s.run(t, "explain", f.Evidence[0], "--store", s.api); err != nil || out == "" {
			t.Errorf("%s: explain %s: %v", f.Kind, f.Evidence[0], err)
		}
	}
	text, err := s.run(t, "report", "--store", "http://"+s.api, "--since", (time.Since(begin) + time.Second).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + text)
	reads(t, text, "lookups in ", "change   ", "well ", "not enough seen:")
	// An agent knows its node's side, and says what it cannot judge.
	text, err = s.run(t, "report", "--socket", filepath.Join(filepath.Dir(s.IdentityFile), "node-1.sock"))
	if err != nil {
		t.Fatal(err)
	}
	reads(t, text, "lookups in ", "search-path: shop/cart asks 90 of its ", "not enough seen:", "failover")
}
