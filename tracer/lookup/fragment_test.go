package lookup

import (
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// fragments sends the answer to the client in two fragments, by a node that puts the packet together and takes it apart
// again under another identification. Each step is the first fragment's or the later one's.
func (w *walk) fragments(later func(kind hop.Kind, netns, ifindex uint32) hop.Kind) {
	w.t.Helper()
	w.skb++
	for i, at := range []struct {
		kind           hop.Kind
		netns, ifindex uint32
		src            hop.Endpoint
		id             uint32
	}{{hop.Out, serverNS, 2, backend, 7}, {hop.In, nodeNS, 6, backend, 7}, {hop.Out, nodeNS, 5, vip, 8}, {hop.In, podNS, 2,
		vip, 8}} {
		p := w.packet(at.kind, at.netns, at.ifindex, at.src, client, true, 0)
		p.PayloadLen, p.Partial = 1792, true
		p.Fragment = hop.Fragment{ID: at.id, Bytes: 1480}
		p.Local = i == 0
		if p.Local {
			p.Process = coredns
		}
		w.add(p)
		kind := later(at.kind, at.netns, at.ifindex)
		if kind == 0 {
			continue
		}
		w.now += 1000
		q := &hop.Packet{Transport: 17, Later: true}
		q.Time, q.Kind, q.NetNS, q.IfIndex, q.SKB, q.Partial = w.now, kind, at.netns, at.ifindex, w.skb+100, true
		q.Src, q.Dst = hop.Endpoint{Addr: at.src.Addr}, hop.Endpoint{Addr: client.Addr}
		q.Fragment = hop.Fragment{ID: at.id, Offset: 1480, Bytes: 320}
		if kind == hop.Drop {
			q.Reason, q.Location = policy, w.location
		}
		w.add(q)
	}
}

func TestAnAnswerInFragmentsHasComeWhenAllOfItHas(t *testing.T) {
	if policy == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	all := func(kind hop.Kind, _, _ uint32) hop.Kind { return kind }
	for _, c := range []struct {
		name   string
		later  func(kind hop.Kind, netns, ifindex uint32) hop.Kind
		read   bool // by the client
		after  time.Duration
		ending Ending
		drops  int
		from   string // the function that dropped it
	}{
		{"all come", all, false, time.Second, Answered, 0, ""},
		{"the later one is not seen to come", func(k hop.Kind, netns, _ uint32) hop.Kind {
			if netns == podNS {
				return 0
			}
			return k
		}, false, 6 * time.Second, GaveUp, 0, ""},
		{"nor that, but the client reads", func(k hop.Kind, netns, _ uint32) hop.Kind {
			if netns == podNS {
				return 0
			}
			return k
		}, true, time.Second, Answered, 0, ""},
		{"the later one is dropped", func(k hop.Kind, netns, ifindex uint32) hop.Kind {
			switch {
			case netns == serverNS:
				return k
			case netns == nodeNS && ifindex == 6:
				return hop.Drop
			}
			return 0
		}, false, 900 * time.Millisecond, Dropped, 1, "nft_do_chain"},
		{"put together, and freed as a part", func(k hop.Kind, netns, ifindex uint32) hop.Kind {
			if netns == nodeNS && ifindex == 5 {
				return hop.Drop
			}
			return k
		}, false, time.Second, Answered, 0, "skb_release_data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			if c.from != "" {
				if w.location = hop.AddressOf(c.from); w.location == 0 {
					t.Skipf("this kernel does not show where %s is", c.from)
				}
			}
			w.there()
			w.fragments(c.later)
			if c.read {
				p := &hop.Packet{Transport: 17}
				w.now += 1000
				p.Kind, p.Time, p.NetNS, p.Src, p.Dst, p.Process = hop.Read, w.now, podNS, vip, client, resolver
				w.add(p)
			}
			w.wait(c.after)
			w.want(1)
			l := w.emitted[0]
			drops := 0
			for i := range l.Hops {
				if l.Hops[i].Kind == hop.Drop {
					drops++
					if l.Hops[i].Src != backend || l.Hops[i].Dst != client || !l.Hops[i].Answer {
						t.Errorf("the drop is that of %+v", l.Hops[i])
					}
				}
			}
			if l.Ending != c.ending || drops != c.drops {
				t.Errorf("%s with %d drops, want %s with %d", l.Ending, drops, c.ending, c.drops)
			}
			w.a.Flush()
			if len(w.a.fragments) != 0 {
				t.Errorf("%d packets are remembered", len(w.a.fragments))
			}
		})
	}
}

func TestFragmentsOfUnknownPacketsAreCounted(t *testing.T) {
	w := start(t, Options{})
	q := &hop.Packet{Transport: 17, Later: true}
	q.Time, q.Kind, q.Fragment = w.now, hop.In, hop.Fragment{ID: 1, Offset: 1480, Bytes: 10}
	w.add(q)
	if got := w.a.Stats().Fragments; got != 1 {
		t.Errorf("%d", got)
	}
}
