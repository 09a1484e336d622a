package store

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Answered is the word of [semconv.VerdictWhere] for a lookup that got its answer.
const Answered = string(verdict.Answered)

// Stages are the other words of [semconv.VerdictWhere], in the order in which a lookup passes them.
var Stages = []string{
	string(verdict.Client), string(verdict.PodLink), string(verdict.Service), string(verdict.Node), string(verdict.BetweenNodes),
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
	// Replied says that the client got an answer: SERVFAIL is one, and Where and Cause may still say what failed.
	Replied bool
	// Node is the node whose tracer's word it is, where that is another than the client's.
	Node string
	// Joined says that it follows from spans of several programs, not from one's word alone.
	Joined bool
}

// Lost tells whether the lookup got no answer.
func (v Verdict) Lost() bool { return v.Where != "" && !v.Replied }

// settled tells whether nobody can know better: it was seen, and not inside CoreDNS, which knows more of itself.
func (v Verdict) settled() bool {
	return v.Lost() && v.Certainty == Certain && v.Where != string(verdict.CoreDNS)
}

func verdictOf(s *Span) Verdict {
	v := Verdict{
		Where: s.Attributes.String(semconv.VerdictWhere), Cause: s.Attributes.String(semconv.VerdictCause),
		Text: s.Attributes.String(semconv.VerdictText), Certainty: s.Attributes.String(semconv.VerdictCertainty),
		Evidence: s.Attributes.Strings(semconv.VerdictEvidence),
	}
	answered, known := s.Attributes.Bool(semconv.VerdictAnswered)
	v.Replied = v.Where == Answered || known && answered
	return v
}

// Verdict joins what the tracer on the client's node, those on other nodes and CoreDNS itself have to say.
//
// What a tracer saw happen (a drop, an answer) stands. What it only concluded, because it could not see further, gives way to
// the word of somebody further along: to a tracer on another node, and to CoreDNS, which knows whether the query came and
// whether an answer left.
func (t *Trace) Verdict() Verdict {
	client := t.Client()
	var v Verdict
	if client != nil {
		v = verdictOf(client)
		if late := t.correction(client); late != nil {
			v = verdictOf(late)
		}
	}
	if again := t.askedAgain(client); again.Lost() && !again.Replied {
		return again // the answer was truncated: what became of the second try is what became of the lookup
	}
	if v.Replied || v.settled() {
		return v
	}
	for _, s := range t.Spans {
		if s == client || !s.From(semconv.ScopeTracer) || s.Attributes.String(semconv.Segment) == string(verdict.Upstream) {
			continue // a server's own query has a verdict of its own
		}
		other := verdictOf(s)
		other.Node = cmp.Or(s.String(semconv.K8SNodeName), s.String(semconv.HostName))
		switch {
		case s.Attributes.String(semconv.DropReason) != "" && (client == nil || !s.SameSender(client)) && (!other.Lost() || other.Certainty != Certain):
			// Its agent saw the packet leave the server and took that for an answer, but it saw the drop, too.
			if v.Certainty != Certain {
				v = t.dropped(s, v)
			}
		case other.Replied && v.Lost() && v.Certainty != Certain && v.Where != string(verdict.Client) && v.Where != string(verdict.ReturnPath):
			// Where it watched, the answer went on towards the client, who did not get it.
			v = Verdict{
				Where: string(verdict.ReturnPath), Cause: string(verdict.CauseVanished), Certainty: Inferred, Joined: true, Node: other.Node,
				Text:     "the answer left " + cmp.Or(other.Node, "the server's node") + " towards the client and did not come back to it",
				Evidence: append(slices.Clone(v.Evidence), other.Evidence...),
			}
		case other.Lost() && further(other, v):
			other.Joined = true
			if other.Node != "" {
				other.Text = "on " + other.Node + ", " + other.Text
			}
			v = other
		}
	}
	if v.settled() {
		return v
	}
	if said, ok := t.coreDNSVerdict(v); ok {
		return said
	}
	return v
}

// dropped gives the verdict of a drop that a tracer elsewhere saw; v is what was known before.
func (t *Trace) dropped(s *Span, v Verdict) Verdict {
	reason := s.Attributes.String(semconv.DropReason)
	cause, text := verdict.DropCause(reason)
	node := cmp.Or(s.String(semconv.K8SNodeName), s.String(semconv.HostName))
	what, where := "query", s.Attributes.String(semconv.Segment)
	if t.Answers(s) {
		what, where = "answer", string(verdict.ReturnPath)
	}
	place := s.Attributes.String(semconv.SegmentTo)
	return Verdict{
		Where: where, Cause: string(cause), Certainty: Certain, Joined: true, Node: node,
		Text:     fmt.Sprintf("on %s, the %s was lost: %s", cmp.Or(node, "another node"), what, text),
		Evidence: append([]string{verdict.DroppedAt(place, "as seen on "+cmp.Or(node, "another node"), reason)}, v.Evidence...),
	}
}

