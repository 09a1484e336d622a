// Package lab raises a small Kubernetes-like network on one Linux host: nodes and pods are network namespaces, joined
// by veths, bridges and an underlay, with a service address that every node translates as kube-proxy does.
//
//	l, err := lab.Up(lab.Config{})
//	defer l.Down()
//	deployment := func(name string) lab.Workload { return lab.Workload{Kind: "Deployment", Name: name} }
//	dns, _ := l.AddPod(lab.PodSpec{Node: "node-2", Namespace: "kube-system", Workload: deployment("coredns")})
//	cart, _ := l.AddPod(lab.PodSpec{Node: "node-1", Namespace: "shop", Workload: deployment("cart")})
//	l.Service.SetEndpoints(dns)
//	out, _ := cart.Run(ctx, "getent", "hosts", "www.example.com")
//
// Nothing of it has a name on the host: the namespaces are anonymous and live as long as a file descriptor or a process
// of this program does, so a crash leaves nothing behind, and several labs run side by side. Only cgroups outlive a
// crash; the next [Up] removes those whose owner is gone.
//
// A program that starts processes in pods calls [Reexec] first thing in main or TestMain.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
)

// Config says what [Up] raises. The zero value is the lab that README.md draws.
type Config struct {
	// Nodes are the names of the nodes, node-1 and node-2 if empty. At most 9.
	Nodes []string
	// Overlay says how the pods' packets go from node to node; [Routed] if empty.
	Overlay Overlay
}

// Lab is a running lab. Its methods may be called from several goroutines.
type Lab struct {
	// Service is the cluster's DNS service, translated on every node; it has no endpoints yet.
	Service *Service
	// Upstream is a DNS server outside the cluster.
	Upstream *Upstream
	// Underlay is the network namespace of the switch that joins the nodes.
	Underlay *Namespace

	nodes   []*Node
	spawner *spawner
	cgroup  *cgroupRoot
	host    *Namespace

	mu      sync.Mutex
	pods    []*Pod
	closers []func() error
	down    bool
}

// Addresses of the lab. Node N (from 1) has UnderlayV4 .1N and UnderlayV6 ::1N, and pods in 10.244.N.0/24 and
// fd00:10:244:N::/64.
var (
	ServiceV4  = netip.MustParseAddr("10.96.0.10")
	ServiceV6  = netip.MustParseAddr("fd00:10:96::a")
	UpstreamV4 = netip.MustParseAddr("192.168.100.53")
	UpstreamV6 = netip.MustParseAddr("fd00:100::53")

	clusterV4 = netip.MustParsePrefix("10.244.0.0/16")
	clusterV6 = netip.MustParsePrefix("fd00:10:244::/48")
	routerV4  = netip.MustParsePrefix("192.168.100.1/24")
	routerV6  = netip.MustParsePrefix("fd00:100::1/64")
)

// Up raises a lab. It needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN). On an error everything made so far is taken down
// again.
func Up(c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: needs root to make network namespaces")
	}
	if len(c.Nodes) == 0 {
		c.Nodes = []string{"node-1", "node-2"}
	}
	if !c.Overlay.valid() {
		return nil, fmt.Errorf("lab: overlay %q, want one of: %q", c.Overlay, overlays)
	}
	if len(c.Nodes) > 9 {
		return nil, fmt.Errorf("lab: %d nodes asked for, 9 is the most", len(c.Nodes))
	}
	l := &Lab{}
	if err := l.raise(c); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Down())
	}
	return l, nil
}

func (l *Lab) raise(c Config) (err error) {
	if l.host, err = hostNamespace(); err != nil {
		return err
	}
	l.spawner = newSpawner(l.host)
	if l.cgroup, err = newCgroupRoot(); err != nil {
		return err
	}
	if err = l.raiseUnderlay(); err != nil {
		return err
	}
	for i, name := range c.Nodes {
		n, err := l.raiseNode(name, i+1)
		if n != nil {
			l.nodes = append(l.nodes, n)
		}
		if err != nil {
			return fmt.Errorf("raise %s: %w", name, err)
		}
	}
	for _, n := range l.nodes {
		if err := n.reach(l.nodes, c.Overlay); err != nil {
			return err
		}
	}
	l.Service = &Service{nodes: l.nodes}
	if err := l.Service.SetEndpoints(); err != nil {
		return err
	}
	l.Upstream, err = l.raiseUpstream()
	return err
}

// Nodes gives the nodes in order.
func (l *Lab) Nodes() []*Node { return slices.Clone(l.nodes) }

// Node gives the node of that name, or nil.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Pods gives the pods in the order in which they were added.
func (l *Lab) Pods() []*Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pods)
}

// Pod gives the pod of that name, or nil.
func (l *Lab) Pod(name string) *Pod {
	for _, p := range l.Pods() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Namespaces gives every network namespace that the lab has now: the underlay's, the upstream's, the nodes' and the
// pods'.
func (l *Lab) Namespaces() []*Namespace {
	all := []*Namespace{l.Underlay, l.Upstream.Namespace}
	for _, n := range l.nodes {
		all = append(all, n.Namespace)
	}
	for _, p := range l.Pods() {
		all = append(all, p.Namespace)
	}
	return all
}

// Start starts a process on the host: outside every namespace of the lab, stopped by [Lab.Down] like the others.
func (l *Lab) Start(c Command) (*Process, error) { return l.spawner.start(c, target{ns: l.host}) }

// onDown registers what Down calls, last registered first.
func (l *Lab) onDown(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// Down stops every process of the lab, closes its sockets and lets go of its namespaces. It may be called more than
// once.
func (l *Lab) Down() error {
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return nil
	}
	l.down = true
	closers := l.closers
	l.mu.Unlock()

	var errs []error
	if l.spawner != nil {
		l.spawner.killAll()
	}
	for _, f := range slices.Backward(closers) {
		errs = append(errs, f())
	}
	if l.cgroup != nil {
		errs = append(errs, l.cgroup.remove())
	}
	if l.spawner != nil {
		l.spawner.close()
	}
	for _, p := range l.pods {
		errs = append(errs, p.close())
	}
	for _, n := range l.nodes {
		errs = append(errs, n.close())
	}
	if l.Upstream != nil {
		errs = append(errs, l.Upstream.close())
	}
	errs = append(errs, l.Underlay.close(), l.host.close())
	return errors.Join(errs...)
}
