package cluster

import (
	"context"
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Figures are the metrics of a program, by name.
type Figures map[string]*dto.MetricFamily

// Scrape reads /metrics of an address, host:port.
func Scrape(ctx context.Context, addr string) (Figures, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	return families, nil
}

// Sum adds the series of a name that have the labels given as name, value, ...: the value of a counter or gauge, the
// count of a histogram. It is 0 where there is no such series.
func (f Figures) Sum(name string, labels ...string) float64 {
	total := 0.0
series:
	for _, m := range f[name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(labels); i += 2 {
			if has[labels[i]] != labels[i+1] {
				continue series
			}
		}
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return total
}

// UnsentSpans gives the number of spans that CoreDNS and the agents made and did not send, with the words of each
// program that has any: what a collector did not get of them is no fault of their making.
func (k *Cluster) UnsentSpans(ctx context.Context) (n float64, words string, err error) {
	count := func(who, addr, name, label, sent string) error {
		f, err := Scrape(ctx, addr)
		if err != nil {
			return err
		}
		if lost := f.Sum(name) - f.Sum(name, label, sent); lost > 0 {
			n += lost
			words += fmt.Sprintf("%s did not send %.0f of its spans (%s). ", who, lost, name)
		}
		return nil
	}
	if !k.config.NoPlugin {
		if err := count("CoreDNS", k.Metrics, "coredns_dnstrail_spans_total", "result", "exported"); err != nil {
			return 0, "", err
		}
	}
	for i, addr := range k.AgentMetrics {
		if err := count(fmt.Sprintf("agent %d", i+1), addr, "dnstrail_spans_total", "outcome", "sent"); err != nil {
			return 0, "", err
		}
	}
	return n, words, nil
}
