package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const alertsFile = "chart/dnstrail/files/alerts.yaml"

// alert is one, as Prometheus reads it.
type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Annotations map[string]string `json:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	b, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("no alerts")
	}
	return all
}

// scene is an alert with series of one sample a minute from 0 on, which make it fire or not until a time.
type scene struct {
	alert  string
	fires  bool
	series map[string]string
	labels string // of what fires
	at     string
}

var firing = []scene{
	{
		alert: "DNSLookupsLost", fires: true, at: "10m",
		labels: `{client_namespace: shop, client_workload: cart, where: node, cause: policy-drop, severity: warning}`,
		series: map[string]string{
			`dnstrail_lookups_lost_total{client_namespace="shop",client_workload="cart",where="node",cause="policy-drop"}`: "0+2x15",
			`dns_lookup_duration_seconds_count{client_namespace="shop",client_workload="cart",error_type=""}`:              "0+98x15",
		},
	},
	{
		alert: "DNSLookupsLost", at: "10m",
		series: map[string]string{ // one in a hundred, once
			`dnstrail_lookups_lost_total{client_namespace="shop",client_workload="cart",where="node",cause="policy-drop"}`: "0 0 1+0x15",
			`dns_lookup_duration_seconds_count{client_namespace="shop",client_workload="cart",error_type=""}`:              "0+100x15",
		},
	},
	{
		alert: "DNSUpstreamsFail", fires: true, at: "10m", labels: `{severity: warning}`,
		series: map[string]string{
			`coredns_dnstrail_client_requests_total{plugin="forward",rcode="SERVFAIL"}`: "0+10x15",
			`coredns_dnstrail_client_requests_total{plugin="forward",rcode="NOERROR"}`:  "0+90x15",
		},
	},
	{
		alert: "DNSUpstreamsFail", at: "10m",
		series: map[string]string{ // SERVFAIL of another plugin
			`coredns_dnstrail_client_requests_total{plugin="file",rcode="SERVFAIL"}`:   "0+10x15",
			`coredns_dnstrail_client_requests_total{plugin="forward",rcode="NOERROR"}`: "0+90x15",
		},
	},
	{
		alert: "DNSSearchPathWaste", fires: true, at: "40m",
		labels: `{client_namespace: shop, client_workload: cart, severity: info}`,
		series: map[string]string{
			`coredns_dnstrail_client_search_path_misses_total{client_namespace="shop",client_workload="cart"}`: "0+400x45",
			`coredns_dnstrail_client_requests_total{client_namespace="shop",client_workload="cart"}`:           "0+500x45",
		},
	},
	{
		alert: "DNSSearchPathWaste", at: "40m",
		series: map[string]string{ // half of little
			`coredns_dnstrail_client_search_path_misses_total{client_namespace="shop",client_workload="cart"}`: "0+40x45",
			`coredns_dnstrail_client_requests_total{client_namespace="shop",client_workload="cart"}`:           "0+50x45",
		},
	},
	{
		alert: "DNSTrailAgentDown", fires: true, at: "10m", labels: `{job: dnstrail-agent, instance: a, severity: warning}`,
		series: map[string]string{`up{job="dnstrail-agent",instance="a"}`: "1 0x15"},
	},
	{
		alert: "DNSTrailAgentDown", at: "10m",
		series: map[string]string{`up{job="dnstrail-agent",instance="a"}`: "1 1 0 1x15"},
	},
	{
		alert: "DNSTrailAgentBlind", fires: true, at: "40m", labels: `{instance: a, severity: warning}`,
		series: map[string]string{`dnstrail_kernel_events_total{instance="a"}`: "5x45"},
	},
	{
		alert: "DNSTrailAgentBlind", at: "40m",
		series: map[string]string{`dnstrail_kernel_events_total{instance="a"}`: "5+1x45"},
	},
	{
		alert: "DNSTrailEventsLost", fires: true, at: "10m", labels: `{instance: a, kind: ring_full, severity: warning}`,
		series: map[string]string{`dnstrail_losses_total{instance="a",kind="ring_full"}`: "0+1x15"},
	},
	{
		alert: "DNSTrailEventsLost", at: "10m",
		series: map[string]string{ // what a host's traffic may have is no loss of the agent's
			`dnstrail_losses_total{instance="a",kind="orphan_answer"}`: "0+1x15",
			`dnstrail_losses_total{instance="a",kind="ring_full"}`:     "3x15",
		},
	},
	{
		alert: "DNSTrailSpansDropped", fires: true, at: "10m", labels: `{instance: a, why: queue_full, severity: warning}`,
		series: map[string]string{`dnstrail_spans_total{instance="a",outcome="queue_full"}`: "0+1x15"},
	},
	{
		alert: "DNSTrailSpansDropped", fires: true, at: "10m", labels: `{instance: b, why: export_failed, severity: warning}`,
		series: map[string]string{`coredns_dnstrail_spans_total{instance="b",result="export_failed"}`: "0+1x15"},
	},
	{
		alert: "DNSTrailSpansDropped", at: "10m",
		series: map[string]string{
			`dnstrail_spans_total{instance="a",outcome="sent"}`:                 "0+9x15",
			`coredns_dnstrail_spans_total{instance="b",result="exported"}`:      "0+9x15",
			`coredns_dnstrail_spans_total{instance="b",result="export_failed"}`: "9x15",
		},
	},
}

// Prometheus's own evaluation fires each alert on what it is for, and not on what is like it.
func TestAlertsFire(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is not installed (Debian package prometheus)")
		}
		t.Skip("promtool is not installed (Debian package prometheus)")
	}
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", rules).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, a := range alerts(t) {
		for _, fires := range []bool{true, false} {
			if !slices.ContainsFunc(firing, func(f scene) bool { return f.alert == a.Alert && f.fires == fires }) {
				t.Errorf("%s: nothing shows when it fires=%t", a.Alert, fires)
			}
		}
	}
	for i, f := range firing {
		t.Run(fmt.Sprintf("%s %t %d", f.alert, f.fires, i), func(t *testing.T) {
			var text strings.Builder
			fmt.Fprintf(&text, "rule_files: [%q]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n", rules)
			for name, values := range f.series {
				fmt.Fprintf(&text, "  - {series: '%s', values: '%s'}\n", name, values)
			}
			// The alerts themselves are held below by their labels alone: what they say is for people.
			fmt.Fprintf(&text, "  promql_expr_test:\n  - expr: 'ALERTS{alertname=\"%s\",alertstate=\"firing\"}'\n    "+
				"eval_time: %s\n",
				f.alert, f.at)
			if f.fires {
				labels := strings.NewReplacer("{", "", "}", "", ": ", `="`, ", ", `",`).Replace(f.labels)
				fmt.Fprintf(&text, "    exp_samples: [{labels: 'ALERTS{alertname=\"%s\",alertstate=\"firing\",%s\"}', value: 1}]\n",
					f.alert, labels)
			}
			file := filepath.Join(t.TempDir(), "test.yaml")
			if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(promtool, "test", "rules", file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Each alert's link leads to its part of docs/alerts.md.
func TestAlertsHaveARunbook(t *testing.T) {
	page, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(page), -1) {
		headings = append(headings, m[1])
	}
	var names []string
	for _, a := range alerts(t) {
		names = append(names, a.Alert)
		const base = "https://github.com/dnstrail/dnstrail/blob/main/docs/alerts.md#"
		if got, want := a.Annotations["runbook_url"], base+strings.ToLower(a.Alert); got != want {
			t.Errorf("%s: its link is %q, want %q", a.Alert, got, want)
		}
		if a.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", a.Alert)
		}
	}
	if !slices.Equal(headings, names) {
		t.Errorf("docs/alerts.md is about %q, and the alerts are %q", headings, names)
	}
}

// The chart brings the alerts and what scrapes to the Prometheus Operator where it is told to, and not else.
func TestChartMonitoring(t *testing.T) {
	helm := os.Getenv("HELM")
	if helm == "" {
		t.Skip("HELM is not set: make test-chart builds helm and runs this with it")
	}
	template := func(args ...string) []string {
		out, err := exec.Command(helm, append([]string{"template", "dnstrail", "chart/dnstrail"}, args...)...).Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return strings.Split(string(out), "\n---\n")
	}
	monitoring := func(docs []string) map[string]map[string]any {
		found := map[string]map[string]any{}
		for _, d := range docs {
			var o map[string]any
			if err := yaml.Unmarshal([]byte(d), &o); err != nil {
				t.Fatalf("%v\n%s", err, d)
			}
			if o["apiVersion"] == "monitoring.coreos.com/v1" {
				found[fmt.Sprint(o["kind"])] = o
			}
		}
		return found
	}
	if got := monitoring(template()); len(got) > 0 {
		t.Errorf("as it comes it has %v", got)
	}
	got := monitoring(template("--set", "monitoring.rules=true", "--set", "monitoring.scrape=true",
		"--set", "monitoring.labels.release=prometheus"))
	for _, kind := range []string{"PrometheusRule", "ServiceMonitor", "PodMonitor"} {
		m, _ := got[kind]["metadata"].(map[string]any)
		labels, _ := m["labels"].(map[string]any)
		if labels["release"] != "prometheus" {
			t.Errorf("%s: %v", kind, got[kind])
		}
	}
	spec, err := yaml.Marshal(got["PrometheusRule"]["spec"])
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts(t) {
		if !strings.Contains(string(spec), "alert: "+a.Alert) {
			t.Errorf("the PrometheusRule lacks %s", a.Alert)
		}
	}
}
