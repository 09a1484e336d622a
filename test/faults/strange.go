package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// What is legal and rare: clients, servers and networks that do what they may.

// askMixedCase asks for the name with letters of either case, as resolvers do that make answers hard to guess.
func askMixedCase(s *scene, f family, name string) ([]truth, error) {
	mixed := []byte(name)
	for i := range mixed {
		if i%2 == 0 {
			mixed[i] = strings.ToUpper(string(mixed[i]))[0]
		}
	}
	return nil, s.askOnce(f, netip.AddrPort{}, string(mixed), true)
}

// askOnce asks the service from a socket that is bound to an address, the client's own if that is the zero one.
func (s *scene) askOnce(f family, from netip.AddrPort, name string, answered bool) error {
	if !from.IsValid() {
		from = netip.AddrPortFrom(pick(f, s.client.V4, s.client.V6), 0)
	}
	c, err := bound(s.client.Namespace, from.Addr(), from.Port())
	if err != nil {
		return err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return err
	}
	m, err := exchange(c, service(s, f), q, answerTime)
	return want(m, err, answered)
}

// askOverBoth asks the service over IPv4 from an IPv6 socket, as Java does.
func askOverBoth(s *scene, f family, name string) ([]truth, error) {
	return nil, s.askOnce(f, netip.AddrPortFrom(netip.IPv6Unspecified(), 0), name, true)
}

// askTwiceAtOnce sends one query twice, and reads both answers.
func askTwiceAtOnce(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteToUDPAddrPort(q, service(s, f)); err != nil {
		return nil, err
	}
	m, err := exchange(c, service(s, f), q, answerTime)
	if err := want(m, err, true); err != nil {
		return nil, err
	}
	m, err = receive(c, answerTime)
	return nil, want(m, err, true)
}

// askAfterDrop asks again a second after the query was dropped, from the same port or from another.
func askAfterDrop(samePort bool) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		undo, err := clientNode(s).Drop(lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53})
		if err != nil {
			return nil, err
		}
		c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		defer c.Close()
		q, err := query(name)
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		m, err := exchange(c, service(s, f), q, time.Second)
		if err := errors.Join(want(m, err, false), undo()); err != nil {
			return nil, err
		}
		if !samePort {
			return nil, s.askOnce(f, netip.AddrPort{}, name, true)
		}
		m, err = exchange(c, service(s, f), q, answerTime)
		return nil, want(m, err, true)
	}
}

// askNextServer asks a server that is not there, of which an ICMP error comes, and then the one that is.
func askNextServer(s *scene, f family, name string) ([]truth, error) {
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	for i, to := range []netip.AddrPort{netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53), service(s, f)} {
		c, err := s.client.Dial(context.Background(), "udp", to.String())
		if err != nil {
			return nil, err
		}
		if _, err = c.Write(q); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		m, err := receive(c, answerTime)
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = nil
		}
		if err := errors.Join(want(m, err, i == 1), c.Close()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// forgetMeanwhile asks for what takes its time, and empties the connection tracking of the client's node meanwhile.
func forgetMeanwhile(s *scene, f family, name string) ([]truth, error) {
	c, err := s.send(f, name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	time.Sleep(300 * time.Millisecond)
	if err := s.client.Node.ForgetService(); err != nil {
		return nil, err
	}
	m, err := receive(c, answerTime)
	return nil, want(m, err, false)
}

// rejects makes a firewall of a namespace answer queries with an ICMP error.
func rejects(in func(*scene) *lab.Namespace, hook, with string) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		with := with
		if with != "" {
			with = " with " + pick(f, "icmp", "icmpv6") + " type " + with
		}
		return in(s).Rules(nftFamily(f), fmt.Sprintf("chain c { type filter hook %s priority 0; udp dport 53 reject%s; }",
			hook, with))
	}
}

// askRejected sends one query, and wants no answer but an error.
func askRejected(s *scene, f family, name string) ([]truth, error) {
	err := s.askOnce(f, netip.AddrPort{}, name, false)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.EACCES) {
		err = nil
	}
	return nil, err
}

// untracked keeps what is for NodeLocal DNSCache out of connection tracking, as its own rules do.
func untracked(s *scene, f family, _ *lab.Process) (lab.Undo, error) {
	at := local(f)
	return s.client.Node.Rules(nftFamily(f), fmt.Sprintf(`
		chain p { type filter hook prerouting priority -300; %[1]s daddr %[2]s notrack; }
		chain o { type filter hook output priority -300; %[1]s daddr %[2]s notrack; %[1]s saddr %[2]s notrack; }`,
		nftFamily(f), at))
}

// asymmetric makes CoreDNS's node expect the client's packets at another device than that at which they come.
func asymmetric(s *scene, _ family) (lab.Undo, error) {
	n := s.cluster.DNS.Node
	dev, err := n.IP("link add asym type bridge\nlink set asym up", "link del asym")
	if err != nil {
		return dev, err
	}
	strict, err := n.Sysctls("net/ipv4/conf/eth0/rp_filter", "1")
	if err != nil {
		return undoAll(dev, strict), err
	}
	dst := netip.PrefixFrom(s.client.V4, 32)
	route, err := n.IP(fmt.Sprintf("route add %s dev asym", dst), fmt.Sprintf("route del %s dev asym", dst))
	return undoAll(dev, strict, route), err
}

// askClosedTCP connects to a server that ends the connection before anything was asked, and asks then.
func askClosedTCP(s *scene, f family, name string) ([]truth, error) {
	at := netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53).String()
	ln, err := s.idle.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_ = c.Close() // with FIN: nothing was read or written
		}
	}()
	conn, err := s.client.Dial(context.Background(), "tcp", at)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	time.Sleep(300 * time.Millisecond)
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	if err := readStream(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("the server did not end the connection: %w", err)
	}
	time.Sleep(300 * time.Millisecond)
	return nil, nil
}

// askItself asks the service in CoreDNS's own pod, where the service's only endpoint is.
func askItself(s *scene, f family, name string) ([]truth, error) {
	return nil, s.digFrom(s.cluster.DNS.Run, service(s, f), name, true)
}

// twoOnOnePort makes two CoreDNS share the port of a pod, of which one is stopped.
func twoOnOnePort(s *scene, _ family) (lab.Undo, error) {
	first, err := s.secondDNS(forwards)
	if err != nil {
		return nil, err
	}
	if err := first.Signal(syscall.SIGSTOP); err != nil {
		return stop(first), err
	}
	second, err := s.secondDNS(forwards) // it is ready when it has answered itself
	return undoAll(stop(first), stopIf(second)), err
}

// askOneOfTwo asks them from one port after the other, and tells of which no answer came.
func askOneOfTwo(s *scene, f family, name string) ([]truth, error) {
	var truths []truth
	for i := range 8 {
		prefix := fmt.Sprintf("q%d", i)
		c, err := s.client.Dial(context.Background(), "udp", secondServer(s, f).String())
		if err != nil {
			return nil, err
		}
		q, err := message(prefix+"."+name, dns.TypeA, uint16(i+1))
		if err == nil {
			_, err = c.Write(q)
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		m, err := receive(c, answerTime/2)
		if err := errors.Join(err, c.Close()); err != nil {
			return nil, err
		}
		t := truth{name: prefix, where: "coredns-socket", cause: "not-read"}
		if m != nil {
			t = named(prefix)
		}
		truths = append(truths, t)
	}
	return truths, nil
}
