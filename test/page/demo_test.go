package page

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
)

// made is what a workload of the demo's lab asked, by its own count.
type made struct{ Sent, Completed, Lost int }

// sight is a running make demo PAGE=1 whose traffic has ended.
type sight struct {
	url  string
	made map[string]made
}

// showDemo runs make demo PAGE=1 for some rounds of traffic.
func showDemo(t *testing.T, rounds int) *sight {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for network namespaces and eBPF")
	}
	bin := os.Getenv("DNSTRAIL_BIN")
	if bin == "" {
		t.Fatal("DNSTRAIL_BIN is not set: run make test-system, which builds what is tested")
	}
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", demo, "../demo").CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, out)
	}
	cmd := exec.Command(demo, "-bin", bin, "-page", "1", "-rounds", fmt.Sprint(rounds))
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // it has ended, then
		if err := cmd.Wait(); err != nil {
			t.Errorf("the demo: %v\n%s", err, complaints.String())
		}
	})
	timeout := time.AfterFunc(8*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timeout.Stop()
	s := &sight{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if url, ok := strings.CutPrefix(strings.TrimSpace(line), "open "); ok {
			s.url = strings.TrimSuffix(url, "/")
		}
		if js, ok := strings.CutPrefix(line, "made "); ok {
			if err := json.Unmarshal([]byte(js), &s.made); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			return s
		}
	}
	t.Fatalf("the demo ended: %v\n%s", lines.Err(), complaints.String())
	return nil
}

// TestDemoPageInChromium: in make demo PAGE=1 the broken pair of nodes, the slow upstream and the wasteful client are
// each found by clicking, and what the page shows of them is what dnsperf and the lab's upstream counted.
func TestDemoPageInChromium(t *testing.T) {
	needChromium(t)
	s := showDemo(t, 3)
	dir := os.Getenv("DNSTRAIL_SCREENSHOTS") // where they are looked at
	if dir == "" {
		dir = t.TempDir()
	}
	cmd := exec.Command(buildBrowser(t), "demo", s.url, dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var f struct {
		All, Pair, Upstream, Client              shown
		ChosenPair, ChosenUpstream, ChosenClient string
		Wrong                                    []string
	}
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, w := range f.Wrong {
		t.Error(w)
	}
	is := func(what, got string, want any) {
		t.Helper()
		if got != fmt.Sprint(want) {
			t.Errorf("%s: the page says %q, who made it %v", what, got, want)
		}
	}
	all := 0
	for _, m := range s.made {
		all += m.Sent
	}
	blocked, delayed, wasteful, cart, web := s.made["billing"], s.made["reports"], s.made["checkout"], s.made["cart"],
		s.made["web"]
	if blocked.Lost == 0 || blocked.Lost != blocked.Sent || delayed.Completed == 0 || wasteful.Sent == 0 {
		t.Fatalf("made %+v", s.made)
	}
	// Beside them stand the questions by which the lab sees that CoreDNS is ready, which CoreDNS's own pod asks.
	for who, m := range s.made {
		is("lookups of "+who, f.All.Tables["clients"]["shop/"+who]["lookups"], m.Sent)
	}
	if total, err := strconv.Atoi(f.All.Totals["lookups"]); err != nil || total < all || total > all+3 {
		t.Errorf("the page says %s lookups, they made %d, and the lab one or few (%v)", f.All.Totals["lookups"], all, err)
	}
	is("lost", f.All.Totals["lost"], blocked.Lost)
	is("lost between the nodes", f.All.Stages["between-nodes"]["lost"], blocked.Lost)

	is("the broken pair", f.ChosenPair, "node-1 node-2")
	fromOne := blocked.Sent + delayed.Sent + cart.Sent
	is("its failures", f.All.Pairs["node-1 node-2"], fmt.Sprintf("%d of %d", blocked.Lost, fromOne))
	is("failures on node-2", f.All.Pairs["node-2 node-2"], fmt.Sprintf("0 of %d", web.Sent+wasteful.Sent))
	is("lookups of the pair", f.Pair.Totals["lookups"], fromOne)
	is("losses of the pair", f.Pair.Totals["lost"], blocked.Lost)
	is("losses of billing", f.Pair.Tables["clients"]["shop/billing"]["lost"], blocked.Lost)

	is("the slow upstream", f.ChosenUpstream, lab.UpstreamV6)
	is("lookups of the slow upstream", f.Upstream.Totals["lookups"], delayed.Completed)
	if p50, err := time.ParseDuration(strings.ReplaceAll(f.Upstream.Tables["upstreams"][f.ChosenUpstream]["p50Nanos"], " ",
		"")); err != nil || p50 < 300*time.Millisecond || p50 > 315*time.Millisecond {
		t.Errorf("the slow upstream's median is %v, the lab's is 300 ms (%v)", p50, err)
	}
	is("who waits for it", f.Upstream.Tables["clients"]["shop/reports"]["lookups"], delayed.Completed)

	is("the wasteful client", f.ChosenClient, "shop/checkout")
	is("its queries", f.Client.Totals["lookups"], wasteful.Sent)
	is("those of its search path", f.Client.Tables["clients"]["shop/checkout"]["searches"], wasteful.Sent*3/4)
	t.Logf("made %+v; the page: %s lookups, %s lost; pair %s; upstream %s p50 %s; searches %s", s.made,
		f.All.Totals["lookups"], f.All.Totals["lost"], f.All.Pairs["node-1 node-2"], f.ChosenUpstream,
		f.Upstream.Tables["upstreams"][f.ChosenUpstream]["p50Nanos"], f.Client.Tables["clients"]["shop/checkout"]["searches"])
}
