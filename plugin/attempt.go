package dnstrail

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/coredns/coredns/plugin/forward"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// attempt is what is known of one attempt to ask an upstream. What is not known stays empty: forward does not tell how
// an attempt ended that it followed by another.
type attempt struct {
	forward   *forwarding // nil for another plugin's
	grpc      bool        // it is plugin grpc's
	peer      string      // as the plugin names it
	transport string      // "udp" or "tcp"
	dials     int
	pooled    bool
	connects  int   // how often a connection was taken
	retry     *node // the last attempt that forward made under this one's span
	dialErr   error
	closed    bool // the upstream had closed the pooled connection
	truncated bool
	rcode     int // -1: not known, or no answer
	errorType string
	message   string
}

func newAttempt(parent *node) *attempt {
	a := &attempt{forward: parent.fwd, rcode: -1}
	if parent.name == "grpc" {
		a.grpc, a.transport = true, "tcp"
	}
	return a
}

// connection says whether the attempt had a new or a pooled connection.
func (a *attempt) connection() string {
	switch {
	case a.dials > 0:
		return "new"
	case a.pooled:
		return "pooled"
	}
	return ""
}

// setup gives how the forward of the attempt is set up; nil if that is not known.
func (a *attempt) setup() *forwardSetup {
	if a.forward == nil {
		return nil
	}
	return a.forward.setup
}

// protocol gives CoreDNS's word for what is spoken with the upstream; "" if that is not known.
func (a *attempt) protocol() string {
	if a.grpc {
		return transport.GRPC
	}
	if s := a.setup(); s != nil {
		return s.peers[a.peer].protocol
	}
	return ""
}

func (rec *recorder) setPeer(n *node, addr string) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.closed || n.att == nil {
		return
	}
	n.att.peer = addr
	if n.att.forward != nil {
		n.att.transport = n.att.setup().transportOf(addr, n.att.forward.proto)
	}
}

// open gives the attempt that is under way; nil if there is none. Callers hold mu.
func (rec *recorder) open() *node {
	if rec.closed {
		return nil
	}
	for _, n := range slices.Backward(rec.nodes) {
		if n.kind == attemptNode && n.to == 0 {
			return n
		}
	}
	return nil
}

// connecting is called when a plugin takes a connection to an upstream, a pooled one or a new one.
func (rec *recorder) connecting() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	n := rec.open()
	if n == nil {
		return
	}
	switch n.att.protocol() {
	case transport.DNS, transport.TLS:
	default:
		return // net/http asks the context for reasons of its own
	}
	n.att.connects++
	n.att.pooled = true // until a dial is seen
	if n.att.connects == 1 {
		return
	}
	if len(rec.nodes) >= maxNodes {
		rec.omitted++
		return
	}
	// Forward tries again under the span of the first try: an attempt of its own.
	next := &node{rec: rec, parent: n.parent, name: n.name, id: newSpanID(), from: rec.now(), kind: attemptNode,
		nested: n.nested}
	next.att = &attempt{forward: n.att.forward, peer: n.att.peer, transport: n.att.transport, connects: 1, pooled: true,
		rcode: -1}
	n.to = next.from
	if s := n.att.setup(); s != nil && s.preferUDP && !s.forceTCP && n.att.protocol() == transport.DNS {
		n.att.truncated = true
		next.att.transport = "tcp"
	} else {
		n.att.closed = true
	}
	for _, first := range rec.nodes {
		if first.att != nil && (first == n || first.att.retry == n) {
			first.att.retry = next
		}
	}
	rec.nodes = append(rec.nodes, next)
}

func (rec *recorder) dialing(network string) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if n := rec.open(); n != nil {
		n.att.dials++
		switch network {
		case "udp", "udp4", "udp6":
			n.att.transport = "udp"
		case "tcp", "tcp4", "tcp6":
			n.att.transport = "tcp"
		}
	}
}

func (rec *recorder) dialed(err error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if n := rec.open(); n != nil {
		n.att.dialErr = err // the last one's: of a name with several addresses each is tried
	}
}

func (rec *recorder) gotConn(reused bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if n := rec.open(); n != nil {
		n.att.pooled = reused
	}
}

// timeout gives how long forward waits for an answer of the upstream; 0 if that is not known.
func (s *forwardSetup) timeout(peer string) time.Duration {
	if s == nil {
		return 0
	}
	return s.peers[peer].readTimeout
}

// took says whether a forward of the row that n is the first of took the query, rather than passed it on.
func (n *node) took(nodes []*node) bool {
	var deepest *node
	for _, m := range nodes {
		switch m.kind {
		case attemptNode:
			if m.within(n) {
				return true
			}
		case pluginNode:
			deepest = m
		}
	}
	return n.fwd.err != nil && deepest != nil && deepest.fwd != nil && deepest.within(n)
}

// settle says how each attempt of a row of forwards ended, so far as it is known. n is the first of the row.
func (n *node) settle(nodes []*node) {
	var last *node // the forward that the query got to last
	attempts := map[*node][]*node{}
	for _, m := range nodes {
		switch {
		case m == n || m.fwd != nil && m.within(n):
			last = m
		case m.kind == attemptNode && m.parent != nil && m.parent.fwd != nil && m.parent.within(n):
			attempts[m.parent] = append(attempts[m.parent], m)
		}
	}
	for f, list := range attempts {
		for i, a := range list {
			a.att.settle(a, f, n.fwd, i+1 < len(list), f == last)
		}
	}
}

// within says whether n is ancestor or stands below it.
func (n *node) within(ancestor *node) bool {
	for p := n; p != nil; p = p.parent {
		if p == ancestor {
			return true
		}
	}
	return false
}

// settle says how attempt a of forward f ended. row is what the row of forwards came back with; followed says that f
// made another attempt, last that no forward came after f.
func (a *attempt) settle(n, f *node, row *forwarding, followed, last bool) {
	setup := a.setup()
	switch {
	case a.truncated:
	case a.closed:
		a.fail("connection_closed", "the upstream had closed the pooled connection")
	case followed:
		switch {
		case a.dialErr != nil:
			a.failWith(a.dialErr)
		case setup.timeout(a.peer) > 0 && time.Duration(n.to-n.from) >= setup.timeout(a.peer):
			a.fail("timeout", "no answer within "+setup.timeout(a.peer).String())
		case setup != nil && len(setup.failover) == 0:
			a.fail("_OTHER", "failed; forward went on to the next attempt")
		}
	case row.writer == f:
		a.rcode = row.rcode
	case last && errors.Is(row.err, forward.ErrNoHealthy):
		if setup != nil && len(setup.failover) == 1 {
			a.rcode = setup.failover[0]
		}
	case last && row.err != nil:
		a.failWith(row.err)
	case !last && setup != nil && len(setup.alternates) == 1 && !setup.onNodata:
		a.rcode = setup.alternates[0]
	}
}

func (a *attempt) fail(errorType, message string) { a.errorType, a.message = errorType, message }

func (a *attempt) failWith(err error) { a.fail(errorType(err), err.Error()) }

// errorType gives the value of error.type for an error of the network.
func errorType(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) &&
		timeout.Timeout():
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection_refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection_reset"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "host_unreachable"
	case errors.Is(err, syscall.ENETUNREACH):
		return "network_unreachable"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "address_not_available"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection_closed"
	}
	return "_OTHER"
}
