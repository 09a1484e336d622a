package model

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// The network namespaces. The last one is another machine's, that no agent sees.
const (
	node1NS   = 101
	node2NS   = 102
	clientNS  = 111
	serverNS  = 121
	server2NS = 112 // a server beside the client
	beyondNS  = 199
)

// view is which of its addresses a packet has: as the client's socket knows them, with the server's translated, with
// the client's translated, too.
type view uint8

const (
	asSent view = iota
	toBackend
	masked
)

// entry is whose conntrack entry a packet carries.
type entry uint8

const (
	untracked   entry = iota
	translating       // the one that translates
	plain             // one that translates nothing
)

// step is one place that a packet passes.
type step struct {
	kind    hop.Kind
	ns      uint32
	dev     string
	local   bool // it still has its sender's socket
	tunnel  bool
	view    view
	ct      entry
	new     bool // the entry is not in the table yet
	hidden  bool // no hook sees it
	routed  bool // the hop limit was lowered before this place
	crosses bool // it came here by a wire: it may have been lost on it
}

func out(ns uint32, dev string, v view) step { return step{kind: hop.Out, ns: ns, dev: dev, view: v} }
func in(ns uint32, dev string, v view) step  { return step{kind: hop.In, ns: ns, dev: dev, view: v} }

func (s step) sent() step    { s.local = true; return s }
func (s step) inside() step  { s.tunnel = true; return s }
func (s step) unseen() step  { s.hidden = true; return s }
func (s step) byWire() step  { s.crosses = true; return s }
func (s step) lowered() step { s.routed = true; return s }

func (s step) with(e entry) step { s.ct = e; return s }
func (s step) unconfirmed() step { s.new = true; return s }

// fault is a place where the kernel may drop a packet: after a step, or before the first one where after is -1.
type fault struct {
	after   int
	ns      uint32
	dev     string // "" without a device
	reasons []string
	route   hop.Route
	view    view
	ct      entry
	local   bool
	wheres  []verdict.Where // what may be said of it
	icmp    bool            // an ICMP error goes back
}

// network is the way from a client to one server and back.
type network struct {
	name               string
	clientNS, serverNS uint32
	client             netip.Addr
	unbound            netip.Addr
	asked, backend     netip.AddrPort
	mask               netip.Addr // zero: the client's source is not translated
	fwd, back          []step
	faults, backFaults []fault
	strict             bool // the answer comes back untranslated: the client's socket does not take it
}

func (n *network) translates() bool { return n.asked != n.backend || n.mask.IsValid() }

// addresses of a world's family.
type family bool

func (six family) addr(a, b byte) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0: 0xfd, 13: a, 15: b})
	}
	return netip.AddrFrom4([4]byte{10, 244, a, b})
}

func (six family) unbound() netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

var (
	forwardReasons = []string{"NETFILTER_DROP", "IP_INNOROUTES", "NEIGH_FAILED", "IP_RPFILTER", "TC_INGRESS"}
	inputReasons   = []string{"NETFILTER_DROP"}
	socketReasons  = []string{"SOCKET_RCVBUFF", "NO_SOCKET"}
	sendReasons    = []string{"NETFILTER_DROP", "BPF_CGROUP_EGRESS", "IP_OUTNOROUTES"}
)

