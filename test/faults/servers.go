package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// instance is one more DNS server, beside the cluster's.
type instance struct {
	start func(lab.Command) (*lab.Process, error)
	ns    *lab.Namespace
	node  *lab.Node
	// pod and namespace are what CoreDNS is told that its pod is.
	pod, namespace string
	// ready are the addresses at which it answers when it is ready: a tracer knows a server by what it saw it read.
	ready []netip.AddrPort
	// uid is the user that it runs as, if not root.
	uid string
}

func inPod(p *lab.Pod, ready netip.AddrPort) instance {
	return instance{start: p.Start, ns: p.Namespace, node: p.Node, pod: p.Name, namespace: p.PodSpec.Namespace,
		ready: []netip.AddrPort{ready}}
}

// stop ends a process whose end is wanted, stopped or not.
func stop(p *lab.Process) lab.Undo {
	return func() error {
		_ = p.Signal(syscall.SIGCONT) // it may have ended
		_ = p.Stop(3 * time.Second)   // how it ends does not matter
		return nil
	}
}

// coreDNS starts a CoreDNS whose server blocks each have the dnstrail block, with further lines in it, and waits until
// it answers.
func (s *scene) coreDNS(in instance, plugin string, zones ...cluster.Zone) (*lab.Process, error) {
	var text strings.Builder
	for _, z := range zones {
		fmt.Fprintf(&text, "%s {\n    dnstrail {\n        endpoint grpc://%s\n        identity file %s\n        sample "+
			"%s\n        tracer\n        %s\n    }\n    %s\n}\n",
			z.Name, netip.AddrPortFrom(in.node.V4, lab.CollectorPort), s.cluster.IdentityFile, s.options.sample, plugin, z.Chain)
	}
	dir := filepath.Dir(s.cluster.IdentityFile)
	// Whoever it runs as reads its files there.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, "Corefile-")
	if err != nil {
		return nil, err
	}
	_, err = file.WriteString(text.String())
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(filepath.Join(s.options.bin, "coredns"))
	if err != nil {
		return nil, err
	}
	c := lab.Command{
		Path: bin, Args: []string{"-conf", file.Name()},
		Env: []string{"POD_NAME=" + in.pod, "POD_NAMESPACE=" + in.namespace, "NODE_NAME=" + in.node.Name},
	}
	if in.uid != "" {
		c.Path, c.Args = "setpriv", append([]string{"--reuid", in.uid, "--clear-groups", bin}, c.Args...)
	}
	return s.serve(in, c)
}

// serve starts a server and waits until it answers.
func (s *scene) serve(in instance, c lab.Command) (*lab.Process, error) {
	p, err := in.start(c)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(slowStart); ; time.Sleep(30 * time.Millisecond) {
		err := answers(in)
		if err == nil {
			return p, nil
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("a server ended at its start: %w\n%s", p.Err(), cluster.Tail(p))
		default:
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("a server does not answer: %w\n%s", err, cluster.Tail(p)), stop(p)())
		}
	}
}

// answers asks a server at each of its addresses.
func answers(in instance) error {
	client := dns.Client{Timeout: 500 * time.Millisecond}
	for _, at := range in.ready {
		conn, err := in.ns.Dial(context.Background(), "udp", at.String())
		if err != nil {
			return err
		}
		_, _, err = client.ExchangeWithConn(new(dns.Msg).SetQuestion(readyPrefix+"server.example.", dns.TypeA),
			&dns.Conn{Conn: conn})
		_ = conn.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// localV4 and localV6 are the addresses of NodeLocal DNSCache.
var (
	localV4 = netip.MustParseAddr("169.254.20.10")
	localV6 = netip.MustParseAddr("fd00:169:254:20::10")
)

func local(f family) netip.Addr { return pick(f, localV4, localV6) }

// nodeLocal starts NodeLocal DNSCache on the client's node: it asks the cluster's service over TCP.
func (s *scene) nodeLocal() (*lab.Process, error) {
	n := s.client.Node
	if !s.dummies {
		for name, addr := range map[string]netip.Addr{"nodelocaldns": localV4, "nodelocaldns6": localV6} {
			if err := n.AddDummy(name, addr); err != nil {
				return nil, err
			}
		}
		s.dummies = true
	}
	chain := fmt.Sprintf("errors\n    bind %s %s\n    forward . %s {\n        force_tcp\n    }", localV4, localV6,
		lab.ServiceV4)
	in := instance{start: n.Start, ns: n.Namespace, node: n, pod: "node-local-dns-x7x2k", namespace: "kube-system",
		ready: []netip.AddrPort{netip.AddrPortFrom(localV4, 53), netip.AddrPortFrom(localV6, 53)}}
	return s.coreDNS(in, "traceparent send", cluster.Zone{Name: ".:53", Chain: chain})
}

// withNodeLocal starts NodeLocal DNSCache and does more.
func withNodeLocal(more func(*scene, family, *lab.Process) (lab.Undo, error)) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		p, err := s.nodeLocal()
		if err != nil {
			return nil, err
		}
		undo, err := more(s, f, p)
		return undoAll(stop(p), undo), err
	}
}

func noMore(*scene, family, *lab.Process) (lab.Undo, error) { return nil, nil }

// secondDNS starts a second CoreDNS in a pod beside the cluster's, with a chain.
func (s *scene) secondDNS(chain string) (*lab.Process, error) {
	return s.coreDNS(inPod(s.second, netip.AddrPortFrom(s.second.V4, 53)), "", cluster.Zone{Name: ".:53", Chain: chain})
}

// withSecond starts it and does more.
func withSecond(chain string, more func(*scene, family, *lab.Process) (lab.Undo, error)) func(*scene, family) (
	lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		p, err := s.secondDNS(chain)
		if err != nil {
			return nil, err
		}
		if more == nil {
			return stop(p), nil
		}
		undo, err := more(s, f, p)
		return undoAll(stop(p), undo), err
	}
}

// forwards is the chain of a server that only asks the upstream.
var forwards = "errors\n    forward . " + lab.UpstreamV4.String()

// both gives the addresses of the cluster's CoreDNS and of the second.
func bothServers(s *scene, f family) []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), 53),
		netip.AddrPortFrom(pick(f, s.second.V4, s.second.V6), 53),
	}
}

// listenTCP accepts connections at port 53 of the idle pod, reads a query of each, and then does with the connection
// what end does.
func listenTCP(end func(*net.TCPConn) error) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		ln, err := s.idle.Listen("tcp", netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53).String())
		if err != nil {
			return nil, err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // never fails: an open socket
					if err := readStream(c); err == nil {
						_ = end(c.(*net.TCPConn))
					}
					_ = c.Close() // the client sees how it ends
				}()
			}
		}()
		return ln.Close, nil
	}
}

// reset ends a connection with RST.
func reset(c *net.TCPConn) error { return c.SetLinger(0) }

// finish ends a connection with FIN.
func finish(*net.TCPConn) error { return nil }

// askIdleTCP asks the idle pod over TCP, and wants the connection to end without an answer.
func askIdleTCP(s *scene, f family, name string) ([]truth, error) {
	conn, err := s.dialTCP(netip.AddrPortFrom(pick(f, s.idle.V4, s.idle.V6), 53).String(), name)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	if err := readStream(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("the server did not end the connection: %w", err)
	}
	return nil, nil
}
