package dnstrail

import (
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/semconv"
)

// observer gives the function that counts finished queries by client.
func (c *config) observer() func(*query, bool) {
	if c.noStats {
		return func(*query, bool) {}
	}
	m := clients.with(c.metrics)
	domain := c.domain
	return func(q *query, kept bool) {
		res := &q.result
		o := clientQuery{
			client: q.client, server: q.server, plugin: res.endedIn, written: res.rcode >= 0, total: res.total,
			upstream: res.upstream,
		}
		if o.written {
			o.rcode = semconv.RcodeLabel(res.rcode)
			o.searchMiss = res.rcode == dns.RcodeNameError && searchPathMiss(q.name, domain)
		}
		if kept {
			o.traceID = q.traceID
		}
		m.observe(&o)
	}
}