// newNetwork makes the i-th server's way of a world.
func newNetwork(d *dice, six family, i int, kinds ...string) *network {
	port := uint16(53)
	service := netip.AddrPortFrom(six.addr(96, byte(10+i)), port)
	pod := netip.AddrPortFrom(six.addr(2, byte(10+i)), port)
	n := &network{
		name: kinds[d.n(len(kinds))], clientNS: clientNS, serverNS: serverNS + uint32(i)*10, client: six.addr(1, 10),
		unbound: six.unbound(),
		asked:   service, backend: pod,
	}
	if d.one(4) {
		n.asked = pod // no service
	} else if d.one(6) {
		n.backend = netip.AddrPortFrom(pod.Addr(), 5353)
	}
	if d.one(3) {
		n.mask = six.addr(0, 1)
	}
	v, e, m := toBackend, translating, toBackend
	if n.mask.IsValid() {
		m = masked
	}
	s := n.serverNS
	veth := fmt.Sprintf("vethS%d", i)
	// The far node, up to the server's pod, and back from there.
	farIn := []step{out(node2NS, "cbr0", m).with(plain).lowered(), out(node2NS, veth, m).with(plain), in(s, "eth0", m)}
	farOut := []step{out(s, "eth0", m).sent(), in(node2NS, veth, m), in(node2NS, "cbr0", m).with(plain), out(node2NS,
		"eth0", m).with(plain).lowered()}
	podOut := []step{out(clientNS, "eth0", asSent).sent(), in(node1NS, "vethC", asSent)}
	podIn := []step{out(node1NS, "cbr0", asSent).with(e).lowered(), out(node1NS, "vethC", asSent).with(e),
		in(clientNS, "eth0", asSent)}
	wire := []step{out(node1NS, "eth0", m).with(e).lowered(), in(node2NS, "eth0", m).byWire()}
	wireBack := []step{in(node1NS, "eth0", m).byWire()}
	join := func(parts ...[]step) []step { return slices.Concat(parts...) }
	switch n.name {
	case "bridge":
		n.fwd = join(podOut, []step{in(node1NS, "cbr0", v).with(e).unconfirmed()}, wire, farIn)
		n.back = join(farOut, wireBack, podIn)
	case "routed":
		n.fwd = join(podOut, wire, []step{out(node2NS, veth, m).with(plain).lowered(), in(s, "eth0", m)})
		n.back = join([]step{out(s, "eth0", m).sent(), in(node2NS, veth, m), out(node2NS, "eth0",
			m).with(plain).lowered()}, wireBack,
			[]step{out(node1NS, "vethC", asSent).with(e).lowered(), in(clientNS, "eth0", asSent)})
	case "vxlan":
		n.fwd = join(podOut, []step{
			in(node1NS, "cbr0", v).with(e).unconfirmed(), out(node1NS, "flannel.1", m).with(e).lowered(), out(node1NS,
				"eth0", m).inside(),
			in(node2NS, "eth0", m).inside().byWire(), in(node2NS, "flannel.1", m),
		}, farIn)
		n.back = join(farOut[:3], []step{
			out(node2NS, "flannel.1", m).with(plain).lowered(), out(node2NS, "eth0", m).inside(), in(node1NS, "eth0",
				m).inside().byWire(),
			in(node1NS, "flannel.1", m),
		}, podIn)
	case "same-node":
		n.serverNS, s = server2NS+uint32(i)*10, server2NS+uint32(i)*10
		n.fwd = join(podOut, []step{
			in(node1NS, "cbr0", v).with(e).unconfirmed(), out(node1NS, "cbr0", m).with(e).lowered(), out(node1NS, veth,
				m).with(e), in(s, "eth0", m),
		})
		n.back = []step{
			out(s, "eth0", m).sent(), in(node1NS, veth, m), in(node1NS, "cbr0", asSent).with(e), out(node1NS, "cbr0",
				asSent).with(e).lowered(),
			out(node1NS, "vethC", asSent).with(e), in(clientNS, "eth0", asSent),
		}
	case "bridge-unfiltered": // bridge-nf-call-iptables is off: the answer goes past the translation
		n.serverNS, s, n.mask, m = server2NS+uint32(i)*10, server2NS+uint32(i)*10, netip.Addr{}, toBackend
		n.strict = n.asked != n.backend
		n.fwd = join(podOut, []step{in(node1NS, "cbr0", asSent), out(node1NS, "cbr0", m).with(e).lowered(), out(node1NS,
			veth, m).with(e), in(s, "eth0", m)})
		n.back = []step{out(s, "eth0", m).sent(), in(node1NS, veth, m), out(node1NS, "vethC", m), in(clientNS, "eth0", m)}
	case "host-network":
		n.clientNS, n.client, n.mask, m = node1NS, six.addr(0, 1), netip.Addr{}, toBackend
		n.fwd = join([]step{out(node1NS, "eth0", m).with(e).sent(), in(node2NS, "eth0", m).byWire()}, farIn)
		n.back = join(farOut, []step{in(node1NS, "eth0", m).byWire()})
	case "host-network-same-node":
		n.clientNS, n.client, n.mask, m = node1NS, six.addr(1, 1), netip.Addr{}, toBackend
		n.serverNS, s = server2NS+uint32(i)*10, server2NS+uint32(i)*10
		n.fwd = []step{out(node1NS, "cbr0", m).with(e).sent(), out(node1NS, veth, m).with(e).sent(), in(s, "eth0", m)}
		n.back = []step{out(s, "eth0", m).sent(), in(node1NS, veth, m), in(node1NS, "cbr0", m)}
	case "loopback", "loopback-node":
		n.clientNS = clientNS
		if n.name == "loopback-node" {
			n.clientNS = node1NS
		}
		n.serverNS, n.mask = n.clientNS, netip.Addr{}
		n.client = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		n.asked = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(53 + i)}), 53)
		n.backend, n.unbound = n.asked, netip.IPv4Unspecified()
		n.fwd = []step{out(n.clientNS, "lo", asSent).sent(), in(n.clientNS, "lo", asSent)}
		n.back = n.fwd
	case "redirected": // in the pod, to a proxy of its own
		n.serverNS, n.mask = clientNS, netip.Addr{}
		n.asked = service
		n.backend = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15053+uint16(i))
		if six {
			n.backend = netip.AddrPortFrom(netip.IPv6Loopback(), 15053+uint16(i))
		}
		n.fwd = []step{out(clientNS, "lo", v).with(e).sent(), in(clientNS, "lo", v).with(e)}
		n.back = n.fwd
	case "node-local":
		n.serverNS, n.mask = node1NS, netip.Addr{}
		n.asked = netip.AddrPortFrom(six.addr(254, byte(20+i)), 53)
		n.backend = n.asked
		n.fwd = join(podOut, []step{in(node1NS, "cbr0", asSent)})
		n.back = []step{out(node1NS, "cbr0", asSent).sent(), out(node1NS, "vethC", asSent).sent(), in(clientNS, "eth0",
			asSent)}
	case "macvlan":
		n.external(i, six)
		n.fwd = []step{out(clientNS, "mv0", asSent).sent(), out(node1NS, "eth0", asSent).sent(), in(beyondNS, "eth0",
			asSent).byWire()}
		n.back = []step{out(beyondNS, "eth0", asSent).sent(), in(node1NS, "eth0", asSent).byWire(), in(clientNS, "mv0",
			asSent).unseen()}
	case "redirect-peer":
		n.external(i, six)
		n.fwd = []step{
			out(clientNS, "eth0", asSent).sent(), in(node1NS, "vethC", asSent), out(node1NS, "eth0", asSent).lowered(),
			in(beyondNS, "eth0", asSent).byWire(),
		}
		n.back = []step{out(beyondNS, "eth0", asSent).sent(), in(node1NS, "eth0", asSent).byWire(), in(clientNS, "eth0",
			asSent).unseen()}
	case "redirect-peer-server":
		n.fwd = join(podOut, []step{in(node1NS, "cbr0", v).with(e).unconfirmed()}, wire, []step{in(s, "eth0", m).unseen()})
		n.back = join([]step{out(s, "eth0", m).sent(), in(node2NS, veth, m), out(node2NS, "eth0", m)}, wireBack, podIn)
	case "external":
		mask := n.mask
		n.external(i, six)
		n.mask = mask
		n.fwd = join(podOut, []step{in(node1NS, "cbr0", asSent).with(plain).unconfirmed(), out(node1NS, "eth0",
			m).with(e).lowered(), in(beyondNS, "eth0", m).byWire()})
		n.back = join([]step{out(beyondNS, "eth0", m).sent(), in(node1NS, "eth0", m).byWire()}, podIn)
	}
	n.findFaults()
	return n
}

