package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// How the faults that people met in the field are made. The table of them is in matrix_field.go.

// nftFamily gives the word of nft for a family.
func nftFamily(f family) string { return pick(f, "ip", "ip6") }

// serverOf gives an address of a family of CoreDNS's pod.
func (s *scene) serverOf(f family) netip.Addr {
	return pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)
}

// digAt runs dig in the client's pod against a server, once, with further arguments.
func digAt(server func(*scene, family) netip.AddrPort, answered bool, args ...string) func(*scene, family, string) (
	[]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		return nil, s.digFrom(s.client.Run, server(s, f), name, answered, args...)
	}
}

// nodeDigAt does so on the client's node.
func nodeDigAt(server func(*scene, family) netip.AddrPort, answered bool) func(*scene, family, string) (
	[]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		return nil, s.digFrom(s.client.Node.Run, server(s, f), name, answered)
	}
}

func dnsPod(s *scene, f family) netip.AddrPort      { return netip.AddrPortFrom(s.serverOf(f), 53) }
func localCache(_ *scene, f family) netip.AddrPort  { return netip.AddrPortFrom(local(f), 53) }
func theUpstream(_ *scene, f family) netip.AddrPort { return netip.AddrPortFrom(upstreamOf(f), 53) }

func upstreamOf(f family) netip.Addr { return pick(f, lab.UpstreamV4, lab.UpstreamV6) }

// redirectAnswers makes answers of CoreDNS come to the client by bpf_redirect_peer, from where they come to its node.
func redirectAnswers(s *scene, f family) (lab.Undo, error) {
	from := "eth0"
	if s.setting == inTogether {
		from = s.cluster.DNS.HostVeth
	}
	return s.client.Node.RedirectPeer(from, s.client.HostVeth, pick(f, s.client.V4, s.client.V6))
}

// redirectQueries makes queries come to CoreDNS so.
func redirectQueries(s *scene, f family) (lab.Undo, error) {
	from := "eth0"
	if s.setting == inTogether {
		from = s.client.HostVeth
	}
	return s.cluster.DNS.Node.RedirectPeer(from, s.cluster.DNS.HostVeth, s.serverOf(f))
}

// and makes one fault after the other.
func and(all ...func(*scene, family) (lab.Undo, error)) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		var undos []lab.Undo
		for _, inject := range all {
			undo, err := inject(s, f)
			undos = append(undos, undo)
			if err != nil {
				return undoAll(undos...), err
			}
		}
		return undoAll(undos...), nil
	}
}

// withMacvlan gives the client a device on its node's eth0, and sends what is for the address over it.
func withMacvlan(to func(family) netip.Addr) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		addrs := []netip.Prefix{netip.MustParsePrefix("192.168.100.77/24"), netip.MustParsePrefix("fd00:100::77/64")}
		undo, err := s.client.Node.AddMacvlan(s.client.Namespace, "net1", addrs...)
		if err != nil || to(f) == upstreamOf(f) {
			return undo, err
		}
		dst := to(f)
		_, err = s.client.AddRoute(netip.PrefixFrom(dst, dst.BitLen()), pick(f, netip.MustParseAddr("192.168.100.1"),
			netip.MustParseAddr("fd00:100::1")))
		return undo, err // the route goes with the device
	}
}

// killed ends NodeLocal DNSCache; its address stays.
func killed(_ *scene, _ family, p *lab.Process) (lab.Undo, error) {
	p.Kill()
	<-p.Done()
	return nil, nil
}

func halted(_ *scene, _ family, p *lab.Process) (lab.Undo, error) {
	return nil, p.Signal(syscall.SIGSTOP)
}

