package trace

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// rule is one case of the joined verdict. Its name says what must be so; tell gives the verdict, or false where it is
// not so.
type rule struct {
	name string
	why  string // why its word counts, and why it stands where it stands
	tell func(*sight) (Verdict, bool)
}

// rules are asked in this order; the first that applies is the verdict. Where none does, the client's agent has the
// last word, as it had the first.
var rules = []rule{
	{
		"TCP after a truncated answer got nowhere",
		"The client throws a truncated answer away: what became of its second try is what became of the lookup.",
		func(s *sight) (Verdict, bool) { return s.again, s.again.Lost() },
	},
	{
		"the client got its answer",
		"The client's agent saw it come. Nobody else can know better.",
		func(s *sight) (Verdict, bool) { return s.said, s.said.Where == Answered },
	},
	{
		"the client got a failure, and CoreDNS tells why",
		"The client's agent sees the rcode and not the reason. CoreDNS made both, and shows its attempts.",
		failureByCoreDNS,
	},
	{
		"the client got a failure, and the server's agent saw its upstream fail",
		"Without CoreDNS's spans the agent beside it is the nearest: it saw the upstream's packets.",
		failureByServersAgent,
	},
	{
		"the client got a failure, and nobody looked into the server",
		"The rcode is a fact. Whose fault it is, the server's or its upstream's, was not seen.",
		failureUnseen,
	},
	{
		"the client's agent saw the query dropped, and no CoreDNS took it later",
		"A drop is a fact, and this agent was there. It does not count where a later packet came through.",
		func(s *sight) (Verdict, bool) {
			drop := s.said.Drop != "" && s.said.Lost() && !ofAnswer(s.said)
			return s.said, drop && !s.takenAfter(s.over())
		},
	},
	{
		"the client's agent saw the answer dropped on its way",
		"It came back to the client's node, so that all before it went well, and this agent was there.",
		func(s *sight) (Verdict, bool) {
			return s.said, s.said.Drop != "" && s.said.Where == string(verdict.ReturnPath)
		},
	},
	{
		"the answer came to a client that had gone",
		"The agent saw the answer and no socket for it. What had kept the answer so long, CoreDNS knows.",
		clientGone,
	},
	{
		"something happened at the client's own socket",
		"Only the client's agent is there: an answer from another source, to another question, a send that failed.",
		func(s *sight) (Verdict, bool) {
			return s.said, s.said.Lost() && s.said.Where == string(verdict.Client)
		},
	},
	{
		"another agent saw the lookup's packet dropped",
		"A drop is a fact. It stands behind the client's own agent, who was at the ends, and before all conclusions.",
		droppedElsewhere,
	},
	{
		"CoreDNS took the query only when the client had stopped waiting",
		"The query lay in the socket: neither the way nor CoreDNS's plugins are to blame.",
		takenLate,
	},
	{
		"CoreDNS wrote the answer while the client waited",
		"What CoreDNS wrote and the client's agent did not see is between them.",
		lostOnItsWayBack,
	},
	{
		"CoreDNS was at work when the client stopped waiting",
		"Its spans tell what with: its upstreams, or itself.",
		busy,
	},
	{
		"CoreDNS took the query and wrote no answer",
		"It says so itself, and by which plugin.",
		silent,
	},
	{
		"an agent elsewhere saw the query last",
		"It saw the query go on after it had left the client's node: it knows more than the client's agent.",
		func(s *sight) (Verdict, bool) {
			v, ok := s.lastWord(false)
			return v, ok && slices.Index(Stages, v.Where) >= slices.Index(Stages, s.behind())
		},
	},
	{
		"an agent elsewhere saw the answer leave towards the client",
		"So the query came, and the server answered: what is missing is the way back.",
		leftTowardsClient,
	},
}

// behind gives the first stage at which an agent elsewhere knows more than the client's: what lies behind the way
// between the nodes is a node again.
func (s *sight) behind() string {
	if s.said.Where == string(verdict.BetweenNodes) {
		return string(verdict.Node)
	}
	return s.said.Where
}

