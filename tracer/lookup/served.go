package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// indexQuestion makes a lookup findable by its question.
func (a *Assembler) indexQuestion(l *Lookup) {
	l.questionHash = hashQuestion(l)
	s := a.questions[l.questionHash]
	if s == nil {
		s = &list{}
		a.questions[l.questionHash] = s
	}
	s.push(&l.question)
}

func (a *Assembler) unindexQuestion(l *Lookup) {
	s := a.questions[l.questionHash]
	if s == nil || l.question.in != s {
		return
	}
	s.remove(&l.question)
	if s.n == 0 {
		delete(a.questions, l.questionHash)
	}
}

// maxServedSearch bounds how many lookups with the same question are looked at.
const maxServedSearch = 64

// findServed finds the lookup that a server's own query serves: one with the same question that has arrived in the
// namespace that now asks, and is not answered. It is an inference: of several, the oldest without a query of its own is taken, because a server asks once for each, or
// once for all of them.
func (a *Assembler) findServed(up *Lookup, netns uint32) {
	if _, serves := a.servers[netns]; !serves {
		return
	}
	s := a.questions[up.questionHash]
	var best *Lookup
	n := 0
	for e := s.first; e != nil && n < maxServedSearch; e, n = e.next, n+1 {
		l := e.l
		if l == up || l.AnswerSeen || !l.awaited() || !l.arrivedIn(netns, up) {
			continue
		}
		if best == nil || (len(best.Upstreams) > 0 && len(l.Upstreams) == 0) {
			best = l
		}
	}
	if best == nil {
		return
	}
	k := best.Key()
	from, _ := window(best.Hops, 0)
	id := k.TraceID(link.EpochOfNanos(from))
	up.Serves = &Served{TraceID: id, SpanID: id.ClientSpanID(), Client: best.Client}
	if best.Serves != nil {
		up.Serves = best.Serves // a cache asks a server that asks an upstream: all of it is one client's lookup
	}
	up.serving = &Upstream{Server: up.Server, Start: up.lastQuery}
	best.Upstreams = append(best.Upstreams, up.serving)
}

// awaited says that a server may still work on the lookup, whether or not its client still waits.
func (l *Lookup) awaited() bool { return l.Ending == InFlight || l.Ending == GaveUp }

// arrivedIn says whether the query has come to the namespace from elsewhere, or was read there, by the process that asks where that is known.
func (l *Lookup) arrivedIn(netns uint32, up *Lookup) bool {
	if l.ServerProcess != nil && up.Process != nil && l.ServerProcess.PID != up.Process.PID {
		return false
	}
	if l.Process != nil && up.Process != nil && l.Process.PID == up.Process.PID {
		return false // its own question, asked again elsewhere
	}
	for i := len(l.Hops) - 1; i >= 0; i-- {
		h := &l.Hops[i]
		if h.Answer || h.Kind == hop.Drop || h.Kind == hop.Unreachable {
			continue
		}
		// The last place it was seen: a packet that goes on leaves a namespace it only passes.
		return h.NetNS == netns && (h.Kind == hop.In || h.Kind == hop.Read)
	}
	return false
}
