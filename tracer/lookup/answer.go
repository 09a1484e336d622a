package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// addAnswer takes a hop of an answer over UDP.
func (a *Assembler) addAnswer(p *hop.Packet) {
	e := a.findAnswer(keyOf(p.Dst, p), p)
	if e == nil {
		a.stray(p)
		return
	}
	if p.Time < e.Hops[0].Time && !e.disordered {
		a.stats.Stale++ // another CPU's record of the answer to what was asked before
		return
	}
	a.answerHop(e, p)
}

// answerHop adds a hop of an answer to its lookup.
func (a *Assembler) answerHop(e *entry, p *hop.Packet) {
	p.Hop.Attempt = uint8(e.Attempts - 1)
	a.keep(e, &p.Hop)
	a.followFragments(e, p)
	if p.Kind == hop.Drop {
		if e.socket != nil {
			e.socket.gone(p.SKB)
		}
		if !p.Reason.Harmless() && !e.ReadByClient && (!e.Delivered || e.deliveredSKB == p.SKB) {
			e.Delivered = false // it came, and there was nobody to take it
			e.Ending = Dropped
			e.remember() // it is answered no more
			a.schedule(e, p.Time+int64(a.o.DropWait))
		}
		return
	}
	if e.ReadUnseen {
		a.misread(e, p.PayloadLen)
	}
	first := !e.AnswerSeen
	if first && e.socket != nil && e.socket.guesses > 0 && !e.ReadByClient {
		a.claim(e, p)
	}
	e.AnswerSeen = true
	if e.readBlind && p.Time <= e.readEarly {
		e.readBlind, e.ReadInferred = false, false // another CPU's record of the read came first
	}
	if first {
		e.AnsweredBy = p.Src
		e.AnswerSize = p.PayloadLen
		a.stopsWork(e)
	}
	if !e.Delivered || p.SKB == e.deliveredSKB {
		e.AnswerSource = p.Src // a copy may be lost before it is translated back
	}
	// An answer that did not come to the client is followed by another one.
	another := p.PayloadLen != e.AnswerSize && !e.Delivered && e.Transport == link.UDP
	if another {
		e.AnswerSize = p.PayloadLen
	}
	if len(p.Payload) > 0 && (!e.Body.Complete || another) {
		e.Flags = p.Head.Flags
		e.Body = dnswire.ParseBody(p.Payload, p.Head)
	}
	if p.Local && p.Process != nil {
		e.ServerProcess, e.ServerNetNS = p.Process, p.NetNS
		a.serves(p.NetNS, p.Process)
	} else if p.Local {
		e.ServerNetNS = p.NetNS
	}
	if e.serving != nil && first {
		e.serving.Answered, e.serving.End, e.serving.Rcode = true, p.Time, e.Body.Rcode
	}
	switch {
	case e.Ending == Dropped && e.droppedLater(&p.Hop):
		// Another CPU's record of its drop came first.
	case e.ClientNetNS != 0:
		// The client is in sight: answered when the answer arrives where it was asked. A packet that never leaves the
		// namespace arrives, too (loopback).
		if p.Kind != hop.In || p.NetNS != e.ClientNetNS {
			break
		}
		a.arrives(e, p, nil)
		e.goodCame = e.goodCame || !retries(p.Head.Flags.Rcode())
		if p.Fragment.Bytes != 0 && e.Arrived(&p.Hop) < p.PayloadLen+udpHeader {
			break // the rest is still to come
		}
		if !e.Delivered {
			e.deliveredSKB = p.SKB // a copy that comes later, and that nobody takes, changes nothing
		}
		e.deliver()
	case p.Kind == hop.Out:
		if !e.Delivered {
			e.deliveredSKB = p.SKB
		}
		e.deliver()
	}
	switch {
	case e.done():
		e.remember()
		a.schedule(e, p.Time+int64(a.o.Linger))
	case e.Ending == Dropped && e.droppedLater(&p.Hop):
	case !e.cut: // else its first fragment alone goes on
		e.Ending = InFlight
		a.schedule(e, max(p.Time, e.lastQuery)+int64(a.o.GiveUp))
	}
}

