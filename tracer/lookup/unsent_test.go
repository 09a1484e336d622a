package lookup

import (
	"testing"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// unsent is a call that failed before there was a packet.
func (w *walk) unsent(p hop.Packet) {
	w.now += 1000
	p.Time, p.Kind, p.Local, p.NetNS, p.Src, p.Dst = w.now, hop.Unsent, true, podNS, client, vip
	w.a.Add(&p)
}

func TestWhatIsNotSentIsALookup(t *testing.T) {
	w := start(t, Options{})
	w.unsent(hop.Packet{Transport: 17, Connect: true, Error: 101, Hop: hop.Hop{Process: resolver}})
	w.unsent(hop.Packet{Transport: 17, Error: 101, Hop: hop.Hop{Process: resolver}})
	w.unsent(hop.Packet{Transport: 6, Connect: true, Hop: hop.Hop{Process: resolver}})
	if len(w.emitted) != 3 {
		t.Fatalf("%d lookups", len(w.emitted))
	}
	ids := map[string]bool{}
	for i, l := range w.emitted {
		if l.Unsent == nil || l.Process != resolver || l.ClientNetNS != podNS || l.Server != vip || !l.Final || !l.Counts {
			t.Errorf("%d: %+v", i, l)
		}
		if l.Start() != l.End() || l.Start() == 0 {
			t.Errorf("%d: from %d to %d", i, l.Start(), l.End())
		}
		key := l.Key()
		ids[key.TraceID(1).String()] = true
	}
	if len(ids) != 3 {
		t.Errorf("they share trace IDs: %v", ids)
	}
	if s := w.a.Stats(); s.InFlight != 0 || s.Bytes != 0 {
		t.Errorf("%+v is held", s)
	}
}

// TestErrorOfAnEarlierPacketIsNoLookup: a socket that has sent is told of what became of that by its next send.
func TestErrorOfAnEarlierPacketIsNoLookup(t *testing.T) {
	w := start(t, Options{})
	p := w.query(hop.Out, podNS, 1, client, vip)
	p.Local, p.Process = true, resolver
	w.add(p)
	w.unsent(hop.Packet{Transport: 17, Error: 113, Hop: hop.Hop{Process: resolver}})
	w.a.Flush()
	for _, l := range w.emitted {
		if l.Unsent != nil {
			t.Errorf("%+v", l)
		}
	}
}