// cacheFull stops NodeLocal DNSCache and fills its buffers with what is no DNS, from the node itself.
func cacheFull(s *scene, f family, p *lab.Process) (lab.Undo, error) {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	conn, err := s.client.Node.Dial(ctxBackground, "udp", localCache(s, f).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for range 5000 {
		if _, err := conn.Write([]byte{0}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// rejectTCP answers TCP to port 53 with a reset, on the client's node.
func rejectTCP(s *scene, f family) (lab.Undo, error) {
	return s.client.Node.Rules(nftFamily(f), "chain c { type filter hook forward priority 0; tcp dport 53 reject with "+
		"tcp reset; }")
}

// onlyUDP makes the client's node translate UDP to the service address, and nothing else.
func onlyUDP(s *scene, f family) (lab.Undo, error) {
	if err := s.client.Node.RemoveService(); err != nil {
		return s.restoreService, err
	}
	undo, err := s.client.Node.Translate(netip.AddrPortFrom(f.vip, 53), dnsPod(s, f))
	return undoAll(s.restoreService, undo), err
}

// noLocalEndpoint is what kube-proxy makes of internalTrafficPolicy: Local on a node without an endpoint: what is for
// the service address is dropped, not rejected.
func noLocalEndpoint(s *scene, f family) (lab.Undo, error) {
	n := s.client.Node
	if err := n.RemoveService(); err != nil {
		return s.restoreService, err
	}
	undo, err := n.Rules(nftFamily(f), fmt.Sprintf(`
		map no-endpoint-services {
			type %s_addr . inet_proto . inet_service : verdict
			elements = { %s . udp . 53 : drop, %[2]s . tcp . 53 : drop }
		}
		chain endpoint-check { %[3]s daddr . meta l4proto . th dport vmap @no-endpoint-services; }
		chain f { type filter hook forward priority -110; ct state new jump endpoint-check; }
		chain o { type filter hook output priority -110; ct state new jump endpoint-check; }`,
		pick(f, "ipv4", "ipv6"), f.vip, nftFamily(f)))
	return undoAll(s.restoreService, undo), err
}

// oldPort is the port that a client goes on to ask from.
const oldPort = 21667

// askOld asks from one port while the service leads to a pod, and again when it does not any more. die makes of the pod
// what is to become of it.
func askOld(die func(*scene, family) (lab.Undo, error), words func(*scene) []string) func(*scene, family, string) (
	[]truth, error) {
	return func(s *scene, f family, name string) (_ []truth, err error) {
		p, err := s.coreDNS(inPod(s.idle, netip.AddrPortFrom(s.idle.V4, 53)), "", cluster.Zone{Name: ".:53", Chain: forwards})
		if err != nil {
			return nil, err
		}
		undo := stop(p)
		defer func() { err = errors.Join(err, undo()) }()
		if err := s.cluster.Service.SetEndpoints(s.idle); err != nil {
			return nil, err
		}
		undo = undoAll(undo, s.restoreService)
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), oldPort)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		ask := func(prefix string, id uint16, answered bool) error {
			q, err := message(prefix+name, dns.TypeA, id)
			if err != nil {
				return err
			}
			m, err := exchange(c, service(s, f), q, answerTime)
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
				err = nil
			}
			return want(m, err, answered)
		}
		if err := ask("before.", 1, true); err != nil {
			return nil, err
		}
		if err := s.cluster.Service.MoveEndpoints(s.cluster.DNS); err != nil {
			return nil, err
		}
		if err := stop(p)(); err != nil {
			return nil, err
		}
		dead, err := die(s, f)
		undo = undoAll(undo, dead)
		if err != nil {
			return nil, err
		}
		// From new ports all goes well.
		for range 3 {
			if err := s.digFrom(s.client.Run, service(s, f), "new."+name, true); err != nil {
				return nil, err
			}
		}
		if err := ask("", 2, false); err != nil {
			return nil, err
		}
		before, after := answered, truth{
			name: "-", where: "service", cause: "dead-endpoint",
			text:   append([]string{"older|earlier|old entry|before", pick(f, s.idle.V4, s.idle.V6).String()}, words(s)...),
			advice: []string{"conntrack -D"},
		}
		before.name = "before"
		others := named("new")
		others.count = 3
		time.Sleep(patience - answerTime) // what is said is said while it is so
		return []truth{before, others, after}, nil
	}
}

func noWords(*scene) []string                      { return nil }
func theIdle(s *scene) []string                    { return []string{s.idle.Name} }
func theOdd(s *scene) []string                     { return []string{s.odd.Name} }
func nothingMore(*scene, family) (lab.Undo, error) { return nil, nil }

// moveAddress gives the idle pod's address to another pod of its node, which serves no DNS.
func moveAddress(s *scene, f family) (lab.Undo, error) {
	mac, err := s.odd.HardwareAddress("eth0")
	if err != nil {
		return nil, err
	}
	ip, nodad := pick(f, s.idle.V4, s.idle.V6), pick(f, "", " nodad")
	addr := netip.PrefixFrom(ip, ip.BitLen())
	taken, err := s.odd.IP(fmt.Sprintf("addr add %s dev eth0%s", addr, nodad), fmt.Sprintf("addr del %s dev eth0", addr))
	if err != nil {
		return taken, err
	}
	there, err := s.idle.Node.IP(fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev cbr0", ip, mac),
		fmt.Sprintf("neigh del %s dev cbr0", ip))
	return undoAll(taken, there), err
}

// deadRoute makes the node of the idle pod answer what is for it with a route of a kind: blackhole, unreachable,
// prohibit.
func deadRoute(kind string) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		dst := fmt.Sprintf("%s %s", kind, pick(f, s.idle.V4, s.idle.V6))
		return s.idle.Node.IP("route add "+dst, "route del "+dst)
	}
}

