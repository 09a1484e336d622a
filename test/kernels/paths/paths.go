package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// path is a way from the client to the server.
type path struct {
	name    string
	build   func(*world) error
	then    func(*world) error // the fault, made after one lookup was answered
	ask     string             // the address asked; the server's if empty
	lookups int                // over UDP; 100 if 0
	udp     bool               // the path is one for UDP alone: elsewhere there are lookups over TCP, too
	// reuse is how many lookups a client's port asks, one after the other; 1 if 0.
	reuse int
	// delay is how long the server thinks.
	delay time.Duration
	// where and cause are what is to be said of each lookup, where it is not answered; with | there are alternatives.
	where, cause string
	// plain is what may stand in place of cause where the kernel gives no reasons of drops, and its function drops for
	// several.
	plain string
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
	{name: "path: netkit", build: withNetkit},
	{name: "path: VLAN between the nodes", build: withVLAN},
	{name: "path: IP in IP", build: withIPIP},
	{name: "path: GENEVE", build: withGeneve},
	{name: "path: WireGuard", build: withWireGuard},
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
		name: "path: IPVS forgot before the answer", ask: vip, lookups: 1, where: "client", cause: "unexpected-source",
		build: forgetful, delay: 3 * time.Second,
	},
	{name: "path: flowtable", build: withFlowtable, reuse: 5},
	{name: "path: NFQUEUE", build: withQueue},
	{
		name: "path: NFQUEUE, its program drops", lookups: 1, where: "node", cause: "policy-drop",
		build: func(*world) error { return nil }, then: queueDrops,
	},
	{
		name: "path: NFQUEUE without a program", lookups: 1, where: "node", cause: "policy-drop",
		build: func(*world) error { return nil }, then: queueRule,
	},
	{name: "path: TPROXY", build: withTProxy},
	{name: "path: translation in tc", ask: neutral, build: withTC, udp: true},
	{name: "path: bpf_redirect_neigh, bpf_redirect_peer", build: withRedirect, udp: true},
	{name: "path: XDP_TX", ask: neutral, build: withXDPTX, udp: true},
	{
		name: "path: drop in tc", lookups: 1, where: "node", cause: "policy-drop", plain: "dropped",
		build: func(*world) error { return nil }, then: dropInTC,
	},
	{
		name: "path: XDP_DROP", lookups: 1, where: "node", cause: "policy-drop", plain: "dropped",
		build: func(*world) error { return nil }, then: dropInXDP,
	},
	{
		name: "path: delay and duplicates", udp: true,
		build: func(w *world) error {
			late := netlink.NetemQdiscAttrs{Latency: 50_000, Jitter: 40_000, Duplicate: 30}
			return errors.Join(w.west.netem(late), w.east.netem(late))
		},
	},
	{
		name: "path: 30 % loss of queries", lookups: 1000, loses: true,
		build: func(w *world) error { return w.west.netem(netlink.NetemQdiscAttrs{Loss: 30}) },
	},
	{
		name: "path: 30 % loss of answers", lookups: 1000, loses: true,
		build: func(w *world) error { return w.east.netem(netlink.NetemQdiscAttrs{Loss: 30}) },
	},
}

// errAbsent says that the kernel has no such path.
var errAbsent = errors.New("not in this kernel")

// withNetkit gives the client a netkit device in place of its veth, as Cilium does.
func withNetkit(w *world) error {
	err := w.west.inside(func() error {
		old, err := netlink.LinkByName("pod0")
		if err != nil {
			return err
		}
		kit := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "kit0"}, Mode: netlink.NETKIT_MODE_L3}
		kit.SetPeerAttrs(&netlink.LinkAttrs{Name: "kit1", Namespace: netlink.NsFd(int(w.client.file.Fd()))})
		switch err := netlink.LinkAdd(kit); {
		case errors.Is(err, unix.EOPNOTSUPP):
			return errAbsent
		case err != nil:
			return fmt.Errorf("netkit: %w", err)
		}
		return netlink.LinkDel(old)
	})
	if err != nil {
		return err
	}
	return errors.Join(w.client.up("kit1", "10.7.1.1/24"), w.west.up("kit0", "10.7.1.2/24"),
		w.client.route("0.0.0.0/0", "10.7.1.2"))
}

// withIPVlan gives the client a device on its node's own, in the server's direction, in place of its link.
func withIPVlan(mode netlink.IPVlanMode) func(*world) error {
	return func(w *world) error {
		return errors.Join(w.onParent(func(parent int) netlink.Link {
			return &netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Name: "sub0", ParentIndex: parent}, Mode: mode}
		}),
			// ipvlan of the kinds L3 and L3S answers no ARP: its node's address does.
			w.east.route("10.7.2.7/32", "10.7.2.1"))
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
	west, east := net.ParseIP(w.west.own("10.7.2.1")).To4(), net.ParseIP(w.west.own("10.7.2.2")).To4()
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

// netem makes eth0 lose, delay or double what leaves by it.
func (s *space) netem(what netlink.NetemQdiscAttrs) error {
	return s.inside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		what.Limit = 10000
		return netlink.QdiscAdd(netlink.NewNetem(attrs, what))
	})
}
