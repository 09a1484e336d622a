package lab

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Undo takes a fault back. It may be called once.
type Undo func() error

// Hook is where in a namespace packets are dropped.
type Hook string

// The netfilter hooks. Switched drops what a namespace's bridge forwards without routing it, as a firewall between
// nodes does.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
	Switched    Hook = "switched"
	// Raw is Prerouting before connection tracking: iptables' raw table.
	Raw Hook = "raw"
)

// DropRule says which packets to drop. Zero fields match everything.
type DropRule struct {
	Hook     Hook
	IPv4     bool // only IPv4
	IPv6     bool // only IPv6
	Proto    byte // unix.IPPROTO_UDP or _TCP
	SrcPort  uint16
	DstPort  uint16
	Src, Dst netip.Addr
	// MinLength drops only packets of at least that many bytes, IP header included.
	MinLength uint32
	// LaterFragments drops only fragments that are not the first of their packet, which have no ports. Connection tracking
	// puts packets together before other rules see them: at Prerouting the rule comes before that. Not together with IPv4
	// or IPv6 false for both, unless Src or Dst says the family.
	LaterFragments bool
	// Reject answers with an ICMP port unreachable instead of dropping silently. Not at Switched.
	Reject bool
}

var faults atomic.Uint64

// Drop drops matching packets in the namespace until undone. Its rule comes after the service's translation, but in
// Prerouting and Output, where it comes before.
func (n *Namespace) Drop(r DropRule) (Undo, error) {
	c, err := n.nft()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: fmt.Sprintf("fault-%d", faults.Add(1))}
	chain := &nftables.Chain{Name: "drop", Table: table, Type: nftables.ChainTypeFilter,
		Priority: nftables.ChainPriorityFilter}
	switch r.Hook {
	case Prerouting:
		chain.Hooknum, chain.Priority = nftables.ChainHookPrerouting, nftables.ChainPriorityRef(-200)
		if r.LaterFragments {
			chain.Priority = new(*nftables.ChainPriorityConntrackDefrag - 10)
		}
	case Raw:
		chain.Hooknum, chain.Priority = nftables.ChainHookPrerouting, nftables.ChainPriorityRaw
	case Input:
		chain.Hooknum = nftables.ChainHookInput
	case Forward:
		chain.Hooknum = nftables.ChainHookForward
	case Output:
		chain.Hooknum, chain.Priority = nftables.ChainHookOutput, nftables.ChainPriorityRef(-200)
	case Postrouting:
		chain.Hooknum = nftables.ChainHookPostrouting
	case Switched:
		table.Family, chain.Hooknum = nftables.TableFamilyBridge, nftables.ChainHookForward
	default:
		return nil, fmt.Errorf("lab: no hook %q", r.Hook)
	}
	c.AddTable(table)
	c.AddChain(chain)
	rule(c, table, chain, r.exprs(table.Family)...)
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("drop at %s in %s: %w", r.Hook, n.Name, err)
	}
	return func() error {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("undo a drop at %s in %s: %w", r.Hook, n.Name, err)
		}
		return nil
	}, nil
}

func (r DropRule) exprs(family nftables.TableFamily) [][]expr.Any {
	var parts [][]expr.Any
	// "bridge" tables know the Ethernet type, "inet" tables the netfilter family.
	only := func(f ipFamily) []expr.Any {
		if family == nftables.TableFamilyBridge {
			return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(f.etherType)}}
		}
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}}}
	}
	of := func(a netip.Addr) ipFamily {
		if a.Is4() {
			return ipv4
		}
		return ipv6
	}
	if r.IPv4 {
		parts = append(parts, only(ipv4))
	}
	if r.IPv6 {
		parts = append(parts, only(ipv6))
	}
	if r.Src.IsValid() {
		f := of(r.Src)
		parts = append(parts, only(f), f.is(f.saddr, r.Src))
	}
	if r.Dst.IsValid() {
		f := of(r.Dst)
		parts = append(parts, only(f), f.is(f.daddr, r.Dst))
	}
	if r.Proto != 0 {
		parts = append(parts, l4proto(r.Proto))
	}
	if r.SrcPort != 0 {
		parts = append(parts, port(srcPort, r.SrcPort))
	}
	if r.DstPort != 0 {
		parts = append(parts, port(dstPort, r.DstPort))
	}
	if r.MinLength != 0 {
		parts = append(parts, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binaryutil.BigEndian.PutUint32(r.MinLength)},
		})
	}
	if r.LaterFragments {
		v6 := r.IPv6 || r.Src.Is6() || r.Dst.Is6()
		parts = append(parts, laterFragment(v6))
	}
	if r.Reject {
		// ICMPX: the port-unreachable of whichever family the packet has.
		return append(parts, expr1(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH,
			Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}))
	}
	return append(parts, expr1(&expr.Verdict{Kind: expr.VerdictDrop}))
}

// laterFragment matches where the fragment offset is not 0: of 13 bits in the IPv4 header, the last ones of a word; in
// IPv6's fragment header, the first ones.
func laterFragment(v6 bool) []expr.Any {
	load, mask := expr.Any(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2}),
		uint16(0x1fff)
	if v6 {
		load, mask = &expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
			0xfff8
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: binaryutil.BigEndian.PutUint16(mask),
			Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}
}

// WithoutRoute removes every route of the namespace that leads to dst, in the main table, until undone.
func (n *Namespace) WithoutRoute(dst netip.Prefix) (Undo, error) {
	family := netlink.FAMILY_V4
	if dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := n.nl.RouteList(nil, family)
	if err != nil {
		return nil, fmt.Errorf("routes of %s: %w", n.Name, err)
	}
	var gone []netlink.Route
	for _, r := range routes {
		if r.Dst == nil {
			r.Dst = ipNet(netip.PrefixFrom(unspecified(dst.Addr()), 0))
		}
		if r.Dst.String() != ipNet(dst).String() {
			continue
		}
		if err := n.nl.RouteDel(&r); err != nil {
			return nil, fmt.Errorf("delete route %s in %s: %w", r, n.Name, err)
		}
		gone = append(gone, r)
	}
	if gone == nil {
		return nil, fmt.Errorf("lab: no route to %s in %s", dst, n.Name)
	}
	return func() error {
		for _, r := range gone {
			if err := n.nl.RouteAdd(&r); err != nil {
				return fmt.Errorf("restore route %s in %s: %w", r, n.Name, err)
			}
		}
		return nil
	}, nil
}

// AddRoute adds a route until undone. Together with a gateway that nobody has, it makes a neighbor that never resolves.
func (n *Namespace) AddRoute(dst netip.Prefix, via netip.Addr) (Undo, error) {
	if err := n.addRoute(dst, via); err != nil {
		return nil, err
	}
	return func() error {
		return n.nl.RouteDel(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()})
	}, nil
}
