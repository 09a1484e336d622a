package main

import (
	"fmt"
	"net/http"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metric gives the sum over the series of a counter or gauge at a /metrics URL, those of which a label has one of the
// values.
func metric(url, name, label string, values ...string) (float64, error) {
	resp, err := http.Get(url) //nolint:noctx // a benchmark's own loopback
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", url, err)
	}
	family := families[name]
	if family == nil {
		return 0, fmt.Errorf("%s has no %s", url, name)
	}
	sum := 0.0
	for _, m := range family.GetMetric() {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool {
			return l.GetName() == label && slices.Contains(values, l.GetValue())
		}) {
			continue
		}
		switch family.GetType() {
		case dto.MetricType_COUNTER:
			sum += m.GetCounter().GetValue()
		case dto.MetricType_GAUGE:
			sum += m.GetGauge().GetValue()
		default:
			return 0, fmt.Errorf("%s: %s is a %v", url, name, family.GetType())
		}
	}
	return sum, nil
}
