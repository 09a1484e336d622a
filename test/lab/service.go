package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Service is the cluster's DNS service: the addresses [ServiceV4] and [ServiceV6], ports 53 (UDP and TCP) and 9153
// (TCP), which every node translates to one of the endpoints with rules built like those of kube-proxy's nftables mode:
// DNAT in prerouting and output, one endpoint at random, masquerade for what does not come from a pod and for an
// endpoint that reaches itself, reject where there is no endpoint.
type Service struct {
	nodes []*Node

	mu        sync.Mutex
	endpoints []netip.Addr
}

var servicePorts = []struct {
	proto byte
	port  uint16
}{{unix.IPPROTO_UDP, 53}, {unix.IPPROTO_TCP, 53}, {unix.IPPROTO_TCP, 9153}}

// serviceTable is the name of the tables: one of family ip, one of ip6.
const serviceTable = "kube-proxy"

// masqueradeMark is the bit that kube-proxy marks packets with whose source is to be translated.
const masqueradeMark = 0x4000

// SetEndpoints makes the pods the service's endpoints, on every node; with none, the service rejects. Connection
// tracking forgets the translations to other endpoints, as kube-proxy makes it.
func (s *Service) SetEndpoints(pods ...*Pod) error {
	var addrs []netip.Addr
	for _, p := range pods {
		addrs = append(addrs, p.V4, p.V6)
	}
	return s.SetEndpointAddrs(addrs...)
}

// SetEndpointAddrs is [Service.SetEndpoints] for addresses, also such as no pod has: a stale endpoint.
func (s *Service) SetEndpointAddrs(addrs ...netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.setService(addrs), n.ForgetService(addrs...))
	}
	s.endpoints = slices.Clone(addrs)
	return errors.Join(errs...)
}

// MoveEndpoints is [Service.SetEndpoints], but connection tracking keeps the translations to other endpoints, as it
// does where kube-proxy forgot them in vain because the client goes on to ask from the same port.
func (s *Service) MoveEndpoints(pods ...*Pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []netip.Addr
	for _, p := range pods {
		addrs = append(addrs, p.V4, p.V6)
	}
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.setService(addrs))
	}
	s.endpoints = addrs
	return errors.Join(errs...)
}

// Endpoints gives the addresses last set.
func (s *Service) Endpoints() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.endpoints)
}

// RemoveService removes the service's rules from the node, as if kube-proxy had never run there.
// [Service.SetEndpoints] brings them back.
func (n *Node) RemoveService() error {
	c, err := n.nft()
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		c.AddTable(&nftables.Table{Family: family, Name: serviceTable}) // so that deleting it cannot fail
		c.DelTable(&nftables.Table{Family: family, Name: serviceTable})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the service from %s: %w", n.Name, err)
	}
	return n.ForgetService()
}

// ForgetService deletes the node's conntrack entries that translate a service address, but for those to the addresses
// in keep.
func (n *Node) ForgetService(keep ...netip.Addr) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := n.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, staleTranslation(keep)); err != nil {
			return fmt.Errorf("forget the service's connections in %s: %w", n.Name, err)
		}
	}
	return nil
}

// staleTranslation matches the conntrack entries that translate a service address to any but these.
type staleTranslation []netip.Addr

func (keep staleTranslation) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
	to, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	dst, to = dst.Unmap(), to.Unmap()
	return (dst == ServiceV4 || dst == ServiceV6) && !slices.Contains(keep, to)
}

func (n *Namespace) nft() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(n.fd))
	if err != nil {
		return nil, fmt.Errorf("nftables in %s: %w", n.Name, err)
	}
	return c, nil
}

func (n *Node) setService(endpoints []netip.Addr) error {
	c, err := n.nft()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		ipFamily
		vip     netip.Addr
		cluster netip.Prefix
	}{{ipv4, ServiceV4, clusterV4}, {ipv6, ServiceV6, clusterV6}} {
		table := &nftables.Table{Family: f.table, Name: serviceTable}
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		var mine []netip.Addr
		for _, e := range endpoints {
			if e.Is4() == f.vip.Is4() {
				mine = append(mine, e)
			}
		}
		f.addService(c, table, f.vip, f.cluster, mine)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set the service's rules in %s: %w", n.Name, err)
	}
	return nil
}

// ipFamily is what differs between rules for IPv4 and IPv6.
type ipFamily struct {
	table        nftables.TableFamily
	nfproto      byte
	etherType    uint16
	addrLen      uint32
	saddr, daddr uint32 // offsets in the IP header
	portUnreach  uint8
}

var (
	ipv4 = ipFamily{table: nftables.TableFamilyIPv4, nfproto: unix.NFPROTO_IPV4, etherType: unix.ETH_P_IP, addrLen: 4,
		saddr: 12, daddr: 16, portUnreach: 3}
	ipv6 = ipFamily{table: nftables.TableFamilyIPv6, nfproto: unix.NFPROTO_IPV6, etherType: unix.ETH_P_IPV6, addrLen: 16,
		saddr: 8, daddr: 24, portUnreach: 4}
)