// onePort gives what leaves the client's node for port 53 the node's address and one source port.
func onePort(s *scene, f family) (lab.Undo, error) {
	undo, err := s.client.Node.Rules(nftFamily(f),
		`chain post { type nat hook postrouting priority 99; oifname "eth0" udp dport 53 masquerade to :40000; }`)
	return undoAll(func() error { return s.client.Node.ForgetService() }, undo), err
}

// askTwice asks twice, from a new port each time; from is who asks the second time.
func askTwice(from func(*scene) *lab.Pod) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		if err := s.digFrom(s.client.Run, service(s, f), "first."+name, true); err != nil {
			return nil, err
		}
		return nil, s.digFrom(from(s).Run, service(s, f), "second."+name, false)
	}
}

func theClient(s *scene) *lab.Pod { return s.client }
func thePeer(s *scene) *lab.Pod   { return s.peer }

// proxyPort is where a proxy in the client's pod listens.
const proxyPort = 15053

// withProxy redirects what the client asks to a DNS proxy in its pod, as Istio and Docker do, and starts that.
func withProxy(more func(*scene, family, *lab.Process) (lab.Undo, error)) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		rules, err := s.client.Rules(
			nftFamily(f), fmt.Sprintf("chain o { type nat hook output priority -100; meta skuid != 1337 udp dport 53 "+
				"redirect to :%d; }", proxyPort))
		if err != nil {
			return nil, err
		}
		in := inPod(s.client, netip.AddrPortFrom(pick(f, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), proxyPort))
		in.uid = "1337"
		chain := fmt.Sprintf("errors\n    bind 127.0.0.1 ::1\n    forward . %s", f.vip)
		p, err := s.coreDNS(in, "", cluster.Zone{Name: fmt.Sprintf(".:%d", proxyPort), Chain: chain})
		if err != nil || more == nil {
			return undoAll(rules, stopIf(p)), err
		}
		undo, err := more(s, f, p)
		return undoAll(rules, stop(p), undo), err
	}
}

func stopIf(p *lab.Process) lab.Undo {
	if p == nil {
		return nil
	}
	return stop(p)
}

// servicePort makes every node translate the service's port 53 to CoreDNS's port 5353.
func servicePort(s *scene, f family) (lab.Undo, error) {
	var undos []lab.Undo
	for _, n := range s.cluster.Nodes() {
		undo, err := n.Rules(nftFamily(f),
			fmt.Sprintf("chain p { type nat hook prerouting priority -110; %s daddr %s udp dport 53 dnat to %s; }",
				nftFamily(f), f.vip, netip.AddrPortFrom(s.serverOf(f), 5353)))
		undos = append(undos, undo)
		if err != nil {
			return undoAll(undos...), err
		}
	}
	return undoAll(undos...), nil
}

