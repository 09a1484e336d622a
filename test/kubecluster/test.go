package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "embed"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// shopObjects are the pods that look names up.
//
//go:embed pods.yaml
var shopObjects []byte

const (
	shop = "shop"
	// batch is how many lookups are made before the store is asked about them: it keeps a bounded number of spans.
	batch = 2000
	// wantJoined is the share of lookups that both sides must have seen, in one trace.
	wantJoined = 0.999
	// settle is how long after a lookup its spans, and a verdict on what is lost, may take.
	settle = 15 * time.Second
)

type testOptions struct {
	lookups     int
	chart, helm string   // the chart's directory, and helm
	parts       []string // of those below, which are run
}

// The parts of the test, in their order.
var testParts = slices.Concat([]string{"dry-run", "tracer-only"}, installedParts, []string{"helm", "audit"})

// installedParts are those that try what dnstrail install has installed.
var installedParts = []string{"lookups", "laptop", "faults", "rollouts", "away", "alerts", "upgrade"}

// trial is dnstrail tried in the cluster.
type trial struct {
	options
	want    testOptions
	cluster *kube.Cluster
	config  *rest.Config
	began   time.Time
	bad     int
}

// part runs a part of the test, where it is wanted, and says how long it took.
func (t *trial) part(ctx context.Context, name string, run func(context.Context) error) error {
	if !slices.Contains(t.want.parts, name) || ctx.Err() != nil {
		return ctx.Err()
	}
	began := time.Now()
	fmt.Printf("==  %s\n", name)
	if err := run(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Printf("      %s took %.1f s\n", name, time.Since(began).Seconds())
	return nil
}

func (t *trial) check(ok bool, format string, args ...any) {
	word := "ok  "
	if !ok {
		word = "BAD "
		t.bad++
	}
	fmt.Printf("%s  %s\n", word, fmt.Sprintf(format, args...))
}

// test installs dnstrail, holds what it says of lookups and faults against what is true, and takes it away again.
func test(ctx context.Context, o options, want testOptions) error {
	if o.serving() == 0 {
		return errors.New("the cluster is not up: make cluster")
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig())
	if err != nil {
		return err
	}
	c, err := kube.New("cluster", config)
	if err != nil {
		return err
	}
	t := &trial{options: o, want: want, cluster: c, config: config, began: time.Now()}
	if err := apply(ctx, o.kubeconfig(), shopObjects); err != nil {
		return err
	}
	if _, err := t.pods(ctx); err != nil {
		return err
	}
	before, err := t.snapshot(ctx)
	if err != nil {
		return err
	}
	same := func(ctx context.Context, after string) error {
		now, err := t.snapshot(ctx)
		if err == nil {
			t.compare(before, now, after)
		}
		return err
	}
	err = t.part(ctx, "dry-run", func(ctx context.Context) error {
		if _, err := t.dnstrail(ctx, append([]string{"install", "--dry-run"}, installFlags...)...); err != nil {
			return err
		}
		return same(ctx, "install --dry-run")
	})
	if err != nil {
		return err
	}
	err = t.part(ctx, "tracer-only", func(ctx context.Context) error {
		if err := t.tracerOnly(ctx); err != nil {
			return err
		}
		return same(ctx, "install --tracer-only and uninstall")
	})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(want.parts, func(p string) bool { return slices.Contains(installedParts, p) }) {
		if err := t.timed(ctx, "install", append([]string{"install"}, installFlags...)...); err != nil {
			return err
		}
		err = t.judge(ctx)
		t.memory()
		if e := t.timed(ctx, "uninstall", "uninstall"); e != nil {
			return errors.Join(err, e)
		}
		if err != nil {
			return err
		}
		if err := same(ctx, "uninstall"); err != nil {
			return err
		}
	}
	err = t.part(ctx, "helm", func(ctx context.Context) error {
		if err := t.helm(ctx); err != nil {
			return err
		}
		return same(ctx, "helm uninstall")
	})
	if err != nil {
		return err
	}
	if err := t.part(ctx, "audit", t.audit); err != nil {
		return err
	}
	if t.bad > 0 {
		return fmt.Errorf("%d checks failed", t.bad)
	}
	return nil
}

// judge tries what is installed, part by part.
func (t *trial) judge(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pods, err := t.pods(ctx)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		run  func(context.Context, []corev1.Pod) error
	}{
		{"lookups", t.lookups}, {"laptop", t.laptop}, {"faults", t.faults}, {"rollouts", t.rollouts}, {"away", t.away},
		{"alerts", t.alerts}, {"upgrade", t.upgrade},
	} {
		if err := t.part(ctx, p.name, func(ctx context.Context) error { return p.run(ctx, pods) }); err != nil {
			return err
		}
	}
	return nil
}