// external makes the server one that no agent sees, asked by its own address.
func (n *network) external(i int, six family) {
	n.serverNS, n.mask = beyondNS, netip.Addr{}
	n.asked = netip.AddrPortFrom(six.addr(200, byte(53+i)), 53)
	n.backend = n.asked
}

// upstream is the way of a server's own queries to a server beyond.
func (n *network) upstream(six family, i int) *network {
	u := &network{
		name: "upstream", clientNS: n.serverNS, serverNS: beyondNS, client: n.backend.Addr(), unbound: six.unbound(),
		asked: netip.AddrPortFrom(six.addr(201, byte(53+i)), 53),
	}
	if n.backend.Addr().IsLoopback() {
		u.client = n.client
		if n.client.IsLoopback() {
			u.client = six.addr(1, 10)
		}
	}
	if n.serverNS == node1NS {
		u.client = six.addr(0, 1)
	}
	u.backend = u.asked
	node := uint32(node2NS)
	if n.serverNS == server2NS+uint32(i)*10 || n.serverNS == clientNS {
		node = node1NS
	}
	far := in(beyondNS, "eth0", asSent).byWire()
	farBack := out(beyondNS, "eth0", asSent).sent()
	switch n.serverNS {
	case node1NS, beyondNS:
		u.fwd = []step{out(n.serverNS, "eth0", asSent).sent(), far}
		u.back = []step{farBack, in(n.serverNS, "eth0", asSent).byWire()}
	default:
		veth := fmt.Sprintf("vethS%d", i)
		u.fwd = []step{
			out(n.serverNS, "eth0", asSent).sent(), in(node, veth, asSent), in(node, "cbr0", asSent).with(plain).unconfirmed(),
			out(node, "eth0", asSent).with(plain).lowered(), far,
		}
		u.back = []step{
			farBack, in(node, "eth0", asSent).byWire(), out(node, "cbr0", asSent).with(plain).lowered(), out(node, veth,
				asSent).with(plain),
			in(n.serverNS, "eth0", asSent),
		}
	}
	u.findFaults()
	return u
}