// wasOf takes back the read of what was not seen coming to a lookup where that can have been of a packet which is none
// to its question, and was on its way before; false where it cannot.
func (a *Assembler) wasOf(e *entry, p *hop.Packet) bool {
	if e.AnswerSeen || e.Revision > 0 || e.readSize != 0 && e.readSize != p.PayloadLen {
		return false
	}
	if _, ok := e.giveBack(); !ok {
		return false
	}
	a.schedule(e, e.lastQuery+int64(a.o.GiveUp))
	return true
}

// droppedLater says whether the kernel dropped the packet of a hop after it.
func (e *entry) droppedLater(h *hop.Hop) bool {
	for i := len(e.Hops) - 1; i >= 0; i-- {
		x := &e.Hops[i]
		if x.Kind == hop.Drop && x.SKB == h.SKB && x.Answer == h.Answer && x.Time >= h.Time && !x.Reason.Harmless() {
			return true
		}
	}
	return false
}

// stray takes an answer to no question in flight. Where it came to a socket that waits, from a server that was asked,
// it is what that server sent in place of the answer.
func (a *Assembler) stray(p *hop.Packet) {
	s := a.sockets.get(socketID{p.Dst, p.Transport})
	if s == nil {
		a.stats.Orphans++
		return
	}
	if p.Kind == hop.Drop {
		s.gone(p.SKB)
	}
	var e, came *entry
	n, rank, read := 0, 0, false
	for l := s.open.first; l != nil && n < maxByID; l, n = l.next, n+1 {
		x := l.e
		if x.ClientNetNS == p.NetNS && p.NetNS != 0 && p.Kind == hop.In {
			came = x
		}
		if x.ReadUnseen && p.Time <= x.readEarly && x.goes(p.Src) { // another CPU's record
			x.ReadInferred = true // what was read may have been this
			if p.Kind != hop.Drop && x.ID == p.Head.ID && a.wasOf(x, p) {
				read = true // it was
			}
		}
		if x.done() || x.Connect || !x.goes(p.Src) && (!p.Tracked || !x.goes(p.Conntrack.OrigDst)) {
			continue
		}
		r := 1
		switch {
		case x.ID == p.Head.ID:
			r = 4 // the right ID, another question
		case x.same(&p.Head):
			r = 3 // the right question, another ID
		case x.Ending == InFlight:
			r = 2
		}
		if r >= rank {
			e, rank = x, r
		}
	}
	if e == nil || a.reported.answered(p) {
		a.stats.Orphans++
		if came != nil {
			a.arrives(came, p, &Mismatch{}) // its read is no other's
		} else {
			s.astray = p.Time // it may come by a way that is out of sight, and be read
		}
		return
	}
	m := e.Mismatch
	if m == nil || m.ID != p.Head.ID {
		m = &Mismatch{
			Source: p.Src, ID: p.Head.ID, Name: append([]byte(nil), p.Head.Name...), Type: p.Head.Type, Class: p.Head.Class,
			Time: p.Time, size: p.PayloadLen,
		}
		e.Mismatch = m
		a.stopsWork(e)
		if e.serving != nil {
			e.serving.Mismatch = true
		}
	}
	if p.Kind == hop.Drop {
		if p.SKB == m.skb && !m.Read && !p.Reason.Harmless() {
			m.Arrived, m.unread = false, false // it came, and there was nobody to take it
		}
		return
	}
	if p.SKB != m.skb {
		m.skb, m.unread = p.SKB, true // one more of it
	}
	m.Source = p.Src
	if read {
		m.Arrived, m.Read, m.unread = true, true, false
		return
	}
	if p.Local && p.Process != nil {
		e.ServerProcess, e.ServerNetNS = p.Process, p.NetNS
		a.serves(p.NetNS, p.Process)
	}
	if p.Kind == hop.In && p.NetNS == e.ClientNetNS && e.ClientNetNS != 0 {
		m.Arrived = true
		a.arrives(e, p, m)
	}
}