// dnstrail runs the command as a user of the cluster does.
func (t *trial) dnstrail(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, t.program("dnstrail"), args...) // #nosec G204 -- of this program's own words
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.kubeconfig())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("dnstrail %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

func (t *trial) timed(ctx context.Context, what string, args ...string) error {
	began := time.Now()
	out, err := t.dnstrail(ctx, args...)
	fmt.Printf("%s\n", bytes.TrimSpace(out))
	t.check(err == nil, "%s in %.1f s", what, time.Since(began).Seconds())
	return err
}

// shopPods is how many pods of the shop are asked to look names up: two of the Deployment and of each DaemonSet, one of
// the StatefulSet, of the Job and of the CronJob, and one that nothing owns.
const shopPods = 10

// pods waits until those of the shop run, and gives them. The CronJob's first comes within a minute.
func (t *trial) pods(ctx context.Context) ([]corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		list, err := t.cluster.Client.CoreV1().Pods(shop).List(ctx, metav1.ListOptions{LabelSelector: "app"})
		if err != nil {
			return nil, err
		}
		ready := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !kube.Ready(&p) })
		if len(ready) == shopPods {
			return ready, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of the shop's %d pods are ready: %w", len(ready), shopPods, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// exec runs a command in a pod. What it says on its output is given, its exit status is not an error.
func (t *trial) exec(ctx context.Context, pod *corev1.Pod, command ...string) (string, error) {
	u := t.cluster.Client.CoreV1().RESTClient().Post().
		Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true}, scheme.ParameterCodec).URL()
	e, err := remotecommand.NewSPDYExecutor(t.config, "POST", u)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out})
	if strings.Contains(out.String(), " answered, ") {
		err = nil
	}
	return out.String(), err
}

