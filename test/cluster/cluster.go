// Package cluster is the lab with dnstrail in it: CoreDNS with the plugin runs as a pod behind the service address, the
// agent on the host (or one a node), and both send their spans to one collector. The demo, the end-to-end tests, the
// fault matrix and the benchmarks stand on it.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// Config says what [Up] raises. Bin and Collector are required.
type Config struct {
	// Bin is the directory of the built coredns and dnstrail.
	Bin string
	// Collector is the OTLP/gRPC address (host:port) on the host's loopback to which CoreDNS and the agent send.
	Collector string
	// Pods are there before CoreDNS and the agents start: both read of them at their start. See [Cluster.Clients].
	Pods []lab.PodSpec
	// Sample is the share of lookups kept by both sides; "1" if empty.
	Sample string
	// Plugin are further lines of the dnstrail block. NoPlugin leaves the block out.
	Plugin   string
	NoPlugin bool
	// Corefile replaces the lines of the server block below the dnstrail block: see [DefaultChain].
	Corefile string
	// Zones are further server blocks, each with the same dnstrail block.
	Zones []Zone
	// Env is added to CoreDNS's and the agent's environment.
	Env []string
	// Overlay is the way of the pods' packets between nodes.
	Overlay lab.Overlay
	// Agents says where an agent runs; [AgentOnHost] if zero.
	Agents Agents
	// AskBack has agents and CoreDNS ask one another about lookups that end badly, whatever becomes of the network of the
	// lab.
	AskBack bool
	// AgentArgs are further arguments of every agent.
	AgentArgs []string
	// AgentMemory, if not 0, is the limit in bytes of the memory cgroup that each agent runs in.
	AgentMemory int64
}

// Zone is a server block of CoreDNS: what it is for, as a Corefile names it, and the lines below the dnstrail block.
type Zone struct{ Name, Chain string }

// Agents says where agents run.
type Agents int

// Where agents run.
const (
	AgentOnHost  Agents = iota // one, which sees every namespace of the lab: a node that holds the whole cluster
	AgentPerNode               // one a node, confined to the node's and its pods' namespaces
	// none yet: see [Cluster.StartAgents], [Cluster.StartLabAgent] and [Cluster.StartNodeAgents]
	NoAgent
)

// Cluster is a running lab with dnstrail in it.
type Cluster struct {
	*lab.Lab
	// DNS is the CoreDNS pod, on the last node; CoreDNS its process.
	DNS     *lab.Pod
	CoreDNS *lab.Process
	// Clients are the pods of Config.Pods.
	Clients []*lab.Pod
	// Agents are the agents' processes, and AgentMetrics the addresses of their /metrics on the host.
	Agents       []*lab.Process
	AgentMetrics []string
	// AgentCgroups are the memory cgroups that the agents run in, where Config.AgentMemory is set.
	AgentCgroups []*lab.MemoryCgroup
	// Metrics is the address of CoreDNS's /metrics on the host.
	Metrics string
	// IdentityFile tells both sides who is who; it is written anew by [Cluster.AddPod].
	IdentityFile string

	config  Config
	dir     string
	askBack askBack
}

// DefaultChain is what stands below the dnstrail block: a cluster zone with the services default/kubernetes and
// shop/payments, a cache, and the lab's upstream.
func DefaultChain() string {
	var b strings.Builder
	b.WriteString("prometheus 0.0.0.0:9153\n    errors\n")
	for _, r := range []struct{ service, qtype, addr string }{
		{"kubernetes.default", "A", "10.96.0.1"}, {"kubernetes.default", "AAAA", "fd00:10:96::1"},
		{"payments.shop", "A", "10.96.12.34"}, {"payments.shop", "AAAA", "fd00:10:96::34"},
	} {
		fmt.Fprintf(&b, "    template IN %s cluster.local {\n        match \"^%s\\.svc\\.cluster\\.local\\.$\"\n        "+
			"answer \"{{ .Name }} 5 IN %s %s\"\n        fallthrough\n    }\n",
			r.qtype, strings.ReplaceAll(r.service, ".", `\.`), r.qtype, r.addr)
	}
	fmt.Fprintf(&b, `    template ANY ANY cluster.local {
        rcode NXDOMAIN
        authority "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
    }
    cache 30
    forward . %s`, lab.UpstreamV4)
	return b.String()
}

