package trace

import (
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Answered is the word of [semconv.VerdictWhere] for a lookup that got its answer.
const Answered = string(verdict.Answered)

// Stages are the other words of [semconv.VerdictWhere], in the order in which a lookup passes them.
var Stages = []string{
	string(verdict.Client), string(verdict.PodLink), string(verdict.Service), string(verdict.Node),
	string(verdict.BetweenNodes),
	string(verdict.CoreDNSSocket), string(verdict.CoreDNS), string(verdict.Upstream), string(verdict.ReturnPath),
}

// The words of [semconv.VerdictCertainty].
const (
	Certain  = "certain"
	Inferred = "inferred"
)

// Verdict is where a lookup ended and why, over all that is in its trace.
type Verdict struct {
	// Where is [Answered] or one of [Stages]; "" if nothing in the trace tells.
	Where     string
	Cause     string
	Text      string
	Certainty string
	Evidence  []string
	// Drop is the kernel's reason, where it dropped the packet that ended the lookup; "" else. DropAt is where that was.
	Drop   string
	DropAt Place
	// Replied says that the client got an answer: SERVFAIL is one, and Where and Cause may still say what failed.
	Replied bool
	// Node is the node whose tracer's word it is, where that is another than the client's.
	Node string
	// Joined says that it follows from spans of several programs, not from one's word alone.
	Joined bool
}

// Lost tells whether the lookup got no answer.
func (v Verdict) Lost() bool { return v.Where != "" && !v.Replied }

func verdictOf(s *Span) Verdict {
	v := Verdict{
		Where: s.Attributes.String(semconv.VerdictWhere), Cause: s.Attributes.String(semconv.VerdictCause),
		Text: s.Attributes.String(semconv.VerdictText), Certainty: s.Attributes.String(semconv.VerdictCertainty),
		Evidence: s.Attributes.Strings(semconv.VerdictEvidence),
		Drop:     s.Attributes.String(semconv.DropReason), DropAt: s.DropAt(),
	}
	answered, known := s.Attributes.Bool(semconv.VerdictAnswered)
	v.Replied = v.Where == Answered || known && answered
	return v
}

// Verdict joins what the agent on the client's node, those on other nodes and CoreDNS have to say. Each stage is told
// by who was there: what happened to the client's packets on its node by the client's agent, what happened to them
// elsewhere by the agent there, and what happened inside CoreDNS and at its upstreams by CoreDNS. See [rules].
func (t *Trace) Verdict() Verdict {
	s := look(t)
	s.judge = (*Trace).Verdict
	for i := range rules {
		if v, ok := rules[i].tell(s); ok {
			return s.deeper(v)
		}
	}
	return s.deeper(s.said)
}

// correction gives the span by which the client's tracer took back that the lookup was lost, when an answer came after
// all; nil if it did not.
func (t *Trace) correction(client *Span) *Span {
	var last *Span
	for _, s := range t.Spans {
		if s.Parent == client.SpanID && s.corrects() && s.SameSender(client) && (last == nil || !s.End.Before(last.End)) {
			last = s
		}
	}
	return last
}

// askedAgain gives the verdict of the TCP connection that the client opened because its answer over UDP was truncated;
// the zero verdict where there is none, or where it came about: then its query has a trace of its own.
func (t *Trace) askedAgain(client *Span) Verdict {
	if client == nil || client.String(semconv.NetworkTransport) != "udp" {
		return Verdict{}
	}
	for _, s := range t.Spans {
		if s.Parent == client.SpanID && s.From(semconv.ScopeTracer) && s.SameSender(client) &&
			s.Attributes.String(semconv.Segment) != string(verdict.Upstream) &&
			s.Attributes.String(semconv.NetworkTransport) == "tcp" {
			return verdictOf(s)
		}
	}
	return Verdict{}
}
