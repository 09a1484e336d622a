package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// swapCase gives a name with its letters in the other case.
func swapCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// idleServer is where a server of this program is put.
func idleServer(s *scene, f family) netip.AddrPort {
	return netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53)
}

// askServer asks a server in the idle pod, which sends what reply says, and reads the first of it that is a message.
func askServer(reply func(*dns.Msg) [][]byte, answered bool) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		server, err := bound(s.idle.Namespace, idleServer(s, f).Addr(), 53)
		if err != nil {
			return nil, err
		}
		defer server.Close()
		done := make(chan error, 1)
		go func() { done <- serveOnce(server, reply) }()
		c, err := s.client.Dial(context.Background(), "udp", idleServer(s, f).String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		q, err := query(name)
		if err == nil {
			_, err = c.Write(q)
		}
		if err != nil {
			return nil, err
		}
		if !answered {
			b := make([]byte, 512)
			_ = c.SetReadDeadline(time.Now().Add(answerTime)) // never fails: an open socket
			_, err = c.Read(b)
			return nil, errors.Join(err, <-done)
		}
		m, err := receive(c, answerTime)
		time.Sleep(50 * time.Millisecond) // what else the server sends comes to the socket
		return nil, errors.Join(want(m, err, true), <-done)
	}
}

// serveOnce answers one query.
func serveOnce(c *net.UDPConn, reply func(*dns.Msg) [][]byte) error {
	b := make([]byte, 4096)
	if err := c.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return err
	}
	var m dns.Msg
	if err := m.Unpack(b[:n]); err != nil {
		return err
	}
	for _, r := range reply(&m) {
		if _, err := c.WriteToUDPAddrPort(r, from); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// askTCPServer asks a server in the idle pod so many questions in one piece, and reads as many answers; send is how the
// server sends them.
func askTCPServer(count int, send func(net.Conn, [][]byte) error) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		ln, err := s.idle.Listen("tcp", idleServer(s, f).String())
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		done := make(chan error, 1)
		go func() { done <- serveStream(ln, count, send) }()
		conn, err := s.client.Dial(context.Background(), "tcp", idleServer(s, f).String())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		var all []byte
		for i := range count {
			q, err := message(name, dns.TypeA, uint16(i+1))
			if err != nil {
				return nil, err
			}
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(q))), q...)
		}
		if _, err := conn.Write(all); err != nil {
			return nil, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
			return nil, err
		}
		for range count {
			if err := readStream(conn); err != nil {
				return nil, err
			}
		}
		if err := <-done; err != nil {
			return nil, err
		}
		_, err = io.ReadAll(io.LimitReader(conn, 1<<16)) // until the server has closed it
		return nil, err
	}
}

func serveStream(ln net.Listener, count int, send func(net.Conn, [][]byte) error) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	var replies [][]byte
	conn := &dns.Conn{Conn: c}
	for range count {
		m, err := conn.ReadMsg()
		if err != nil {
			return err
		}
		b := packed(new(dns.Msg).SetReply(m))
		replies = append(replies, append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	}
	return send(c, replies)
}

// fastOpenServer starts a CoreDNS that takes data in the SYN, without a cookie of the client's (Linux,
// Documentation/networking/ip-sysctl.rst, tcp_fastopen).
func fastOpenServer(s *scene, _ family) (lab.Undo, error) {
	server, err := s.second.Sysctls("net/ipv4/tcp_fastopen", "1539") // 0x1, 0x2, 0x200, 0x400
	if err != nil {
		return server, err
	}
	client, err := s.client.Sysctls("net/ipv4/tcp_fastopen", "5") // 0x1, 0x4
	if err != nil {
		return undoAll(server, client), err
	}
	p, err := s.secondDNS(forwards)
	return undoAll(stopIf(p), server, client), err
}