// Up raises a lab of two nodes with CoreDNS on the second, and starts the agents. On an error everything is taken down
// again. The caller calls Down, and [lab.Reexec] first thing in its main or TestMain.
func Up(ctx context.Context, c Config) (*Cluster, error) {
	l, err := lab.Up(lab.Config{Overlay: c.Overlay})
	if err != nil {
		return nil, err
	}
	k := &Cluster{Lab: l, config: c}
	if err := k.raise(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: %w", err), k.Down())
	}
	return k, nil
}

// Down stops and removes everything.
func (k *Cluster) Down() error {
	// Both sides flush what they hold when asked to end.
	for _, p := range append([]*lab.Process{k.CoreDNS}, k.Agents...) {
		if p != nil {
			_ = p.Stop(3 * time.Second)
		}
	}
	err := k.Lab.Down()
	if k.dir != "" {
		err = errors.Join(err, os.RemoveAll(k.dir))
	}
	return err
}

func (k *Cluster) raise(ctx context.Context) (err error) {
	if k.dir, err = os.MkdirTemp("", "dnstrail-cluster-"); err != nil {
		return err
	}
	k.IdentityFile = filepath.Join(k.dir, "clients.yaml")
	nodes := k.Nodes()
	for _, n := range nodes {
		// A node has processes of its own, a kubelet first of all: by them its network namespace is known.
		if _, err := n.Start(lab.Command{Path: "sleep", Args: []string{"infinity"}}); err != nil {
			return err
		}
	}
	k.DNS, err = k.Lab.AddPod(lab.PodSpec{
		Node: nodes[len(nodes)-1].Name, Namespace: "kube-system",
		Workload: lab.Workload{Kind: "Deployment", Name: "coredns"},
	})
	if err != nil {
		return err
	}
	for _, spec := range k.config.Pods {
		p, err := k.Lab.AddPod(spec)
		if err != nil {
			return err
		}
		k.Clients = append(k.Clients, p)
	}
	if err := k.writeIdentities(); err != nil {
		return err
	}
	if err := k.Collector(k.config.Collector); err != nil {
		return err
	}
	if err := k.Service.SetEndpoints(k.DNS); err != nil {
		return err
	}
	if k.config.AskBack {
		if err := k.introduce(); err != nil {
			return err
		}
	}
	if err := k.startCoreDNS(ctx); err != nil {
		return err
	}
	if k.config.Agents == NoAgent {
		return nil
	}
	return k.StartAgents(ctx)
}

// AddPod adds a pod and tells both sides of it; they look at the file every two seconds.
func (k *Cluster) AddPod(spec lab.PodSpec) (*lab.Pod, error) {
	p, err := k.Lab.AddPod(spec)
	if err != nil {
		return nil, err
	}
	return p, k.writeIdentities()
}

func (k *Cluster) writeIdentities() error {
	var b bytes.Buffer
	if err := k.WriteIdentities(&b); err != nil {
		return err
	}
	// Replaced as a whole, so that a watcher never reads half of it.
	next := k.IdentityFile + ".next"
	if err := os.WriteFile(next, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(next, k.IdentityFile)
}

// Corefile gives the text that CoreDNS runs with.
func (k *Cluster) Corefile() string {
	sample, chain := k.config.Sample, k.config.Corefile
	if sample == "" {
		sample = "1"
	}
	if chain == "" {
		chain = DefaultChain()
	}
	block := ""
	if !k.config.NoPlugin {
		block = fmt.Sprintf("dnstrail {\n        endpoint grpc://%s\n        sample %s\n        identity file %s\n       "+
			" tracer\n        %s\n    }",
			netip.AddrPortFrom(k.DNS.Node.V4, 4317), sample, k.IdentityFile, k.config.Plugin+k.askBack.plugin)
	}
	var b strings.Builder
	for _, z := range append([]Zone{{".:53", chain}}, k.config.Zones...) {
		fmt.Fprintf(&b, "%s {\n    %s\n    %s\n}\n", z.Name, block, z.Chain)
	}
	return b.String()
}

func (k *Cluster) startCoreDNS(ctx context.Context) (err error) {
	corefile := filepath.Join(k.dir, "Corefile")
	if err := os.WriteFile(corefile, []byte(k.Corefile()), 0o644); err != nil {
		return err
	}
	bin, err := filepath.Abs(filepath.Join(k.config.Bin, "coredns"))
	if err != nil {
		return err
	}
	env := append([]string{
		"POD_NAME=" + k.DNS.Name, "POD_NAMESPACE=" + k.DNS.PodSpec.Namespace, "POD_UID=" + k.DNS.UID, "NODE_NAME=" +
			k.DNS.Node.Name,
	}, k.config.Env...)
	if k.CoreDNS, err = k.DNS.Start(lab.Command{Path: bin, Args: []string{"-conf", corefile}, Env: env}); err != nil {
		return err
	}
	if k.Metrics, err = k.Expose(k.DNS.Namespace, "127.0.0.1:9153"); err != nil {
		return err
	}
	return wait(ctx, "CoreDNS", k.CoreDNS, func() error {
		conn, err := k.DNS.Dial(ctx, "udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		c := dns.Client{Timeout: 200 * time.Millisecond}
		_, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA),
			&dns.Conn{Conn: conn})
		return err
	})
}

