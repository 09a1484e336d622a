package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

type testOptions struct{ lookups int }

// trial is dnstrail tried in the cluster.
type trial struct {
	options
	cluster *kube.Cluster
	config  *rest.Config
	bad     int
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
	t := &trial{options: o, cluster: c, config: config}
	if err := apply(ctx, o.kubeconfig(), shopObjects); err != nil {
		return err
	}
	pods, err := t.pods(ctx)
	if err != nil {
		return err
	}
	before, err := t.snapshot(ctx)
	if err != nil {
		return err
	}
	if err := t.timed(ctx, "install", append([]string{"install"}, installFlags...)...); err != nil {
		return err
	}
	err = t.judge(ctx, pods, want.lookups)
	t.memory()
	if e := t.timed(ctx, "uninstall", "uninstall"); e != nil {
		return errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	after, err := t.snapshot(ctx)
	if err != nil {
		return err
	}
	t.compare(before, after)
	if t.bad > 0 {
		return fmt.Errorf("%d checks failed", t.bad)
	}
	return nil
}

func (t *trial) judge(ctx context.Context, pods []corev1.Pod, lookups int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	base, err := t.cluster.Store(ctx)
	if err != nil {
		return err
	}
	if err := t.lookups(ctx, base, pods, lookups); err != nil {
		return err
	}
	return t.faults(ctx, pods)
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

// pods waits until those of the shop run, and gives one of each workload and node.
func (t *trial) pods(ctx context.Context) ([]corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		list, err := t.cluster.Client.CoreV1().Pods(shop).List(ctx, metav1.ListOptions{LabelSelector: "app"})
		if err != nil {
			return nil, err
		}
		ready := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !kube.Ready(&p) })
		if len(ready) == 5 { // two of the Deployment, one of the StatefulSet, two of the DaemonSet
			return ready, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of the shop's 5 pods are ready: %w", len(ready), ctx.Err())
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
func (t *trial) lookups(ctx context.Context, base string, pods []corev1.Pod, n int) error {
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	traces, err := traceapi.NewClient(base, nil)
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	began, made, seen, joined, right := time.Now(), 0, 0, 0, 0
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
			if wrong := whose(r, tr, pods); wrong == "" {
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
	t.check(right == seen, "%d of %d are of the right pod, container, workload and node, on both sides", right, seen)
	return nil
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
func whose(r *output.Row, tr *trace.Trace, pods []corev1.Pod) string {
	i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return strings.Contains(r.Name, "-"+p.Name+"-") })
	if i < 0 {
		return "of no pod"
	}
	p := &pods[i]
	kind, workload := p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name
	if kind == "ReplicaSet" {
		kind, workload = "Deployment", workload[:strings.LastIndexByte(workload, '-')]
	}
	container := p.Status.ContainerStatuses[0].ContainerID
	container = container[strings.LastIndexByte(container, '/')+1:]
	got := []string{
		r.Client.Namespace, r.Client.Pod, r.Client.PodUID, r.Client.WorkloadKind, r.Client.Workload, r.Client.Node,
		r.Client.ContainerID, r.Client.Process,
	}
	want := []string{p.Namespace, p.Name, string(p.UID), kind, workload, p.Spec.NodeName, container, "pod"}
	if !slices.Equal(got, want) {
		return fmt.Sprintf("it is said to be of %q, and is of %q", got, want)
	}
	if asked := tr.Asked(); asked.Namespace != kube.Namespace || !strings.HasPrefix(asked.Pod, "coredns-") {
		return fmt.Sprintf("the server is said to be %s/%s", asked.Namespace, asked.Pod)
	}
	return ""
}

// fault is one made in the cluster: make makes it and gives how it is mended.
type fault struct {
	name          string
	make          func() (mend func() error, err error)
	where, causes []string // any of them is right
}

func (t *trial) faults(ctx context.Context, pods []corev1.Pod) error {
	cart := pods[slices.IndexFunc(pods, func(p corev1.Pod) bool {
		return p.Labels["app"] == "cart" && p.Spec.NodeName == nodes[0].name
	})]
	all := []fault{
		{"a rule drops the pod's DNS on its node", func() (func() error, error) {
			rule := []string{"FORWARD", "-s", cart.Status.PodIP, "-p", "udp", "-j", "DROP"}
			iptables := func(verb string) error {
				args := append([]string{"netns", "exec", netnsName(nodes[0].name), "iptables", "-w", verb}, rule...)
				return command("ip", args...)
			}
			return func() error { return iptables("-D") }, iptables("-I")
		}, []string{"node"}, []string{"policy-drop"}},
		{"kube-dns without endpoints", func() (func() error, error) {
			patch := func(label string) error {
				_, err := t.cluster.Client.CoreV1().Services(kube.Namespace).Patch(ctx, "kube-dns", types.MergePatchType,
					[]byte(`{"spec":{"selector":{"k8s-app":"`+label+`"}}}`), metav1.PatchOptions{FieldManager: "kubecluster"})
				return err
			}
			err := patch("nobody")
			time.Sleep(3 * time.Second) // for kube-proxy
			return func() error { return patch("kube-dns") }, err
		}, []string{"service"}, []string{"no-endpoints"}},
		{"CoreDNS stands still", func() (func() error, error) {
			pids := t.processes("/coredns\x00-conf\x00/etc/coredns/")
			if len(pids) == 0 {
				return nil, errors.New("no CoreDNS runs")
			}
			return func() error { return signalAll(pids, syscall.SIGCONT) }, signalAll(pids, syscall.SIGSTOP)
		}, []string{"coredns-socket", "coredns"}, []string{"not-read", "no-answer", "stuck"}},
		{"the upstream is silent", func() (func() error, error) {
			pids := t.processes(t.program("coredns-stock") + "\x00-conf\x00" + t.run("upstream.Corefile"))
			if len(pids) != 1 {
				return nil, fmt.Errorf("%d upstreams run", len(pids))
			}
			return func() error { return signalAll(pids, syscall.SIGCONT) }, signalAll(pids, syscall.SIGSTOP)
		}, []string{"upstream"}, []string{"timeout"}},
	}
	for i, f := range all {
		name := fmt.Sprintf("fault%d-%d.example.com", i, time.Now().Unix())
		mend, err := f.make()
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		_, err = t.exec(ctx, &cart, "/pod", "look", "-limit", "4s", name+".")
		var out []byte
		if err == nil { // looked at before it is mended: an answer that comes then would be another fault, a late one
			time.Sleep(settle)
			out, err = t.dnstrail(ctx, "observe", "--since", "2m", "--name", name, "-o", "jsonl")
		}
		if e := mend(); e != nil {
			return fmt.Errorf("mending %s: %w", f.name, e)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		t.verdict(f, out)
		time.Sleep(3 * time.Second) // what was mended is used again
	}
	return nil
}

// verdict holds the last word on each lookup of a fault against what is true.
func (t *trial) verdict(f fault, jsonl []byte) {
	last := map[string]output.Row{}
	for line := range bytes.Lines(jsonl) {
		var r output.Row
		if err := json.Unmarshal(line, &r); err != nil {
			t.check(false, "%s: %v", f.name, err)
			return
		}
		if r.Verdict.Where != trace.Answered { // a SERVFAIL of an upstream's silence is no lost lookup, but a fault
			last[r.TraceID] = r
		}
	}
	t.check(len(last) > 0, "%s: %d lookups that failed are shown", f.name, len(last))
	for id, r := range last {
		v := r.Verdict
		t.check(slices.Contains(f.where, v.Where) && slices.Contains(f.causes, v.Cause), "%s: %s/%s (%s) %s: %s", f.name,
			v.Where, v.Cause, v.Certainty, id, v.Text)
	}
}

func signalAll(pids []int, s syscall.Signal) error {
	var err error
	for _, pid := range pids {
		err = errors.Join(err, syscall.Kill(pid, s))
	}
	return err
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

// memory prints what dnstrail's programs take.
func (t *trial) memory() {
	for _, p := range []struct{ what, prefix string }{
		{"agent", "/dnstrail\x00agent"}, {"store", "/dnstrail\x00store"}, {"CoreDNS", "/coredns\x00-conf\x00/etc/coredns/"},
	} {
		for _, pid := range t.processes(p.prefix) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			for line := range strings.Lines(string(b)) {
				if most, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					fmt.Printf("      %s: at most %s resident\n", p.what, strings.TrimSpace(most))
				}
			}
		}
	}
}

// snapshot gives the cluster's objects that an installation could touch, without what the API server counts.
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
			for _, counted := range []string{"resourceVersion", "generation", "managedFields"} {
				delete(m, counted)
			}
			if a, _ := m["annotations"].(map[string]any); a != nil {
				delete(a, "deployment.kubernetes.io/revision")
				if len(a) == 0 {
					delete(m, "annotations")
				}
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

func (t *trial) compare(before, after map[string]string) {
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
	t.check(differ == 0, "after uninstall %d of %d objects differ from before", differ, len(before))
}