func (f ipFamily) addService(c *nftables.Conn, t *nftables.Table, vip netip.Addr, cluster netip.Prefix,
	endpoints []netip.Addr) {
	base := func(
		name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority,
	) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: prio})
	}
	prerouting := base("nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting,
		nftables.ChainPriorityNATDest)
	output := base("nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("nat-postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting,
		nftables.ChainPriorityNATSource)

	mark := c.AddChain(&nftables.Chain{Name: "mark-for-masquerade", Table: t})
	rule(c, t, mark, setMark(masqueradeMark))
	rule(c, t, postrouting, hasMark(masqueradeMark), clearMark(masqueradeMark), expr1(&expr.Masq{FullyRandom: true}))
	// What pods send out of the cluster takes the node's address (kubenet's non-masquerade range).
	rule(c, t, postrouting, f.within(f.saddr, cluster), f.outside(f.daddr, cluster), f.notMulticast(), outIf("eth0"),
		expr1(&expr.Masq{FullyRandom: true}))

	services := c.AddChain(&nftables.Chain{Name: "services", Table: t})
	rule(c, t, prerouting, jump(services))
	rule(c, t, output, jump(services))

	if len(endpoints) == 0 {
		check := c.AddChain(&nftables.Chain{Name: "service-endpoints-check", Table: t})
		before := nftables.ChainPriorityRef(-110)
		for name, hook := range map[string]*nftables.ChainHook{"filter-input": nftables.ChainHookInput,
			"filter-forward": nftables.ChainHookForward, "filter-output": nftables.ChainHookOutput} {
			rule(c, t, base(name, nftables.ChainTypeFilter, hook, before), jump(check))
		}
		for _, p := range servicePorts {
			rule(c, t, check, f.is(f.daddr, vip), l4proto(p.proto), port(dstPort, p.port),
				expr1(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.portUnreach}))
		}
		return
	}
	for _, p := range servicePorts {
		name := fmt.Sprintf("service-dns-%d-%d", p.proto, p.port)
		svc := c.AddChain(&nftables.Chain{Name: name, Table: t})
		rule(c, t, services, f.is(f.daddr, vip), l4proto(p.proto), port(dstPort, p.port), jump(svc))
		rule(c, t, svc, f.outside(f.saddr, cluster), jump(mark))
		for i, e := range endpoints {
			ep := c.AddChain(&nftables.Chain{Name: fmt.Sprintf("endpoint-%s-%d-%d", e, p.proto, p.port), Table: t})
			rule(c, t, ep, f.is(f.saddr, e), jump(mark))
			rule(c, t, ep, []expr.Any{
				&expr.Immediate{Register: 1, Data: e.AsSlice()},
				&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p.port)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
			})
			rule(c, t, svc, oneIn(len(endpoints)-i), []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: ep.Name}})
		}
	}
}

// The parts of rules.

const (
	srcPort = 0 // offsets in the UDP and TCP headers
	dstPort = 2
)

func rule(c *nftables.Conn, t *nftables.Table, chain *nftables.Chain, parts ...[]expr.Any) {
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(parts...)})
}

func expr1(e expr.Any) []expr.Any { return []expr.Any{e} }

func jump(to *nftables.Chain) []expr.Any {
	return expr1(&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name})
}

func (f ipFamily) is(offset uint32, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

func (f ipFamily) prefix(op expr.CmpOp, offset uint32, p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.addrLen, Mask: ipNet(p).Mask, Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func (f ipFamily) within(offset uint32, p netip.Prefix) []expr.Any {
	return f.prefix(expr.CmpOpEq, offset, p)
}

func (f ipFamily) outside(offset uint32, p netip.Prefix) []expr.Any {
	return f.prefix(expr.CmpOpNeq, offset, p)
}

func (f ipFamily) notMulticast() []expr.Any {
	if f.addrLen == 4 {
		return f.outside(f.daddr, netip.MustParsePrefix("224.0.0.0/4"))
	}
	return f.outside(f.daddr, netip.MustParsePrefix("ff00::/8"))
}

func l4proto(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

func port(offset uint32, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

func outIf(name string) []expr.Any {
	ifname := make([]byte, unix.IFNAMSIZ)
	copy(ifname, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname},
	}
}

// oneIn matches one packet in n, at random.
func oneIn(n int) []expr.Any {
	if n == 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

func maskMark(mask, xor uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mask), Xor: native32(xor)},
	}
}

func setMark(bit uint32) []expr.Any {
	return append(maskMark(^bit, bit), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

func clearMark(bit uint32) []expr.Any {
	return append(maskMark(^bit, 0), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

func hasMark(bit uint32) []expr.Any {
	return append(maskMark(bit, 0), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)})
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
