package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

var (
	dnsperfCompleted = regexp.MustCompile(`Queries completed:\s+([0-9]+)`)
	dnsperfSent      = regexp.MustCompile(`Queries sent:\s+([0-9]+)`)
)

// Design, section 6: of all answered lookups at least 99.99 % have a CLIENT and a SERVER span that share trace and
// parent.
func TestLinkRate(t *testing.T) {
	const least, share = 50_000, 0.9999
	c := newCollector(t)
	// Everything is kept and nothing may be lost on the way to the collector: that is what the queues are for here.
	k, pods := up(t, cluster.Config{
		Bin: binaries(t), Collector: c.Addr,
		Env: []string{"OTEL_BSP_MAX_QUEUE_SIZE=200000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4096", "OTEL_BSP_SCHEDULE_DELAY=200"},
	})
	var list strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&list, "host-%d.example.com A\nhost-%d.example.org AAAA\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "queries")
	if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	completed := 0
	for _, run := range []struct {
		pod    *lab.Pod
		server string
	}{{pods[0], lab.ServiceV4.String()}, {pods[1], lab.ServiceV6.String()}} {
		p, err := run.pod.Start(lab.Command{Path: "dnsperf", Args: []string{"-s", run.server, "-d", file, "-c", "10", "-Q",
			"2000", "-l", "14", "-t", "5"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Err(); err != nil {
			t.Fatalf("dnsperf: %v\n%s%s", err, p.Stdout(), p.Stderr())
		}
		n := int(number(t, dnsperfCompleted, p.Stdout()))
		completed += n
		t.Logf("dnsperf from %s to %s: %.0f sent, %d answered", run.pod.Name, run.server, number(t, dnsperfSent, p.Stdout()),
			n)
	}
	c.settle(t, 3*time.Second, 2*time.Minute)
	_ = k

	c.mu.Lock()
	defer c.mu.Unlock()
	type ids struct {
		trace link.TraceID
		span  link.SpanID
	}
	clients := make(map[ids]linkSpan, len(c.clients))
	originals, copies := 0, 0
	for _, s := range c.clients {
		clients[ids{s.trace, s.id}] = s
		if s.copied {
			copies++
		} else {
			originals++
		}
	}
	linked, crossed := 0, 0
	for _, s := range c.servers {
		cl, ok := clients[ids{s.trace, s.parent}]
		if !ok {
			continue
		}
		linked++
		if cl.copied || link.EpochOfNanos(cl.start) != link.EpochOfNanos(s.start) {
			crossed++
		}
	}
	rate := float64(linked) / float64(completed)
	t.Logf("%d lookups answered, %d CLIENT spans and %d copies, %d SERVER spans, %d other spans", completed, originals,
		copies, len(c.servers), c.others)
	t.Logf("link rate: %d of %d = %.4f %%; %d of them cross an epoch boundary; %d lookups stood near one", linked,
		completed, rate*100, crossed, copies)
	if completed < least {
		t.Errorf("%d lookups answered, want at least %d", completed, least)
	}
	if rate < share || rate > 1 {
		t.Errorf("link rate %.6f, want at least %.4f (and no more than 1)", rate, share)
	}
	if copies == 0 {
		t.Error("no lookup near an epoch boundary: the test did not try what it must")
	}
}

// number gives the figure that a pattern finds in dnsperf's output.
func number(t *testing.T, pattern *regexp.Regexp, output string) float64 {
	t.Helper()
	m := pattern.FindStringSubmatch(output)
	if m == nil {
		t.Fatalf("dnsperf printed no figure for %v:\n%s", pattern, output)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
