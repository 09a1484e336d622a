package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// rollouts restarts the agents and CoreDNS while the pods look names up, and gives a deleted pod's address to another.
func (t *trial) rollouts(ctx context.Context, pods []corev1.Pod) error {
	for _, w := range []struct {
		kind, name string
	}{{"daemonset", "dnstrail-agent"}, {"deployment", "coredns"}} {
		err := t.during(ctx, pods, w.name+" restarted", func() error { return t.restart(ctx, w.kind, w.name) })
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return t.reused(ctx)
}

// restarted is the annotation that a restart is made by. Its own, so that no other's mark goes unnoticed for it.
const restarted = "kubecluster/restartedAt"

// restart does what "kubectl rollout restart" does, and waits.
func (t *trial) restart(ctx context.Context, kind, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{restarted: time.Now().Format(time.RFC3339)},
	}}}})
	if err != nil {
		return err
	}
	apps := t.cluster.Client.AppsV1()
	if kind == "daemonset" {
		_, err = apps.DaemonSets(kube.Namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	} else {
		_, err = apps.Deployments(kube.Namespace).Patch(ctx, name, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{})
	}
	if err != nil {
		return err
	}
	for {
		var done bool
		if kind == "daemonset" {
			d, err := apps.DaemonSets(kube.Namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			s := d.Status
			done = s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled &&
				s.NumberReady == s.DesiredNumberScheduled
		} else {
			d, err := apps.Deployments(kube.Namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			s := d.Status
			done = s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == s.Replicas && s.ReadyReplicas == s.Replicas
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}

// nextAddress waits until a pod's address is free on its node, and makes it the next that host-local gives out there.
func (t *trial) nextAddress(ctx context.Context, p *corev1.Pod) error {
	pid, err := t.pidOf(p.Spec.NodeName)
	if err != nil {
		return err
	}
	address, err := netip.ParseAddr(p.Status.PodIP)
	if err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d/root/var/lib/cni/networks/pods", pid)
	for deadline := time.Now().Add(startLimit); ; time.Sleep(pollInterval) {
		if _, err := os.Stat(filepath.Join(dir, address.String())); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("address %s is not given back", address)
		}
	}
	last := filepath.Join(dir, "last_reserved_ip.0") // of the network's first range (plugins/ipam/host-local)
	return os.WriteFile(last, []byte(address.Prev().String()), 0o600)
}

// runPod runs a pod of the shop on a node, and waits until it is ready.
func (t *trial) runPod(ctx context.Context, name, node string, args ...string) (*corev1.Pod, error) {
	client := t.cluster.Client.CoreV1().Pods(shop)
	grace := int64(0)
	_, err := client.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &grace, RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{Name: "c", Image: podImage, Args: args}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(startLimit); ; time.Sleep(pollInterval) {
		p, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if kube.Ready(p) {
			return p, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, fmt.Errorf("pod %s is not ready", name)
		}
	}
}

// reused deletes a pod, gives its address to another, and holds whose the lookups from it are: before, the first's;
// after, the second's.
func (t *trial) reused(ctx context.Context) error {
	client := t.cluster.Client.CoreV1().Pods(shop)
	look := func(p *corev1.Pod, mark string) error {
		_, err := t.exec(ctx, p, "/pod", "look", "-n", "10", mark+"-%d.example.com.")
		return err
	}
	mark := fmt.Sprintf("reused-%d", time.Now().Unix())
	first, err := t.runPod(ctx, "first", nodes[0].name)
	if err != nil {
		return err
	}
	if err := look(first, mark+"-first"); err != nil {
		return err
	}
	if err := client.Delete(ctx, "first", metav1.DeleteOptions{}); err != nil {
		return err
	}
	defer func() { _ = client.Delete(context.WithoutCancel(ctx), "second", metav1.DeleteOptions{}) }()
	// The address is free when the pod's network is taken down; host-local then gives out the next, so it is told which.
	if err := t.nextAddress(ctx, first); err != nil {
		return err
	}
	second, err := t.runPod(ctx, "second", nodes[0].name)
	if err != nil {
		return err
	}
	t.check(second.Status.PodIP == first.Status.PodIP, "the second pod has the first's address: %s and %s",
		second.Status.PodIP, first.Status.PodIP)
	if err := look(second, mark+"-second"); err != nil {
		return err
	}
	time.Sleep(settle)
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
	for _, p := range []*corev1.Pod{first, second} {
		n, right := 0, 0
		filter := &output.Filter{Names: []string{mark + "-" + p.Name + "-*"}}
		err := rows.Lookups(ctx, filter, 0, false, func(r *output.Row) error {
			n++
			if r.Client.Pod == p.Name && r.Client.PodUID == string(p.UID) && r.Verdict.Where == trace.Answered {
				right++
			}
			return nil
		})
		t.check(err == nil && n == 20 && right == n, "%d of %d lookups of the %s pod of an address are its own", right, n,
			p.Name)
	}
	return nil
}
