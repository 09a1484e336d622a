package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/backend"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// A real Prometheus scrapes the custom CoreDNS: the per-client series are there, with native histograms, and exemplars
// that carry the trace ID of a trace that was really sent.
func TestPrometheusSeesClients(t *testing.T) {
	c := newCollector(t)
	k, pods := up(t, cluster.Config{Bin: binaries(t), Collector: c.Addr})
	prom, err := backend.StartPrometheus(t.Context(), t.TempDir(), k.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(prom.Stop)
	for i, p := range pods {
		ask(t, p, clientSpec{Servers: []string{netip.AddrPortFrom(lab.ServiceV4, 53).String()}, Networks: []string{"udp"},
			Questions: mix(100, fmt.Sprint("p", i))})
	}
	for workload, pod := range map[string]*lab.Pod{"cart": pods[0], "checkout": pods[1]} {
		selector := fmt.Sprintf(`client_namespace=%q,client_workload=%q`, pod.PodSpec.Namespace, workload)
		eventually(t, "requests by rcode of "+workload, func() error {
			return atLeast(prom.URL, fmt.Sprintf(`sum(coredns_dnstrail_client_requests_total{%s,rcode="NXDOMAIN"})`, selector),
				20)
		})
		eventually(t, "latency of "+workload+" as a native histogram", func() error {
			return atLeast(prom.URL, fmt.Sprintf(`histogram_count(sum(coredns_dnstrail_client_request_duration_seconds{%s}))`,
				selector), 100)
		})
		eventually(t, "upstream latency of "+workload+" as a native histogram", func() error {
			return atLeast(prom.URL, fmt.Sprintf(`histogram_count(sum(coredns_dnstrail_client_upstream_duration_seconds{%s}))`,
				selector), 20)
		})
		eventually(t, "an exemplar of "+workload+" with the ID of a trace that was sent", func() error {
			ids, err := exemplars(prom.URL, fmt.Sprintf(`coredns_dnstrail_client_request_duration_seconds_bucket{%s}`, selector))
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				ids, err = exemplars(prom.URL, fmt.Sprintf(`coredns_dnstrail_client_request_duration_seconds{%s}`, selector))
			}
			if err != nil || len(ids) == 0 {
				return fmt.Errorf("%d exemplars, %w", len(ids), err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, s := range c.servers {
				if s.trace.String() == ids[0] {
					return nil
				}
			}
			return fmt.Errorf("trace %s was not sent", ids[0])
		})
	}
}

// eventually fails the test if f still fails after twenty seconds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if err = f(); err == nil {
			t.Logf("%s: there", what)
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}

// atLeast checks that an instant query gives one value, not below least.
func atLeast(base, query string, least float64) error {
	var data struct {
		Result []struct {
			Value [2]json.RawMessage `json:"value"`
		} `json:"result"`
	}
	if err := get(base+"/api/v1/query?query="+url.QueryEscape(query), &data); err != nil {
		return err
	}
	if len(data.Result) != 1 {
		return fmt.Errorf("%s: %d results", query, len(data.Result))
	}
	var text string
	if err := json.Unmarshal(data.Result[0].Value[1], &text); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	var value float64
	if _, err := fmt.Sscan(text, &value); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	if value < least {
		return fmt.Errorf("%s is %v, want %v or more", query, value, least)
	}
	return nil
}

// exemplars gives the trace IDs that the exemplars of a series carry.
func exemplars(base, query string) ([]string, error) {
	now := time.Now()
	var data []struct {
		Exemplars []struct {
			Labels map[string]string `json:"labels"`
		} `json:"exemplars"`
	}
	u := fmt.Sprintf("%s/api/v1/query_exemplars?query=%s&start=%d&end=%d", base, url.QueryEscape(query),
		now.Add(-time.Hour).Unix(), now.Unix()+1)
	if err := get(u, &data); err != nil {
		return nil, err
	}
	var ids []string
	for _, series := range data {
		for _, e := range series.Exemplars {
			if id := e.Labels["trace_id"]; id != "" {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// get decodes the data of an answer of Prometheus's API.
func get(u string, data any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", u, answer.Error)
	}
	return nil
}
