// The command generate writes the Grafana dashboards: clients.json of the plugin's per-client metrics, lookups.json of
// the agents'.
package main

//go:generate go run .

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

type object = map[string]any

// board is a dashboard.
type board struct {
	file, title, uid string
	base             string // the metric that has the namespaces and workloads to choose from
	panels           []panel
}

var boards = []board{
	{"clients.json", "dnstrail: DNS by client, as CoreDNS answers it", "dnstrail-clients",
		"coredns_dnstrail_client_requests_total", clientPanels},
	{"lookups.json", "dnstrail: lookups, as their clients see them", "dnstrail-lookups",
		"dns_lookup_duration_seconds_count", lookupPanels},
}

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
	return "coredns_dnstrail_client_" + name + "{" + strings.Join(append([]string{chosen}, more...), ",") +
		"}[$__rate_interval]"
}

var clientPanels = []panel{
	{"Queries", "Queries a second by client, the twenty busiest.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(20, sum by (%s) (rate(%s)))", client, clientMetric("requests_total")), legend: name},
	}},
	{"Answers by rcode", "`none` is a query that got no answer.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("sum by (rcode) (rate(%s))", clientMetric("requests_total")), legend: "{{rcode}}"},
	}},
	{"Failed", "Share of queries that got no answer, or one that is neither NOERROR nor NXDOMAIN, by client.",
		"percentunit", "timeseries", 12, []query{
			{expr: fmt.Sprintf("topk(10, sum by (%[1]s) (rate(%[2]s)) / sum by (%[1]s) (rate(%[3]s)))", client,
				clientMetric("requests_total", `rcode!~"NOERROR|NXDOMAIN"`), clientMetric("requests_total")), legend: name},
		}},
	{"Unanswered", "Queries a second that got no answer at all, by client and by the plugin that ended them.", "reqps",
		"timeseries", 12, []query{
			{expr: fmt.Sprintf("topk(10, sum by (%s, plugin) (rate(%s)))", client, clientMetric("unanswered_total")),
				legend: name + " ended by {{plugin}}"},
		}},
	{"Latency, 99th percentile", "From a query's arrival to its answer, from native histograms; a point leads to a trace.",
		"s", "timeseries", 12, []query{
			{expr: fmt.Sprintf("topk(10, histogram_quantile(0.99, sum by (%s) (rate(%s))))", client,
				clientMetric("request_duration_seconds")), legend: name},
		}},
	{"Waiting for upstreams, 99th percentile", "Of the queries that asked an upstream: all attempts added.", "s",
		"timeseries", 12, []query{
			{expr: fmt.Sprintf("topk(10, histogram_quantile(0.99, sum by (%s) (rate(%s))))", client,
				clientMetric("upstream_duration_seconds")), legend: name},
		}},
	{"Answered by", "The plugin that wrote the answer.", "reqps", "timeseries", 8, []query{
		{expr: fmt.Sprintf("sum by (plugin) (rate(%s))", clientMetric("requests_total")), legend: "{{plugin}}"},
	}},
	{"Search-path misses", "Share of queries that only a resolver's search list made: what ndots costs, by client.",
		"percentunit", "timeseries", 8, []query{
			{expr: fmt.Sprintf("topk(10, sum by (%[1]s) (rate(%[2]s)) / sum by (%[1]s) (rate(%[3]s)))", client,
				clientMetric("search_path_misses_total"), clientMetric("requests_total")), legend: name},
		}},
	{"Latency, all clients", "How long queries take, all clients together.", "s", "heatmap", 8, []query{
		{expr: fmt.Sprintf("sum(rate(%s))", clientMetric("request_duration_seconds"))},
	}},
	{"Clients with series of their own", "At the limit, further clients are counted together as ~other.", "short", "stat",
		6, []query{
			{expr: "sum(coredns_dnstrail_clients)", instant: true},
		}},
	{"Pods known", "By the CoreDNS that knows the fewest.", "short", "stat", 6, []query{
		{expr: "min(coredns_dnstrail_identity_pods)", instant: true},
	}},
	{"Last word from the API", "How long ago the Kubernetes API last told anything about pods: the longest of all " +
		"CoreDNS. It does so once a minute at least.", "s", "stat", 6, []query{
		{expr: `max(time() - coredns_dnstrail_identity_last_event_timestamp_seconds{resource="pods"})`, instant: true},
	}},
	{"Spans lost", "Spans a second that were made and not exported.", "short", "stat", 6, []query{
		{expr: `sum(rate(coredns_dnstrail_spans_total{result!="exported"}[$__rate_interval]))`, instant: true},
	}},
}

