package store

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/stats"

	"github.com/dnstrail/dnstrail/tracer/access"
)

const (
	// requestTime is how long a request of gRPC may take to come; then its connection is closed. Programs connect again.
	requestTime = 15 * time.Second
	// maxUnderWay and maxUnderWayOfOne are how many requests of gRPC may be coming at a time, of all senders and of one:
	// so many messages, of which half has come, are held at most.
	maxUnderWay      = 64
	maxUnderWayOfOne = 8
	// maxReading is how much of the bodies of unfinished requests over HTTP is held, in bytes.
	maxReading = 64 << 20
)

var errBusy = errors.New("too many requests at once: try again")

// patience ends requests of gRPC that do not come to an end, of which the library itself takes any time. It is the
// server's stats handler and its listener.
type patience struct {
	net.Listener
	time time.Duration

	mu    sync.Mutex
	conns map[string]net.Conn
	all   int
	of    map[netip.Addr]int
}

func newPatience(l net.Listener) *patience {
	return &patience{Listener: l, time: requestTime, conns: map[string]net.Conn{}, of: map[netip.Addr]int{}}
}

// Accept implements [net.Listener].
func (p *patience) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c.RemoteAddr().String()] = c
	return &patientConn{c, p}, nil
}

type patientConn struct {
	net.Conn
	p *patience
}

// Close implements [net.Conn].
func (c *patientConn) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c.RemoteAddr().String())
	c.p.mu.Unlock()
	return c.Conn.Close()
}

// busy tells whether a sender may not begin another request now.
func (p *patience) busy(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all >= maxUnderWay || p.of[from] >= maxUnderWayOfOne
}

// coming is a request whose message has not come in full.
type coming struct {
	from   netip.Addr
	remote string
	timer  *time.Timer
	done   bool
}

type (
	comingKey struct{}
	remoteKey struct{}
)

// TagConn implements [stats.Handler].
func (p *patience) TagConn(ctx context.Context, info *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, remoteKey{}, info.RemoteAddr.String())
}

// HandleConn implements [stats.Handler].
func (p *patience) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC implements [stats.Handler].
func (p *patience) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	remote, _ := ctx.Value(remoteKey{}).(string)
	return context.WithValue(ctx, comingKey{}, &coming{from: access.Of(ctx).Address, remote: remote})
}

// HandleRPC implements [stats.Handler].
func (p *patience) HandleRPC(ctx context.Context, event stats.RPCStats) {
	c, ok := ctx.Value(comingKey{}).(*coming)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event.(type) {
	case *stats.Begin:
		p.all++
		p.of[c.from]++
		c.timer = time.AfterFunc(p.time, func() { p.hangUp(c.remote) })
	case *stats.InPayload, *stats.End:
		if c.timer == nil || c.done {
			return
		}
		c.done = true
		c.timer.Stop()
		p.all--
		if p.of[c.from]--; p.of[c.from] == 0 {
			delete(p.of, c.from)
		}
	}
}

func (p *patience) hangUp(remote string) {
	p.mu.Lock()
	c := p.conns[remote]
	p.mu.Unlock()
	if c != nil {
		_ = c.Close() // the server sees that it is closed, and tells its caller
	}
}

// bodies bounds what is held of requests over HTTP that have not come in full.
type bodies struct{ held atomic.Int64 }

// read is [io.ReadAll] within the bound of all bodies together; the error is errBusy beyond it. done gives back.
func (b *bodies) read(in io.Reader) (body []byte, done func(), err error) {
	var mine int64
	done = func() { b.held.Add(-mine) }
	chunk := make([]byte, 32<<10)
	for {
		n, err := in.Read(chunk)
		mine += int64(n)
		if b.held.Add(int64(n)) > maxReading {
			return nil, done, errBusy
		}
		body = append(body, chunk[:n]...)
		if errors.Is(err, io.EOF) {
			return body, done, nil
		}
		if err != nil {
			return nil, done, err
		}
	}
}
