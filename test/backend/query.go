package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// Traces gives a client of Jaeger's query API.
func (j *Jaeger) Traces() (*traceapi.Client, error) { return traceapi.NewClient(j.Query, nil) }

// Sample is one series of an instant query with its value.
type Sample struct {
	Labels map[string]string
	// Value is a float's value; of a native histogram it is the count of observations.
	Value float64
	// Histogram says that the series is a native histogram.
	Histogram bool
}

// Exemplar is one exemplar of a series.
type Exemplar struct {
	Series map[string]string // the labels of the series
	Labels map[string]string // its own: the trace ID
	Value  float64
	Time   time.Time
}

// Instant evaluates a PromQL expression that gives a vector, now.
func (p *Prometheus) Instant(ctx context.Context, expr string) ([]Sample, error) {
	var data struct {
		Type   string `json:"resultType"`
		Result []struct {
			Metric    map[string]string `json:"metric"`
			Value     [2]any            `json:"value"`
			Histogram []json.RawMessage `json:"histogram"`
		} `json:"result"`
	}
	if err := p.get(ctx, "/api/v1/query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	if data.Type != "vector" {
		return nil, fmt.Errorf("%s: a %s, want a vector", expr, data.Type)
	}
	var samples []Sample
	for _, r := range data.Result {
		s := Sample{Labels: r.Metric}
		text, _ := r.Value[1].(string)
		if len(r.Histogram) == 2 {
			s.Histogram = true
			var h struct {
				Count string `json:"count"`
			}
			if err := json.Unmarshal(r.Histogram[1], &h); err != nil {
				return nil, fmt.Errorf("%s: histogram: %w", expr, err)
			}
			text = h.Count
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: value %q: %w", expr, text, err)
		}
		s.Value = v
		samples = append(samples, s)
	}
	return samples, nil
}

// Exemplars gives the exemplars of the series in expr of the last hour.
func (p *Prometheus) Exemplars(ctx context.Context, expr string) ([]Exemplar, error) {
	var data []struct {
		Series    map[string]string `json:"seriesLabels"`
		Exemplars []struct {
			Labels    map[string]string `json:"labels"`
			Value     string            `json:"value"`
			Timestamp float64           `json:"timestamp"`
		} `json:"exemplars"`
	}
	now := time.Now()
	q := url.Values{"query": {expr}, "start": {now.Add(-time.Hour).Format(time.RFC3339)},
		"end": {now.Add(time.Minute).Format(time.RFC3339)}}
	if err := p.get(ctx, "/api/v1/query_exemplars", q, &data); err != nil {
		return nil, fmt.Errorf("exemplars of %s: %w", expr, err)
	}
	var found []Exemplar
	for _, s := range data {
		for _, e := range s.Exemplars {
			v, err := strconv.ParseFloat(e.Value, 64)
			if err != nil {
				return nil, fmt.Errorf("exemplars of %s: value %q: %w", expr, e.Value, err)
			}
			found = append(found, Exemplar{Series: s.Series, Labels: e.Labels, Value: v,
				Time: time.UnixMilli(int64(e.Timestamp * 1e3))})
		}
	}
	return found, nil
}

// get reads the data of an answer of Prometheus's API.
func (p *Prometheus) get(ctx context.Context, path string, q url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path+"?"+q.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status string          `json:"status"`
		Error  string          `json:"error"`
		Data   json.RawMessage `json:"data"`
	}{}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", resp.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}
