package lab

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Reexec()
	os.Exit(m.Run())
}

// up raises a lab for a test, or skips it without root.
func up(t *testing.T, c ...Config) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root to make network namespaces")
	}
	l, err := Up(append(c, Config{})[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return l
}

func addPod(t *testing.T, l *Lab, node, namespace, workload string) *Pod {
	t.Helper()
	p, err := l.AddPod(PodSpec{Node: node, Namespace: namespace, Workload: Workload{Kind: "Deployment", Name: workload}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serveDNS runs a server in a pod, in this process, that answers every A and AAAA query outside cluster.local.
func serveDNS(t *testing.T, p *Pod) {
	t.Helper()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if rr := record(r.Question[0], 30, 0); dns.IsSubDomain("cluster.local.", r.Question[0].Name) {
			m.Rcode = dns.RcodeNameError // so that the resolver walks its search list
		} else if rr != nil {
			m.Answer = []dns.RR{rr}
		}
		_ = w.WriteMsg(m)
	})
	for _, a := range []netip.Addr{p.V4, p.V6} {
		pc, err := p.ListenPacket("udp", netip.AddrPortFrom(a, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		ln, err := p.Listen("tcp", netip.AddrPortFrom(a, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			go func() { _ = s.ActivateAndServe() }()
			<-started
			t.Cleanup(func() { _ = s.Shutdown() })
		}
	}
}

func run(t *testing.T, p *Pod, path string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := p.Run(ctx, path, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

func TestLookupThroughTheServiceAddress(t *testing.T) {
	for _, o := range overlays {
		t.Run(cmp.Or(string(o), "routed"), func(t *testing.T) { lookUpThroughTheServiceAddress(t, o) })
	}
}

func lookUpThroughTheServiceAddress(t *testing.T, o Overlay) {
	l := up(t, Config{Overlay: o})
	server := addPod(t, l, "node-2", "kube-system", "coredns")
	serveDNS(t, server)
	if err := l.Service.SetEndpoints(server); err != nil {
		t.Fatal(err)
	}
	question := dns.Question{Name: "www.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	want := record(question, 30, 0).(*dns.A).A.String()
	clients := map[string]*Pod{
		"other node": addPod(t, l, "node-1", "shop", "cart"),
		"same node":  addPod(t, l, "node-2", "shop", "checkout"),
		"itself":     server,
	}
	for where, p := range clients {
		for _, vip := range []netip.Addr{ServiceV4, ServiceV6} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				t.Run(fmt.Sprintf("from %s/%s/%s", where, vip, transport[1:]), func(t *testing.T) {
					got := run(t, p, "dig", "@"+vip.String(), "+short", "+tries=1", "+time=2", transport, "www.example.com")
					if got != want {
						t.Errorf("answer %q, want %q", got, want)
					}
				})
			}
		}
	}
	t.Run("glibc", func(t *testing.T) {
		if got := run(t, clients["other node"], "getent", "ahostsv4", "www.example.com"); !strings.HasPrefix(got, want) {
			t.Errorf("answer %q, want it to begin with %q", got, want)
		}
	})
	t.Run("from a node", func(t *testing.T) {
		p, err := l.Node("node-1").Start(Command{Path: "dig",
			Args: []string{"@10.96.0.10", "+short", "+tries=1", "+time=2", "www.example.com"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Err(); err != nil || strings.TrimSpace(p.Stdout()) != want {
			t.Errorf("answer %q, %v, want %q", p.Stdout(), err, want)
		}
	})
}

func TestEndpoints(t *testing.T) {
	l := up(t)
	client := addPod(t, l, "node-1", "shop", "cart")
	one, two := addPod(t, l, "node-2", "kube-system", "coredns"), addPod(t, l, "node-1", "kube-system", "coredns")
	serveDNS(t, one)
	serveDNS(t, two)
	dig := []string{"@10.96.0.10", "+tries=1", "+time=1", "www.example.com"}
	fails := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if out, err := client.Run(ctx, "dig", dig...); err == nil || !strings.Contains(out, want) {
			t.Errorf("dig said %q, %v; want a failure that says %q", out, err, want)
		}
	}
	set := func(addrs ...netip.Addr) {
		t.Helper()
		if err := l.Service.SetEndpointAddrs(addrs...); err != nil {
			t.Fatal(err)
		}
	}

	fails("connection refused") // rejected: no endpoint yet
	if err := l.Service.SetEndpoints(one, two); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		run(t, client, "dig", dig...)
	}
	set(netip.MustParseAddr("10.244.2.99"))
	fails("timed out")
	set(one.V4)
	run(t, client, "dig", dig...)
	for _, n := range l.Nodes() {
		if err := n.RemoveService(); err != nil {
			t.Fatal(err)
		}
	}
	fails("timed out")
	set(two.V4)
	run(t, client, "dig", dig...)
}

func TestFaults(t *testing.T) {
	l := up(t)
	server, client := addPod(t, l, "node-2", "kube-system", "coredns"), addPod(t, l, "node-1", "shop", "cart")
	serveDNS(t, server)
	if err := l.Service.SetEndpoints(server); err != nil {
		t.Fatal(err)
	}
	node1, node2 := l.Node("node-1"), l.Node("node-2")
	gateway := netip.MustParseAddr("10.244.1.77")
	drop := func(in interface{ Drop(DropRule) (Undo, error) }, r DropRule) func() (Undo, error) {
		r.Proto = unix.IPPROTO_UDP
		return func() (Undo, error) { return in.Drop(r) }
	}
	for _, f := range []struct {
		name   string
		inject func() (Undo, error)
		v6too  bool
	}{
		{"forward on the client's node", drop(node1, DropRule{Hook: Forward, DstPort: 53}), true},
		{"forward on the server's node", drop(node2, DropRule{Hook: Forward, DstPort: 53}), true},
		{"answer, forward on the server's node", drop(node2, DropRule{Hook: Forward, SrcPort: 53}), true},
		{"output of the client", drop(client, DropRule{Hook: Output, DstPort: 53}), true},
		{"input of the server", drop(server, DropRule{Hook: Input, DstPort: 53}), true},
		{"between the nodes", drop(l.Underlay, DropRule{Hook: Switched, DstPort: 53}), true},
		{"large answers between the nodes",
			drop(l.Underlay, DropRule{Hook: Switched, SrcPort: 53, MinLength: 60}), true},
		{"IPv4 only", func() (Undo, error) { return l.Underlay.Drop(DropRule{Hook: Switched, IPv4: true}) }, false},
		{"no route to the pods", func() (Undo, error) { return node1.WithoutRoute(node2.PodsV4) }, false},
		{"no route in the pod",
			func() (Undo, error) { return client.WithoutRoute(netip.MustParsePrefix("0.0.0.0/0")) }, false},
		{"neighbor that nobody is", func() (Undo, error) {
			return client.AddRoute(netip.PrefixFrom(ServiceV4, 32), gateway)
		}, false},
	} {
		t.Run(f.name, func(t *testing.T) {
			undo, err := f.inject()
			if err != nil {
				t.Fatal(err)
			}
			for _, vip := range []netip.Addr{ServiceV4, ServiceV6} {
				err := ask(client, vip)
				if lost := vip == ServiceV4 || f.v6too; lost && err == nil {
					t.Errorf("%s answered", vip)
				} else if !lost && err != nil {
					t.Errorf("%s: %v", vip, err)
				}
			}
			if err := undo(); err != nil {
				t.Fatal(err)
			}
			for _, vip := range []netip.Addr{ServiceV4, ServiceV6} {
				if err := ask(client, vip); err != nil {
					t.Errorf("undone, %s: %v", vip, err)
				}
			}
		})
	}
}

// ask sends one query from the pod, in this process, and waits for the answer for 300 ms.
func ask(p *Pod, vip netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := p.Dial(ctx, "udp", netip.AddrPortFrom(vip, 53).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	c := dns.Client{Timeout: 300 * time.Millisecond}
	_, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), &dns.Conn{Conn: conn})
	return err
}

func TestProcessInAPod(t *testing.T) {
	l := up(t)
	p := addPod(t, l, "node-1", "shop", "cart")
	for _, c := range []struct{ command, want string }{
		{"cat /etc/resolv.conf", "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n" +
			"options ndots:5"},
		{"hostname", p.Name},
		{"echo $$", "1"},
		{"readlink /proc/self/ns/net", fmt.Sprintf("net:[%d]", p.Inode())},
		{"ls /sys/fs/cgroup >/dev/null && grep ^0:: /proc/self/cgroup",
			"0::" + strings.TrimPrefix(p.cgroup.dir, mustCgroupMount(t))},
	} {
		if got := run(t, p, "sh", "-c", c.command); got != c.want {
			t.Errorf("%s printed %q, want %q", c.command, got, c.want)
		}
	}
	uid := strings.ReplaceAll(p.UID, "-", "_")
	want := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid + ".slice" +
		"/cri-containerd-" + p.ContainerID + ".scope"
	if !strings.HasSuffix(p.cgroup.dir, want) {
		t.Errorf("cgroup %s, want it to end in %s", p.cgroup.dir, want)
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err == nil && strings.Contains(string(host), "shop.svc.cluster.local") {
		t.Error("the host's own /etc/resolv.conf was changed")
	}
}

func mustCgroupMount(t *testing.T) string {
	t.Helper()
	m, err := cgroupMount()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRelays(t *testing.T) {
	l := up(t)
	p := addPod(t, l, "node-2", "kube-system", "coredns")
	echo := func(ln net.Listener) {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello from %s", ln.Addr())
			c.Close()
		}
	}
	read := func(c net.Conn, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := make([]byte, 100)
		n, _ := c.Read(b)
		return string(b[:n])
	}
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go echo(host)
	if err := l.Collector(host.Addr().String()); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{l.Node("node-2").V4, l.Node("node-2").V6} {
		got := read(p.Dial(t.Context(), "tcp", netip.AddrPortFrom(a, CollectorPort).String()))
		if want := "hello from " + host.Addr().String(); got != want {
			t.Errorf("pod to host by %s: %q, want %q", a, got, want)
		}
	}
	inPod, err := p.Listen("tcp", "127.0.0.1:9153")
	if err != nil {
		t.Fatal(err)
	}
	defer inPod.Close()
	go echo(inPod)
	addr, err := l.Expose(p.Namespace, "127.0.0.1:9153")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := read(net.Dial("tcp", addr)), "hello from 127.0.0.1:9153"; got != want {
		t.Errorf("host to pod: %q, want %q", got, want)
	}
}

func TestUpstream(t *testing.T) {
	l := up(t)
	p := addPod(t, l, "node-1", "shop", "cart")
	exchange := func(name, network string) (*dns.Msg, time.Duration, error) {
		t.Helper()
		conn, err := p.Dial(t.Context(), network, netip.AddrPortFrom(UpstreamV4, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := dns.Client{Timeout: 400 * time.Millisecond}
		return c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	}
	for _, c := range []struct {
		name, network string
		rcode         int
		answers       int
		truncated     bool
		atLeast       time.Duration
		silent        bool
	}{
		{name: "www.example.com.", network: "udp", answers: 1},
		{name: "www.elsewhere.", network: "udp", rcode: dns.RcodeNameError},
		{name: "nxdomain.example.", network: "udp", rcode: dns.RcodeNameError},
		{name: "a.servfail.example.", network: "tcp", rcode: dns.RcodeServerFailure},
		{name: "refused.example.", network: "udp", rcode: dns.RcodeRefused},
		{name: "nodata.example.", network: "udp"},
		{name: "delay-100ms.example.", network: "udp", answers: 1, atLeast: 100 * time.Millisecond},
		{name: "silent.example.", network: "udp", silent: true},
		{name: "lose-1.example.", network: "udp", silent: true},
		{name: "lose-1.example.", network: "udp", answers: 1},
		{name: "tc.example.", network: "udp", truncated: true},
		{name: "tc.example.", network: "tcp", answers: 1},
	} {
		m, took, err := exchange(c.name, c.network)
		if c.silent {
			if err == nil {
				t.Errorf("%s: answered", c.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if m.Rcode != c.rcode || len(m.Answer) != c.answers || m.Truncated != c.truncated || took < c.atLeast {
			t.Errorf("%s by %s: %v after %v, want %+v", c.name, c.network, m, took, c)
		}
	}
	if m, _, err := exchange("size-4000.example.", "udp"); err != nil || !m.Truncated {
		t.Errorf("large answer by UDP: %v, %v, want it truncated", m, err)
	}
	if m, _, err := exchange("size-4000.example.", "tcp"); err != nil || m.Truncated || m.Len() < 4000 {
		t.Errorf("large answer by TCP: %v, want 4000 bytes and no TC", err)
	}
	qs := l.Upstream.Queries("LOSE-1.example")
	if len(qs) != 2 || qs[0].Transport != "udp" {
		t.Errorf("the upstream saw %v, want two queries for lose-1.example.", qs)
	} else if got, want := qs[0].Client.Addr(), l.Node("node-1").V4; got != want {
		t.Errorf("the upstream was asked by %s, want the node's address %s: pods are masqueraded", got, want)
	}
}

// TestDownLeavesNothing raises and takes down two labs after one another, with everything in them that a lab can have.
func TestDownLeavesNothing(t *testing.T) {
	for range 2 {
		l := up(t)
		p := addPod(t, l, "node-1", "shop", "cart")
		if _, err := l.Expose(p.Namespace, "127.0.0.1:1"); err != nil {
			t.Fatal(err)
		}
		proc, err := p.Start(Command{Path: "sh", Args: []string{"-c", "setsid sleep 600 & sleep 600"}})
		if err != nil {
			t.Fatal(err)
		}
		on, err := l.Node("node-2").Start(Command{Path: "sleep", Args: []string{"600"}})
		if err != nil {
			t.Fatal(err)
		}
		var inodes []uint64
		for _, n := range []*Namespace{
			l.Underlay, l.Upstream.Namespace, l.Node("node-1").Namespace, l.Node("node-2").Namespace, p.Namespace,
		} {
			inodes = append(inodes, n.Inode())
			if len(holders(t, n.Inode())) == 0 {
				t.Fatalf("nobody holds %s: the check below would prove nothing", n.Name)
			}
		}
		cgroup := l.cgroup.dir
		if err := l.Down(); err != nil {
			t.Fatal(err)
		}
		if err := l.Down(); err != nil {
			t.Errorf("second down: %v", err)
		}
		for _, inode := range inodes {
			if h := holders(t, inode); h != nil {
				t.Errorf("network namespace %d is still held by %v", inode, h)
			}
		}
		for _, p := range []*Process{proc, on} {
			select {
			case <-p.Done():
			default:
				t.Errorf("process %d still runs", p.PID())
			}
		}
		if _, err := os.Stat(cgroup); err == nil {
			t.Errorf("cgroup %s is still there", cgroup)
		}
	}
}

// holders gives what keeps a network namespace: threads in it and open descriptors, as paths under /proc.
func holders(t *testing.T, inode uint64) []string {
	t.Helper()
	want := fmt.Sprintf("net:[%d]", inode)
	var found []string
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && to == want {
				found = append(found, l)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), want) {
		found = append(found, "a mount")
	}
	return found
}

func TestStaleCgroupsAreRemoved(t *testing.T) {
	l := up(t)
	mount := mustCgroupMount(t)
	// No process can have this start time: the lab that made the cgroup is gone.
	stale := filepath.Join(mount, fmt.Sprintf("%s%d-1-abcd", cgroupPrefix, os.Getpid()))
	if err := os.MkdirAll(filepath.Join(stale, "kubepods.slice"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := up(t)
	if _, err := os.Stat(stale); err == nil {
		t.Error("a crashed lab's cgroup is still there")
	}
	for _, dir := range []string{l.cgroup.dir, other.cgroup.dir} {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("a running lab's cgroup is gone: %v", err)
		}
	}
}

func TestIdentities(t *testing.T) {
	l := up(t)
	p := addPod(t, l, "node-1", "shop", "cart")
	var b strings.Builder
	if err := l.WriteIdentities(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"clients:", "- addresses:", "  - " + p.V4.String(), "  - " + p.V6.String(), "  namespace: shop",
		"  pod: " + p.Name, "  uid: " + p.UID, "  node: node-1", "    kind: Deployment", "    name: cart",
		"  - 192.168.100.11",
	} {
		if !slices.Contains(strings.Split(b.String(), "\n"), line) {
			t.Errorf("no line %q in\n%s", line, &b)
		}
	}
}
