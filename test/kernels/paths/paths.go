package main

import (
	"net"

	"github.com/vishvananda/netlink"
)

// path is a way from the client to the server.
type path struct {
	name    string
	build   func(*world) error
	then    func(*world) error // the fault, made after one lookup was answered
	ask     string             // the address asked; the server's if empty
	lookups int                // 100 if 0
	// where and cause are what is to be said of each lookup, where it is not answered; with | there are alternatives.
	where, cause string
	// loses says that the path loses some: those that the client saw no answer to are to be called lost, and no others.
	loses bool
}

func (p *path) expected() string {
	switch {
	case p.where != "":
		return p.where + "/" + p.cause
	case p.loses:
		return "what the client saw"
	}
	return "answered/answered"
}

var paths = []path{
	{name: "path: veth, two nodes", build: func(*world) error { return nil }},
	{name: "path: ipvlan L2", build: withIPVlan(netlink.IPVLAN_MODE_L2)},
	{name: "path: ipvlan L3", build: withIPVlan(netlink.IPVLAN_MODE_L3)},
	{name: "path: ipvlan L3S", build: withIPVlan(netlink.IPVLAN_MODE_L3S)},
	{name: "path: macvlan", build: withMacvlan},
	{name: "path: VLAN between the nodes", build: withVLAN},
	{name: "path: IP in IP", build: withIPIP},
	{name: "path: GENEVE", build: withGeneve},
	{name: "path: IPVS", ask: vip, build: withIPVS},
	{
		name: "path: IPVS without a real server", ask: vip, lookups: 1, where: "service", cause: "no-endpoints",
		build: withIPVS, then: noRealServer,
	},
	{
		name: "path: IPVS, real server that nobody is", ask: vip, lookups: 1, where: "service|node",
		cause: "dead-endpoint|neighbour-unresolved", build: withIPVS, then: deadRealServer,
	},
	{
		name: "path: 30 % loss of queries", lookups: 1000, loses: true,
		build: func(w *world) error { return w.west.lose("eth0", 30) },
	},
	{
		name: "path: 30 % loss of answers", lookups: 1000, loses: true,
		build: func(w *world) error { return w.east.lose("eth0", 30) },
	},
}

// withIPVlan gives the client a device on its node's own, in the server's direction, in place of its link.
func withIPVlan(mode netlink.IPVlanMode) func(*world) error {
	return func(w *world) error {
		return w.onParent(func(parent int) netlink.Link {
			return &netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Name: "sub0", ParentIndex: parent}, Mode: mode}
		})
	}
}

func withMacvlan(w *world) error {
	return w.onParent(func(parent int) netlink.Link {
		return &netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "sub0", ParentIndex: parent}, Mode: netlink.MACVLAN_MODE_BRIDGE,
		}
	})
}

func (w *world) onParent(make func(int) netlink.Link) error {
	if err := w.west.add("eth0", make); err != nil {
		return err
	}
	for _, f := range []func() error{
		func() error { return w.west.move("sub0", w.client) },
		func() error { return w.client.up("sub0", "10.7.2.7/24") },
		func() error { return w.client.route("10.7.3.0/24", "10.7.2.2") },
		// ipvlan of the kinds L3 and L3S answers no ARP: its node's address does.
		func() error { return w.east.route("10.7.2.7/32", "10.7.2.1") },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// withVLAN puts what goes between the nodes into a VLAN.
func withVLAN(w *world) error {
	return w.between("vlan7", func(parent int, _, _ net.IP) netlink.Link {
		return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "vlan7", ParentIndex: parent}, VlanId: 7}
	})
}

func withIPIP(w *world) error {
	return w.between("tun7", func(_ int, local, remote net.IP) netlink.Link {
		return &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "tun7"}, Local: local, Remote: remote}
	})
}

func withGeneve(w *world) error {
	return w.between("gnv7", func(_ int, _, remote net.IP) netlink.Link {
		return &netlink.Geneve{LinkAttrs: netlink.LinkAttrs{Name: "gnv7"}, ID: 7, Remote: remote, Dport: 6081}
	})
}

// between makes a device on both nodes by which each reaches the other's pods.
func (w *world) between(device string, make func(parent int, local, remote net.IP) netlink.Link) error {
	west, east := net.IPv4(10, 7, 2, 1), net.IPv4(10, 7, 2, 2)
	for _, f := range []func() error{
		func() error { return w.west.add("eth0", func(i int) netlink.Link { return make(i, west, east) }) },
		func() error { return w.east.add("eth0", func(i int) netlink.Link { return make(i, east, west) }) },
		func() error { return w.west.up(device, "10.7.4.1/24") },
		func() error { return w.east.up(device, "10.7.4.2/24") },
		func() error { return w.west.route("10.7.3.0/24", "10.7.4.2") },
		func() error { return w.east.route("10.7.1.0/24", "10.7.4.1") },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// lose makes a device lose a share of what leaves by it, in percent.
func (s *space) lose(device string, percent float32) error {
	return s.inside(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		return netlink.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Loss: percent, Limit: 10000}))
	})
}