// lookups makes them from every pod at once, and holds what the store says of each against who asked.
func (t *trial) lookups(ctx context.Context, pods []corev1.Pod) error {
	base, err := t.cluster.Store(ctx)
	if err != nil {
		return err
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	traces, err := traceapi.NewClient(base, nil)
	if err != nil {
		return err
	}
	owners, err := t.owners(ctx, pods)
	if err != nil {
		return err
	}
	n := t.want.lookups
	began, made, seen, joined, right := time.Now(), 0, 0, 0, 0
	cpu := t.cpu()
	rounds := batch / len(pods) / 2 // each round asks for A and AAAA
	for b := 0; made < n; b++ {
		mark := fmt.Sprintf("b%d-%d", b, began.Unix())
		answered, err := t.ask(ctx, pods, mark, rounds)
		if err != nil {
			return err
		}
		made += answered * 2
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		byTrace := map[string]*output.Row{}
		filter := &output.Filter{Names: []string{mark + "-*.example.com"}}
		err = rows.Lookups(ctx, filter, 0, false, func(r *output.Row) error {
			byTrace[r.TraceID] = r
			return nil
		})
		if err != nil {
			return err
		}
		for id, r := range byTrace {
			parsed, err := trace.ParseID(id)
			if err != nil {
				return err
			}
			tr, err := traces.Trace(ctx, parsed)
			if err != nil {
				return err
			}
			seen++
			if tr.Linked() && r.Result == "NOERROR" {
				joined++
			} else if joined+20 > seen {
				fmt.Printf("      not joined: %s %s %s of %s/%s on %s: %s %s\n", r.TraceID, r.Name, r.Type, r.Client.Namespace,
					r.Client.Pod, r.Client.Node, r.Result, r.Verdict.Text)
			}
			if wrong := whose(r, tr, pods, owners); wrong == "" {
				right++
			} else if right+20 > seen {
				fmt.Printf("      %s %s: %s\n", r.TraceID, r.Name, wrong)
			}
		}
		fmt.Printf("      %d made, %d seen, %d joined, %d of the right pod, %.0f s\n", made, seen, joined, right,
			time.Since(began).Seconds())
	}
	t.check(seen == made, "%d of %d lookups are rows", seen, made)
	t.check(float64(joined) >= wantJoined*float64(made), "%d of %d are joined (%.2f %%)", joined, made,
		100*float64(joined)/float64(made))
	t.check(right == seen, "%d of %d are of the right pod, container, workload and node, on both sides, of %d kinds "+
		"of pods",
		right, seen, kinds(pods, owners))
	for _, what := range slices.Sorted(maps.Keys(cpu)) {
		fmt.Printf("      %s: %.0f us of CPU a lookup\n", what,
			float64((t.cpu()[what]-cpu[what]).Microseconds())/float64(max(made, 1)))
	}
	return nil
}

// owner is what a pod is of, as the API server says: the last of the chain of controllers.
type owner struct{ kind, name string }

// owners gives each pod's, by UID.
func (t *trial) owners(ctx context.Context, pods []corev1.Pod) (map[types.UID]owner, error) {
	found := map[types.UID]owner{}
	for _, p := range pods {
		o, refs := owner{"Pod", p.Name}, p.OwnerReferences
		for len(refs) > 0 {
			o = owner{refs[0].Kind, refs[0].Name}
			var of metav1.Object
			var err error
			switch o.kind {
			case "ReplicaSet":
				of, err = t.cluster.Client.AppsV1().ReplicaSets(p.Namespace).Get(ctx, o.name, metav1.GetOptions{})
			case "Job":
				of, err = t.cluster.Client.BatchV1().Jobs(p.Namespace).Get(ctx, o.name, metav1.GetOptions{})
			default:
				refs = nil
				continue
			}
			if err != nil {
				return nil, err
			}
			refs = of.GetOwnerReferences()
		}
		found[p.UID] = o
	}
	return found, nil
}

// kinds counts the kinds of pods: what they are of, and whether they are in their node's network.
func kinds(pods []corev1.Pod, owners map[types.UID]owner) int {
	have := map[string]bool{}
	for _, p := range pods {
		have[fmt.Sprint(owners[p.UID].kind, p.Spec.HostNetwork)] = true
	}
	return len(have)
}

// ask looks names up from every pod at once, and gives how many were answered.
func (t *trial) ask(ctx context.Context, pods []corev1.Pod, mark string, rounds int) (int, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	total := 0
	for i := range pods {
		wg.Go(func() {
			name := fmt.Sprintf("%s-%s-%%d.example.com.", mark, pods[i].Name)
			out, err := t.exec(ctx, &pods[i], "/pod", "look", "-n", strconv.Itoa(rounds), "-every", "5ms", name)
			mu.Lock()
			defer mu.Unlock()
			last := strings.TrimSpace(out)
			last = last[strings.LastIndexByte(last, '\n')+1:]
			var ok, bad int
			if _, e := fmt.Sscanf(last, "%d answered, %d failed", &ok, &bad); e != nil {
				failed = errors.Join(failed, fmt.Errorf("pod %s: %w: %q", pods[i].Name, e, out), err)
			}
			if bad > 0 {
				failed = errors.Join(failed, fmt.Errorf("pod %s: %s", pods[i].Name, out))
			}
			total += ok
		})
	}
	wg.Wait()
	return total, failed
}

// whose says what is wrong with the client and the server of a lookup, "" for nothing.
func whose(r *output.Row, tr *trace.Trace, pods []corev1.Pod, owners map[types.UID]owner) string {
	i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return strings.Contains(r.Name, "-"+p.Name+"-") })
	if i < 0 {
		return "of no pod"
	}
	p := &pods[i]
	of := owners[p.UID]
	container := p.Status.ContainerStatuses[0].ContainerID
	container = container[strings.LastIndexByte(container, '/')+1:]
	got := []string{
		r.Client.Namespace, r.Client.Pod, r.Client.PodUID, r.Client.WorkloadKind, r.Client.Workload, r.Client.Node,
		r.Client.ContainerID, r.Client.Process,
	}
	want := []string{p.Namespace, p.Name, string(p.UID), of.kind, of.name, p.Spec.NodeName, container, "pod"}
	if !slices.Equal(got, want) {
		return fmt.Sprintf("it is said to be of %q, and is of %q", got, want)
	}
	if asked := tr.Asked(); asked.Namespace != kube.Namespace || !strings.HasPrefix(asked.Pod, "coredns-") {
		return fmt.Sprintf("the server is said to be %s/%s", asked.Namespace, asked.Pod)
	}
	return ""
}

