package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// askLostSegment asks over TCP while segments with data are dropped, of queries or of answers, and reads the answer
// that comes when they pass again.
func askLostSegment(ofQuery bool) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		conn, err := s.client.Dial(context.Background(), "tcp", service(s, f).String())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		port := "sport"
		if ofQuery {
			port = "dport"
		}
		// A segment without data has 40 to 60 bytes of headers over IPv4, 60 to 80 over IPv6.
		undo, err := clientNode(s).Rules("inet", fmt.Sprintf(
			"chain c { type filter hook forward priority 0; tcp %s 53 meta length > 84 drop; }", port))
		if err != nil {
			return nil, err
		}
		q, err := query(strings.Repeat("longer.", 4) + name)
		if err == nil {
			_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
		}
		time.Sleep(500 * time.Millisecond)
		if err := errors.Join(err, undo(), conn.SetReadDeadline(time.Now().Add(2*answerTime))); err != nil {
			return nil, err
		}
		return nil, readStream(conn)
	}
}

// askMultipath asks over TCP with a socket that may use several paths.
func askMultipath(s *scene, f family, name string) ([]truth, error) {
	var conn net.Conn
	err := s.client.Do(func() (err error) {
		d := net.Dialer{Timeout: answerTime, LocalAddr: &net.TCPAddr{IP: pick(f, s.client.V4, s.client.V6).AsSlice()}}
		d.SetMultipathTCP(true)
		conn, err = d.Dial("tcp", service(s, f).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if multi, err := conn.(*net.TCPConn).MultipathTCP(); err != nil || !multi {
		return nil, errors.Join(err, errors.New("the connection is no MPTCP"))
	}
	q, err := query(name)
	if err == nil {
		_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
	}
	return nil, errors.Join(err, conn.SetReadDeadline(time.Now().Add(answerTime)), readStream(conn))
}

// smallDevice makes the bridge to the client's pod take 1,280 bytes: answers of more may not be cut, since the kernel
// forbids that for what sockets send.
func smallDevice(s *scene, _ family) (lab.Undo, error) {
	undo, err := s.client.Node.IP("link set cbr0 mtu 1280", "link set cbr0 mtu 1500")
	// CoreDNS's pod remembers what the node told it.
	forget := func() error {
		_, err4 := s.cluster.DNS.Tool("", "ip", "route", "flush", "cache")
		_, err6 := s.cluster.DNS.Tool("", "ip", "-6", "route", "flush", "cache")
		return errors.Join(err4, err6)
	}
	return undoAll(forget, undo), err
}

// withSocket calls something with the file descriptor of a socket.
func withSocket(c *net.UDPConn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	err = raw.Control(func(fd uintptr) { done = do(int(fd)) })
	return errors.Join(err, done)
}

// ofClient opens a socket at the client's own address.
func (s *scene) ofClient(f family) (*net.UDPConn, error) {
	return bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
}

// askNear sends a query that the first router may not pass on.
func askNear(s *scene, f family, name string) ([]truth, error) {
	c, err := s.ofClient(f)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	err = withSocket(c, func(fd int) error {
		if f.v4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1)
	})
	if err != nil {
		return nil, err
	}
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	m, err := exchange(c, service(s, f), q, answerTime)
	return nil, want(m, err, false)
}

// askCorrupt sends a query to CoreDNS's pod itself with a checksum that is wrong, from a port that a socket has.
func askCorrupt(s *scene, f family, name string) ([]truth, error) {
	c, err := s.ofClient(f)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	datagram := binary.BigEndian.AppendUint16(nil, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	datagram = binary.BigEndian.AppendUint16(datagram, 53)
	datagram = binary.BigEndian.AppendUint16(datagram, uint16(8+len(q)))
	// One of 65,535 queries has this checksum.
	datagram = append(binary.BigEndian.AppendUint16(datagram, 0x1234), q...)
	err = s.client.Do(func() error {
		raw, err := net.Dial(pick(f, "ip4:17", "ip6:17"), s.serverOf(f).String())
		if err != nil {
			return err
		}
		_, err = raw.Write(datagram)
		return errors.Join(err, raw.Close())
	})
	if err != nil {
		return nil, err
	}
	m, err := receive(c, answerTime)
	return nil, want(m, err, false)
}

// fullQueue gives the device of the client's node a queue that has no room.
func fullQueue(s *scene, _ family) (lab.Undo, error) {
	n := s.client.Node
	if _, err := n.Tool("", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "1600", "limit",
		"1"); err != nil {
		return nil, err
	}
	return func() error {
		_, err := n.Tool("", "tc", "qdisc", "del", "dev", "eth0", "root")
		return err
	}, nil
}

// deadDevice takes down the node's end of the device of CoreDNS's pod.
func deadDevice(s *scene, _ family) (lab.Undo, error) {
	dns := s.cluster.DNS
	undo, err := dns.Node.IP("link set "+dns.HostVeth+" down", "link set "+dns.HostVeth+" up")
	settle := func() error {
		time.Sleep(2 * time.Second) // until its bridge and its IPv6 address are ready again
		return nil
	}
	return undoAll(settle, undo), err
}

// cgroupPolicy drops by a program at the cgroup of the client's pod what is sent to servers, or what comes from them.
func cgroupPolicy(receive bool) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, _ family) (lab.Undo, error) { return s.client.PolicyDrop(receive, 53) }
}

// askPeek waits for the answer, looks at it without taking it, and reads it or not.
func askPeek(read bool) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		c, err := s.ofClient(f)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		q, err := query(name)
		if err == nil {
			_, err = c.WriteToUDPAddrPort(q, service(s, f))
		}
		if err != nil {
			return nil, err
		}
		buf := make([]byte, 4096)
		for end := time.Now().Add(answerTime); ; time.Sleep(10 * time.Millisecond) {
			n := 0
			err := withSocket(c, func(fd int) (err error) {
				n, _, err = unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
				return err
			})
			if err == nil && n > 12 {
				break
			}
			if time.Now().After(end) {
				return nil, fmt.Errorf("no answer to peek at: %w", err)
			}
		}
		if !read {
			return nil, nil
		}
		m, err := receive(c, answerTime)
		return nil, want(m, err, true)
	}
}

// askBatch asks for two types and reads both answers in one call, recvmmsg(2), when both have come.
func askBatch(s *scene, f family, name string) ([]truth, error) {
	c, err := s.ofClient(f)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		q, err := message(name, qtype, uint16(i+1))
		if err == nil {
			_, err = c.WriteToUDPAddrPort(q, service(s, f))
		}
		if err != nil {
			return nil, err
		}
	}
	time.Sleep(500 * time.Millisecond)
	into := []ipv4.Message{{Buffers: [][]byte{make([]byte, 4096)}}, {Buffers: [][]byte{make([]byte, 4096)}}}
	if err := c.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	n, err := ipv4.NewPacketConn(c).ReadBatch(into, 0) // of IPv6, too: the call is the same
	if err == nil && n != 2 {
		err = fmt.Errorf("%d answers in one call, want 2", n)
	}
	return nil, err
}
