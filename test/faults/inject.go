package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// family is an address family as a service address.
type family struct{ vip netip.Addr }

func (f family) v4() bool { return f.vip.Is4() }

func (f family) String() string {
	if f.v4() {
		return "IPv4"
	}
	return "IPv6"
}

// pick gives the one of two that is of the family.
func pick[T any](f family, v4, v6 T) T {
	if f.v4() {
		return v4
	}
	return v6
}

var (
	anywhere4 = netip.MustParsePrefix("0.0.0.0/0")
	anywhere6 = netip.MustParsePrefix("::/0")
)

// undoAll undoes in the reverse order.
func undoAll(undos ...lab.Undo) lab.Undo {
	return func() error {
		var errs []error
		for _, undo := range slices.Backward(undos) {
			if undo != nil {
				errs = append(errs, undo())
			}
		}
		return errors.Join(errs...)
	}
}

func noRoute(s *scene, f family) (lab.Undo, error) {
	n, other := s.client.Node, s.cluster.DNS.Node
	pods, err := n.WithoutRoute(pick(f, other.PodsV4, other.PodsV6))
	if err != nil {
		return nil, err
	}
	everywhere, err := n.WithoutRoute(pick(f, anywhere4, anywhere6))
	return undoAll(pods, everywhere), err
}

// nobody gives an address of the client's node's pods that none has.
func (s *scene) nobody(f family) netip.Addr {
	return pick(f, with(s.client.V4, 200), with(s.client.V6, 0x200))
}

// with gives an address with another end.
func with(a netip.Addr, end uint16) netip.Addr {
	b := a.AsSlice()
	if b[len(b)-1] = byte(end); end > 255 {
		b[len(b)-2] = byte(end >> 8)
	}
	a, _ = netip.AddrFromSlice(b) // as long as it was
	return a
}

func deadNeighbourInPod(s *scene, f family) (lab.Undo, error) {
	nobody := s.nobody(f)
	return s.client.AddRoute(netip.PrefixFrom(f.vip, f.vip.BitLen()), nobody)
}

func deadNeighbourOnNode(s *scene, f family) (lab.Undo, error) {
	nobody := pick(f, netip.MustParseAddr("192.168.100.200"), netip.MustParseAddr("fd00:100::200"))
	endpoint := pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)
	return s.client.Node.AddRoute(netip.PrefixFrom(endpoint, endpoint.BitLen()), nobody)
}

// masquerade hides the clients of a node behind the node's address from CoreDNS.
func masquerade(s *scene, f family) (lab.Undo, error) {
	return s.client.Node.Masquerade(pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6))
}

// restoreService makes CoreDNS the service's endpoint again.
func (s *scene) restoreService() error { return s.cluster.Service.SetEndpoints(s.cluster.DNS) }

func noEndpoints(s *scene, _ family) (lab.Undo, error) {
	return s.restoreService, s.cluster.Service.SetEndpoints()
}

func noRules(s *scene, _ family) (lab.Undo, error) {
	for _, n := range s.cluster.Nodes() {
		if err := n.RemoveService(); err != nil {
			return s.restoreService, err
		}
	}
	return s.restoreService, nil
}

func staleEndpoint(s *scene, _ family) (lab.Undo, error) {
	gone := []netip.Addr{netip.MustParseAddr("10.244.2.200"), netip.MustParseAddr("fd00:10:244:2::200")}
	return s.restoreService, s.cluster.Service.SetEndpointAddrs(gone...)
}

// notListening makes a pod the endpoint in which nothing runs.
func notListening(s *scene, _ family) (lab.Undo, error) {
	return s.restoreService, s.cluster.Service.SetEndpoints(s.idle)
}

func stopped(s *scene, _ family) (lab.Undo, error) {
	return func() error { return s.cluster.CoreDNS.Signal(syscall.SIGCONT) }, s.cluster.CoreDNS.Signal(syscall.SIGSTOP)
}

// continueAfter is when the lookup has been called lost for good: nobody waits so long.
const continueAfter = 6500 * time.Millisecond

// giveUpAndContinue asks and gives up; CoreDNS goes on when the lookup has been called lost.
func giveUpAndContinue(s *scene, f family, name string) (_ []truth, err error) {
	begin := time.Now()
	if err := s.dig(context.Background(), &fault{}, f, name, time.Second, false); err != nil {
		return nil, err
	}
	time.Sleep(time.Until(begin.Add(continueAfter)))
	return nil, s.cluster.CoreDNS.Signal(syscall.SIGCONT)
}

// bufferFull stops CoreDNS and fills the receive buffers of its sockets with datagrams that are no DNS.
func bufferFull(s *scene, f family) (lab.Undo, error) {
	undo, err := stopped(s, f)
	if err != nil {
		return undo, err
	}
	to := netip.AddrPortFrom(pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), 53)
	conn, err := s.idle.Dial(context.Background(), "udp", to.String())
	if err != nil {
		return undo, err
	}
	defer conn.Close()
	for range 2000 { // some 300 fill Debian's default of 212,992 bytes
		if _, err := conn.Write([]byte{0}); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

func conntrackFull(s *scene, _ family) (lab.Undo, error) {
	return s.client.Node.FillConntrack()
}

// query packs a query of type A.
func query(name string) ([]byte, error) { return new(dns.Msg).SetQuestion(name, dns.TypeA).Pack() }

func (s *scene) send(f family, name string) (net.Conn, error) {
	return sendFrom(s.client.Namespace, f, name)
}

func sendFrom(ns *lab.Namespace, f family, name string) (net.Conn, error) {
	conn, err := ns.Dial(context.Background(), "udp", netip.AddrPortFrom(f.vip, 53).String())
	if err != nil {
		return nil, err
	}
	q, err := query(name)
	if err == nil {
		_, err = conn.Write(q)
	}
	return conn, err
}

// askAndClose sends a query and closes the socket at once.
func askAndClose(s *scene, f family, name string) ([]truth, error) {
	conn, err := s.send(f, name)
	if err != nil {
		return nil, err
	}
	return nil, conn.Close()
}

// askOnNodeAndClose does so from the client's node's own network.
func askOnNodeAndClose(s *scene, f family, name string) ([]truth, error) {
	conn, err := sendFrom(s.client.Node.Namespace, f, name)
	if err != nil {
		return nil, err
	}
	return nil, conn.Close()
}

// askOddServer asks a server that answers from another address than the one that was asked.
func askOddServer(s *scene, f family, name string) (_ []truth, err error) {
	asked, err := s.idle.ListenPacket("udp", netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53).String())
	if err != nil {
		return nil, err
	}
	defer asked.Close()
	other, err := s.odd.ListenPacket("udp", netip.AddrPortFrom(pick(f, s.odd.V4, s.odd.V6), 53).String())
	if err != nil {
		return nil, err
	}
	defer other.Close()
	conn, err := s.client.Dial(context.Background(), "udp", asked.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	packed, err := query(name)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buf := make([]byte, 512)
	if err := asked.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	n, from, err := asked.ReadFrom(buf)
	if err != nil {
		return nil, err
	}
	var m dns.Msg
	if err := m.Unpack(buf[:n]); err != nil {
		return nil, err
	}
	answer, err := new(dns.Msg).SetReply(&m).Pack()
	if err != nil {
		return nil, err
	}
	if _, err := other.WriteTo(answer, from); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Read(buf); err == nil {
		return nil, errors.New("the client took an answer from an address that it had not asked")
	}
	return nil, nil
}
