package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

const (
	// apiAway is how long the nodes do not reach the API server: less than what makes them NotReady for it, which would
	// take CoreDNS out of its Service.
	apiAway = 15 * time.Second
	// kubeletAway is how long a node has no kubelet: the node is NotReady for most of it.
	kubeletAway = 50 * time.Second
)

// away takes the API server from the nodes, and the kubelet from one, while a pod of each node looks names up without a
// pause: all of them are answered, and rows of the right pod.
func (t *trial) away(ctx context.Context, _ []corev1.Pod) error {
	mark := fmt.Sprintf("steady-%d", time.Now().Unix())
	var steady []*corev1.Pod
	client := t.cluster.Client.CoreV1().Pods(shop)
	for _, n := range nodes {
		p, err := t.runPod(ctx, "steady-"+n.name, n.name, "look", "-n", "0", "-every", "200ms",
			mark+"-"+n.name+"-%d.example.com.")
		if err != nil {
			return err
		}
		defer func() { _ = client.Delete(context.WithoutCancel(ctx), p.Name, metav1.DeleteOptions{}) }()
		steady = append(steady, p)
	}
	mend, err := dropped(controlPlane.name, "INPUT", "-i", "eth0", "-p", "tcp", "--dport", apiPort, "-j", "DROP")
	if err != nil {
		return err
	}
	time.Sleep(apiAway)
	if err := mend(); err != nil {
		return err
	}
	fmt.Printf("      the nodes were without the API server for %s\n", apiAway)
	if err := t.nodesReady(ctx); err != nil {
		return err
	}
	if err := t.withoutKubelet(ctx); err != nil {
		return err
	}
	time.Sleep(settle)
	return t.unbroken(ctx, steady, mark)
}

// withoutKubelet kills the kubelet of the node that has not the store, holds what doctor says, and starts it again.
func (t *trial) withoutKubelet(ctx context.Context) error {
	stores, err := t.cluster.Client.CoreV1().Pods(kube.Namespace).List(ctx,
		metav1.ListOptions{LabelSelector: kube.StoreLabels})
	if err != nil {
		return err
	}
	if len(stores.Items) != 1 {
		return fmt.Errorf("%d pods are the store", len(stores.Items))
	}
	node := nodes[0].name
	if stores.Items[0].Spec.NodeName == node {
		node = nodes[1].name
	}
	pid := 0
	for _, p := range t.processes("kubelet\x00") {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if strings.Contains(string(b), "\x00--hostname-override="+node+"\x00") {
			pid = p
		}
	}
	if pid == 0 {
		return fmt.Errorf("%s has no kubelet", node)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	time.Sleep(kubeletAway)
	ready, err := t.nodeReady(ctx, node)
	t.check(err == nil && !ready, "%s is not ready after %s without a kubelet: %v", node, kubeletAway, err)
	found, _ := t.dnstrail(ctx, "doctor", "-o", "json") // it fails, since it finds the fault
	failed := failures(found)
	t.check(len(failed) == 1 && strings.HasPrefix(failed[0], node), "without %s's kubelet doctor finds %q at fault", node,
		failed)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// #nosec G204 -- itself
	out, err := exec.CommandContext(ctx, self, "kubelet", "-bin", t.bin, "-dir", t.dir, "-proxy", t.proxy, node).
		CombinedOutput()
	if err != nil {
		return fmt.Errorf("start %s's kubelet: %w: %s", node, err, out)
	}
	if err := t.nodesReady(ctx); err != nil {
		return err
	}
	_, err = t.pods(ctx)
	return err
}

func (t *trial) nodeReady(ctx context.Context, name string) (bool, error) {
	n, err := t.cluster.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue, nil
		}
	}
	return false, nil
}

// nodesReady waits until all nodes are, and the agents.
func (t *trial) nodesReady(ctx context.Context) error {
	for deadline := time.Now().Add(startLimit); ; time.Sleep(pollInterval) {
		n := 0
		for _, m := range nodes {
			if ready, err := t.nodeReady(ctx, m.name); err == nil && ready {
				n++
			}
		}
		agents, err := t.cluster.Client.CoreV1().Pods(kube.Namespace).List(ctx,
			metav1.ListOptions{LabelSelector: kube.AgentLabels})
		if err == nil && n == len(nodes) && len(agents.Items) == len(nodes) && kube.Ready(&agents.Items[0]) &&
			kube.Ready(&agents.Items[1]) {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%d of %d nodes are ready", n, len(nodes)), err)
		}
	}
}

// unbroken holds that the rows of pods that looked names up with consecutive numbers have all of these, of both types,
// answered and of the right pod.
func (t *trial) unbroken(ctx context.Context, pods []*corev1.Pod, mark string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	base, err := t.cluster.Store(ctx)
	if err != nil {
		return err
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	for _, p := range pods {
		prefix := mark + "-" + p.Spec.NodeName + "-"
		seen := map[int]int{}
		most, wrong := 0, 0
		err := rows.Lookups(ctx, &output.Filter{Names: []string{prefix + "*"}}, 0, false, func(r *output.Row) error {
			label, _, _ := strings.Cut(strings.TrimPrefix(r.Name, prefix), ".")
			i, err := strconv.Atoi(label)
			if err != nil {
				return fmt.Errorf("a row of %s: %w", r.Name, err)
			}
			seen[i]++
			most = max(most, i)
			if r.Client.PodUID != string(p.UID) || r.Verdict.Where != trace.Answered {
				if wrong++; wrong < 10 {
					fmt.Printf("      %s %s of %s/%s: %s %s\n", r.Name, r.Type, r.Client.Namespace, r.Client.Pod, r.Result,
						r.Verdict.Text)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		missing := 0
		for i := range most { // the last is perhaps only half there
			if seen[i] != 2 {
				if missing++; missing < 10 {
					fmt.Printf("      %s%d has %d rows\n", prefix, i, seen[i])
				}
			}
		}
		t.check(most > 100 && missing == 0 && wrong == 0,
			"%s: of %d names looked up while these were away, %d lack a row and %d rows are not answered or another's",
			p.Name, most, missing, wrong)
	}
	return nil
}
