package dnstrail

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	ot "github.com/opentracing/opentracing-go"
)

// lookup is what is known of a look-up that a plugin made through the server, to follow a CNAME for instance.
type lookup struct {
	name  string
	qtype uint16
	rcode int // -1: nothing was answered
	err   error
}

// lookupKey marks the context of such a look-up.
type lookupKey struct{}

func inLookup(ctx context.Context) bool { return ctx.Value(lookupKey{}) != nil }

// serveLookup serves a query that a plugin asks on behalf of another query: a child of that one, not a query of a
// client.
func (d *Dnstrail) serveLookup(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	ctx = context.WithValue(ctx, lookupKey{}, true)
	parent, ok := ot.SpanFromContext(ctx).(*node)
	if !ok || len(r.Question) != 1 || d.Next == nil {
		return plugin.NextOrFailure(pluginName, d.Next, ctx, w, r)
	}
	n := parent.rec.start(parent, "lookup", lookupNode)
	n.inner = parent.inner
	found := &lookup{name: r.Question[0].Name, qtype: r.Question[0].Qtype, rcode: -1}
	lw := &lookupWriter{w, n, found}
	defer parent.rec.end(n) // not Finish: the inner span is the parent's
	child := n.startChild(d.Next.Name())
	defer child.Finish()
	rcode, err := d.Next.ServeDNS(ot.ContextWithSpan(ctx, child), lw, r)
	parent.rec.mu.Lock()
	defer parent.rec.mu.Unlock()
	if !parent.rec.closed {
		if found.rcode < 0 && !plugin.ClientWrite(rcode) {
			found.rcode = rcode
		}
		found.err = err
		n.look = found
	}
	return rcode, err
}

// lookupWriter notes the answer of a look-up.
type lookupWriter struct {
	dns.ResponseWriter
	n     *node
	found *lookup
}

// WriteMsg implements dns.ResponseWriter.
func (w *lookupWriter) WriteMsg(m *dns.Msg) error {
	if w.found.rcode < 0 {
		w.found.rcode = m.Rcode
	}
	return w.ResponseWriter.WriteMsg(m)
}