// seenBy is how a client is called in a legend of the agents' metrics.
const seenBy = "{{client_namespace}}/{{client_workload}}"

func seen(name string, more ...string) string {
	return name + "{" + strings.Join(append([]string{chosen}, more...), ",") + "}[$__rate_interval]"
}

var lookupPanels = []panel{
	{"Lookups lost", "Lookups a second that got no answer, by where they were lost and why.", "reqps", "timeseries", 24,
		[]query{
			{expr: fmt.Sprintf("sum by (where, cause) (rate(%s))", seen("dnstrail_lookups_lost_total")),
				legend: "{{where}}: {{cause}}"},
		}},
	{"Lost, by client", "The ten clients that lose the most.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, sum by (client_namespace, client_workload, where) (rate(%s)))",
			seen("dnstrail_lookups_lost_total")), legend: seenBy + " at {{where}}"},
	}},
	{"Lost, by node", "A node that stands out has a fault of its own.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, sum by (node) (rate(%s)))", seen("dnstrail_lookups_lost_total")), legend: "{{node}}"},
	}},
	{"Lookup time, 99th percentile", "From the client's send to its answer, from native histograms; a point leads to " +
		"a trace.", "s", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, histogram_quantile(0.99, sum by (client_namespace, client_workload) (rate(%s))))",
			seen("dns_lookup_duration_seconds", `error_type=""`)), legend: seenBy},
	}},
	{"Lookup time", "Of all answered lookups.", "s", "heatmap", 12, []query{
		{expr: fmt.Sprintf("sum(rate(%s))", seen("dns_lookup_duration_seconds", `error_type=""`))},
	}},
	{"Attempts beyond the first", "Clients that had to ask again.", "reqps", "timeseries", 12, []query{
		{expr: fmt.Sprintf("topk(10, sum by (client_namespace, client_workload) (rate(%s)))",
			seen("dnstrail_lookup_retries_total")), legend: seenBy},
	}},
	{"Not seen", "What the agents did not see or keep: while this is not zero, lookups may be missing above.", "short",
		"timeseries", 12, []query{
			{expr: "sum by (kind) (rate(dnstrail_losses_total[$__rate_interval]))", legend: "{{kind}}"},
		}},
	{"Spans", "Spans a second by what became of them.", "short", "timeseries", 12, []query{
		{expr: "sum by (outcome) (rate(dnstrail_spans_total[$__rate_interval]))", legend: "{{outcome}}"},
	}},
	{"Lookups in flight", "Held by each agent.", "short", "timeseries", 12, []query{
		{expr: "dnstrail_lookups_in_flight", legend: "{{node}}"},
	}},
}

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

func main() {
	dir := flag.String("d", ".", "the directory to write to")
	flag.Parse()
	for _, b := range boards {
		out, err := json.MarshalIndent(b.dashboard(), "", "  ")
		if err == nil {
			err = os.WriteFile(filepath.Join(*dir, b.file), append(out, '\n'), 0o644) //nolint:gosec // a file of the repository
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "generate:", err)
			os.Exit(1)
		}
	}
}

func (b *board) dashboard() object {
	return object{
		"title": b.title, "uid": b.uid, "tags": []string{"dns", "coredns", "dnstrail"},
		"schemaVersion": 39, "editable": true, "refresh": "30s", "time": object{"from": "now-1h", "to": "now"},
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
			variable("namespace", "Namespace", "label_values("+b.base+", client_namespace)"),
			variable("workload", "Workload", "label_values("+b.base+`{client_namespace=~"$namespace"}, client_workload)`),
		}},
		"panels": layout(b.panels),
	}
}

func variable(name, label, q string) object {
	return object{
		"name": name, "label": label, "type": "query", "datasource": datasource, "query": object{"query": q, "refId": name},
		"refresh": 2, "multi": true, "includeAll": true, "allValue": ".*", "sort": 1,
	}
}

// layout puts the panels into rows of 24 units.
func layout(panels []panel) []object {
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