// ofAnswer tells whether a verdict with a drop is of the answer's packet.
func ofAnswer(v Verdict) bool {
	switch verdict.Where(v.Where) {
	case verdict.ReturnPath, verdict.Upstream:
		return true
	case verdict.Client:
		return gone(v) || v.Cause == string(verdict.CauseWrongSource)
	}
	return false
}

// gone tells whether a verdict says that the answer came and the client's socket took it no more.
func gone(v Verdict) bool {
	return v.Cause == string(verdict.CauseTooLate) || v.Cause == string(verdict.CauseClientGone)
}

// blame gives the verdict on an answer of CoreDNS that is a failure, or that was long in coming: its upstreams, where
// its last attempt failed, else itself. What it shows of its attempts is certain.
func (s *sight) blame(server *Span, rcode string) Verdict {
	v := Verdict{Certainty: Certain, Joined: true}
	if f, ok := s.failed(server); ok {
		v.Where, v.Cause, v.Evidence = string(verdict.Upstream), string(f.cause), f.evidence
		v.Text = fmt.Sprintf("upstream %s %s", peer(f.last), fate(f.last))
		if f.more != "" {
			v.Text += "; " + f.more
		}
		if !f.sure {
			v.Certainty = Inferred
		}
		return v
	}
	v.Where, v.Cause = string(verdict.CoreDNS), string(verdict.CauseServerError)
	if rcode == "REFUSED" {
		v.Cause = string(verdict.CauseRefused)
	}
	by := server.Attributes.String(semconv.AnsweredBy)
	asked := server.Attributes.Int(semconv.UpstreamAttempts)
	switch {
	case asked > 0 && len(s.attempts(server)) == 0:
		v.Where, v.Certainty = string(verdict.Upstream), Inferred
		v.Text = fmt.Sprintf("CoreDNS had asked its upstreams in %d attempts, of which no span is here", asked)
	case asked > 0:
		v.Text = "its upstream had answered well"
	case server.Attributes.String(semconv.FailureCause) == semconv.FailedInCache,
		server.Attributes.String(semconv.CacheStatus) == "hit":
		v.Text = "from its cache"
	case server.Attributes.String(semconv.FailureCause) == semconv.FailedByLimit:
		v.Text = "by its plugin forward, whose limit of concurrent queries (max_concurrent) was reached: it asked no upstream"
	case by == "forward" && rcode != "REFUSED":
		v.Text = "by its plugin forward, which asked no upstream: it held none for healthy"
	case by != "":
		v.Text = "by its plugin " + by
	}
	return v
}

// failing tells whether an rcode is a failure of the server.
func failing(rcode string) bool { return rcode != "" && rcode != "NOERROR" && rcode != "NXDOMAIN" }

func failureByCoreDNS(s *sight) (Verdict, bool) {
	server := s.answering()
	rcode := s.t.Rcode()
	if !s.said.Replied || server == nil || !failing(server.String(semconv.ResponseCode)) {
		return Verdict{}, false
	}
	v := s.blame(server, rcode)
	if v.Where == string(verdict.Upstream) && s.said.Where == v.Where && v.Certainty != Certain {
		return s.said, true // the client's agent, on the server's node, saw which
	}
	text := "CoreDNS answered " + rcode
	if v.Text != "" {
		text += separator(v) + v.Text
	}
	v.Text, v.Replied = text, true
	v.Evidence = append(v.Evidence, s.said.Evidence...)
	return v, true
}

// separator stands between what CoreDNS answered and why.
func separator(v Verdict) string {
	if v.Where == string(verdict.Upstream) {
		return ": "
	}
	return ", "
}

func failureByServersAgent(s *sight) (Verdict, bool) {
	if !s.said.Replied || s.said.Where == string(verdict.Upstream) {
		return Verdict{}, false
	}
	v, ok := s.upstreamWord()
	v.Replied = true
	return v, ok
}

func failureUnseen(s *sight) (Verdict, bool) {
	if !s.said.Replied {
		return Verdict{}, false
	}
	v := s.said
	if v.Where == string(verdict.CoreDNS) && v.Certainty == Certain {
		v.Certainty = Inferred
		v.Evidence = append(slices.Clone(v.Evidence), "CoreDNS's own spans are not here: its upstreams may be to blame")
	}
	return v, true
}