// processes gives the cluster's whose arguments begin so.
func (t *trial) processes(prefix string) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, _ := os.ReadFile(filepath.Join(d, "cmdline")) // #nosec G304 -- of procfs
		if !bytes.HasPrefix(b, []byte(prefix)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && t.inCluster(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// inCluster tells whether a process is of a node, or started by this machine's cluster itself.
func (t *trial) inCluster(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for _, n := range nodes {
		if bytes.Contains(b, []byte(netnsName(n.name))) {
			return true
		}
	}
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return bytes.Contains(args, []byte(t.run()))
}

// programs are dnstrail's and CoreDNS, by what their command line begins with.
var programs = map[string]string{
	"agent": "/dnstrail\x00agent", "store": "/dnstrail\x00store", "CoreDNS": "/coredns\x00-conf\x00/etc/coredns/",
}

// memory prints what dnstrail's programs take.
func (t *trial) memory() {
	for _, what := range slices.Sorted(maps.Keys(programs)) {
		for _, pid := range t.processes(programs[what]) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			for line := range strings.Lines(string(b)) {
				if most, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					fmt.Printf("      %s: at most %s resident\n", what, strings.TrimSpace(most))
				}
			}
		}
	}
}

// clockTick is the unit of the times in /proc/PID/stat on all of Go's architectures (getconf CLK_TCK).
const clockTick = 10 * time.Millisecond

// cpu gives what the programs of each kind have used, user and system time together (proc(5): fields 14 and 15).
func (t *trial) cpu() map[string]time.Duration {
	used := map[string]time.Duration{}
	for what, prefix := range programs {
		for _, pid := range t.processes(prefix) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the third is the first of these
			for _, at := range []int{11, 12} {
				if len(fields) > at {
					n, _ := strconv.ParseInt(fields[at], 10, 64)
					used[what] += time.Duration(n) * clockTick
				}
			}
		}
	}
	return used
}

// forget takes an annotation out of what is at a path in an object, and the annotations if it was the only one.
func forget(o map[string]any, annotation string, path ...string) {
	for _, p := range append(path, "metadata") {
		o, _ = o[p].(map[string]any)
	}
	a, _ := o["annotations"].(map[string]any)
	delete(a, annotation)
	if len(a) == 0 {
		delete(o, "annotations")
	}
}

// snapshot gives the cluster's objects that an installation could touch, without what the API server counts and what
// the test itself marks.
func (t *trial) snapshot(ctx context.Context) (map[string]string, error) {
	found := map[string]string{}
	for _, path := range []string{
		"/apis/apps/v1/deployments", "/apis/apps/v1/daemonsets", "/api/v1/services", "/api/v1/configmaps",
		"/api/v1/serviceaccounts", "/apis/rbac.authorization.k8s.io/v1/clusterroles",
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "/apis/rbac.authorization.k8s.io/v1/roles",
	} {
		b, err := t.cluster.Client.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Raw()
		if err != nil {
			return nil, err
		}
		var list struct{ Items []map[string]any }
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			m, _ := o["metadata"].(map[string]any)
			forget(o, restarted, "spec", "template")
			forget(o, "deployment.kubernetes.io/revision")
			for _, counted := range []string{"resourceVersion", "generation", "managedFields"} {
				delete(m, counted)
			}
			delete(o, "status")
			text, err := json.Marshal(o)
			if err != nil {
				return nil, err
			}
			found[fmt.Sprintf("%s %v/%v", path, m["namespace"], m["name"])] = string(text)
		}
	}
	return found, nil
}

func (t *trial) compare(before, after map[string]string, what string) {
	differ := 0
	for name, text := range after {
		if before[name] != text {
			differ++
			fmt.Printf("      %s was\n      %s\n      and is\n      %s\n", name, before[name], text)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			differ++
			fmt.Printf("      %s is gone\n", name)
		}
	}
	t.check(differ == 0, "after %s %d of %d objects differ from before", what, differ, len(before))
}
