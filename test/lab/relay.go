package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Relay listens on TCP at addr in the namespace and connects what comes to target on the host: so CoreDNS in a pod
// reaches a collector on the host's loopback, as it would one that runs on its node. It gives the address it listens at
// (port 0: any).
func (l *Lab) Relay(from *Namespace, addr, target string) (string, error) {
	return l.relay(from, addr, l.host, target)
}

// Expose listens on TCP at the host's loopback and connects what comes to addr as seen from the namespace: so a scraper
// on the host reaches a pod. It gives the address on the host.
func (l *Lab) Expose(to *Namespace, addr string) (string, error) {
	return l.relay(l.host, "127.0.0.1:0", to, addr)
}

// CollectorPort is the port of the addresses that [Lab.Collector] gives.
const CollectorPort = 4317

// Collector makes target, an address on the host, reachable on every node at the node's own addresses and
// [CollectorPort].
func (l *Lab) Collector(target string) error {
	for _, n := range l.nodes {
		for _, a := range []netip.Addr{n.V4, n.V6} {
			if _, err := l.Relay(n.Namespace, netip.AddrPortFrom(a, CollectorPort).String(), target); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) relay(from *Namespace, addr string, to *Namespace, target string) (string, error) {
	ln, err := from.Listen("tcp", addr)
	if err != nil {
		return "", fmt.Errorf("relay to %s: %w", target, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{to: to, target: target, conns: map[net.Conn]struct{}{}}
	r.wg.Go(func() { r.serve(ctx, ln) })
	l.onDown(func() error {
		cancel()
		err := ln.Close()
		r.closeConns()
		r.wg.Wait()
		return err
	})
	return ln.Addr().String(), nil
}

type relay struct {
	to     *Namespace
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once closed
}

func (r *relay) serve(ctx context.Context, ln net.Listener) {
	for {
		a, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, or a connection that is gone again
			continue
		}
		r.wg.Go(func() { r.join(ctx, a) })
	}
}

// join copies both ways until both sides are done. A target that cannot be reached looks to the client like a closed
// connection.
func (r *relay) join(ctx context.Context, a net.Conn) {
	defer a.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b, err := r.to.Dial(ctx, "tcp", r.target)
	if err != nil {
		return
	}
	defer b.Close()
	if !r.hold(a, b) {
		return
	}
	defer r.release(a, b)
	var wg sync.WaitGroup
	for _, d := range []struct{ dst, src net.Conn }{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(d.dst, d.src) // an error ends the connection, as the end does
			_ = d.dst.(*net.TCPConn).CloseWrite()
		})
	}
	wg.Wait()
}

func (r *relay) hold(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		if r.conns == nil {
			return false
		}
		r.conns[c] = struct{}{}
	}
	return true
}

func (r *relay) release(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		delete(r.conns, c)
	}
}

func (r *relay) closeConns() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}