func isNode(ns uint32) bool { return ns == node1NS || ns == node2NS }

// findFaults lists where the kernel may drop the packets of both ways.
func (n *network) findFaults() {
	first := n.fwd[0]
	atClient := []verdict.Where{verdict.Client}
	if isNode(n.clientNS) {
		atClient = append(atClient, verdict.Node, verdict.Service)
	}
	n.faults = append(n.faults,
		fault{after: -1, ns: n.clientNS, reasons: sendReasons, view: first.view, ct: first.ct, local: true, wheres: atClient},
		fault{after: -1, ns: n.clientNS, dev: first.dev, reasons: []string{"NEIGH_FAILED"}, view: first.view,
			ct: first.ct, local: true, route: hop.RouteOn,
			wheres: append([]verdict.Where{verdict.PodLink, verdict.Service}, atClient...)})
	n.faults = append(n.faults, dropsOn(n.fwd, false)...)
	n.backFaults = dropsOn(n.back, true)
}

func dropsOn(way []step, answer bool) (faults []fault) {
	for i, s := range way {
		last := i == len(way)-1
		switch {
		case s.ns == beyondNS && !last:
		case last && answer:
			faults = append(faults, fault{after: i, ns: s.ns, dev: s.dev, reasons: inputReasons, route: hop.RouteLocal,
				view: s.view, ct: s.ct,
				wheres: []verdict.Where{verdict.ReturnPath, verdict.Client}})
		case last:
			wheres := []verdict.Where{verdict.CoreDNSSocket}
			if isNode(s.ns) {
				wheres = append(wheres, verdict.Node)
			}
			faults = append(faults,
				fault{after: i, ns: s.ns, dev: s.dev, reasons: inputReasons, route: hop.RouteLocal, view: s.view, ct: s.ct,
					wheres: wheres},
				fault{after: i, ns: s.ns, dev: s.dev, reasons: socketReasons, route: hop.RouteLocal, view: s.view, ct: s.ct,
					icmp:   true,
					wheres: append(wheres, verdict.Service)})
		case s.kind == hop.In && isNode(s.ns) && way[i+1].ns == s.ns && way[i+1].kind == hop.Out && !s.tunnel:
			wheres := []verdict.Where{verdict.Node, verdict.Service}
			if answer {
				wheres = []verdict.Where{verdict.ReturnPath}
			}
			v, e := s.view, s.ct
			if e == untracked && way[i+1].ct != untracked && !answer {
				v, e = max(s.view, min(way[i+1].view, toBackend)), way[i+1].ct // translated behind the device
			}
			faults = append(faults, fault{after: i, ns: s.ns, dev: s.dev, reasons: forwardReasons, route: hop.RouteOn,
				view: v, ct: e, wheres: wheres})
		}
	}
	return faults
}
