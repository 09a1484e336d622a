package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// A false LOST is worse than none: of many answered lookups under load not one is called lost, and no kernel event is
// lost without being counted. DNSTRAIL_SOAK says how many lookups (make soak: a million).
func TestNoFalseAlarm(t *testing.T) {
	lookups, rate := 100_000, 5000
	if s := os.Getenv("DNSTRAIL_SOAK"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 {
			t.Fatalf("DNSTRAIL_SOAK is %q, want a number of lookups", s)
		}
		lookups, rate = n, 8000
	}
	t.Run("UDP", func(t *testing.T) { soak(t, lookups, rate, "-c", "20", "-q", "500") })
	// A hundred queries at once on each connection: several in a segment, and answers over several.
	t.Run("TCP", func(t *testing.T) { soak(t, lookups/10, rate/2, "-m", "tcp", "-c", "4", "-q", "100") })
}

// soak asks so many lookups a second, and compares what dnsperf says with what the agent counts.
func soak(t *testing.T, lookups, rate int, dnsperf ...string) {
	c := newCollector(t)
	k, pods := up(t, cluster.Config{
		Bin: binaries(t), Collector: c.Addr, Sample: "0", Plugin: "keep none",
		Agents: cluster.NoAgent, AgentArgs: []string{"--slow", "0"},
	})
	// Whatever else this machine looks up meanwhile is not what is counted.
	if err := k.StartLabAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for i := range 500 {
		fmt.Fprintf(&list, "host-%d.example.com A\nnxdomain-%d.example.org AAAA\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "queries")
	if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	seconds := lookups/rate + 1
	p, err := pods[0].Start(lab.Command{Path: "dnsperf", Args: append([]string{
		"-s", lab.ServiceV4.String(), "-d", file, "-Q", strconv.Itoa(rate), "-l", strconv.Itoa(seconds), "-t", "5",
	}, dnsperf...)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Fatalf("dnsperf: %v\n%s%s", err, p.Stdout(), p.Stderr())
	}
	sent, answered := number(t, dnsperfSent, p.Stdout()), number(t, dnsperfCompleted, p.Stdout())
	time.Sleep(7 * time.Second) // longer than it takes to give a lookup up
	m, err := cluster.Scrape(t.Context(), k.AgentMetrics[0])
	if err != nil {
		t.Fatal(err)
	}
	lost, seen := m.Sum("dnstrail_lookups_lost_total"), m.Sum("dns_lookup_duration_seconds")
	events, gone := m.Sum("dnstrail_kernel_events_total"), 0.0
	for _, kind := range []string{"ring_full", "flood", "reentered", "undecodable", "evicted"} {
		gone += m.Sum("dnstrail_losses_total", "kind", kind)
	}
	t.Logf("%.0f sent, %.0f answered in %d s; the agent saw %.0f lookups, called %.0f lost; %.0f kernel events, %.0f lost",
		sent, answered, seconds, seen, lost, events, gone)
	if unanswered := sent - answered; lost > unanswered {
		t.Errorf("%.0f lookups were called lost, %.0f were", lost, unanswered)
	}
	if gone == 0 && seen < answered {
		t.Errorf("%.0f lookups were seen of %.0f answered, and no event was lost", seen, answered)
	}
	if answered < float64(lookups)*0.9 {
		t.Errorf("%.0f lookups answered of %d wanted: the machine is too busy to try what must be tried", answered, lookups)
	}
}