// cameTooLate stands before what kept an answer so long.
const cameTooLate = "the answer came when the client had gone: "

func clientGone(s *sight) (Verdict, bool) {
	late := s.said.Where == string(verdict.Client) && gone(s.said)
	if !s.said.Lost() || !late && s.said.Where != string(verdict.Upstream) {
		return Verdict{}, false
	}
	server := s.answering()
	if server == nil {
		if v, ok := s.upstreamWord(); ok && late {
			return v, true
		}
		return s.said, late || s.said.Drop != ""
	}
	if !late && s.said.Drop == "" {
		return Verdict{}, false // it is not known that an answer came: CoreDNS tells below what it was waiting for
	}
	v := s.blame(server, "")
	if v.Where == string(verdict.Upstream) && v.Certainty == Certain {
		v.Text = cameTooLate + v.Text
		v.Drop, v.DropAt = s.said.Drop, s.said.DropAt
		v.Evidence = append(v.Evidence, s.said.Evidence...)
		return v, true
	}
	v = s.said
	if a := s.attempts(server); len(a) > 0 {
		last := a[len(a)-1]
		v.Evidence = append(slices.Clone(v.Evidence), fmt.Sprintf("CoreDNS waited %s for its upstream %s",
			short(last.Duration()), peer(last)))
		v.Joined = true
	}
	return v, true
}

func droppedElsewhere(s *sight) (Verdict, bool) {
	sp := s.lastDrop()
	if sp == nil || s.said.Replied {
		return Verdict{}, false
	}
	seen := s.wordOf(sp)
	reason := sp.Attributes.String(semconv.DropReason)
	cause, text := verdict.DropCause(reason)
	if seen.Lost() {
		cause = verdict.Cause(seen.Cause)
	}
	if !sp.IsAnswer() && s.translated() && s.dead(cause) {
		// The agent there does not know that the address was a service's endpoint.
		v := seen
		by := "was translated to"
		if s.entryOlder() {
			by = "was translated, by a conntrack entry that is older than this lookup, to"
		}
		if seen.Text != "" {
			text = seen.Text
		} else if node := sp.Node(); node != "" {
			text = "on " + node + ", " + text
		}
		v.Where, v.Cause, v.Certainty = string(verdict.Service), string(verdict.CauseDeadEndpoint), Inferred
		v.Text = fmt.Sprintf("the service address %s %s %s, which is no endpoint any more: %s", s.t.Asked().Address, by,
			s.t.Translated(), text)
		v.Drop, v.DropAt, v.Joined, v.Node, v.Replied = reason, sp.Finish(), true, sp.Node(), false
		return v, true
	}
	if s.said.Cause == string(verdict.CauseDeadEndpoint) && seen.Where == string(verdict.CoreDNSSocket) {
		// The agent there does not know that only an old entry leads to that place.
		dead := s.said
		if whose := sp.DropAt().Owner.On(); whose != "" && !strings.Contains(dead.Text, whose) {
			dead.Text += ", " + whose
		}
		dead.Joined, dead.Evidence = true, append(slices.Clone(dead.Evidence), seen.Text)
		return dead, true
	}
	if seen.Lost() && (seen.Certainty == Certain || cause != verdict.CauseDeadEndpoint) {
		// Who was there and is not sure has its reasons: nobody knows better.
		if cause == verdict.CauseNoListener && s.translated() && s.entryOlder() {
			seen.Certainty = Inferred // it may have been an endpoint once
		}
		return seen, true
	}
	if cause == verdict.CauseDeadEndpoint {
		cause, text = verdict.DropCause(reason) // of an address that the client asked for itself
	}
	what, where := "query", string(sp.Stage())
	if sp.IsAnswer() {
		what, where = "answer", string(verdict.ReturnPath)
	}
	node := cmp.Or(sp.Node(), "another node")
	return Verdict{
		Where: where, Cause: string(cause), Certainty: Certain, Joined: true, Node: sp.Node(), Drop: reason,
		DropAt:   sp.Finish(),
		Text:     fmt.Sprintf("on %s, the %s was lost: %s", node, what, text),
		Evidence: append([]string{sp.Finish().Evidence("as seen on "+node, reason)}, s.said.Evidence...),
	}, true
}

