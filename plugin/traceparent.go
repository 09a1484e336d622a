package dnstrail

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
)

// propagation is how trace IDs that others made come in, and ours go out.
type propagation struct {
	accept     bool           // EDNS TRACEPARENT from clients
	acceptFrom []netip.Prefix // from these; empty: from all
	send       bool           // EDNS TRACEPARENT to upstreams
	code       uint16         // of the EDNS option
	ignoreHTTP bool           // the traceparent header of DoH
}

func (p *propagation) sends() bool { return p.send }

// incoming gives the traceparent that came with a query and is to be followed.
func (p *propagation) incoming(ctx context.Context, q *query, r *dns.Msg) (link.Traceparent, bool) {
	if q.proto == overHTTPS && !p.ignoreHTTP {
		if h, ok := ctx.Value(dnsserver.HTTPRequestKey{}).(*http.Request); ok && h != nil {
			if t, ok := parseHeader(h.Header.Get("Traceparent")); ok {
				return t, true
			}
		}
	}
	if !p.accept || len(r.Extra) == 0 || !p.from(q.addr.Addr()) {
		return link.Traceparent{}, false
	}
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if local, ok := o.(*dns.EDNS0_LOCAL); ok && local.Code == p.code {
				if t, err := link.ParseTraceparent(local.Data); err == nil {
					return t, true
				}
			}
		}
	}
	return link.Traceparent{}, false
}

func (p *propagation) from(a netip.Addr) bool {
	return len(p.acceptFrom) == 0 || slices.ContainsFunc(p.acceptFrom, func(f netip.Prefix) bool { return f.Contains(a) })
}

// parseHeader reads a traceparent header (W3C Trace Context, section 3.2): version 00, or the part of a later version
// that 00 knows.
func parseHeader(s string) (t link.Traceparent, ok bool) {
	const size = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(s) < size || s[2] != '-' || s[35] != '-' || s[52] != '-' ||
		(len(s) > size && (s[:2] == "00" || s[size] != '-')) {
		return t, false
	}
	var version, flags [1]byte
	for _, f := range []struct {
		to   []byte
		from string
	}{{version[:], s[:2]}, {t.TraceID[:], s[3:35]}, {t.SpanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		for i := range len(f.from) {
			if c := f.from[i]; c >= 'A' && c <= 'F' {
				return link.Traceparent{}, false
			}
		}
		if _, err := hex.Decode(f.to, []byte(f.from)); err != nil {
			return link.Traceparent{}, false
		}
	}
	t.Flags = flags[0]
	if version[0] == 0xff || t.TraceID == (link.TraceID{}) || t.SpanID == (link.SpanID{}) {
		return link.Traceparent{}, false
	}
	return t, true
}

// stripTraceparent takes the option out of a query: it is between the client and us, and forward would pass it on. A
// signed query stays as it is.
func (p *propagation) stripTraceparent(r *dns.Msg) {
	if len(r.Extra) == 0 || r.IsTsig() != nil {
		return
	}
	if opt := r.IsEdns0(); opt != nil && slices.ContainsFunc(opt.Option, p.isTraceparent) {
		opt.Option = slices.DeleteFunc(opt.Option, p.isTraceparent)
	}
}

func (p *propagation) isTraceparent(o dns.EDNS0) bool { return o.Option() == p.code }

// addTraceparent gives a copy of a query that tells the upstream of the span n. added says that the query had no OPT
// record. A signed query is given back as it is.
func (p *propagation) addTraceparent(r *dns.Msg, q *query, n *node) (_ *dns.Msg, added bool) {
	if r.IsTsig() != nil {
		return r, false
	}
	c := *r
	c.Extra = slices.Clone(r.Extra)
	opt := r.IsEdns0()
	if opt == nil {
		opt = new(dns.OPT)
		opt.Hdr.Name, opt.Hdr.Rrtype = ".", dns.TypeOPT
		opt.SetUDPSize(dns.MinMsgSize) // as much as was asked for without
		c.Extra = append(c.Extra, opt)
		added = true
	} else {
		i := slices.Index(c.Extra, dns.RR(opt))
		own := *opt
		own.Option = slices.Clone(opt.Option)
		opt = &own
		c.Extra[i] = opt
	}
	t := link.Traceparent{TraceID: q.traceID, SpanID: n.id, Flags: q.flags}
	opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: p.code, Data: t.Append(nil)})
	return &c, added
}
