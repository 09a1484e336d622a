package lookup

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// pairQuery is one of two queries that are sent together.
type pairQuery struct {
	typ         uint16
	asked, dest hop.Endpoint
	status      hop.ConntrackStatus
	dropped     bool
}

// pair sends two queries of one socket, a microsecond between any two hops. Each is seen by the node where it comes in,
// and dropped or sent on where its conntrack entry, which shows only there, is to be put into the table.
func (w *walk) pair(queries [2]pairQuery) {
	w.t.Helper()
	for i, q := range queries {
		w.typ, w.id = q.typ, uint16(i+1)
		w.skb++
		p := w.query(hop.Out, podNS, 2, client, q.asked)
		p.Local, p.Process = true, resolver
		w.add(p)
		w.add(w.query(hop.In, nodeNS, 5, client, q.asked))
	}
	for i, q := range queries {
		w.typ, w.id = q.typ, uint16(i+1)
		p := w.query(hop.Out, nodeNS, 6, client, q.dest)
		p.Tracked = true
		p.Conntrack = hop.Conntrack{OrigSrc: client, OrigDst: q.asked, ReplySrc: q.dest, ReplyDst: client, Status: q.status}
		if q.dropped {
			p.Kind, p.Reason = hop.Drop, policy
		}
		w.add(p)
	}
}

func TestDropNamesTheQueryThatStoodInTheWay(t *testing.T) {
	if policy == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	second, otherServer := end("10.96.0.11:53"), end("10.24.1.11:53")
	const placed = hop.DstNAT | hop.Confirmed
	for _, c := range []struct {
		name    string
		queries [2]pairQuery
		clashes int
	}{
		{"two service addresses, one server", [2]pairQuery{{dns.TypeA, second, backend, placed, false},
			{dns.TypeAAAA, vip, backend, hop.DstNAT, true}}, 1},
		{"the drop is seen first", [2]pairQuery{{dns.TypeAAAA, vip, backend, hop.DstNAT, true},
			{dns.TypeA, second, backend, placed, false}}, 1},
		{"one service address, two servers", [2]pairQuery{{dns.TypeA, vip, otherServer, placed, false},
			{dns.TypeAAAA, vip, backend, hop.DstNAT, true}}, 1},
		{"two of each", [2]pairQuery{{dns.TypeA, second, otherServer, placed, false},
			{dns.TypeAAAA, vip, backend, hop.DstNAT, true}}, 0},
		{"both are dropped", [2]pairQuery{{dns.TypeA, second, backend, hop.DstNAT, true},
			{dns.TypeAAAA, vip, backend, hop.DstNAT, true}}, 0},
		{"in the table already", [2]pairQuery{{dns.TypeA, second, backend, placed, false},
			{dns.TypeAAAA, vip, backend, placed, true}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			w.pair(c.queries)
			w.wait(time.Second)
			clashes := 0
			for i := range w.emitted {
				l := &w.emitted[i]
				if l.Clash == nil {
					continue
				}
				clashes++
				if l.Type != dns.TypeAAAA || l.Clash.Type != dns.TypeA || l.Clash.Gap != 2000 && l.Clash.Gap != -2000 ||
					l.Clash.Conntrack.Status != placed {
					t.Errorf("%d clashed with %+v", l.Type, l.Clash)
				}
			}
			if clashes != c.clashes {
				t.Errorf("%d clashes, want %d", clashes, c.clashes)
			}
			w.a.Flush()
			if w.a.unplaced != 0 {
				t.Errorf("%d lookups are counted as dropped before they were in the table", w.a.unplaced)
			}
		})
	}
}