// askSlowNeighbor asks while the client's neighbor does not answer, and makes it known 400 ms later, as another
// process.
func askSlowNeighbor(s *scene, f family, name string) (_ []truth, err error) {
	undo, err := s.client.Node.Sysctls("net/ipv4/conf/cbr0/arp_ignore", "8")
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return nil, err
	}
	if _, err := s.client.Tool("", "ip", "neigh", "flush", "all"); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- s.digFrom(s.client.Run, service(s, f), name, true, "+time=4") }()
	mac, err := s.client.Node.HardwareAddress("cbr0")
	if err != nil {
		return nil, err
	}
	gateway := s.client.Node.PodsV4.Addr().Next()
	for end := time.Now().Add(slowStart); ; time.Sleep(10 * time.Millisecond) {
		// The entry is there, and incomplete, from when the query waits for it.
		entry, err := s.client.Tool("", "ip", "neigh", "show", gateway.String(), "dev", "eth0")
		if err != nil {
			return nil, err
		}
		if strings.Contains(entry, "INCOMPLETE") {
			break
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("no query waits for %s: %q", gateway, entry), <-done)
		}
	}
	time.Sleep(slowNeighbor)
	_, err = s.client.Tool("", "ip", "neigh", "replace", gateway.String(), "lladdr", mac, "nud", "reachable", "dev",
		"eth0")
	return nil, errors.Join(err, <-done)
}

// slowNeighbor is how long a query waits for its next hop's hardware address.
const slowNeighbor = 400 * time.Millisecond

// noPodRoute takes the client's routes beyond its own network.
func noPodRoute(s *scene, f family) (lab.Undo, error) {
	return s.client.WithoutRoute(pick(f, anywhere4, anywhere6))
}

// podRoute gives the client a route of a kind (unreachable, blackhole, prohibit) to the service.
func podRoute(kind string) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		return s.client.IP(fmt.Sprintf("route add %s %s", kind, f.vip), fmt.Sprintf("route del %s %s", kind, f.vip))
	}
}

// noPort leaves the client no free local port.
func noPort(s *scene, f family) (lab.Undo, error) {
	undo, err := s.client.Sysctls("net/ipv4/ip_local_port_range", "40000 40001")
	if err != nil {
		return undo, err
	}
	var held []net.Conn
	free := func() error {
		for _, c := range held {
			_ = c.Close() // never fails: an open UDP socket
		}
		return undo()
	}
	for port := uint16(40000); port <= 40001; port++ {
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), port)
		if err != nil {
			return free, err
		}
		held = append(held, c)
	}
	return free, nil
}

// askInVain wants the connect of a UDP socket to fail.
func askInVain(s *scene, f family, _ string) ([]truth, error) {
	conn, err := s.client.Dial(ctxBackground, "udp", service(s, f).String())
	if err == nil {
		return nil, errors.Join(errors.New("the socket was connected"), conn.Close())
	}
	return nil, nil
}

// sendInVain wants to send to fail, of a socket that is not connected.
func sendInVain(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, pick(f, netip.IPv4Unspecified(), netip.IPv6Unspecified()), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteToUDPAddrPort(q, service(s, f)); err == nil {
		return nil, errors.New("the query was sent")
	}
	return nil, nil
}

// noServerRoute makes CoreDNS's dial to the upstream of the zone no-route fail.
func noServerRoute(s *scene, _ family) (lab.Undo, error) {
	return s.cluster.DNS.IP("route add unreachable "+noRouteAddress.String(), "route del unreachable "+
		noRouteAddress.String())
}

// noBridgeFilter lets packets between two pods of a node pass its bridge without the service's translation.
func noBridgeFilter(s *scene, _ family) (lab.Undo, error) {
	return s.client.Node.Sysctls("net/bridge/bridge-nf-call-iptables", "0", "net/bridge/bridge-nf-call-ip6tables", "0")
}

// askAtLimit asks once for what takes a second and a half, and three times meanwhile.
func askAtLimit(s *scene, f family, name string) ([]truth, error) {
	ask := func(prefix string, id uint16, begun func() error) error {
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
		if err != nil {
			return err
		}
		defer c.Close()
		q, err := message(prefix+name, dns.TypeA, id)
		if err != nil {
			return err
		}
		if _, err := c.WriteToUDPAddrPort(q, service(s, f)); err != nil {
			return err
		}
		if err := begun(); err != nil {
			return err
		}
		m, err := receive(c, 2*answerTime)
		return want(m, err, true)
	}
	return nil, ask("first.", 1, func() error {
		// The limit is reached when the upstream has been asked.
		for end := time.Now().Add(answerTime); len(s.cluster.Upstream.Queries("first."+name)) == 0; {
			if time.Now().After(end) {
				return errors.New("the upstream was not asked")
			}
			time.Sleep(5 * time.Millisecond)
		}
		for i := range 3 {
			if err := ask("more.", uint16(i+2), func() error { return nil }); err != nil {
				return err
			}
		}
		return nil
	})
}

