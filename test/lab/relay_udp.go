package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// RelayUDP passes datagrams that come to addr in one namespace on to target as seen from another, and what comes back
// to whoever sent last from each address. A nil namespace is the host's. It gives the address it listens at (port 0:
// any).
func (l *Lab) RelayUDP(from *Namespace, addr string, to *Namespace, target string) (string, error) {
	if from == nil {
		from = l.host
	}
	if to == nil {
		to = l.host
	}
	in, err := from.ListenPacket("udp", addr)
	if err != nil {
		return "", fmt.Errorf("relay to %s: %w", target, err)
	}
	r := &udpRelay{in: in.(*net.UDPConn), to: to, target: target, out: map[netip.AddrPort]net.Conn{}}
	r.wg.Go(r.serve)
	l.onDown(func() error {
		err := in.Close()
		r.closeAll()
		r.wg.Wait()
		return err
	})
	return in.LocalAddr().String(), nil
}

// maxUDPPeers bounds the senders that a relay keeps a socket for.
const maxUDPPeers = 64

type udpRelay struct {
	in     *net.UDPConn
	to     *Namespace
	target string
	wg     sync.WaitGroup

	mu  sync.Mutex
	out map[netip.AddrPort]net.Conn // by sender; nil once closed
}

func (r *udpRelay) serve() {
	buf := make([]byte, 65536)
	for {
		n, from, err := r.in.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about what was passed back
		}
		if c := r.conn(from); c != nil {
			_, _ = c.Write(buf[:n]) // as on any network
		}
	}
}

// conn gives the socket for a sender; nil where there is none.
func (r *udpRelay) conn(from netip.AddrPort) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.out[from]; c != nil || r.out == nil || len(r.out) >= maxUDPPeers {
		return c
	}
	c, err := r.to.Dial(context.Background(), "udp", r.target)
	if err != nil {
		return nil
	}
	r.out[from] = c
	r.wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = r.in.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	})
	return c
}

func (r *udpRelay) closeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.out {
		_ = c.Close()
	}
	r.out = nil
}
