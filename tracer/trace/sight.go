package trace

import (
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// sight is what a trace holds of one lookup, parted by who saw it. A query that a server made to answer it is no part
// of it: what became of such a query hangs below the server's span, below the attempt, or below a span of the stage
// "upstream", and is told apart by that place in the tree and by nothing else.
type sight struct {
	t      *Trace
	client *Span   // the CLIENT span; nil where no agent saw the client
	said   Verdict // what the client's own agent says; zero without a client
	again  Verdict // what became of TCP after a truncated answer, by the same agent; zero where it came about

	servers   []*Span // CoreDNS's spans of the client's own query, by start
	drops     []*Span // of the lookup's own packets, by agents elsewhere, by time
	elsewhere []*Span // of agents elsewhere: the spans with their verdicts, by time
	upstreams []*Span // agents' spans of queries that servers made for it
	below     map[link.SpanID][]*Span

	judge func(*Trace) Verdict // [Trace.Verdict], which the rules that it asks cannot name
	words map[*Span]Verdict    // by upstream, what was said of its own trace: see wordBelow
}

// clockGuard is how far apart two hosts' clocks may be where times of both are compared.
const clockGuard = 50 * time.Millisecond

func look(t *Trace) *sight {
	s := &sight{t: t, client: t.Client(), below: map[link.SpanID][]*Span{}}
	if s.client != nil {
		s.said = verdictOf(s.client)
		if late := t.correction(s.client); late != nil {
			s.said = verdictOf(late)
		}
		s.again = t.askedAgain(s.client)
	}
	have := map[link.SpanID]*Span{}
	for _, sp := range t.Spans {
		have[sp.SpanID] = sp
		s.below[sp.Parent] = append(s.below[sp.Parent], sp)
	}
	top := t.clientID()
	for _, sp := range t.Spans {
		switch {
		case !t.has(sp):
			// of a query that a server made for it
		case sp.Kind == KindServer && sp.From(semconv.ScopePlugin):
			if up := have[sp.Parent]; up == nil || !up.From(semconv.ScopePlugin) {
				s.servers = append(s.servers, sp) // one CoreDNS that another asked hangs below the other's attempt
			}
		case !sp.From(semconv.ScopeTracer) || sp == s.client:
		case sp.Stage() == verdict.Upstream:
			if sp.Attributes.String(semconv.VerdictWhere) != "" {
				s.upstreams = append(s.upstreams, sp)
			}
		case sp.Parent != top || sp.Kind != KindInternal || sp.Stage() == "":
			// below an upstream query, or a TCP connection of its own
		case s.client != nil && sp.SameSender(s.client):
			// the client's own agent: its verdict is on the CLIENT span
		default:
			if sp.IsDrop() {
				s.drops = append(s.drops, sp)
			}
			if sp.Attributes.String(semconv.VerdictWhere) != "" {
				s.elsewhere = append(s.elsewhere, sp)
			}
		}
	}
	byEnd := func(a, b *Span) int { return a.End.Compare(b.End) }
	slices.SortStableFunc(s.drops, byEnd)
	slices.SortStableFunc(s.elsewhere, byEnd)
	return s
}

// over tells when the client stopped waiting; the zero time where nobody saw it.
func (s *sight) over() time.Time {
	if s.client == nil {
		return time.Time{}
	}
	return s.client.End
}

// taken gives CoreDNS's spans of the query that began while the client waited.
func (s *sight) taken() []*Span {
	if s.client == nil {
		return s.servers
	}
	var in []*Span
	for _, sp := range s.servers {
		if !sp.Start.After(s.over().Add(clockGuard)) {
			in = append(in, sp)
		}
	}
	return in
}

// takenAfter tells whether CoreDNS took the query after some time: then what happened to a packet at that time was not
// the end of it.
func (s *sight) takenAfter(at time.Time) bool {
	return slices.ContainsFunc(s.servers, func(sp *Span) bool { return sp.Start.After(at.Add(clockGuard)) })
}

// wrote tells whether CoreDNS wrote an answer; known is false of a span that does not say.
func wrote(server *Span) (written, known bool) {
	return server.Attributes.Bool(semconv.ResponseWritten)
}

// answering gives the span of the CoreDNS whose answer the client got: the last that wrote one with that rcode, else
// the last that wrote one; nil where none did.
func (s *sight) answering() *Span {
	rcode := s.t.Rcode()
	var found *Span
	for _, sp := range s.servers {
		written, _ := wrote(sp)
		switch {
		case !written:
		case found == nil, sp.String(semconv.ResponseCode) == rcode, found.String(semconv.ResponseCode) != rcode:
			found = sp
		}
	}
	return found
}

// word gives the verdict of an agent elsewhere, in its words.
func word(sp *Span) Verdict {
	v := verdictOf(sp)
	v.Joined, v.Node = true, sp.Node()
	if v.Node != "" && v.Text != "" {
		v.Text = "on " + v.Node + ", " + v.Text
	}
	return v
}

// lastDrop gives the last drop of the lookup's own packets that an agent elsewhere saw and that ended it; nil if none
// did.
func (s *sight) lastDrop() *Span {
	for _, sp := range slices.Backward(s.drops) {
		if sp.IsAnswer() || !s.takenAfter(sp.End) {
			return sp
		}
	}
	return nil
}

// lastWord gives the verdict of the agent elsewhere that saw the lookup last, of those that say it was lost (or, with
// replied, that its answer went on towards the client).
func (s *sight) lastWord(replied bool) (Verdict, bool) {
	for _, sp := range slices.Backward(s.elsewhere) {
		if v := word(sp); v.Replied == replied {
			return v, true
		}
	}
	return Verdict{}, false
}

// upstreamWord gives the verdict of an agent elsewhere that saw the server's upstream fail.
func (s *sight) upstreamWord() (Verdict, bool) {
	for _, sp := range slices.Backward(s.elsewhere) {
		if v := word(sp); v.Where == string(verdict.Upstream) {
			return v, true
		}
	}
	return Verdict{}, false
}