// dead tells whether a query that was dropped for a cause was translated to what is no endpoint any more: nobody has
// the address, it is another's now, or the way to it has gone since the entry that translated the query was made.
func (s *sight) dead(cause verdict.Cause) bool {
	switch cause {
	case verdict.CauseNeighbour, verdict.CauseDeadEndpoint:
		return true
	case verdict.CauseNoRoute:
		return s.entryOlder()
	}
	return false
}

// entryOlder tells whether the client's agent saw the query translated by a conntrack entry that an earlier one had
// made.
func (s *sight) entryOlder() bool {
	if s.client == nil {
		return false
	}
	older, _ := s.client.Attributes.Bool(semconv.ConntrackOlder)
	return older
}

// wordOf gives what the agent that saw a drop says of the lookup: on the drop's own span, or on one after it.
func (s *sight) wordOf(drop *Span) Verdict {
	if v := word(drop); v.Where != "" {
		return v
	}
	for _, sp := range slices.Backward(s.elsewhere) {
		if v := word(sp); sp.SameSender(drop) && v.Lost() {
			return v
		}
	}
	return Verdict{}
}

func takenLate(s *sight) (Verdict, bool) {
	if s.client == nil || len(s.servers) == 0 || len(s.taken()) > 0 {
		return Verdict{}, false
	}
	v, first := s.said, s.servers[0]
	if other, ok := s.lastWord(false); ok {
		v = other
	}
	waited := fmt.Sprintf("CoreDNS's own span: it took the query %s after the client had asked",
		short(first.Start.Sub(s.client.Start)))
	if v.Where == string(verdict.CoreDNSSocket) {
		v.Evidence = append(slices.Clone(v.Evidence), waited)
		return v, true
	}
	return Verdict{
		Where: string(verdict.CoreDNSSocket), Cause: string(verdict.CauseNotRead), Certainty: Inferred, Joined: true,
		Text:     "CoreDNS read the query when the client had stopped waiting: it is stopped or overloaded",
		Evidence: append([]string{waited}, s.said.Evidence...),
	}, true
}

// lostOnItsWayBack is for an answer that was written in time, by whichever attempt.
func lostOnItsWayBack(s *sight) (Verdict, bool) {
	if s.said.Where == string(verdict.Upstream) {
		return s.said, s.client != nil && !s.stillAtWork()
	}
	for _, server := range s.taken() {
		written, _ := wrote(server)
		if !written || s.client != nil && server.End.After(s.over()) {
			continue
		}
		if s.client == nil {
			return unseenClient(s, server), true
		}
		if s.said.Where == string(verdict.ReturnPath) {
			return s.said, true // it knows as much, and where the answer was last
		}
		return Verdict{
			Where: string(verdict.ReturnPath), Cause: string(verdict.CauseVanished), Certainty: Inferred, Joined: true,
			Text: fmt.Sprintf("CoreDNS answered %s after %s; the answer did not come back to the client",
				server.String(semconv.ResponseCode), short(server.Duration())),
			Evidence: append(slices.Clone(s.said.Evidence), s.sawItLeave("CoreDNS's own span: an answer was written")...),
		}, true
	}
	return Verdict{}, false
}

// sawItLeave adds to evidence which agent saw the answer leave.
func (s *sight) sawItLeave(evidence ...string) []string {
	if v, ok := s.lastWord(true); ok && v.Node != "" {
		evidence = append(evidence, "the answer left "+v.Node+" towards the client")
	}
	return evidence
}

// unseenClient is for an answer to a client that no agent saw.
func unseenClient(s *sight, server *Span) Verdict {
	rcode := server.String(semconv.ResponseCode)
	text := fmt.Sprintf("CoreDNS answered %s; no tracer saw whether the answer arrived", rcode)
	if !failing(rcode) {
		return Verdict{Where: Answered, Certainty: Inferred, Replied: true, Joined: true, Text: text}
	}
	v := s.blame(server, rcode)
	if v.Text != "" {
		text = "CoreDNS answered " + rcode + separator(v) + v.Text + "; no tracer saw whether the answer arrived"
	}
	v.Certainty, v.Replied, v.Text = Inferred, true, text
	return v
}

