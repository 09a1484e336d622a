package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// A message too large for the way is sent in fragments (RFC 791, RFC 8200). The first has the DNS header; the others
// are known by their addresses and the packet's identification, and none is of use without all others: an answer has
// come when all of it has.

// bounds of what is remembered of fragments.
const (
	maxFragmented = 8     // packets of one lookup, each under the name it has at one place
	maxFragments  = 256   // later fragments of one lookup, everywhere they were seen
	maxPackets    = 65536 // of all lookups
)

const udpHeader = 8

// packetID is what the fragments of one packet have in common.
type packetID struct {
	src, dst [16]byte
	id       uint32
}

// fragmented is a packet whose first fragment was seen.
type fragmented struct {
	e      *entry
	first  hop.Hop
	length int // bytes of UDP, its header included
}

// followFragments remembers whose the later fragments are that follow.
func (a *Assembler) followFragments(e *entry, p *hop.Packet) {
	if p.Fragment.Bytes == 0 {
		return
	}
	k := packetID{p.Src.Addr, p.Dst.Addr, p.Fragment.ID}
	f := a.fragments[k]
	if f == nil {
		if len(e.packets) == maxFragmented || len(a.fragments) >= maxPackets {
			return
		}
		f = &fragmented{}
		a.fragments[k] = f
	}
	if f.e != e {
		if len(e.packets) == maxFragmented {
			return
		}
		e.packets = append(e.packets, k)
	}
	f.e, f.first, f.length = e, p.Hop, p.PayloadLen+udpHeader
}

func (a *Assembler) forgetFragments(e *entry) {
	for _, k := range e.packets {
		if f := a.fragments[k]; f != nil && f.e == e {
			delete(a.fragments, k)
		}
	}
	e.packets = e.packets[:0]
}

// addFragment takes a later fragment. It stands beside the lookup's hops: only where it is dropped, it is one of them.
func (a *Assembler) addFragment(p *hop.Packet) {
	f := a.fragments[packetID{p.Src.Addr, p.Dst.Addr, p.Fragment.ID}]
	if f == nil {
		a.stats.Fragments++
		return
	}
	e, h := f.e, p.Hop
	h.Src, h.Dst, h.Answer, h.Attempt = f.first.Src, f.first.Dst, f.first.Answer, f.first.Attempt
	if h.Kind == hop.Drop {
		if h.Reason.Harmless() || e.ReadByClient || freedWithWhole(&h) {
			return
		}
		a.keep(e, &h)
		if !h.Answer && e.AnswerSeen {
			return
		}
		e.Delivered, e.cut = false, true
		e.Ending = Dropped
		a.schedule(e, h.Time+int64(a.o.DropWait))
		return
	}
	if len(e.Fragments) == maxFragments {
		a.stats.HopsCut++
		return
	}
	e.Fragments = append(e.Fragments, h)
	if h.Answer && h.Kind == hop.In && h.NetNS == e.ClientNetNS && !e.Delivered && e.Arrived(&h) >= f.length {
		e.deliver()
		e.remember()
		a.schedule(e, h.Time+int64(a.o.Linger))
	}
}

// freedWithWhole says that a fragment was not dropped by itself: it was a part of a packet that had been put together,
// and freed with it (skb_release_data in net/core/skbuff.c frees the list of fragments). What became of that packet has
// a hop of its own.
func freedWithWhole(h *hop.Hop) bool {
	switch hop.FunctionAt(h.Location) {
	case "skb_release_data":
		return true
	case "": // the kernel hides its symbols: a firewall gives a reason, and skb_release_data often none
		return h.Reason.String() == "NOT_SPECIFIED"
	}
	return false
}

// Arrived gives how many bytes of the packet that a hop is a fragment of were seen where the hop is, the UDP header
// included; 0 for a hop that is none.
func (l *Lookup) Arrived(h *hop.Hop) int {
	if h.Fragment.Bytes == 0 {
		return 0
	}
	n := 0
	for _, hops := range [][]hop.Hop{l.Hops, l.Fragments} {
		for i := range hops {
			if x := &hops[i]; x.Fragment.Bytes != 0 && x.Fragment.ID == h.Fragment.ID && x.Kind == h.Kind &&
				x.NetNS == h.NetNS && x.IfIndex == h.IfIndex {
				n += int(x.Fragment.Bytes)
			}
		}
	}
	return n
}
