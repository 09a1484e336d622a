package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A client whose answer was truncated asks again over TCP. Where TCP is blocked, no query is ever sent, and nothing on the wire says what the
// connection was for; but the process that opens it has just got a truncated answer. Such a connection stands for its lookup until it is established.

// handshake follows the opening of a connection.
func (a *Assembler) handshake(c *conn, p *hop.Packet, toServer bool) {
	syn, ack, rst := p.TCPFlags&tcpSYN != 0, p.TCPFlags&tcpACK != 0, p.TCPFlags&tcpRST != 0
	l := c.connect
	switch {
	case l != nil && (l.Handshake == 0 || l.Handshake != c.serial):
		c.connect = nil // it was reported and let go
		l = nil
	case l != nil && (p.PayloadLen > 0 || toServer && !syn && p.Kind != hop.Drop && !rst):
		a.release(l) // established: the messages speak for themselves
		c.connect = nil
		return
	}
	if !syn && (!rst || toServer) {
		return
	}
	if l == nil {
		if !syn || ack || !toServer || !p.Local || p.Process == nil {
			return
		}
		if l = a.beginConnect(p); l == nil {
			return
		}
		a.serial++
		l.Handshake, c.serial, c.connect = a.serial, a.serial, l
	}
	h := p.Hop
	h.Answer = !toServer
	if toServer && l.startsAttempt(&h) {
		l.Attempts = min(l.Attempts+1, 255)
		l.lastQuery = h.Time
		l.Ending = InFlight
	}
	h.Attempt = uint8(l.Attempts - 1)
	a.keep(l, &h)
	switch {
	case h.Kind == hop.Drop && !h.Reason.Harmless(), rst && h.Kind == hop.In && h.NetNS == l.ClientNetNS:
		l.Ending = Dropped
		a.schedule(l, h.Time+int64(a.o.DropWait))
	case l.Ending == InFlight:
		a.schedule(l, l.lastQuery+int64(a.o.GiveUp))
	}
}

// beginConnect starts the lookup that a connection is opened for: the last one of the process whose answer was truncated. Nil if there is none.
func (a *Assembler) beginConnect(p *hop.Packet) *Lookup {
	ring := a.askers.recent[asker{p.NetNS, p.Process.PID}]
	if ring == nil {
		return nil
	}
	var from *past
	for _, b := range ring {
		if b != nil && b.truncated && p.Time-b.start <= retryWindow && (from == nil || b.start > from.start) {
			from = b
		}
	}
	if from == nil {
		return nil
	}
	if a.ages.n >= a.o.MaxInFlight {
		a.evict(a.ages.head)
	}
	l := a.alloc()
	l.Transport = link.TCP
	l.Name, l.Type, l.Class = append(l.Name, from.name...), from.typ, 1
	l.Client, l.Translated, l.Server = p.Src, p.Src, p.Dst
	l.Process, l.ClientNetNS = p.Process, p.NetNS
	l.Attempts, l.lastQuery = 1, p.Time
	l.Related = append(l.Related, Relation{Truncated, from.relation.TraceID, from.relation.SpanID})
	l.Group = from.group
	if a.o.Losses != nil {
		l.lossesBefore = a.o.Losses()
	}
	a.stats.Lookups++
	a.ages.push(&l.age)
	return l
}
