package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A client whose TCP connection does not come about sends no query: nothing on the wire says what the connection was
// for. The connection stands for the lookup until it is established. Where the process that opens it has just got a
// truncated answer, that is what it asks again.

// handshake follows the opening of a connection.
func (a *Assembler) handshake(c *conn, p *hop.Packet, toServer bool) {
	syn, ack, rst := p.TCPFlags&tcpSYN != 0, p.TCPFlags&tcpACK != 0, p.TCPFlags&tcpRST != 0
	e := c.connect
	if e != nil && (!e.connecting || e.serial != c.serial) {
		c.connect = nil // it was reported and let go
		e = nil
	}
	if e != nil && established(e, p, toServer) {
		a.opened(c, e)
		return
	}
	if !syn && (!rst || toServer) {
		return
	}
	if e == nil {
		if !syn || ack || !toServer || p.NetNS == 0 || c.opened && !p.Local {
			return
		}
		e = a.beginConnect(c, p)
		c.serial, c.connect = e.serial, e
	}
	h := p.Hop
	h.Answer = !toServer
	if toServer && e.startsAttempt(&hop.Packet{Hop: h}) {
		e.Attempts = min(e.Attempts+1, 255)
		e.lastQuery = h.Time
		e.Ending = InFlight
	}
	h.Attempt = uint8(e.Attempts - 1)
	a.keep(e, &h)
	if toServer {
		e.went(h.Dst)
		e.Translated = p.Src
		a.seeEntry(e, p)
	}
	switch {
	case h.Kind == hop.Drop && !h.Reason.Harmless():
		e.Ending = Dropped
		if toServer && e.serving != nil {
			e.serving.Dropped = h.Reason
		}
		if toServer {
			a.findHolder(e, &h)
		}
		a.schedule(e, h.Time+int64(a.o.DropWait))
	case rst && (h.Kind == hop.In && h.NetNS == e.ClientNetNS || e.ClientNetNS == 0):
		e.Ending = Dropped
		e.Close = &Close{Reset: true, ByServer: true, Time: h.Time, NetNS: h.NetNS}
		a.schedule(e, h.Time+int64(a.o.DropWait))
	case e.Ending == InFlight:
		a.schedule(e, e.lastQuery+int64(a.o.GiveUp))
	}
}

// established says whether a segment shows that the client has its connection: its data, an acknowledgement of its own,
// or the server's acceptance where it arrives at the client. Where the client is out of sight, the acceptance on its
// way has to do.
func established(e *entry, p *hop.Packet, toServer bool) bool {
	syn, rst := p.TCPFlags&tcpSYN != 0, p.TCPFlags&tcpRST != 0
	switch {
	case p.Kind == hop.Drop || rst:
		return false
	case p.PayloadLen > 0:
		return true
	case toServer:
		return !syn
	case syn && p.TCPFlags&tcpACK != 0:
		return e.ClientNetNS == 0 || p.Kind == hop.In && p.NetNS == e.ClientNetNS
	}
	return false
}

// opened lets go of what stood for a connection that has come about: the messages speak for themselves.
func (a *Assembler) opened(c *conn, e *entry) {
	c.opened, c.connect = true, nil
	c.process, c.netns = e.Process, e.ClientNetNS
	if e.serving != nil {
		e.serving.Connected = true
	}
	if e.Revision > 0 && e.Ending != Answered {
		// It was reported as not coming about; a further attempt has.
		e.Ending, e.Delivered = Answered, true
		e.Late = e.Final
		a.report(e, true)
	}
	a.release(e)
}

// beginConnect starts the lookup that a connection is opened for: the last one of the process whose answer was
// truncated, or one that is not known yet.
func (a *Assembler) beginConnect(c *conn, p *hop.Packet) *entry {
	a.makeRoom()
	e := a.alloc()
	e.connecting, e.Connect = true, true
	e.Transport = link.TCP
	e.Client, e.Translated, e.Server = p.Src, p.Src, p.Dst
	e.went(p.Dst)
	e.Attempts, e.lastQuery = 1, p.Time
	if p.Local {
		e.Process, e.ClientNetNS = p.Process, p.NetNS
		c.process, c.netns = p.Process, p.NetNS
		a.untranslateConnect(e, p)
	} else if p.Kind == hop.Drop && p.IfIndex == 0 {
		e.ClientNetNS = p.NetNS
	}
	a.afterTruncation(e, p)
	e.lossesBefore = a.lossesBefore(p.Time)
	a.stats.Lookups++
	a.ages.push(&e.age)
	a.owners.add(e)
	a.charge(e)
	if p.Local {
		a.findServed(e, p.NetNS)
		a.sentBy(e)
	}
	return e
}

// afterTruncation gives a connection the question of the truncated answer that it follows, where there is one.
func (a *Assembler) afterTruncation(e *entry, p *hop.Packet) {
	if e.Transport != link.TCP {
		return
	}
	if from := a.truncatedBefore(p); from != nil {
		e.Name, e.Type, e.Class = append(e.Name, from.name...), from.typ, 1
		e.Related = append(e.Related, Relation{Truncated, from.relation.TraceID, from.relation.SpanID})
		e.Group = from.group
	}
}

// untranslateConnect is untranslate for a connection, which has no ID.
func (a *Assembler) untranslateConnect(e *entry, p *hop.Packet) {
	ct := &p.Conntrack
	if p.Tracked && ct.ReplyDst == p.Src && ct.ReplySrc == p.Dst && (ct.OrigSrc != p.Src || ct.OrigDst != p.Dst) {
		e.Client, e.Server = ct.OrigSrc, ct.OrigDst
		e.went(ct.OrigDst)
	}
}

// truncatedBefore gives the lookup of the process whose truncated answer a connection follows; nil if there is none.
func (a *Assembler) truncatedBefore(p *hop.Packet) *past {
	if !p.Local || p.Process == nil {
		return nil
	}
	ring := a.askers.of(asker{p.NetNS, p.Process.PID})
	if ring == nil {
		return nil
	}
	var from *past
	for _, b := range ring {
		if b != nil && b.truncated && p.Time-b.start <= retryWindow && (from == nil || b.start > from.start) {
			from = b
		}
	}
	if from != nil {
		from.identify()
	}
	return from
}
