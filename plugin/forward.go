package dnstrail

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http/httptrace"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/forward"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	ot "github.com/opentracing/opentracing-go"
)

// upstreamName is the name of the probe before forward, as plugin trace's spans show it.
const upstreamName = "dnstrail/upstream"

// upstreamProbe stands directly before the first plugin forward of a block. It sees what forward comes back with, and
// follows the attempts in between: forward starts a span for each if there is a span at all.
type upstreamProbe struct {
	Next plugin.Handler
	d    *Dnstrail

	once  sync.Once
	setup *forwardSetup
}

// Name implements plugin.Handler.
func (p *upstreamProbe) Name() string { return upstreamName }

// forwarding is what is known of one passage through a plugin forward.
type forwarding struct {
	setup  *forwardSetup // nil if it is not known
	probed bool          // the first of a row of forwards: our probe stands before it

	// What upstreams are asked, where that is not what the client asked: after a rewrite, or for a CNAME's target.
	name  string // "" if it is
	qtype uint16

	// What the row came back with; only in the first.
	proto  string // of the query it passed on: "udp" or "tcp"
	rcode  int    // of what was written; -1 if nothing was
	writer *node  // the forward that wrote it
	err    error
	full   bool // forward took no more queries: max_concurrent
}

// ServeDNS implements plugin.Handler.
func (p *upstreamProbe) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q, ok := ctx.Value(queryKey{}).(*query)
	if p.Next == nil || !ok {
		return plugin.NextOrFailure(upstreamName, p.Next, ctx, w, r)
	}
	p.once.Do(func() { p.setup = readForwards(p.Next) })
	var parent *node
	if rec := q.rec.Load(); rec == nil {
		parent = q.record().root()
	} else if parent, ok = ot.SpanFromContext(ctx).(*node); !ok {
		return plugin.NextOrFailure(upstreamName, p.Next, ctx, w, r)
	}
	n := parent.startChild(p.Next.Name())
	defer n.Finish()
	f := &forwarding{setup: p.setup, probed: true, rcode: -1, proto: (&request.Request{W: w, Req: r}).Proto()}
	if len(r.Question) == 1 && (r.Question[0].Name != q.name || r.Question[0].Qtype != q.qtype) {
		f.name, f.qtype = r.Question[0].Name, r.Question[0].Qtype
	}
	rec := n.rec
	rec.mu.Lock()
	n.fwd = f
	rec.mu.Unlock()
	fw := &forwardWriter{ResponseWriter: w, n: n}
	if p.d.config.sends() {
		r, fw.added = p.d.config.addTraceparent(r, q, n)
	}
	ctx = httptrace.WithClientTrace(attemptContext{ctx, rec}, rec.clientTrace())
	rcode, err := p.Next.ServeDNS(ot.ContextWithSpan(ctx, n), fw, r)
	if err != nil {
		rec.mu.Lock()
		if !rec.closed {
			f.err = err
			f.full = limited(p.Next, err)
		}
		rec.mu.Unlock()
	}
	return rcode, err
}

// limited says whether a row of forwards came back with an error because one of them has as many queries as it may.
func limited(h plugin.Handler, err error) bool {
	f, ok := h.(*forward.Forward)
	if !ok {
		return false
	}
	return f.ErrLimitExceeded != nil && errors.Is(err, f.ErrLimitExceeded) || limited(f.Next, err)
}

// forwardWriter notes what forward writes.
type forwardWriter struct {
	dns.ResponseWriter
	n     *node
	added bool // we added the OPT record to the query: the client has none, and must not get one
}

