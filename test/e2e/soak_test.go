package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

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
	m := scrape(t, k.AgentMetrics[0])
	lost, seen := sum(m, "dnstrail_lookups_lost_total"), sum(m, "dns_lookup_duration_seconds")
	events, gone := sum(m, "dnstrail_kernel_events_total"), 0.0
	for _, kind := range []string{"ring_full", "reentered", "undecodable", "evicted"} {
		gone += sum(m, "dnstrail_losses_total", "kind", kind)
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

// scrape reads /metrics of an address.
func scrape(t *testing.T, addr string) map[string][]sample {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]sample{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			s := sample{labels: map[string]string{}, value: m.GetCounter().GetValue() + m.GetGauge().GetValue() +
				float64(m.GetHistogram().GetSampleCount())}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			all[name] = append(all[name], s)
		}
	}
	return all
}

// sample is one series: the value of a counter or gauge, the count of a histogram.
type sample struct {
	labels map[string]string
	value  float64
}

// sum adds the series of a name that have the labels given as name, value, ...
func sum(m map[string][]sample, name string, labels ...string) float64 {
	total := 0.0
series:
	for _, s := range m[name] {
		for i := 0; i < len(labels); i += 2 {
			if s.labels[labels[i]] != labels[i+1] {
				continue series
			}
		}
		total += s.value
	}
	return total
}