// askFastOpen sends its query in the SYN.
func askFastOpen(s *scene, f family, name string) ([]truth, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	var conn net.Conn
	err := s.client.Do(func() (err error) {
		conn, err = d.Dial("tcp", secondServer(s, f).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	q, err := query(name)
	if err == nil {
		_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
	}
	return nil, errors.Join(err, conn.SetReadDeadline(time.Now().Add(answerTime)), readStream(conn))
}

// askShared asks from two sockets that share a port: the kernel gives all answers of one server to one of them.
func askShared(s *scene, f family, name string) ([]truth, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	const port = 5060
	at := netip.AddrPortFrom(pick(f, s.client.V4, s.client.V6), port).String()
	var socks [2]*net.UDPConn
	for i := range socks {
		err := s.client.Do(func() error {
			pc, err := lc.ListenPacket(context.Background(), "udp", at)
			if err == nil {
				socks[i] = pc.(*net.UDPConn)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		defer socks[i].Close()
	}
	for i, c := range socks {
		q, err := message(name, dns.TypeA, uint16(i+1))
		if err == nil {
			_, err = c.WriteToUDPAddrPort(q, service(s, f))
		}
		if err != nil {
			return nil, err
		}
	}
	got := 0
	for end := time.Now().Add(answerTime); got < 2 && time.Now().Before(end); {
		for _, c := range socks {
			m, err := receive(c, 50*time.Millisecond)
			if err != nil {
				return nil, err
			}
			if m != nil {
				got++
			}
		}
	}
	if got != 2 {
		return nil, fmt.Errorf("%d answers, want 2", got)
	}
	return nil, nil
}

// askRefused asks from a connected socket while nobody listens, and again when somebody does.
func askRefused(s *scene, f family, name string) ([]truth, error) {
	c, err := s.client.Dial(context.Background(), "udp", idleServer(s, f).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err == nil {
		_, err = c.Write(q)
	}
	if err != nil {
		return nil, err
	}
	if _, err = receive(c, answerTime); !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("want the query to be refused: %w", err)
	}
	server, err := bound(s.idle.Namespace, idleServer(s, f).Addr(), 53)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	done := make(chan error, 1)
	go func() { done <- serveOnce(server, saying(0)) }()
	if _, err := c.Write(q); err != nil {
		return nil, err
	}
	m, err := receive(c, answerTime)
	return nil, errors.Join(want(m, err, true), <-done)
}

// askAndDie asks by a program that is killed while it waits.
func askAndDie(s *scene, f family, name string) ([]truth, error) {
	p, err := s.client.Start(lab.Command{Path: "dig", Args: []string{"@" + service(s, f).Addr().String(), "+tries=1",
		"+time=5", name, "A"}})
	if err != nil {
		return nil, err
	}
	time.Sleep(1200 * time.Millisecond) // until it has asked, also where the machine is slow
	p.Kill()
	<-p.Done()
	time.Sleep(time.Second)
	return nil, nil
}

// askMulticast asks a group that nobody has joined.
func askMulticast(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, s.client.V4, 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	m, err := exchange(c, netip.AddrPortFrom(netip.MustParseAddr("239.1.2.3"), 53), q, answerTime)
	return nil, want(m, err, false)
}

// smallUplink makes the client's node's device to the others take 1,280 bytes.
func smallUplink(s *scene, _ family) (lab.Undo, error) {
	return s.client.Node.IP("link set eth0 mtu 1280", "link set eth0 mtu 1500")
}

// askLarge sends a query of some 1,400 bytes (RFC 7830), which may not be cut on its way.
func askLarge(s *scene, f family, name string) ([]truth, error) {
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.SetEdns0(4096, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 1350)})
	q, err := m.Pack()
	if err != nil {
		return nil, err
	}
	c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort(q, service(s, f)); err != nil {
		return nil, err
	}
	r, err := receive(c, answerTime)
	if errors.Is(err, syscall.EMSGSIZE) {
		err = nil
	}
	err = want(r, err, false)
	for _, kind := range []string{"-4", "-6"} { // the pod remembers what the node told it
		_, e := s.client.Tool("", "ip", kind, "route", "flush", "cache")
		err = errors.Join(err, e)
	}
	return nil, err
}

// rewriteSource makes CoreDNS's node give its answers another source, past connection tracking.
func rewriteSource(s *scene, f family) (lab.Undo, error) {
	from, other := s.serverOf(f), with(s.serverOf(f), 0x77)
	word := nftFamily(f)
	return s.cluster.DNS.Node.Rules(word, fmt.Sprintf(
		"chain r { type filter hook prerouting priority -310; %[1]s saddr %[2]s udp sport 53 %[1]s saddr set %[3]s; }",
		word, from, other))
}

// stolenAddress gives the client's address to another pod of its node, to which the node sends what is for the client.
func stolenAddress(s *scene, f family) (lab.Undo, error) {
	mac, err := s.peer.HardwareAddress("eth0")
	if err != nil {
		return nil, err
	}
	ip, nodad := pick(f, s.client.V4, s.client.V6), pick(f, "", " nodad")
	addr := netip.PrefixFrom(ip, ip.BitLen())
	taken, err := s.peer.IP(fmt.Sprintf("addr add %s dev eth0%s", addr, nodad), fmt.Sprintf("addr del %s dev eth0", addr))
	if err != nil {
		return taken, err
	}
	there, err := s.client.Node.IP(fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev cbr0", ip, mac),
		fmt.Sprintf("neigh del %s dev cbr0", ip))
	return undoAll(taken, there), err
}

// doubleAnswers makes the client's node send each answer twice.
func doubleAnswers(s *scene, f family) (lab.Undo, error) {
	return s.client.Node.Rules(nftFamily(f), fmt.Sprintf(
		"chain d { type filter hook forward priority 10; %[1]s daddr %[2]s udp sport 53 dup to %[2]s device cbr0; }",
		nftFamily(f), pick(f, s.client.V4, s.client.V6)))
}