// WriteMsg implements dns.ResponseWriter.
func (w *forwardWriter) WriteMsg(m *dns.Msg) error {
	if w.added {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	rec := w.n.rec
	rec.mu.Lock()
	if f := w.n.fwd; !rec.closed && f.rcode < 0 {
		f.rcode = m.Rcode
		for _, n := range slices.Backward(rec.nodes) {
			if n.kind == pluginNode && n.to == 0 {
				f.writer = n
				break
			}
		}
	}
	rec.mu.Unlock()
	return w.ResponseWriter.WriteMsg(m)
}

// forwardSetup is what a plugin forward was set up to do.
type forwardSetup struct {
	peers      map[string]peerSetup // by address, as forward names it
	forceTCP   bool
	preferUDP  bool
	failover   []int
	alternates []int
	onNodata   bool
	next       *forwardSetup // of the forward that follows directly
}

// peerSetup is how one upstream is asked.
type peerSetup struct {
	protocol    string // transport.DNS, ...
	readTimeout time.Duration
}

// readForwards reads how a row of forwards is set up. Forward keeps that to itself, so it is read by reflection; where
// a forward does not look as in CoreDNS v1.15.0 the setup is nil, and what would follow from it is not known.
func readForwards(h plugin.Handler) *forwardSetup {
	f, ok := h.(*forward.Forward)
	if !ok {
		return nil
	}
	s := readForward(f)
	if s != nil {
		s.next = readForwards(f.Next)
	}
	return s
}

func readForward(f *forward.Forward) (s *forwardSetup) {
	defer func() {
		if recover() != nil { // a field of another type
			s = nil
		}
	}()
	v := reflect.ValueOf(f).Elem()
	opts := v.FieldByName("opts")
	s = &forwardSetup{
		peers:      map[string]peerSetup{},
		forceTCP:   opts.FieldByName("ForceTCP").Bool(),
		preferUDP:  opts.FieldByName("PreferUDP").Bool(),
		failover:   ints(v.FieldByName("failoverRcodes")),
		alternates: ints(v.FieldByName("nextAlternateRcodes")),
		onNodata:   v.FieldByName("nextOnNodata").Bool(),
	}
	proxies := v.FieldByName("proxies")
	for i := range proxies.Len() {
		p := proxies.Index(i).Elem()
		s.peers[p.FieldByName("addr").String()] = peerSetup{
			protocol:    p.FieldByName("protocol").String(),
			readTimeout: time.Duration(p.FieldByName("readTimeout").Int()),
		}
	}
	return s
}

func ints(v reflect.Value) []int {
	list := make([]int, v.Len())
	for i := range list {
		list[i] = int(v.Index(i).Int())
	}
	return list
}

// nextForward gives the forwarding of a forward that is passed below n.
func (n *node) nextForward() *forwarding {
	f := &forwarding{rcode: -1}
	for p := n; p != nil; p = p.parent {
		if p.fwd != nil {
			if p.fwd.setup != nil {
				f.setup = p.fwd.setup.next
			}
			f.proto, f.name, f.qtype = p.fwd.proto, p.fwd.name, p.fwd.qtype
			break
		}
	}
	return f
}

// attemptContext is the context of upstream attempts. CoreDNS asks a context whether it is done each time it takes a
// connection, and so tells of the attempts that forward makes under one span: again over TCP after a truncated answer,
// or again because a pooled connection was closed.
type attemptContext struct {
	context.Context
	rec *recorder
}

// Err implements context.Context.
func (c attemptContext) Err() error {
	c.rec.connecting()
	return c.Context.Err()
}

// clientTrace gives the hooks by which package net tells of new connections.
func (rec *recorder) clientTrace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		ConnectStart: func(network, _ string) { rec.dialing(network) },
		ConnectDone:  func(_, _ string, err error) { rec.dialed(err) },
		GotConn:      func(info httptrace.GotConnInfo) { rec.gotConn(info.Reused) },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err != nil {
				rec.dialed(err)
			}
		},
	}
}

// transportOf gives the transport over which forward asks an upstream, "" if that is not known.
func (s *forwardSetup) transportOf(peer, client string) string {
	if s == nil {
		return ""
	}
	switch s.peers[peer].protocol {
	case transport.TLS, transport.HTTPS:
		return "tcp"
	case transport.QUIC:
		return "udp"
	case transport.DNS:
		switch {
		case s.forceTCP:
			return "tcp"
		case s.preferUDP:
			return "udp"
		}
		return client
	}
	return ""
}