// askCachedFailure asks twice for what the upstream fails at the first time alone.
func askCachedFailure(s *scene, f family, name string) ([]truth, error) {
	s.cluster.Upstream.Set(name, lab.Behavior{Rcode: dns.RcodeServerFailure})
	if err := s.digFrom(s.client.Run, service(s, f), name, true); err != nil {
		return nil, err
	}
	s.cluster.Upstream.Set(name, lab.Behavior{})
	return nil, s.digFrom(s.client.Run, service(s, f), name, true)
}

// shortConntrack makes entries of the client's node end after a second without a packet.
func shortConntrack(s *scene, _ family) (lab.Undo, error) {
	return s.client.Node.Sysctls("net/netfilter/nf_conntrack_udp_timeout", "1")
}

// askUnread asks a stopped server, and ends that when the lookup was reported as lost: the query in its buffer is
// dropped then.
func askUnread(s *scene, f family, name string) ([]truth, error) {
	p, err := s.secondDNS(forwards)
	if err != nil {
		return nil, err
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	err = s.digFrom(s.client.Run, netip.AddrPortFrom(pick(f, s.second.V4, s.second.V6), 53), name, false)
	time.Sleep(patience - answerTime)
	p.Kill()
	<-p.Done()
	return nil, err
}

// askRetransmitted sends a query over TCP into a drop, for longer than a lookup is waited for.
func askRetransmitted(s *scene, f family, name string) ([]truth, error) {
	conn, err := s.client.Dial(ctxBackground, "tcp", service(s, f).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	undo, err := s.client.Node.Rules(nftFamily(f), "chain c { type filter hook forward priority 0; tcp dport 53 drop; }")
	if err != nil {
		return nil, err
	}
	q, err := query(name)
	if err == nil {
		_, err = conn.Write(append([]byte{0, byte(len(q))}, q...))
	}
	time.Sleep(13 * time.Second) // segments go again after 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s
	return nil, errors.Join(err, conn.(*net.TCPConn).SetLinger(0), undo())
}

// askAfterGiveUp sends the same query from the same port twice, five seconds apart, as glibc does. The first is lost.
func askAfterGiveUp(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := message(name, dns.TypeA, 4711)
	if err != nil {
		return nil, err
	}
	undo, err := s.client.Node.Drop(lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53})
	if err != nil {
		return nil, err
	}
	m, err := exchange(c, service(s, f), q, 5*time.Second)
	if err := errors.Join(want(m, err, false), undo()); err != nil {
		return nil, err
	}
	m, err = exchange(c, service(s, f), q, answerTime)
	return nil, want(m, err, true)
}

// epoch is how long one port and ID is one lookup.
const epoch = 8 * time.Second

// inOneEpoch waits until there is time enough.
func inOneEpoch(ask func(*scene, family, string) ([]truth, error)) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		time.Sleep(time.Until(time.Now().Truncate(epoch).Add(epoch + 200*time.Millisecond)))
		return ask(s, f, name)
	}
}

// xdpDrop drops queries in XDP where they come to CoreDNS's node.
func xdpDrop(s *scene, f family) (lab.Undo, error) {
	return s.cluster.DNS.Node.XDPDrop("eth0", dnsPod(s, f))
}

// tcDrop drops them by a program of the traffic control there; on one node, where they leave the client's pod.
func tcDrop(s *scene, f family) (lab.Undo, error) {
	if s.setting == inTogether {
		return s.client.Node.TCDrop(s.client.HostVeth, f.vip)
	}
	return s.cluster.DNS.Node.TCDrop("eth0", s.serverOf(f))
}

// noCPU is how long CoreDNS gets no CPU, as under a quota that is used up.
const noCPU = 1500 * time.Millisecond

// askMeanwhile asks while CoreDNS gets no CPU, and waits for the answer.
func askMeanwhile(s *scene, f family, name string) ([]truth, error) {
	done := make(chan error, 1)
	go func() { done <- s.digFrom(s.client.Run, service(s, f), name, true, "+time=4") }()
	time.Sleep(noCPU)
	err := s.cluster.CoreDNS.Signal(syscall.SIGCONT)
	return nil, errors.Join(err, <-done)
}
