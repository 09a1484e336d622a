package dnstrail

import (
	"context"
	"net"
	"reflect"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	ot "github.com/opentracing/opentracing-go"

	"github.com/dnstrail/dnstrail/link"
)

// refreshName is the name of the probe behind cache, as plugin trace's spans show it.
const refreshName = "dnstrail/refresh"

// refreshProbe stands directly behind plugin cache. Who gets here was not answered from the cache: a query that missed,
// or a refresh in the background, which may outlive the query that set it off and so becomes a trace of its own, with a
// link.
type refreshProbe struct {
	Next plugin.Handler
	d    *Dnstrail
}

// Name implements plugin.Handler.
func (p *refreshProbe) Name() string { return refreshName }

// spanLink is the span that set off a trace of its own.
type spanLink struct {
	traceID link.TraceID
	spanID  link.SpanID
	sampled bool
}

// ServeDNS implements plugin.Handler.
func (p *refreshProbe) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (rcode int, err error) {
	q, ok := ctx.Value(queryKey{}).(*query)
	if p.Next == nil || !ok {
		return plugin.NextOrFailure(refreshName, p.Next, ctx, w, r)
	}
	caches, background := behindCache(w)
	if background {
		return p.refresh(ctx, q, w, r)
	}
	if q.d != p.d || inLookup(ctx) {
		return plugin.NextOrFailure(refreshName, p.Next, ctx, w, r)
	}
	q.missed.Store(caches)
	q.below.Store(true)
	defer q.below.Store(false)
	if q.rec.Load() != nil {
		return plugin.NextOrFailure(refreshName, p.Next, ctx, w, r)
	}
	q.enter(int32(q.d.chain.cache) + 2) // #nosec G115 -- the length of a chain
	return p.Next.ServeDNS(ctx, w, r)
}

// refresh records work that cache does in the background.
func (p *refreshProbe) refresh(ctx context.Context, by *query, w dns.ResponseWriter, r *dns.Msg) (
	rcode int, err error) {
	q := p.begin(by, r)
	if q == nil {
		return plugin.NextOrFailure(refreshName, p.Next, ctx, w, r)
	}
	rec := newRecorder(q, nil)
	q.context = queryContext{ctx, q}
	q.writer = queryWriter{w, q}
	q.hop.Store(int32(q.d.chain.cache) + 2) // #nosec G115 -- the length of a chain
	q.rec.Store(rec)
	q.started.Store(true)
	returned := false
	defer func() { q.finish(rcode, err, !returned) }()
	child := rec.root().startChild(p.Next.Name())
	defer child.Finish()
	rcode, err = p.Next.ServeDNS(ot.ContextWithSpan(&q.context, child), &q.writer, r)
	returned = true
	return rcode, err
}

func (p *refreshProbe) begin(by *query, r *dns.Msg) (q *query) {
	defer func() {
		if c := recover(); c != nil {
			ownPanic("starting the record of a refresh", c)
			q = nil
		}
	}()
	if len(r.Question) != 1 {
		return nil
	}
	q = &query{
		d: p.d, request: r, begun: time.Now(), client: by.client, addr: by.addr, proto: by.proto, udp: by.udp,
		name: r.Question[0].Name, qtype: r.Question[0].Qtype, qclass: r.Question[0].Qclass, id: r.Id,
		origin: random, traceID: newTraceID(), spanID: newSpanID(), reason: by.reason,
		link: &spanLink{by.traceID, by.spanID, by.reason != notKept},
	}
	if q.reason != notKept {
		q.flags = link.FlagSampled
	}
	return q
}

// behindCache says whether a writer is cache's, which it is not where cache passes a query by (a zone or an opcode that
// it does not cache), and whether it is one of a refresh in the background. Such a one either has no client, or
// (verifying a stale answer against a time-out) has one, and may lose it while it runs.
//
// What cache keeps to itself is read by reflection: a writer that does not look as in CoreDNS v1.15.0 does not count as
// cache's.
func behindCache(w dns.ResponseWriter) (caches, background bool) {
	v := reflect.ValueOf(w)
	for range 4 {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			break
		}
		if f := v.FieldByName("prefetch"); f.IsValid() && f.Kind() == reflect.Bool {
			return true, f.Bool()
		}
		if v = v.FieldByName("ResponseWriter"); !v.IsValid() {
			break
		}
	}
	a, ok := w.RemoteAddr().(*net.TCPAddr) // what cache gives for the client of a prefetch
	return false, ok && a != nil && a.IP == nil && a.Port == 0
}
