package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A server asks others to answer what it was asked. Which lookup such a query serves is concluded from the process that
// asks: it has read the lookup's query and not answered it. Of several, the one with the same question; the question
// may be another where the server rewrites names, follows a CNAME or minimises the name (RFC 9156).

// servers are processes that have read or answered DNS queries, and network namespaces in which such a process was
// seen.
type servers struct {
	netns   map[uint32]struct{}
	working map[asker]*list // what each has read and not answered, oldest first
}

// maxServers bounds the processes remembered as those of servers.
const maxServers = 4096

// serves notes that a process answers DNS.
func (a *Assembler) serves(netns uint32, p *hop.Process) {
	s := &a.servers
	if s.netns == nil || len(s.netns) >= maxServers {
		s.netns = make(map[uint32]struct{})
	}
	if _, known := s.netns[netns]; !known {
		s.netns[netns] = struct{}{}
	}
	if p == nil {
		return
	}
	if s.working == nil {
		s.working = make(map[asker]*list)
	}
	who := asker{netns, p.PID}
	if s.working[who] != nil {
		return
	}
	if len(s.working) >= maxServers {
		for k, l := range s.working {
			if l.n == 0 {
				delete(s.working, k)
			}
		}
		if len(s.working) >= maxServers {
			return
		}
	}
	s.working[who] = &list{}
}

// worksOn notes that a server's process has read a lookup's query.
func (a *Assembler) worksOn(e *entry, netns uint32, p *hop.Process) {
	if l := a.servers.working[asker{netns, p.PID}]; l != nil && !e.AnswerSeen {
		l.push(&e.working)
	}
}

// stopsWork notes that the server has answered, or never will.
func (a *Assembler) stopsWork(e *entry) {
	if e.working.in != nil {
		e.working.in.remove(&e.working)
	}
}

// indexQuestion makes a lookup findable by its question.
func (a *Assembler) indexQuestion(e *entry) {
	s := a.questions[e.questionHash]
	if s == nil {
		if n := len(a.freeLists); n > 0 {
			s, a.freeLists = a.freeLists[n-1], a.freeLists[:n-1]
		} else {
			s = &list{}
		}
		a.questions[e.questionHash] = s
	}
	s.push(&e.question)
}

func (a *Assembler) unindexQuestion(e *entry) {
	s := e.question.in
	if s == nil {
		return
	}
	s.remove(&e.question)
	if s.n > 0 {
		return
	}
	delete(a.questions, e.questionHash)
	if len(a.freeLists) < maxFree {
		a.freeLists = append(a.freeLists, s)
	}
}

// maxServedSearch bounds how many lookups are looked at.
const maxServedSearch = 64

// findServed finds the lookup that a server's own query serves. It is an inference. Of several with the same question
// the oldest without a query of its own is taken, because a server asks once for each, or once for all of them.
func (a *Assembler) findServed(up *entry, netns uint32) {
	if _, serves := a.servers.netns[netns]; !serves {
		return
	}
	best := a.asked(up, netns)
	var working *list
	if up.Process != nil {
		working = a.servers.working[asker{netns, up.Process.PID}]
	}
	if best == nil && working != nil {
		best = worked(working, up)
	}
	up.Own = working != nil || best != nil
	if best == nil {
		return
	}
	k := best.Key()
	from, _ := windowOf(best.Hops, 0)
	id := k.TraceID(link.EpochOfNanos(max(from, best.Hops[0].Time)))
	up.Serves = &Served{TraceID: id, SpanID: id.ClientSpanID(), Client: best.Client}
	if best.Serves != nil {
		up.Serves = best.Serves // a cache asks a server that asks an upstream: all of it is one client's lookup
	}
	up.serving = &Upstream{Server: up.Server, Start: up.lastQuery}
	best.Upstreams = append(best.Upstreams, up.serving)
}

// asked gives the lookup with the same question that has arrived in the namespace and is not answered; nil where there
// is none.
func (a *Assembler) asked(up *entry, netns uint32) *entry {
	s := a.questions[up.questionHash]
	if s == nil {
		return nil
	}
	var best *entry
	n := 0
	for l := s.first; l != nil && n < maxServedSearch; l, n = l.next, n+1 {
		e := l.e
		if e == up || e.AnswerSeen || !e.awaited() || !e.arrivedIn(netns, up) {
			continue
		}
		if best == nil || (len(best.Upstreams) > 0 && len(e.Upstreams) == 0) {
			best = e
		}
	}
	return best
}

// soonAsked is how soon after a server has read a query it asks for it, where nothing but the time tells.
const soonAsked = int64(2e6) // ns

// worked gives the lookup that a server works on when it asks another question than it was asked; nil where that cannot
// be told.
func worked(working *list, up *entry) *entry {
	if up.Type == dnswire.TypeNS && len(up.Name) <= 1 && !up.Connect {
		return nil // a health check, or the priming of a resolver (RFC 9609)
	}
	var alone, near *entry
	n, nears := 0, 0
	for l := working.last; l != nil && n < maxServedSearch; l = l.prev {
		e := l.e
		if !e.awaited() || up.Process != nil && e.Process != nil && e.Process.PID == up.Process.PID {
			continue
		}
		n++
		alone = e
		if up.lastQuery-e.readAt() < soonAsked && len(e.Upstreams) == 0 {
			near = e
			nears++
		}
	}
	switch {
	case n == 1:
		return alone
	case nears == 1:
		return near
	}
	return nil
}

// readAt gives when the server read the query, in ns since 1970; 0 where that was not seen.
func (e *entry) readAt() int64 {
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if h := &e.Hops[i]; h.Kind == hop.Read && !h.Answer {
			return h.Time
		}
	}
	return 0
}

// awaited says that a server may still work on the lookup, whether or not its client still waits.
func (e *entry) awaited() bool {
	return e.Ending == InFlight || e.Ending == GaveUp || e.Ending == Closed && !e.Close.ByServer
}

// arrivedIn says whether the query has come to the namespace from elsewhere, or was read there, by the process that
// asks where that is known.
func (e *entry) arrivedIn(netns uint32, up *entry) bool {
	if e.ServerProcess != nil && up.Process != nil && e.ServerProcess.PID != up.Process.PID {
		return false
	}
	if e.Process != nil && up.Process != nil && e.Process.PID == up.Process.PID {
		return false // its own question, asked again elsewhere
	}
	for i := len(e.Hops) - 1; i >= 0; i-- {
		h := &e.Hops[i]
		if h.Answer || h.Kind == hop.Drop || h.Kind == hop.Unreachable {
			continue
		}
		// The last place it was seen: a packet that goes on leaves a namespace it only passes.
		return h.NetNS == netns && (h.Kind == hop.In || h.Kind == hop.Read)
	}
	return false
}
