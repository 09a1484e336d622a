package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// A read from a socket is seen without the datagram that was read. But a socket hands out the datagrams of one peer in the order in which they
// were delivered: the first lookup of that peer which was delivered there and not read yet is the one.

// flow is one client's end.
type flow struct {
	client hop.Endpoint
	proto  uint8
}

type flowState struct {
	flow        flow
	unread      list // queries delivered, not seen read by a server
	undelivered list // answers delivered, not seen read by the client
}

// pending is a lookup's place in one of a flow's queues.
type pending struct {
	links
	flow  *flowState
	netns uint32
}

func (a *Assembler) flowOf(f flow) *flowState {
	s := a.flows[f]
	if s != nil {
		return s
	}
	if n := len(a.freeFlows); n > 0 {
		s = a.freeFlows[n-1]
		a.freeFlows = a.freeFlows[:n-1]
	} else {
		s = &flowState{}
	}
	s.flow = f
	a.flows[f] = s
	return s
}

func (a *Assembler) dropFlow(s *flowState) {
	if s.unread.n == 0 && s.undelivered.n == 0 {
		delete(a.flows, s.flow)
		a.freeFlows = append(a.freeFlows, s)
	}
}

// waitForRead puts a query that arrived in a namespace in the queue of those that may be read there.
func (a *Assembler) waitForRead(l *Lookup, src hop.Endpoint, netns uint32) {
	p := &l.unread
	p.netns = netns
	if p.flow != nil && p.flow.flow.client == src {
		return // it was queued on its way already
	}
	a.leave(p, true)
	p.flow = a.flowOf(flow{src, uint8(l.Transport)})
	p.flow.unread.push(&p.links)
}

// waitForClient puts an answer that arrived at the client in the queue of those that the client will read.
func (a *Assembler) waitForClient(l *Lookup) {
	p := &l.undelivered
	if p.flow != nil {
		return
	}
	p.flow = a.flowOf(flow{l.Client, uint8(l.Transport)})
	p.flow.undelivered.push(&p.links)
}

func (a *Assembler) leave(p *pending, unread bool) {
	if p.flow == nil {
		return
	}
	if unread {
		p.flow.unread.remove(&p.links)
	} else {
		p.flow.undelivered.remove(&p.links)
	}
	a.dropFlow(p.flow)
	p.flow = nil
}

func (a *Assembler) unwait(l *Lookup) {
	a.leave(&l.unread, true)
	a.leave(&l.undelivered, false)
}

// addRead takes a read without the packet: of a query by a server, or of an answer by a client.
func (a *Assembler) addRead(p *hop.Packet) {
	if s := a.flows[flow{p.Src, p.Transport}]; s != nil {
		for e := s.unread.first; e != nil; e = e.next {
			l := e.l
			if l.unread.netns != p.NetNS || l.AnswerSeen {
				continue
			}
			h := p.Hop
			h.Attempt = uint8(l.Attempts - 1)
			h.Dst.Addr = l.lastQueryDst().Addr // the socket may be bound to no address
			a.keep(l, &h)
			l.ServerProcess, l.ServerNetNS = p.Process, p.NetNS
			a.serves(p.NetNS)
			a.leave(&l.unread, true)
			return
		}
	}
	if s := a.flows[flow{p.Dst, p.Transport}]; s != nil && s.undelivered.head != nil {
		l := s.undelivered.head
		h := p.Hop
		h.Answer = true
		h.Attempt = uint8(l.Attempts - 1)
		a.keep(l, &h)
		l.ReadByClient = true
		a.leave(&l.undelivered, false)
		if !l.Delivered && l.Ending == InFlight { // a part of it was seen to come; all of it has
			l.deliver()
			l.remember()
			a.schedule(l, p.Time+int64(a.o.Linger))
		}
		return
	}
	a.stats.Unmatched++
}

func (l *Lookup) lastQueryDst() hop.Endpoint {
	for i := len(l.Hops) - 1; i >= 0; i-- {
		if h := &l.Hops[i]; !h.Answer && h.Kind != hop.Drop && h.Kind != hop.Unreachable {
			return h.Dst
		}
	}
	return l.Server
}
