package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a node: a network namespace with eth0 on the underlay and a bridge cbr0 that its pods are on.
type Node struct {
	*Namespace
	// V4 and V6 are the node's own addresses, on the underlay.
	V4, V6 netip.Addr
	// PodsV4 and PodsV6 are the prefixes that the node's pods have their addresses from.
	PodsV4, PodsV6 netip.Prefix

	lab  *Lab
	next int // the last byte of the next pod's address
}

const (
	underlayBridge = "br0"
	podBridge      = "cbr0"
)

// raiseUnderlay makes the switch between the nodes. It is also their default router, and one that silently loses
// what it has no route for, as routers do with other people's private addresses.
func (l *Lab) raiseUnderlay() (err error) {
	if l.Underlay, err = newNamespace("underlay"); err != nil {
		return err
	}
	if err := l.Underlay.addBridge(underlayBridge, routerV4, routerV6); err != nil {
		return err
	}
	// A switch tracks no connections.
	for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if err := l.Underlay.SetSysctl(key, "0"); err != nil {
			return err
		}
	}
	if err := l.Underlay.forward(); err != nil {
		return err
	}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		_, n, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		if err := l.Underlay.nl.RouteAdd(&netlink.Route{Dst: n, Type: unix.RTN_BLACKHOLE}); err != nil {
			return fmt.Errorf("blackhole route in the underlay: %w", err)
		}
	}
	return nil
}

// plug connects a namespace to the underlay: a veth named port on the switch, eth0 with the addresses in the namespace.
func (l *Lab) plug(n *Namespace, port string, addrs ...netip.Prefix) error {
	if err := l.Underlay.addVeth(underlayBridge, port, n, addrs...); err != nil {
		return err
	}
	for _, gw := range []netip.Addr{routerV4.Addr(), routerV6.Addr()} {
		if err := n.addRoute(netip.PrefixFrom(unspecified(gw), 0), gw); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) raiseNode(name string, number int) (*Node, error) {
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Namespace: ns,
		V4:        netip.AddrFrom4([4]byte{192, 168, 100, byte(10 + number)}),
		V6:        netip.MustParseAddr(fmt.Sprintf("fd00:100::1%d", number)),
		PodsV4:    netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24),
		PodsV6:    netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", number)),
		lab:       l,
		next:      10,
	}
	if err := l.plug(ns, name, netip.PrefixFrom(n.V4, 24), netip.PrefixFrom(n.V6, 64)); err != nil {
		return n, err
	}
	if err := ns.forward(); err != nil {
		return n, err
	}
	if err := ns.addBridge(podBridge, netip.PrefixFrom(n.PodsV4.Addr().Next(), 24),
		netip.PrefixFrom(n.PodsV6.Addr().Next(), 64)); err != nil {
		return n, err
	}
	// Kubernetes asks for this: packets between two pods of one node pass the service translation too.
	for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if err := ns.SetSysctl(key, "1"); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Start starts a process on the node, as a pod with hostNetwork has it: in the node's network namespace, with the
// files, processes and cgroup of the host.
func (n *Node) Start(c Command) (*Process, error) {
	return n.lab.spawner.start(c, target{ns: n.Namespace})
}

// Run runs a program on the node as [Node.Start] does, and gives what it wrote to its standard output; the error tells
// what it wrote to its standard error.
func (n *Node) Run(ctx context.Context, path string, args ...string) (string, error) {
	return runToEnd(ctx, n.Start, n.Name, path, args)
}

// AddMacvlan gives another namespace a device on the node's eth0, with a hardware address of its own: its packets pass
// nothing of the node's but eth0. The undo deletes it.
func (n *Node) AddMacvlan(to *Namespace, name string, addrs ...netip.Prefix) (Undo, error) {
	parent, err := n.nl.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("eth0 in %s: %w", n.Name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = name, parent.Attrs().Index, netlink.NsFd(to.fd)
	if err := n.nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		return nil, fmt.Errorf("add macvlan %s of %s to %s: %w", name, n.Name, to.Name, err)
	}
	undo := func() error {
		l, err := to.nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", name, to.Name, err)
		}
		return to.nl.LinkDel(l)
	}
	return undo, to.upWith(name, addrs...)
}

func (n *Namespace) forward() error {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		"net/ipv6/conf/default/forwarding"} {
		if err := n.SetSysctl(key, "1"); err != nil {
			return err
		}
	}
	return nil
}

func (n *Namespace) addBridge(name string, addrs ...netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", name, n.Name, err)
	}
	return n.upWith(name, addrs...)
}

// addVeth makes a veth pair: name on the bridge here, eth0 with the addresses in the peer's namespace.
func (n *Namespace) addVeth(bridge, name string, peer *Namespace, addrs ...netip.Prefix) error {
	br, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s in %s: %w", bridge, n.Name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// The kernel tells a bridge at once that the carrier of its port is up, but takes up to a second where the two ends of
	// the veth happen to have one index (net/core/link_watch.c, linkwatch_urgent_event).
	attrs.Index = int(vethIndex.Add(1))
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.fd)}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s from %s to %s: %w", name, n.Name, peer.Name, err)
	}
	if err := n.nl.LinkSetMaster(veth, br); err != nil {
		return fmt.Errorf("put %s on %s: %w", name, bridge, err)
	}
	// A pod may reach itself through the service address: kubenet's hairpin mode.
	if err := n.nl.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("hairpin mode of %s: %w", name, err)
	}
	if err := n.nl.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring up %s in %s: %w", name, n.Name, err)
	}
	if err := peer.upWith("eth0", addrs...); err != nil {
		return err
	}
	return n.awaitUp(name)
}

// vethIndex is the index of the last veth: far above those that the kernel gives.
var vethIndex atomic.Int32

func init() { vethIndex.Store(1 << 16) }

// awaitUp waits until a bridge's port passes packets.
func (n *Namespace) awaitUp(port string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := n.nl.LinkByName(port)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", port, n.Name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s in %s is %s after 5 s", port, n.Name, l.Attrs().OperState)
		}
	}
}

func (n *Namespace) upWith(link string, addrs ...netip.Prefix) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s in %s: %w", link, n.Name, err)
	}
	if err := n.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s in %s: %w", link, n.Name, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s of %s in %s: %w", a, link, n.Name, err)
		}
	}
	return nil
}

func (n *Namespace) addRoute(dst netip.Prefix, via netip.Addr) error {
	if err := n.nl.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route to %s via %s in %s: %w", dst, via, n.Name, err)
	}
	return nil
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
