package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Workload is what owns a pod, as the identity file has it.
type Workload struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// PodSpec says which pod to add.
type PodSpec struct {
	Node      string // the node's name
	Namespace string // "default" if empty
	// Name is the pod's name; if empty one is made from the workload's as Kubernetes would.
	Name           string
	Workload       Workload
	ServiceAccount string // the workload's name if empty
	Labels         map[string]string
	// Nameservers are those of its resolv.conf, in order; the service's IPv4 address if empty.
	Nameservers []netip.Addr
	// ResolvOptions is the options line of its resolv.conf, "ndots:5" if empty.
	ResolvOptions string
}

// Pod is a pod: a network namespace with eth0 on its node's bridge, and a cgroup that its processes are in.
type Pod struct {
	*Namespace
	PodSpec
	Name        string
	Node        *Node
	UID         string
	ContainerID string // 64 hexadecimal digits
	V4, V6      netip.Addr
	// HostVeth is the name of the node's end of the pod's eth0.
	HostVeth string

	cgroup *containerCgroup
}

// AddPod adds a pod. Its container has no process until one is started in it.
func (l *Lab) AddPod(spec PodSpec) (*Pod, error) {
	node := l.Node(spec.Node)
	if node == nil {
		return nil, fmt.Errorf("lab: no node %q for pod %q", spec.Node, spec.Name)
	}
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.Workload == (Workload{}) {
		name, _, _ := strings.Cut(spec.Name, "-")
		spec.Workload = Workload{Kind: "Deployment", Name: name}
	}
	if spec.Name == "" {
		spec.Name = fmt.Sprintf("%s-%s-%s", spec.Workload.Name, randomHex(5), randomHex(3)[:5])
	}
	if spec.ServiceAccount == "" {
		spec.ServiceAccount = spec.Workload.Name
	}
	if spec.Labels == nil {
		spec.Labels = map[string]string{"app": spec.Workload.Name}
	}
	if len(spec.Nameservers) == 0 {
		spec.Nameservers = []netip.Addr{ServiceV4}
	}
	if spec.ResolvOptions == "" {
		spec.ResolvOptions = "ndots:5"
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	ns, err := newNamespace(spec.Name)
	if err != nil {
		return nil, err
	}
	host := byte(node.next)
	node.next++
	v4, v6 := node.PodsV4.Addr().As4(), node.PodsV6.Addr().As16()
	v4[3], v6[15] = host, host/10*16+host%10 // 10 reads "10" in both families
	p := &Pod{
		Namespace:   ns,
		PodSpec:     spec,
		Name:        spec.Name,
		Node:        node,
		UID:         uuid(),
		ContainerID: randomHex(32),
		V4:          netip.AddrFrom4(v4),
		V6:          netip.AddrFrom16(v6),
		HostVeth:    "veth" + randomHex(4),
	}
	l.pods = append(l.pods, p)
	if err := node.addVeth(podBridge, p.HostVeth, ns, netip.PrefixFrom(p.V4, 24), netip.PrefixFrom(p.V6, 64)); err != nil {
		return nil, err
	}
	for _, gw := range []netip.Addr{node.PodsV4.Addr().Next(), node.PodsV6.Addr().Next()} {
		if err := ns.addRoute(netip.PrefixFrom(unspecified(gw), 0), gw); err != nil {
			return nil, err
		}
	}
	if p.cgroup, err = l.cgroup.addContainer(p.UID, p.ContainerID); err != nil {
		return nil, err
	}
	return p, nil
}

// Start starts a process in the pod's container: in its network namespace and cgroup, with process IDs, host name,
// resolv.conf, hosts and nsswitch.conf of its own, and the host's files otherwise.
func (p *Pod) Start(c Command) (*Process, error) {
	return p.Node.lab.spawner.start(c, target{
		ns:     p.Namespace,
		cgroup: p.cgroup,
		init: &initSpec{
			Hostname: p.Name,
			Files: map[string]string{
				"/etc/resolv.conf":   p.resolvConf(),
				"/etc/hosts":         fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost\n%s\t%s\n%s\t%[2]s\n", p.V4, p.Name, p.V6),
				"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
			},
		},
	})
}

func (p *Pod) resolvConf() string {
	var b strings.Builder
	for _, a := range p.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	fmt.Fprintf(&b, "search %s.svc.cluster.local svc.cluster.local cluster.local\noptions %s\n", p.PodSpec.Namespace,
		p.ResolvOptions)
	return b.String()
}

// Run runs a command in the pod's container to its end and gives what it printed on its standard output. The error of
// one that fails carries the end of its standard error. When ctx ends first the command is killed.
func (p *Pod) Run(ctx context.Context, path string, args ...string) (string, error) {
	return runToEnd(ctx, p.Start, p.Name, path, args)
}

func runToEnd(ctx context.Context, start func(Command) (*Process, error), in, path string, args []string) (
	string, error) {
	var stdout bytes.Buffer
	proc, err := start(Command{Path: path, Args: args, Stdout: &stdout})
	if err != nil {
		return "", err
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		proc.Kill()
		<-proc.Done()
		return stdout.String(), fmt.Errorf("%s %s in %s: %w", path, strings.Join(args, " "), in, ctx.Err())
	}
	if err := proc.Err(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s in %s: %w: %s", path, strings.Join(args, " "), in, err,
			strings.TrimSpace(proc.Stderr()))
	}
	return stdout.String(), nil
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails: crypto/rand
	return hex.EncodeToString(b)
}

func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