// stillAtWork tells whether a CoreDNS that took the query in time had not written its answer when the client stopped
// waiting.
func (s *sight) stillAtWork() bool {
	return s.client != nil && slices.ContainsFunc(s.taken(), func(sp *Span) bool { return sp.End.After(s.over()) })
}

func busy(s *sight) (Verdict, bool) {
	if !s.stillAtWork() || s.said.Replied {
		return Verdict{}, false
	}
	servers := s.taken()
	server := servers[len(servers)-1]
	for _, sp := range servers {
		if written, _ := wrote(sp); written {
			server = sp
			break
		}
	}
	if written, known := wrote(server); !known || !written {
		return Verdict{}, false
	}
	took := server.Duration()
	text := fmt.Sprintf("CoreDNS answered %s after %s; the client had stopped waiting",
		server.String(semconv.ResponseCode), short(took))
	evidence := append(slices.Clone(s.said.Evidence), "CoreDNS's own span: it ended after the client's")
	v := s.blame(server, "")
	switch upstream := time.Duration(server.Attributes.Float(semconv.UpstreamDuration) * float64(time.Second)); {
	case v.Where == string(verdict.Upstream) && v.Certainty == Certain:
		v.Text = text + ": " + v.Text
	case upstream > took/2:
		v = Verdict{Where: string(verdict.Upstream), Cause: string(verdict.CauseTimeout), Certainty: Certain, Joined: true}
		v.Text = fmt.Sprintf("%s; %d upstream attempts took %s", text, server.Attributes.Int(semconv.UpstreamAttempts),
			short(upstream))
		for _, a := range s.attempts(server) {
			v.Evidence = append(v.Evidence, fmt.Sprintf("CoreDNS waited %s for its upstream %s", short(a.Duration()), peer(a)))
		}
	default:
		v = Verdict{Where: string(verdict.CoreDNS), Cause: string(verdict.CauseTimeout), Certainty: Certain, Joined: true,
			Text: text}
	}
	v.Evidence = append(v.Evidence, evidence...)
	return v, true
}

func silent(s *sight) (Verdict, bool) {
	servers := s.taken()
	if len(servers) == 0 {
		return Verdict{}, false
	}
	server := servers[len(servers)-1]
	if written, known := wrote(server); !known || written {
		return Verdict{}, false
	}
	v := Verdict{
		Where: string(verdict.CoreDNS), Cause: string(verdict.CauseNoAnswer), Certainty: Certain, Joined: true,
		Text:     "CoreDNS read the query and wrote no answer",
		Evidence: append(slices.Clone(s.said.Evidence), "CoreDNS's own span: no answer was written"),
	}
	if by := server.Attributes.String(semconv.AnsweredBy); by != "" {
		v.Text += ": plugin " + by + " ended it"
	}
	return v, true
}

func leftTowardsClient(s *sight) (Verdict, bool) {
	v, ok := s.lastWord(true)
	switch {
	case !ok || s.said.Replied || s.said.Where == string(verdict.ReturnPath):
		return Verdict{}, false
	case s.client == nil:
		v.Certainty = Inferred
		v.Text = "the answer left " + cmp.Or(v.Node, "the server's node") + "; no tracer saw whether it arrived"
		return v, true
	}
	return Verdict{
		Where: string(verdict.ReturnPath),
		Cause: string(verdict.CauseVanished), Certainty: Inferred, Joined: true, Node: v.Node,
		Text: "the answer left " + cmp.Or(v.Node, "the server's node") +
			" towards the client and did not come back to it",
		Evidence: append(slices.Clone(s.said.Evidence), v.Evidence...),
	}, true
}

// translated tells whether the client asked a service address and its node translated it.
func (s *sight) translated() bool {
	to := s.t.Translated()
	return s.client != nil && to.IsValid() && to != s.t.Asked().Address
}
