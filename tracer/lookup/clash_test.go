package lookup

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

func TestDropNamesTheQueryThatStoodInTheWay(t *testing.T) {
	second := end("10.96.0.11:53")
	for _, c := range []struct {
		name    string
		asked   hop.Endpoint // by the other query
		backend hop.Endpoint // to which that was translated
		status  hop.ConntrackStatus
		clash   bool
	}{
		{"two service addresses, one server", second, backend, hop.DstNAT, true},
		{"two servers", second, end("10.24.1.11:53"), hop.DstNAT, false},
		{"the same entry", vip, backend, hop.DstNAT, false},
		{"in the table already", second, backend, hop.DstNAT | hop.Confirmed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			send := func(typ, id uint16, to, backend hop.Endpoint, dropped bool) {
				w.typ, w.id = typ, id
				w.skb++
				p := w.query(hop.Out, podNS, 2, client, to)
				p.Local, p.Process = true, resolver
				w.add(p)
				p = w.query(hop.In, nodeNS, 6, client, backend)
				if dropped {
					p.Kind, p.Reason = hop.Drop, policy
				}
				p.Tracked = true
				p.Conntrack = hop.Conntrack{OrigSrc: client, OrigDst: to, ReplySrc: backend, ReplyDst: client, Status: c.status}
				w.add(p)
			}
			send(dns.TypeA, 1, c.asked, c.backend, false)
			send(dns.TypeAAAA, 2, vip, backend, true)
			w.wait(time.Second)
			w.want(1)
			got := w.emitted[0].Clash
			if (got != nil) != c.clash {
				t.Fatalf("clash %+v, want one: %v", got, c.clash)
			}
			if got != nil && (got.Type != dns.TypeA || got.Gap != 2000 || got.Conntrack.OrigDst != second) {
				t.Errorf("clash %+v, want that with the A query 2 us before, of %s", got, second)
			}
		})
	}
}
