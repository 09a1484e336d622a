package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// The makers of packets: what clients do that dig does not.

// answerTime is how long a client waits for one answer.
const answerTime = 2 * time.Second

// message packs a query with an ID.
func message(name string, qtype, id uint16) ([]byte, error) {
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = id
	return m.Pack()
}

// bound opens a UDP socket in a namespace at an address and port; port 0 is any.
func bound(ns *lab.Namespace, addr netip.Addr, port uint16) (*net.UDPConn, error) {
	pc, err := ns.ListenPacket("udp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// receive reads one message; nil if none comes in time.
func receive(c net.Conn, wait time.Duration) (*dns.Msg, error) {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf[:n]); err != nil && n < 12 {
		return nil, err
	}
	return m, nil // what is odd in an answer to an odd query does not matter
}

// exchange sends one message from a socket to a server and waits for what comes.
func exchange(c *net.UDPConn, to netip.AddrPort, packed []byte, wait time.Duration) (*dns.Msg, error) {
	if _, err := c.WriteToUDPAddrPort(packed, to); err != nil {
		return nil, err
	}
	return receive(c, wait)
}

// want gives an error if an answer came and none was to, or the other way round.
func want(m *dns.Msg, err error, answered bool) error {
	if err == nil && (m != nil) != answered {
		err = fmt.Errorf("the client got an answer: %v, want %v", m != nil, answered)
	}
	return err
}

// askFixed asks from one port, each time with a new ID, or always with the same.
func askFixed(server func(*scene, family) netip.AddrPort, port uint16, count int, id func(int) uint16,
	pause time.Duration) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), port)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		for i := range count {
			q, err := message(name, dns.TypeA, id(i))
			if err != nil {
				return nil, err
			}
			m, err := exchange(c, server(s, f), q, answerTime)
			if err := want(m, err, true); err != nil {
				return nil, fmt.Errorf("query %d: %w", i+1, err)
			}
			time.Sleep(pause)
		}
		return nil, nil
	}
}

func service(_ *scene, f family) netip.AddrPort { return netip.AddrPortFrom(f.vip, 53) }

// pipelineTime is how long the answers to queries in one piece may take: the server makes one after the other, and each
// asks the upstream. On a machine with much other work that was 30 ms an answer.
const pipelineTime = 90 * time.Second

// askPipelined sends so many queries in one piece over one TCP connection, q0. to qN., and reads every answer.
func askPipelined(count int) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		conn, err := s.client.Dial(context.Background(), "tcp", service(s, f).String())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		var all []byte
		for i := range count {
			q, err := message(fmt.Sprintf("q%d.%s", i, name), dns.TypeA, uint16(i+1))
			if err != nil {
				return nil, err
			}
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(q))), q...)
		}
		if err := conn.SetDeadline(time.Now().Add(pipelineTime)); err != nil {
			return nil, err
		}
		// Answers are read while the rest is sent: neither side waits for the other with full buffers.
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(all)
			sent <- err
		}()
		for i := range count {
			if err := readStream(conn); err != nil {
				return nil, fmt.Errorf("%d of %d queries in one piece answered: %w", i, count, err)
			}
		}
		return nil, <-sent
	}
}

// readStream reads one message with its length before it.
func readStream(r io.Reader) error {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint16(size[:])))
	return err
}

// dialTCP connects to the service and sends one query.
func (s *scene) dialTCP(to, name string) (*net.TCPConn, error) {
	conn, err := s.client.Dial(context.Background(), "tcp", to)
	if err != nil {
		return nil, err
	}
	q, err := query(name)
	if err == nil {
		_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
	}
	return conn.(*net.TCPConn), err
}

// askHalfClosed sends a query over TCP, says that no more will come, and reads the answer.
func askHalfClosed(s *scene, f family, name string) ([]truth, error) {
	conn, err := s.dialTCP(service(s, f).String(), name)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	return nil, errors.Join(conn.SetReadDeadline(time.Now().Add(answerTime)), readStream(conn))
}

// askSplit sends a query over TCP a byte at a time.
func askSplit(s *scene, f family, name string) ([]truth, error) {
	conn, err := s.client.Dial(context.Background(), "tcp", service(s, f).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	for _, b := range append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...) {
		if _, err := conn.Write([]byte{b}); err != nil {
			return nil, err
		}
	}
	return nil, errors.Join(conn.SetReadDeadline(time.Now().Add(answerTime)), readStream(conn))
}

// askAllServers is what musl does: A and AAAA to every name server at once, from one socket, with one ID a type. It
// waits until so many answers came.
func askAllServers(servers func(*scene, family) []netip.AddrPort, answers int,
	linger time.Duration) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		for i, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q, err := message(name, qtype, uint16(0x1111*(i+1)))
			if err != nil {
				return nil, err
			}
			for _, to := range servers(s, f) {
				if _, err := c.WriteToUDPAddrPort(q, to); err != nil {
					return nil, err
				}
			}
		}
		for i := range answers {
			m, err := receive(c, answerTime)
			if err := want(m, err, true); err != nil {
				return nil, fmt.Errorf("answer %d: %w", i+1, err)
			}
		}
		time.Sleep(linger)
		return nil, nil
	}
}

// askOdd sends a message as few clients do, and wants an answer.
func askOdd(packed func(name string) ([]byte, error)) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		q, err := packed(name)
		if err != nil {
			return nil, err
		}
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		m, err := exchange(c, service(s, f), q, answerTime)
		return nil, want(m, err, true)
	}
}

// odd gives a query that was changed before it was packed.
func odd(change func(*dns.Msg)) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		change(m)
		return m.Pack()
	}
}

// opcode gives a query of another kind.
func opcode(code int, qtype uint16) func(string) ([]byte, error) {
	return odd(func(m *dns.Msg) { m.Opcode, m.Question[0].Qtype = code, qtype })
}

// cutShort gives a query that ends within its question.
func cutShort(name string) ([]byte, error) {
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	return q[:len(q)-3], nil
}

// withCookie adds a client's cookie (RFC 7873).
func withCookie(m *dns.Msg) {
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(dns.DefaultMsgSize)
	o.Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	m.Extra = append(m.Extra, o)
}

// askWithExtensionHeader sends a query behind an IPv6 destination options header.
func askWithExtensionHeader(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var set error
	// Next header, length in further units of 8 bytes, an option that pads four bytes (RFC 8200, sections 4.2 and 4.6).
	options := string([]byte{0, 0, 1, 4, 0, 0, 0, 0})
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, options)
	}); err != nil || set != nil {
		return nil, errors.Join(err, set)
	}
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	m, err := exchange(c, service(s, f), q, answerTime)
	return nil, want(m, err, true)
}

// handshake tries to connect to the service over TCP for so long.
func handshake(wait time.Duration) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, _ string) ([]truth, error) {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		conn, err := s.client.Dial(ctx, "tcp", service(s, f).String())
		if err == nil {
			return nil, errors.Join(errors.New("the client was connected"), conn.Close())
		}
		return nil, nil
	}
}
