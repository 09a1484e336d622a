package lookup

import (
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A firewall that rejects what a process sends writes the ICMP error first and drops the query then: where that is at
// the sender's own output, the error is the first that is seen of the lookup.

// earlyError is an ICMP error about a query that nobody had seen yet.
type earlyError struct {
	key  key
	typ  uint16
	name []byte
	hop  hop.Hop
}

const (
	maxEarly  = 8   // errors remembered
	earlyWait = 1e6 // ns between an error and the drop it is about: both are made in one call
)

type earlyErrors struct {
	ring [maxEarly]earlyError
	next int
}

func (e *earlyErrors) add(p *hop.Packet, k key) {
	slot := &e.ring[e.next%maxEarly]
	e.next++
	*slot = earlyError{key: k, typ: p.Head.Type, name: append(slot.name[:0], p.Head.Name...), hop: p.Hop}
}

// take gives the error that was about the packet which was dropped now; nil if there is none.
func (e *earlyErrors) take(p *hop.Packet, k key) *hop.Hop {
	for i := range e.ring {
		x := &e.ring[i]
		if x.key == k && x.typ == p.Head.Type && p.Time-x.hop.Time < earlyWait && x.hop.NetNS == p.NetNS &&
			dnswire.EqualName(x.name, p.Head.Name) {
			x.key = key{}
			return &x.hop
		}
	}
	return nil
}
