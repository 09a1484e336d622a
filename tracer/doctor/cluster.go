package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dnstrail/dnstrail/tracer/install"
	"github.com/dnstrail/dnstrail/tracer/kube"
)

// Cluster is a cluster to look at, and what its store says.
type Cluster struct {
	*kube.Cluster
	// Watched are the nodes whose agents have sent spans that the store keeps. Received counts the spans it took.
	// StoreError says why the store cannot be asked.
	Watched    []string
	Received   uint64
	StoreError error
	// Timeout bounds the checks of each node.
	Timeout time.Duration
}

// Examine looks at the cluster, each of its nodes and CoreDNS, and gives each finding as soon as it is there. What is
// looked at on a node begins with the node's name.
func (c *Cluster) Examine(ctx context.Context, found func(Finding)) {
	s, err := install.Look(ctx, c.Cluster)
	if err != nil {
		found(Finding{What: "dnstrail", State: Fail, Is: err.Error(), Do: "dnstrail install brings it"})
		return
	}
	c.store(found)
	c.coredns(ctx, s, found)
	agents, err := c.Client.CoreV1().Pods(kube.Namespace).List(ctx, metav1.ListOptions{LabelSelector: kube.AgentLabels})
	if err != nil {
		found(Finding{What: "agents", State: Fail, Is: err.Error()})
		return
	}
	for _, n := range c.nodes(ctx, agents.Items, found) {
		node := n.name
		if n.unready != "" {
			found(Finding{What: node, State: Fail, Is: "the node is not ready: " + n.unready,
				Do: "its kubelet, on the node (journalctl -u kubelet): what is looked at from within its agent's pod waits for it"})
			continue
		}
		i := slices.IndexFunc(agents.Items, func(p corev1.Pod) bool {
			return p.Spec.NodeName == node && p.DeletionTimestamp == nil
		})
		if i < 0 {
			found(Finding{What: node, State: Fail, Is: "no agent runs there",
				Do: "its taints, the DaemonSet's nodeSelector or its tolerations keep it away: kubectl -n " + kube.Namespace +
					" describe daemonset dnstrail-agent"})
			continue
		}
		c.node(ctx, &agents.Items[i], found)
	}
}

func (c *Cluster) store(found func(Finding)) {
	f := Finding{What: "store"}
	switch {
	case c.StoreError != nil:
		f.State, f.Is = Fail, c.StoreError.Error()
		f.Do = "kubectl -n " + kube.Namespace + " describe pods -l " + kube.StoreLabels
	case c.Received == 0:
		f.State, f.Is = Fail, "it answers, and has received nothing"
		f.Do = "the logs of the agents and of CoreDNS tell whether they reach it; after a reinstall restart CoreDNS"
	default:
		f.Is = fmt.Sprintf("%d spans received; agents on %s", c.Received, list(c.Watched))
	}
	found(f)
}

// coredns looks whether CoreDNS has the plugin, and whether its Service has anybody behind it.
func (c *Cluster) coredns(ctx context.Context, s *install.Status, found func(Finding)) {
	f := Finding{What: "CoreDNS"}
	switch {
	case s.CoreDNSError != nil:
		f.State, f.Is = Warn, s.CoreDNSError.Error()
		f.Do = "build/README.md tells what to change in a CoreDNS that dnstrail install does not know"
	case s.Blocks == 0:
		f.State, f.Is = Warn, "none of its server blocks has dnstrail: what it does with a lookup is not seen"
		f.Do = "dnstrail install, without --tracer-only"
	default:
		f.Is = fmt.Sprintf("dnstrail in %d of %d server blocks, %s", s.Blocks, s.Servers, s.CoreDNSImage)
	}
	found(f)
	const service = "kube-dns"
	slicesOf, err := c.Client.DiscoveryV1().EndpointSlices(kube.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	f = Finding{What: service}
	if err != nil {
		f.State, f.Is = Skip, err.Error()
		found(f)
		return
	}
	ready, all := 0, 0
	for _, s := range slicesOf.Items {
		for _, e := range s.Endpoints {
			all++
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready++
			}
		}
	}
	if f.Is = fmt.Sprintf("%d of %d endpoints are ready", ready, all); ready == 0 {
		f.State, f.Do = Fail, "no lookup of a pod has anybody to answer it: the Service's selector, and whether CoreDNS's "+
			"pods are ready: kubectl -n "+kube.Namespace+" describe pods -l k8s-app=kube-dns"
	}
	found(f)
}

