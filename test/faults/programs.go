package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/output"
)

// What real programs do beside dig and CoreDNS: glibc's resolver, forwarders in the pod, resolvers that ask a label at
// a time.

// askGlibc asks for a name's addresses of both families, as glibc's resolver does: of the service, over IPv4.
func askGlibc(s *scene, _ family, name string) ([]truth, error) {
	ctx, cancel := context.WithTimeout(context.Background(), slowStart)
	defer cancel()
	_, err := s.client.Run(ctx, "getent", "ahosts", name)
	return nil, err
}

// withDnsmasq starts a forwarder in the client's pod, which asks the service.
func withDnsmasq(s *scene, f family) (lab.Undo, error) {
	p, err := s.serve(inPod(s.client, loopback(s, f)), lab.Command{Path: "dnsmasq", Args: []string{
		"--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root", "--pid-file=",
		"--cache-size=0", "--listen-address=" + loopback(s, f).Addr().String(), "--server=" + f.vip.String(),
	}})
	if err != nil {
		return nil, err
	}
	return stop(p), nil
}

// loopback is a server's address in the pod itself.
func loopback(_ *scene, f family) netip.AddrPort {
	return netip.AddrPortFrom(pick(f, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), 53)
}

// withUnbound starts a resolver in the second pod, which asks the upstream as if that had authority: a label at a time
// (RFC 9156).
func withUnbound(s *scene, f family) (lab.Undo, error) {
	file, err := os.Create(filepath.Join(filepath.Dir(s.cluster.IdentityFile), "unbound.conf"))
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(file, `server:
  interface: %s
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  module-config: iterator
  qname-minimisation: yes
stub-zone:
  name: example
  stub-addr: %s
`, pick(f, s.second.V4, s.second.V6), upstreamOf(f))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	unbound := lab.Command{Path: "unbound", Args: []string{"-d", "-c", file.Name()}}
	p, err := s.serve(inPod(s.second, secondServer(s, f)), unbound)
	if err != nil {
		return nil, err
	}
	return stop(p), nil
}

func secondServer(s *scene, f family) netip.AddrPort {
	return netip.AddrPortFrom(pick(f, s.second.V4, s.second.V6), 53)
}

// below asks for a name some labels below the row's own.
func below(ask func(*scene, family, string) ([]truth, error)) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) { return ask(s, f, "a.b.c."+name) }
}

// askAndHangUp sends a query over TCP and ends the connection at once: with FIN, or with RST.
func askAndHangUp(end func(*net.TCPConn) error) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		conn, err := s.dialTCP(service(s, f).String(), name)
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(end(conn), conn.Close())
	}
}

// askProbed asks once for what a dead upstream is to answer, and waits while CoreDNS looks whether that is well again.
// What it asks for that is its own, and no client's lookup asked again.
func askProbed(s *scene, f family, name string) ([]truth, error) {
	begin := time.Now()
	if err := s.digFrom(s.client.Run, service(s, f), name, false, "+time=1"); err != nil {
		return nil, err
	}
	time.Sleep(patience)
	if s.observe == nil {
		return nil, nil
	}
	s.observe.mu.Lock()
	defer s.observe.mu.Unlock()
	probes := 0
	for _, l := range s.observe.list {
		r := l.row
		if r.Name != "." || r.Type != "NS" || r.Time.Before(begin) || hostOf(r.Server) != nobodysAddress.String() {
			continue
		}
		probes++
		switch {
		case !r.Own:
			return nil, fmt.Errorf("a health check of CoreDNS's is a client's lookup: %s", listed([]*output.Row{r}))
		case len(r.Related) > 0:
			return nil, fmt.Errorf("a health check of CoreDNS's is a %s of another", r.Related[0].Kind)
		}
	}
	if probes == 0 {
		return nil, errors.New("CoreDNS made no health check")
	}
	return nil, nil
}

// proxied puts a header of the PROXY protocol, version 2, before a query: a load balancer sends so for its client.
func proxied(udp bool, client, server netip.AddrPort, query []byte) []byte {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21")
	kind := byte(0x10) // IPv4
	if !client.Addr().Is4() {
		kind = 0x20
	}
	if udp {
		kind |= 2
	} else {
		kind |= 1
	}
	addresses := append(client.Addr().AsSlice(), server.Addr().AsSlice()...)
	addresses = binary.BigEndian.AppendUint16(addresses, client.Port())
	addresses = binary.BigEndian.AppendUint16(addresses, server.Port())
	b = binary.BigEndian.AppendUint16(append(b, kind), uint16(len(addresses)))
	return append(append(b, addresses...), query...)
}

// withProxyProtocol starts a CoreDNS that is behind a load balancer.
func withProxyProtocol(s *scene, _ family) (lab.Undo, error) {
	p, err := s.secondDNS("proxyproto {\n        default use\n    }\n    " + forwards)
	if err != nil {
		return nil, err
	}
	return stop(p), nil
}

// balanced is the client that the load balancer, which is the lab's client, asks for (RFC 5737, RFC 3849).
func balanced(f family) netip.AddrPort {
	return netip.AddrPortFrom(pick(f, netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")), 5555)
}

// askProxied asks so over UDP.
func askProxied(s *scene, f family, name string) ([]truth, error) {
	c, err := bound(s.client.Namespace, pick(f, s.client.V4, s.client.V6), 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := query(name)
	if err != nil {
		return nil, err
	}
	m, err := exchange(c, secondServer(s, f), proxied(true, balanced(f), secondServer(s, f), q), answerTime)
	return nil, want(m, err, true)
}

// proxiedText is such a header of version 1, which is for TCP alone.
func proxiedText(client, server netip.AddrPort) []byte {
	kind := "TCP4"
	if !client.Addr().Is4() {
		kind = "TCP6"
	}
	return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", kind, client.Addr(), server.Addr(), client.Port(), server.Port())
}

// askProxiedTCP asks so over TCP, with a header of version 1 or 2, in one piece or a byte at a time.
func askProxiedTCP(version int, whole bool) func(*scene, family, string) ([]truth, error) {
	return func(s *scene, f family, name string) ([]truth, error) {
		conn, err := s.client.Dial(context.Background(), "tcp", secondServer(s, f).String())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		q, err := query(name)
		if err != nil {
			return nil, err
		}
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
		all := append(proxiedText(balanced(f), secondServer(s, f)), q...)
		if version == 2 {
			all = proxied(false, balanced(f), secondServer(s, f), q)
		}
		step := 1
		if whole {
			step = len(all)
		}
		for piece := range slices.Chunk(all, step) {
			if _, err = conn.Write(piece); err != nil {
				return nil, err
			}
		}
		return nil, errors.Join(conn.SetReadDeadline(time.Now().Add(answerTime)), readStream(conn))
	}
}
