package lookup

import (
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// local is a query of a process in the node's own network: translated before it had a device, there and back.
func (w *walk) local(kind hop.Kind, src, dst hop.Endpoint, answer bool) *hop.Packet {
	w.t.Helper()
	p := w.packet(kind, nodeNS, 2, src, dst, answer, 0)
	p.Tracked, p.Conntrack = true, hop.Conntrack{OrigSrc: client, OrigDst: vip, ReplySrc: backend, ReplyDst: masked}
	return p
}

func TestANodesOwnLookupIsTranslatedBeforeItHasADevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		drop   bool // of the answer, after it was translated back
		ending Ending
	}{
		{"answered", false, Answered},
		{"the answer dropped on input", true, Dropped},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			w.skb++
			p := w.local(hop.Out, masked, backend, false)
			p.Local, p.Process = true, resolver
			w.add(p)
			w.add(w.query(hop.In, serverNS, 3, masked, backend))
			w.skb++
			w.add(w.packet(hop.In, nodeNS, 2, backend, masked, true, 0))
			if c.drop {
				p := w.local(hop.Drop, vip, client, true)
				p.Reason = policy
				w.add(p)
			}
			w.wait(6 * time.Second)
			if len(w.emitted) == 0 {
				t.Fatal("no lookup")
			}
			l := w.emitted[len(w.emitted)-1]
			if l.Client != client || l.Server != vip {
				t.Errorf("%s asked %s, want %s and %s", l.Client, l.Server, client, vip)
			}
			if got, want := l.Key().Client, masked.AddrPort(); got != want {
				t.Errorf("the trace is made of %s, want %s, which is what the server sees", got, want)
			}
			if l.Ending != c.ending {
				t.Errorf("ending %v, want %v", l.Ending, c.ending)
			}
		})
	}
}

func TestARejectionComesBeforeTheDropItIsAbout(t *testing.T) {
	w := start(t, Options{})
	icmp := w.query(hop.Unreachable, nodeNS, 1, client, vip)
	icmp.ICMP = 3<<8 | 3
	w.add(icmp)
	p := w.query(hop.Drop, nodeNS, 0, client, vip)
	p.Reason = policy
	w.add(p)
	w.wait(6 * time.Second)
	if len(w.emitted) != 1 {
		t.Fatalf("%d lookups, want 1", len(w.emitted))
	}
	if hops := w.emitted[0].Hops; len(hops) != 2 || hops[0].Kind != hop.Unreachable || hops[1].Kind != hop.Drop {
		t.Errorf("hops %+v, want the error and the drop", hops)
	}
}