// nodeState is a node, and why it is not ready; "": it is, or nobody may know.
type nodeState struct{ name, unready string }

// nodes gives the nodes; where they may not be listed, those that have an agent.
func (c *Cluster) nodes(ctx context.Context, agents []corev1.Pod, found func(Finding)) []nodeState {
	var all []nodeState
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/os=linux"})
	switch {
	case err == nil:
		for _, n := range nodes.Items {
			all = append(all, nodeState{n.Name, unready(&n)})
		}
	case apierrors.IsForbidden(err):
		found(Finding{What: "nodes", State: Skip, Is: "you may not list them: those with an agent are looked at"})
		fallthrough
	default:
		for _, p := range agents {
			all = append(all, nodeState{name: p.Spec.NodeName})
		}
		if !apierrors.IsForbidden(err) {
			found(Finding{What: "nodes", State: Fail, Is: err.Error()})
		}
	}
	slices.SortFunc(all, func(a, b nodeState) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(all)
}

// unready tells why the control plane holds a node for not ready, "" where it does not.
func unready(n *corev1.Node) string {
	for _, s := range n.Status.Conditions {
		if s.Type == corev1.NodeReady && s.Status != corev1.ConditionTrue {
			return strings.TrimSpace(s.Reason + " " + s.Message)
		}
	}
	return ""
}

// node looks at a node's agent, and from within its pod at the node.
func (c *Cluster) node(ctx context.Context, p *corev1.Pod, found func(Finding)) {
	node := p.Spec.NodeName
	f := Finding{What: node + " agent", Is: fmt.Sprintf("pod %s is ready", p.Name)}
	restarts := int32(0)
	for _, s := range p.Status.ContainerStatuses {
		restarts += s.RestartCount
		if t := s.LastTerminationState.Terminated; t != nil {
			f.State, f.Do = Warn, "kubectl -n "+kube.Namespace+" logs --previous "+p.Name
			f.Is = fmt.Sprintf("pod %s is ready; restarted %d times, the last time for %s", p.Name, restarts, t.Reason)
		}
	}
	if !kube.Ready(p) {
		f.State, f.Is = Fail, fmt.Sprintf("pod %s is not ready", p.Name)
		f.Do = "kubectl -n " + kube.Namespace + " describe pod " + p.Name
		found(f)
		return
	}
	found(f)
	if c.StoreError == nil && !slices.Contains(c.Watched, node) {
		found(Finding{What: node + " spans", State: Warn, Is: "the store has nothing of its agent",
			Do: "without a lookup there is nothing to send; else the agent's log tells: kubectl -n " + kube.Namespace +
				" logs " +
				p.Name})
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out, err := c.Exec(ctx, p.Namespace, p.Name, p.Spec.Containers[0].Name, "/dnstrail", "doctor", "--output=json")
	var well []string
	read := ReadJSON(bytes.NewReader(out), func(f Finding) {
		if f.State == Pass {
			well = append(well, f.What)
			return
		}
		f.What = node + " " + f.What
		found(f)
	})
	if errors.Is(err, kube.ErrExit) && read == nil && len(out) > 0 {
		err = nil // one of the checks failed, as was told
	}
	if err := errors.Join(err, read); err != nil {
		found(Finding{What: node, State: Skip, Is: "what is looked at from within the agent's pod: " + err.Error(),
			Do: "it needs the right to create pods/exec in " + kube.Namespace})
		return
	}
	found(Finding{What: node, Is: strings.Join(slices.Compact(well), ", ")})
}