// Answers tells whether a segment is of the answer's way: whether what came before it, at the hop where it begins, was.
func (t *Trace) Answers(segment *Span) bool {
	if segment.Attributes.String(semconv.Segment) == string(verdict.ReturnPath) {
		return true
	}
	for _, s := range t.Spans {
		if s == segment || s.Kind != KindInternal || !s.SameSender(segment) || !s.End.Equal(segment.Start) {
			continue
		}
		switch s.Attributes.String(semconv.Segment) {
		case string(verdict.ReturnPath), string(verdict.CoreDNS): // the latter ends where the answer leaves
			return true
		case string(verdict.BetweenNodes):
			return s.Name == verdict.BeyondThisNode
		}
	}
	return false
}

// correction gives the span by which the client's tracer took back that the lookup was lost, when an answer came after all; nil if it did not.
func (t *Trace) correction(client *Span) *Span {
	for _, s := range t.Spans {
		if s.Parent == client.SpanID && s.Name == verdict.LateAnswer && s.Attributes.String(semconv.VerdictWhere) != "" && s.SameSender(client) {
			return s
		}
	}
	return nil
}

// askedAgain gives the verdict of the TCP connection that the client opened because its answer over UDP was truncated; the zero verdict
// where there is none, or where it came about: then its query has a trace of its own.
func (t *Trace) askedAgain(client *Span) Verdict {
	if client == nil || client.String(semconv.NetworkTransport) != "udp" {
		return Verdict{}
	}
	for _, s := range t.Spans {
		if s.Parent == client.SpanID && s.From(semconv.ScopeTracer) && s.SameSender(client) && s.Attributes.String(semconv.Segment) != string(verdict.Upstream) && s.Attributes.String(semconv.NetworkTransport) == "tcp" {
			return verdictOf(s)
		}
	}
	return Verdict{}
}

// further tells whether a, of another tracer, knows more than b: it saw, where b concluded, or it saw the lookup at a later stage.
func further(a, b Verdict) bool {
	if a.Certainty != b.Certainty && a.Certainty == Certain {
		return true
	}
	return slices.Index(Stages, a.Where) > slices.Index(Stages, b.Where)
}

// coreDNSVerdict gives what CoreDNS's spans say of a lookup that v, a conclusion, calls lost, or that no tracer saw at all.
func (t *Trace) coreDNSVerdict(v Verdict) (Verdict, bool) {
	servers := t.Servers()
	if len(servers) == 0 {
		return v, false
	}
	s := servers[len(servers)-1]
	for _, other := range servers {
		if written, known := other.Attributes.Bool(semconv.ResponseWritten); known && written {
			s = other // of several attempts, one that was answered
			break
		}
	}
	written, known := s.Attributes.Bool(semconv.ResponseWritten)
	rcode, by := s.String(semconv.ResponseCode), s.String(semconv.AnsweredBy)
	said := Verdict{Certainty: Certain, Joined: true}
	switch {
	case !known:
		return v, false
	case written && v.Where == "":
		said.Where, said.Certainty, said.Replied = Answered, Inferred, true
		said.Text = fmt.Sprintf("CoreDNS answered %s; no tracer saw whether the answer arrived", rcode)
	case written && (v.Where == string(verdict.Client) || v.Where == string(verdict.Upstream)):
		return v, false // what happened at the client, or further away than CoreDNS, does not change by what CoreDNS did
	case written && t.Client() != nil && s.End.After(t.Client().End):
		said.Where, said.Cause = string(verdict.CoreDNS), string(verdict.CauseTimeout)
		said.Text = fmt.Sprintf("CoreDNS answered %s after %.3g s; the client had stopped waiting", rcode, s.Duration().Seconds())
		if s.Attributes.Int(semconv.UpstreamAttempts) > 0 {
			said.Where = string(verdict.Upstream)
			said.Text += fmt.Sprintf("; %d upstream attempts took %.3g s", s.Attributes.Int(semconv.UpstreamAttempts), s.Attributes.Float(semconv.UpstreamDuration))
		}
		said.Evidence = append(slices.Clone(v.Evidence), "CoreDNS's own span: it ended after the client's")
	case written && v.Where == string(verdict.ReturnPath):
		return v, false // the tracer knows as much, and where
	case written && v.Certainty == Certain:
		return v, false // a kernel that saw nothing leave is closer to it than CoreDNS's belief that it wrote
	case written:
		said.Where, said.Cause, said.Certainty = string(verdict.ReturnPath), string(verdict.CauseVanished), Inferred
		said.Text = fmt.Sprintf("CoreDNS answered %s after %.3g ms; the answer did not come back to the client", rcode, s.Duration().Seconds()*1e3)
		said.Evidence = append(slices.Clone(v.Evidence), "CoreDNS's own span: an answer was written")
	default:
		said.Where, said.Cause = string(verdict.CoreDNS), string(verdict.CauseNoAnswer)
		said.Text = "CoreDNS read the query and wrote no answer"
		if by != "" {
			said.Text += ": plugin " + by + " ended it"
		}
		said.Evidence = append(slices.Clone(v.Evidence), "CoreDNS's own span: no answer was written")
	}
	return said, true
}