// StartAgents starts the agents as the configuration says: one on the host where that is [NoAgent].
func (k *Cluster) StartAgents(ctx context.Context) error {
	if k.config.Agents == AgentPerNode {
		return k.StartNodeAgents(ctx)
	}
	return k.startAgent(ctx, append([]string{"--socket", k.AgentSocket()}, k.askBack.args(len(k.Nodes())-1)...)...)
}

// UseBin says where the programs that are started from now on come from: a directory of coredns and dnstrail.
func (k *Cluster) UseBin(dir string) { k.config.Bin = dir }

// StartLabAgent starts one agent on the host that sees every namespace that the lab has now, and no other of the host.
func (k *Cluster) StartLabAgent(ctx context.Context) error {
	args := append(k.NetNSArgs(), "--socket", k.AgentSocket())
	return k.startAgent(ctx, append(args, k.askBack.args(len(k.Nodes())-1)...)...)
}

// AgentSocket gives the Unix socket of the agent on the host.
func (k *Cluster) AgentSocket() string { return filepath.Join(k.dir, "agent.sock") }

// NetNSArgs gives the arguments that confine an agent or observe to the namespaces that the lab has now.
func (k *Cluster) NetNSArgs() []string {
	var args []string
	for _, n := range k.Namespaces() {
		args = append(args, "--netns", strconv.FormatUint(n.Inode(), 10))
	}
	return args
}

// StartNodeAgents starts an agent a node, confined to the node and the pods that it has now.
func (k *Cluster) StartNodeAgents(ctx context.Context) error {
	for i, n := range k.Nodes() {
		args := []string{"--node", n.Name, "--socket", filepath.Join(k.dir, n.Name+".sock"), "--netns",
			strconv.FormatUint(n.Inode(), 10)}
		for _, p := range k.Pods() {
			if p.Node == n {
				args = append(args, "--netns", strconv.FormatUint(p.Inode(), 10))
			}
		}
		if err := k.startAgent(ctx, append(args, k.askBack.args(i)...)...); err != nil {
			return err
		}
	}
	return nil
}

func (k *Cluster) startAgent(ctx context.Context, args ...string) error {
	bin, err := filepath.Abs(filepath.Join(k.config.Bin, "dnstrail"))
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	metrics := net.JoinHostPort("127.0.0.1", port)
	sample := k.config.Sample
	if sample == "" {
		sample = "1"
	}
	args = append([]string{"agent", "--identity-file", k.IdentityFile, "--sample", sample, "--metrics-address", metrics},
		args...)
	command := lab.Command{
		Path: bin, Args: append(args, k.config.AgentArgs...),
		Env: append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + k.config.Collector, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
			k.config.Env...),
	}
	if k.config.AgentMemory > 0 {
		m, err := k.AddMemoryCgroup(k.config.AgentMemory)
		if err != nil {
			return err
		}
		k.AgentCgroups = append(k.AgentCgroups, m)
		command = m.Command(command)
	}
	p, err := k.Lab.Start(command)
	if err != nil {
		return err
	}
	k.Agents, k.AgentMetrics = append(k.Agents, p), append(k.AgentMetrics, metrics)
	return wait(ctx, "dnstrail agent", p, func() error {
		conn, err := net.Dial("tcp", metrics)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// patience is how long a program may take until it is ready. It ends a hopeless wait; on an emulated processor a start
// takes half a minute.
const patience = 90 * time.Second

// wait tries until ready gives nil, the process ends, or patience does.
func wait(ctx context.Context, what string, p *lab.Process, ready func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended at its start: %w\n%s", what, p.Err(), Tail(p))
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not ready after %v: %w\n%s", what, patience, err, Tail(p))
		}
	}
}

// Tail gives the last lines that a process wrote.
func Tail(p *lab.Process) string {
	lines := strings.Split(strings.TrimSpace(p.Stdout()+p.Stderr()), "\n")
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return strings.Join(lines, "\n")
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
