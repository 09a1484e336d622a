// The command generate writes clients.json, a Grafana dashboard of the plugin's per-client metrics.
package main

//go:generate go run . -o clients.json

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
)

type object = map[string]any

// panel is one panel, two or three in a row.
type panel struct {
	title, help, unit, kind string
	width                   int
	queries                 []query
}

type query struct {
	expr, legend string
	instant      bool
}

// chosen are the series of the clients that the variables at the top choose.
const chosen = `client_namespace=~"$namespace",client_workload=~"$workload"`

const client = "client_kind, client_namespace, client_workload"

// name is how a client is called in a legend.
const name = "{{client_namespace}}/{{client_workload}} {{client_kind}}"

func clientMetric(name string, more ...string) string {
	return "coredns_dnstrail_client_" + name + "{" + strings.Join(append([]string{chosen}, more...), ",") + "}[$__rate_interval]"
}

var panels = []panel{
	{"Queries", "Queries a second by client, the twenty busiest.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(20, sum by (%s) (rate(%s)))", client, clientMetric("requests_total")), legend: name},
	}},
	{"Answers by rcode", "`none` is a query that got no answer.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("sum by (rcode) (rate(%s))", clientMetric("requests_total")), legend: "{{rcode}}"},
	}},
	{"Failed", "Share of queries that got no answer, or one that is neither NOERROR nor NXDOMAIN, by client.", "percentunit", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, sum by (%[1]s) (rate(%[2]s)) / sum by (%[1]s) (rate(%[3]s)))", client,
			clientMetric("requests_total", `rcode!~"NOERROR|NXDOMAIN"`), clientMetric("requests_total")), legend: name},
	}},
	{"Unanswered", "Queries a second that got no answer at all, by client and by the plugin that ended them.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, sum by (%s, plugin) (rate(%s)))", client, clientMetric("unanswered_total")), legend: name + " ended by {{plugin}}"},
	}},
	{"Latency, 99th percentile", "From a query's arrival to its answer, from native histograms; a point leads to a trace.", "s", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, histogram_quantile(0.99, sum by (%s) (rate(%s))))", client, clientMetric("request_duration_seconds")), legend: name},
	}},
	{"Waiting for upstreams, 99th percentile", "Of the queries that asked an upstream: all attempts added.", "s", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, histogram_quantile(0.99, sum by (%s) (rate(%s))))", client, clientMetric("upstream_duration_seconds")), legend: name},
	}},
	{"Answered by", "The plugin that wrote the answer.", "reqps", "timeseries", 8, []query{
		{expr: fmt.Sprintf("sum by (plugin) (rate(%s))", clientMetric("requests_total")), legend: "{{plugin}}"},
	}},
	{"Search-path misses", "Share of queries that only a resolver's search list made: what ndots costs, by client.", "percentunit", "timeseries", 8, []query{
		{expr: fmt.Sprintf("topk(10, sum by (%[1]s) (rate(%[2]s)) / sum by (%[1]s) (rate(%[3]s)))", client,
			clientMetric("search_path_misses_total"), clientMetric("requests_total")), legend: name},
	}},
	{"Latency, all clients", "How long queries take, all clients together.", "s", "heatmap", 8, []query{
		{expr: fmt.Sprintf("sum(rate(%s))", clientMetric("request_duration_seconds"))},
	}},
	{"Clients with series of their own", "At the limit, further clients are counted together as ~other.", "short", "stat", 6, []query{
		{expr: "sum(coredns_dnstrail_clients)", instant: true},
	}},
	{"Pods known", "By the CoreDNS that knows the fewest.", "short", "stat", 6, []query{
		{expr: "min(coredns_dnstrail_identity_pods)", instant: true},
	}},
	{"Last word from the API", "How long ago the Kubernetes API last told anything about pods: the longest of all CoreDNS. It does so once a minute at least.", "s", "stat", 6, []query{
		{expr: `max(time() - coredns_dnstrail_identity_last_event_timestamp_seconds{resource="pods"})`, instant: true},
	}},
	{"Spans lost", "Spans a second that were made and not exported.", "short", "stat", 6, []query{
		{expr: `sum(rate(coredns_dnstrail_spans_total{result!="exported"}[$__rate_interval]))`, instant: true},
	}},
}

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

func main() {
	out := flag.String("o", "clients.json", "the file to write")
	flag.Parse()
	b, err := json.MarshalIndent(dashboard(), "", "  ")
	if err == nil {
		err = os.WriteFile(*out, append(b, '\n'), 0o644) //nolint:gosec // a file of the repository
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func dashboard() object {
	return object{
		"title": "dnstrail: DNS by client", "uid": "dnstrail-clients", "tags": []string{"dns", "coredns", "dnstrail"},
		"schemaVersion": 39, "editable": true, "refresh": "30s", "time": object{"from": "now-1h", "to": "now"},
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
			variable("namespace", "Namespace", "label_values(coredns_dnstrail_client_requests_total, client_namespace)"),
			variable("workload", "Workload", `label_values(coredns_dnstrail_client_requests_total{client_namespace=~"$namespace"}, client_workload)`),
		}},
		"panels": layout(),
	}
}

func variable(name, label, q string) object {
	return object{
		"name": name, "label": label, "type": "query", "datasource": datasource, "query": object{"query": q, "refId": name},
		"refresh": 2, "multi": true, "includeAll": true, "allValue": ".*", "sort": 1,
	}
}

// layout puts the panels into rows of 24 units.
func layout() []object {
	var out []object
	x, y := 0, 0
	for i, p := range panels {
		height := 8
		if p.kind == "stat" {
			height = 4
		}
		if x+p.width > 24 {
			x, y = 0, y+8
		}
		var targets []object
		for j, q := range p.queries {
			format := "time_series"
			if p.kind == "heatmap" {
				format = "heatmap"
			}
			targets = append(targets, object{
				"refId": string(rune('A' + j)), "datasource": datasource, "expr": q.expr, "legendFormat": q.legend,
				"format": format, "instant": q.instant, "range": !q.instant, "exemplar": p.unit == "s" && p.kind == "timeseries",
			})
		}
		out = append(out, object{
			"id": i + 1, "title": p.title, "description": p.help, "type": p.kind, "datasource": datasource, "targets": targets,
			"gridPos":     object{"x": x, "y": y, "w": p.width, "h": height},
			"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []any{}},
		})
		x += p.width
	}
	return out
}
