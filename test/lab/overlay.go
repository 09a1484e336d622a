package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overlay is the way of the pods' packets between nodes.
type Overlay string

// The ways between nodes.
const (
	// Routed packets go as they are: every node has routes to the others' pods, as with kubenet or Calico without a
	// tunnel.
	Routed Overlay = ""
	// VXLAN is flannel's default: a device flannel.1 on every node, VNI 1, UDP port 8472 over IPv4, for both families.
	VXLAN Overlay = "vxlan"
)

var overlays = []Overlay{Routed, VXLAN}

func (o Overlay) valid() bool { return slices.Contains(overlays, o) }

const (
	// VXLANPort is the UDP port of the tunnel between nodes: Linux's own, which flannel uses.
	VXLANPort = 8472

	vxlanDevice = "flannel.1"
	// vxlanMTU leaves room for the outer headers: 50 bytes over IPv4.
	vxlanMTU = 1450
)

// reach makes the ways to the pods of the other nodes.
func (n *Node) reach(all []*Node, o Overlay) error {
	way := n.routeTo
	if o == VXLAN {
		if err := n.addVXLAN(); err != nil {
			return err
		}
		way = n.tunnelTo
	}
	for _, other := range all {
		if other == n {
			continue
		}
		if err := way(other); err != nil {
			return fmt.Errorf("way from %s to %s: %w", n.Name, other.Name, err)
		}
	}
	return nil
}

// routeTo adds the routes to another node's pods.
func (n *Node) routeTo(other *Node) error {
	if err := n.addRoute(other.PodsV4, other.V4); err != nil {
		return err
	}
	return n.addRoute(other.PodsV6, other.V6)
}

// hardware gives the address of the node's VXLAN device: locally administered, its number last.
func (n *Node) hardware() net.HardwareAddr {
	return net.HardwareAddr{0x0a, 0x58, 0, 0, 0, n.V4.As4()[3]}
}

func (n *Node) addVXLAN() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = vxlanDevice, vxlanMTU, n.hardware()
	if err := n.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: VXLANPort,
		SrcAddr: n.V4.AsSlice()}); err != nil {
		return fmt.Errorf("add %s in %s: %w", vxlanDevice, n.Name, err)
	}
	return n.upWith(vxlanDevice)
}

// tunnelEnd is the entry that says where the VXLAN device sends what is for another node.
func (n *Node) tunnelEnd(dev netlink.Link, other *Node) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: dev.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: other.V4.AsSlice(), HardwareAddr: other.hardware(),
	}
}

// tunnelTo adds the routes to another node's pods through the VXLAN device. As flannel does it: nothing is learned and
// nothing flooded, the other node's end is written down.
func (n *Node) tunnelTo(other *Node) error {
	dev, err := n.nl.LinkByName(vxlanDevice)
	if err != nil {
		return fmt.Errorf("%s: %w", vxlanDevice, err)
	}
	index := dev.Attrs().Index
	if err := n.nl.NeighAppend(n.tunnelEnd(dev, other)); err != nil {
		return fmt.Errorf("forwarding entry of %s: %w", vxlanDevice, err)
	}
	for _, pods := range []netip.Prefix{other.PodsV4, other.PodsV6} {
		// The network's own address stands for the node: nobody else has it.
		gw := pods.Addr()
		neigh := netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(),
			HardwareAddr: other.hardware()}
		if err := n.nl.NeighSet(&neigh); err != nil {
			return fmt.Errorf("neighbor %s on %s: %w", gw, vxlanDevice, err)
		}
		if err := n.nl.RouteAdd(&netlink.Route{Dst: ipNet(pods), LinkIndex: index, Gw: gw.AsSlice(),
			Flags: int(netlink.FLAG_ONLINK)}); err != nil {
			return fmt.Errorf("route to %s through %s: %w", pods, vxlanDevice, err)
		}
	}
	return nil
}

// WithoutVXLAN takes the node's VXLAN device down: nobody takes the tunnel's packets there any more.
func (n *Node) WithoutVXLAN() (Undo, error) {
	dev, err := n.nl.LinkByName(vxlanDevice)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", vxlanDevice, n.Name, err)
	}
	if err := n.nl.LinkDel(dev); err != nil {
		return nil, fmt.Errorf("remove %s of %s: %w", vxlanDevice, n.Name, err)
	}
	return func() error { return n.reach(n.lab.nodes, VXLAN) }, nil
}

// ForgetNode removes another node's end of the tunnel from this node's VXLAN device, as an agent of the overlay does
// that missed an event.
func (n *Node) ForgetNode(other *Node) (Undo, error) {
	dev, err := n.nl.LinkByName(vxlanDevice)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", vxlanDevice, n.Name, err)
	}
	if err := n.nl.NeighDel(n.tunnelEnd(dev, other)); err != nil {
		return nil, fmt.Errorf("forwarding entry of %s in %s: %w", vxlanDevice, n.Name, err)
	}
	return func() error { return n.nl.NeighAppend(n.tunnelEnd(dev, other)) }, nil
}
