package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what listens.
const (
	// MaxConnections is how many connections one listener has at most, and MaxConnectionsOfOne how many of them one
	// address may have: an IPv4 address, or a /64 of IPv6, which is the least that a network gives to one machine. This
	// machine's own may have them all, since a port-forward makes those of many.
	MaxConnections      = 1024
	MaxConnectionsOfOne = 64

	// maxHeader bounds a request's header, in bytes.
	maxHeader = 32 << 10
	// headerTime, requestTime and answerTime are how long a request's header, all of it, and its answer may take. Who
	// answers with a stream moves the latter two as it goes: see [Streaming].
	headerTime  = 5 * time.Second
	requestTime = 15 * time.Second
	answerTime  = 60 * time.Second
	idleTime    = 60 * time.Second
)

// shutdownGrace is how long requests under way may take to end when a server stops.
const shutdownGrace = 2 * time.Second

// Listener bounds the connections of l: what comes beyond is closed at once, and others are not made to wait for it.
func Listener(l net.Listener) net.Listener {
	return &listener{Listener: l, most: MaxConnections, mostOfOne: MaxConnectionsOfOne, of: map[netip.Prefix]int{}}
}

type listener struct {
	net.Listener
	most, mostOfOne int

	mu  sync.Mutex
	all int
	of  map[netip.Prefix]int
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := network(address(c.RemoteAddr().String()))
		if l.take(who) {
			return &conn{Conn: c, gone: sync.OnceFunc(func() { l.give(who) })}, nil
		}
		_ = c.Close()
	}
}

// network gives what counts as one: see [MaxConnectionsOfOne].
func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero prefix of no address
	return p
}

func (l *listener) take(who netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || l.of[who] >= l.mostOfOne && !who.Addr().IsLoopback() {
		return false
	}
	l.all++
	l.of[who]++
	return true
}

func (l *listener) give(who netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[who]--; l.of[who] == 0 {
		delete(l.of, who)
	}
}

type conn struct {
	net.Conn
	gone func()
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// Server gives a server of h of which no request lasts for ever.
func Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader,
	}
}

// Serve serves h from l, whose connections it bounds, until ctx ends, and closes l. The error is nil if it was ctx that
// ended it.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := Server(h)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // what is still open after the grace is cut
		}
	})
	if _, bounded := l.(*listener); !bounded {
		l = Listener(l)
	}
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP at %v: %w", l.Addr(), err)
	}
	return nil
}

// Streaming frees an answer from the bounds of a whole request: it may last for as long as the reader reads. The
// function that it gives is to be called before each write, which then has a bound of its own.
func Streaming(w http.ResponseWriter) (write func()) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // of what has no deadlines none is to be moved
	return func() { _ = c.SetWriteDeadline(time.Now().Add(answerTime)) }
}

// AtOnce lets n requests at a time through to h, and tells those beyond to try again.
func AtOnce(n int, h http.Handler) http.Handler {
	places := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many ask at once: try again", http.StatusServiceUnavailable)
		}
	})
}
