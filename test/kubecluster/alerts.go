package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/dnstrail/dnstrail/tracer/kube"
)

const (
	// alertsFaster is how much shorter all times of the alerts are made: some wait half an hour.
	alertsFaster = 20
	// scrapeInterval is also how often the alerts are looked at.
	scrapeInterval = "2s"
	// alertLimit is how long an alert may take to fire, and to end: 15 minutes of a window and 15 of waiting, so much
	// faster, and what a fault needs to be one.
	alertLimit = 4 * time.Minute
	// alertsQuiet is how long nothing may fire before a fault is made.
	alertsQuiet = time.Minute

	// lookRounds is how many rounds those look names up who are ended before; nobody else has that many.
	lookRounds = "601"

	prometheusAddress = "127.0.0.1:9090" // in the control plane's namespace
)

// targetsFile tells Prometheus of pods, in its directory.
const targetsFile = "pods.json"

// tellTargets writes the pods of CoreDNS and dnstrail for Prometheus, a target a port of a container, until ctx ends
// (prometheus.io/docs: kubernetes_sd_config, role pod).
func (t *trial) tellTargets(ctx context.Context) {
	type target struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	const meta = "__meta_kubernetes_"
	notInNames := regexp.MustCompile("[^a-zA-Z0-9_]")
	before := ""
	for ctx.Err() == nil {
		list, err := t.cluster.Client.CoreV1().Pods(kube.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			continue
		}
		all := []target{}
		for _, p := range list.Items {
			for _, c := range p.Spec.Containers {
				for _, port := range c.Ports {
					if p.Status.PodIP == "" {
						continue
					}
					labels := map[string]string{
						meta + "namespace": p.Namespace, meta + "pod_name": p.Name, meta + "pod_node_name": p.Spec.NodeName,
						meta + "pod_container_name": c.Name, meta + "pod_container_port_name": port.Name,
					}
					for k, v := range p.Labels {
						labels[meta+"pod_label_"+notInNames.ReplaceAllString(k, "_")] = v
					}
					address := net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(port.ContainerPort)))
					all = append(all, target{[]string{address}, labels})
				}
			}
		}
		if b, err := json.Marshal(all); err == nil && string(b) != before {
			file := t.run("prometheus", targetsFile)
			if os.WriteFile(file+".half", b, 0o600) == nil && os.Rename(file+".half", file) == nil {
				before = string(b)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// prometheus is Debian's, in the control plane's network, which leads to all pods.
type prometheus struct {
	cmd  *exec.Cmd
	done chan struct{}
	http *http.Client
}

// minutes are the times of the alerts' file.
var minutes = regexp.MustCompile(`(\[|for: )(\d+)m`)

// startPrometheus starts it with the scrape jobs and the alerts that are shipped, the alerts with shorter times. Of the
// jobs all is as it is shipped but what Debian's Prometheus 2 does not know: native histograms by a setting, and the
// Kubernetes API, whose pods are told by [trial.tellTargets] instead, with the labels that Prometheus would give them.
func (t *trial) startPrometheus() (*prometheus, error) {
	program, err := exec.LookPath("prometheus")
	if err != nil {
		return nil, errors.New("prometheus is not installed (Debian's package prometheus)")
	}
	dir := t.run("prometheus")
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	rules, err := os.ReadFile(filepath.Join(t.want.chart, "files", "alerts.yaml"))
	if err != nil {
		return nil, err
	}
	rules = minutes.ReplaceAllFunc(rules, func(m []byte) []byte {
		parts := minutes.FindSubmatch(m)
		n, _ := strconv.Atoi(string(parts[2]))
		return fmt.Appendf(nil, "%s%ds", parts[1], n*60/alertsFaster)
	})
	if err := os.WriteFile(filepath.Join(dir, "alerts.yaml"), rules, 0o600); err != nil {
		return nil, err
	}
	shipped, err := os.ReadFile(filepath.Join(t.want.chart, "..", "..", "prometheus", "prometheus.yaml"))
	if err != nil {
		return nil, err
	}
	var config struct {
		Jobs []map[string]any `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal(shipped, &config); err != nil {
		return nil, err
	}
	for _, j := range config.Jobs {
		delete(j, "scrape_native_histograms")
		delete(j, "always_scrape_classic_histograms")
		delete(j, "kubernetes_sd_configs")
		j["file_sd_configs"] = []map[string]any{{"files": []string{filepath.Join(dir, targetsFile)}}}
	}
	b, err := yaml.Marshal(map[string]any{
		"global":     map[string]string{"scrape_interval": scrapeInterval, "evaluation_interval": scrapeInterval},
		"rule_files": []string{filepath.Join(dir, "alerts.yaml")}, "scrape_configs": config.Jobs,
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(t.run("prometheus.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	// #nosec G204 -- of this program's own words
	p := &prometheus{cmd: exec.Command("ip", "netns", "exec", netnsName(controlPlane.name), program,
		"--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+prometheusAddress, "--enable-feature=exemplar-storage,native-histograms"),
		done: make(chan struct{}),
		http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DialContext: func(_ context.Context, _, address string) (net.Conn, error) { return dialIn(controlPlane, address) },
		}}}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *prometheus) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// query gives the series of an expression, as their labels, that are not 0 now.
func (p *prometheus) query(ctx context.Context, expr string) ([]map[string]string, error) {
	at := "http://" + prometheusAddress + "/api/v1/query?" + url.Values{"query": {expr}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Value  []any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	var found []map[string]string
	for _, r := range answer.Data.Result {
		if len(r.Value) == 2 && r.Value[1] != "0" {
			found = append(found, r.Metric)
		}
	}
	return found, nil
}

// firing gives the alerts that fire now.
func (p *prometheus) firing(ctx context.Context) ([]map[string]string, error) {
	return p.query(ctx, `ALERTS{alertstate="firing"}`)
}

// alertFault makes an alert fire.
type alertFault struct {
	alert  string
	labels map[string]string            // some of those that it must have
	make   func() (func() error, error) // as of fault
	before func() error                 // made before, and not mended
	also   []string                     // alerts that may fire, too, since the fault is one for them as well
}

// alerts holds that each of the alerts that are shipped fires when a fault is made that it is for, ends when that is
// mended, and that none fires without.
func (t *trial) alerts(ctx context.Context, pods []corev1.Pod) error {
	cart, _, err := t.apart(ctx, pods)
	if err != nil {
		return err
	}
	p, err := t.startPrometheus()
	if err != nil {
		return err
	}
	defer p.stop()
	traffic, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	wg.Go(func() { t.tellTargets(traffic) })
	for deadline := time.Now().Add(startLimit); ; time.Sleep(time.Second) {
		up, e := p.query(ctx, `up == 1`)
		if e == nil && len(up) == 2*len(nodes) { // CoreDNS has as many pods as there are nodes
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("prometheus scrapes %v: %w: see %s", up, e, t.run("prometheus.log"))
		}
	}
	wg.Go(func() {
		for i := 0; traffic.Err() == nil; i++ {
			_, _ = t.ask(traffic, pods, fmt.Sprintf("alerts%d", i), 20) // they may fail: faults are made
			select {
			case <-traffic.Done():
			case <-time.After(time.Second):
			}
		}
	})
	fired := map[string]bool{}
	for began := time.Now(); time.Since(began) < alertsQuiet; time.Sleep(time.Second) {
		now, err := p.firing(ctx)
		if err != nil {
			return err
		}
		for _, a := range now {
			fired[fmt.Sprint(a)] = true
		}
	}
	t.check(len(fired) == 0, "no alert fires without a fault: %v", fired)
	for _, f := range t.alertFaults(ctx, cart) {
		if err := t.alert(ctx, p, f); err != nil {
			return fmt.Errorf("%s: %w", f.alert, err)
		}
	}
	return nil
}

func (t *trial) alertFaults(ctx context.Context, cart *corev1.Pod) []alertFault {
	of := map[string]string{"client_namespace": shop, "client_workload": "cart"}
	looking := func(name string) func() {
		for range 4 {
			go func() {
				_, _ = t.exec(ctx, cart, "/pod", "look", "-n", lookRounds, "-every", "1s", "-limit", "1s", name)
			}()
		}
		return func() { // that it is not listened to any more does not end it
			for _, pid := range t.processes("/pod\x00look\x00-n\x00" + lookRounds + "\x00") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	upgrade := func(more ...string) error {
		_, err := t.dnstrail(ctx, slices.Concat([]string{"upgrade", "--no-probe"}, installFlags, more)...)
		return err
	}
	store := func(replicas int) error {
		_, err := t.cluster.Client.AppsV1().Deployments(kube.Namespace).Patch(ctx, "dnstrail-store",
			types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
		return err
	}
	return []alertFault{
		{
			alert: "DNSLookupsLost", make: func() (func() error, error) {
				mend, err := dropped(cart.Spec.NodeName, "FORWARD", "-s", cart.Status.PodIP, "-p", "udp", "-j", "DROP")
				stop := looking("alert-lost-%d.example.com.")
				return func() error { stop(); return mend() }, err
			}, labels: map[string]string{
				"client_namespace": shop, "client_workload": "cart", "where": "node", "cause": "policy-drop",
			},
		},
		{
			alert: "DNSUpstreamsFail", make: silentUpstream, also: []string{"DNSLookupsLost"},
		},
		{
			alert: "DNSSearchPathWaste", labels: of, make: func() (func() error, error) {
				stop := looking("alert-%d.example.com") // no dot at its end: the search path is gone through first
				return func() error { stop(); return nil }, nil
			},
		},
		{
			alert: "DNSTrailSpansDropped", labels: map[string]string{"why": "export_failed"},
			make: func() (func() error, error) { return func() error { return store(1) }, store(0) },
		},
		{
			alert: "DNSTrailAgentDown", labels: map[string]string{"job": "dnstrail-agent"},
			also:   []string{"DNSTrailEventsLost"}, // of what there was no room for when it goes on
			before: func() error { return upgrade("--agent-arg=--ring-size=1") },
			make: func() (func() error, error) {
				pids := agentsOf(cart.Spec.NodeName)
				return func() error { return freeze(pids, false) }, freeze(pids, true)
			},
		},
		{
			alert: "DNSTrailEventsLost", labels: map[string]string{"kind": "ring_full"},
			make: func() (func() error, error) {
				pids := agentsOf(cart.Spec.NodeName)
				if err := freeze(pids, true); err != nil {
					return nil, err
				}
				time.Sleep(10 * time.Second) // its buffer of 1 MiB fills
				return func() error { return nil }, freeze(pids, false)
			},
		},
		{
			alert: "DNSTrailAgentBlind", before: func() error { return upgrade("--agent-arg=--port=5300") },
			make: func() (func() error, error) { return func() error { return upgrade() }, nil },
		},
	}
}

// silentUpstream drops what comes to the upstream for DNS, and gives how that is mended.
func silentUpstream() (func() error, error) {
	return dropped(upstream.name, "INPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
}

// alert makes a fault, and waits until its alert fires; mends it, and waits until none fires.
func (t *trial) alert(ctx context.Context, p *prometheus, f alertFault) error {
	if f.before != nil {
		if err := f.before(); err != nil {
			return err
		}
	}
	mend, err := f.make()
	if err != nil {
		return err
	}
	others := map[string]bool{}
	wait := func(until func([]map[string]string) bool) (time.Duration, error) {
		began := time.Now()
		for ; ; time.Sleep(time.Second) {
			now, err := p.firing(ctx)
			if err != nil || time.Since(began) > alertLimit || until(now) {
				return time.Since(began), err
			}
			for _, a := range now {
				if a["alertname"] != f.alert && !slices.Contains(f.also, a["alertname"]) {
					others[fmt.Sprint(a)] = true
				}
			}
		}
	}
	var its []string
	took, err := wait(func(now []map[string]string) bool {
		for _, a := range now {
			if a["alertname"] == f.alert && has(a, f.labels) {
				its = append(its, fmt.Sprint(a))
			}
		}
		return len(its) > 0
	})
	if e := mend(); e != nil {
		return errors.Join(err, fmt.Errorf("mending it: %w", e))
	}
	if err != nil {
		return err
	}
	t.check(len(its) > 0, "%s fires, %.0f s after its fault was made: %s", f.alert, took.Seconds(), strings.Join(its, " "))
	ended := false
	after, err := wait(func(now []map[string]string) bool {
		ended = !slices.ContainsFunc(now, func(a map[string]string) bool {
			return a["alertname"] == f.alert || slices.Contains(f.also, a["alertname"])
		})
		return ended
	})
	t.check(ended, "%s ends, %.0f s after that was mended", f.alert, after.Seconds())
	t.check(len(others) == 0, "%s: no other alert fires meanwhile: %v", f.alert, others)
	return err
}

// has tells whether labels are among those of an alert.
func has(alert, labels map[string]string) bool {
	for k, v := range labels {
		if alert[k] != v {
			return false
		}
	}
	return true
}
