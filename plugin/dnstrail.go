// Package dnstrail is the CoreDNS plugin dnstrail: it records, for every query, who asked, which plugins and upstreams
// the query passed, how long each took and how it ended, and sends that as OpenTelemetry spans whose IDs the dnstrail
// tracer derives too (package link).
//
// Most queries are not kept, and CoreDNS answers a cached one in a few microseconds: what is done for every query has
// to be small. So the plugin works in two steps.
//
// Every query gets a [query], one allocation: it is the context and the response writer that the plugins behind us see.
// As a writer it notes the answer. As a context it is asked by CoreDNS at every step down the chain whether there is a
// span ([plugin.NextOrFailure]); it answers no, and counts: that is enough to tell which plugin the query has got to
// (hops.go).
//
// A query that is sampled, and any query from the point where it goes upstream, gets a [recorder] too. It answers yes,
// is an opentracing tracer to CoreDNS, and so is told about each plugin and each upstream attempt (recorder.go,
// forward.go). When the query is over and is to be kept, query and recorder are handed to the exporter as they are;
// they become spans there, off the query path and straight in OTLP's wire form (spans.go, export.go, package
// link/otlp).
//
// What all this costs is won back before it: the stack that a query needs is grown at once (stack.go).
//
// Two handlers of ours stand deeper in the chain, where no directive can put them: one behind cache, which is reached
// only when cache has no answer, and tells a miss from a background refresh (refresh.go); and one before forward, which
// sees the very answer or error that forward came back with (forward.go).
package dnstrail

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/names"
)

const pluginName = "dnstrail"

// Dnstrail is the handler of one server block.
type Dnstrail struct {
	Next plugin.Handler

	config    config
	chain     chain           // what stands behind us; set at start-up
	index     *identity.Index // nil if nobody is to be identified
	exporter  *exporter       // nil if spans go nowhere
	hindsight *hindsight      // nil if nothing is remembered for those who ask
	keep      keeper
	names     *names.Policy
	observe   func(q *query, kept bool) // never nil
}

// Name implements plugin.Handler.
func (d *Dnstrail) Name() string { return pluginName }

// ServeDNS implements plugin.Handler.
func (d *Dnstrail) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (rcode int, err error) {
	q, lookup := d.open(ctx, w, r)
	if lookup {
		return d.serveLookup(ctx, w, r)
	}
	if q == nil {
		return plugin.NextOrFailure(pluginName, d.Next, ctx, w, r)
	}
	returned := false
	defer func() { q.finish(rcode, err, !returned) }()
	rcode, err = q.serve(r)
	returned = true
	return rcode, err
}

// open starts the record of a query. It gives nil if the query is not one of a client: a look-up is one that a plugin
// makes for another query.
func (d *Dnstrail) open(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (q *query, lookup bool) {
	defer func() {
		if p := recover(); p != nil {
			ownPanic("starting a record", p)
			q, lookup = nil, false
		}
	}()
	if d.Next == nil || len(r.Question) != 1 || len(d.chain.hops) == 0 {
		return nil, false
	}
	if known, ok := ctx.Value(queryKey{}).(*query); ok {
		switch {
		case known.started.Load():
			return nil, true
		case known.d == d && known.request == r: // begun for its metadata
			known.identifyLate(ctx)
			known.start(ctx, w)
			return known, false
		}
	}
	if d.chain.loop && isLoopProbe(r) {
		return nil, false
	}
	q = d.begin(ctx, w, r)
	q.start(ctx, w)
	return q, false
}

// isLoopProbe says whether the query is the one that plugin loop sends to itself at start-up: HINFO for two random
// numbers.
func isLoopProbe(r *dns.Msg) bool {
	question := &r.Question[0]
	if question.Qtype != dns.TypeHINFO {
		return false
	}
	digits, dots := 0, 0
	for i := 0; i < len(question.Name) && dots < 2; i++ {
		switch c := question.Name[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			dots++
		default:
			return false
		}
	}
	return digits > 20 && dots == 2
}
