// Package explain tells one lookup in words: what happened, in order of time, and, of a lookup that was lost, what to
// look at next.
package explain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Story is a lookup told in words.
type Story struct {
	Trace   *trace.Trace
	Verdict trace.Verdict
	Steps   []Step
	// Advice is what to look at next; empty for a lookup that was answered well.
	Advice []string
	served bool // CoreDNS's own span is there
}

// Step is one thing that happened.
type Step struct {
	At     time.Duration // since the lookup began; negative where another host's clock is behind
	Took   time.Duration // 0 for an instant
	Text   string        // a sentence without its full stop
	Failed bool
	Inside bool // it happened inside CoreDNS
	// What a short account leaves out: Hop says that a packet got to another place on the network, Back that the packet is
	// the answer, Translated that the query's address was translated; Passing that the query was handed on in CoreDNS.
	Hop, Back, Translated, Passing bool
}

// Tell tells t. Others are further traces of about the same time, which may show whether another node was watched; none
// need be given.
func Tell(t *trace.Trace, others []*trace.Trace) Story {
	s := Story{Trace: t, Verdict: t.VerdictAmong(trace.NewOthers(others)), served: t.Server() != nil}
	s.begin()
	for _, sp := range t.Spans {
		s.span(sp)
	}
	s.end()
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	s.Advice = advice(t, s.Verdict)
	return s
}

func (s *Story) add(at time.Time, took time.Duration, failed bool, format string, args ...any) {
	s.Steps = append(s.Steps, Step{At: at.Sub(s.Trace.Start()), Took: took, Text: fmt.Sprintf(format, args...),
		Failed: failed})
}

func asker(t *trace.Trace) string {
	who := t.Asker()
	if who.Process == "" {
		return who.String()
	}
	return fmt.Sprintf("%s[%d] in %s", who.Process, who.PID, who)
}

func (s *Story) begin() {
	t := s.Trace
	what := strings.TrimSpace(cmp.Or(t.Name(), "?") + " " + t.Type())
	text := fmt.Sprintf("%s asks for %s", asker(t), what)
	if to := t.Asked(); to.Address.IsValid() {
		text += ", of " + to.Address.String()
	}
	if tr := t.Transport(); tr != "" {
		text += " over " + tr
	}
	s.add(t.Start(), 0, false, "%s", text)
}

func (s *Story) end() {
	t, v := s.Trace, s.Verdict
	c := t.Client()
	if c == nil {
		return
	}
	who := cmp.Or(t.Asker().Process, "the client")
	switch {
	case v.Lost():
		s.add(c.End, 0, true, "no answer has come to %s: lost at %s", who, v.Where)
	default:
		s.add(c.End, 0, false, "%s has its answer, %s", who, cmp.Or(t.Rcode(), "of unknown rcode"))
	}
}

// span adds the steps that a span tells of.
func (s *Story) span(sp *trace.Span) {
	switch {
	case sp == s.Trace.Client():
	case sp.From(semconv.ScopePlugin):
		n := len(s.Steps)
		s.pluginSpan(sp)
		for i := range s.Steps[n:] {
			step := &s.Steps[n+i]
			step.Inside = true
			step.Passing = !step.Failed && sp.Kind != trace.KindClient && step.At == sp.Start.Sub(s.Trace.Start())
		}
	case sp.Attributes.String(semconv.Segment) != "":
		n := len(s.Steps)
		s.segment(sp)
		for i := range s.Steps[n:] {
			step := &s.Steps[n+i]
			step.Hop = !sp.IsTurn() || s.served // else it is all that is known of the server
			step.Translated = !sp.IsAnswer() && sp.Stage() == verdict.Service && sp.Translated().IsValid()
			step.Back = sp.IsAnswer() || sp.IsTurn()
		}
	}
}

func (s *Story) pluginSpan(sp *trace.Span) {
	switch sp.Kind {
	case trace.KindServer:
		name := "CoreDNS"
		if pod := sp.String(semconv.K8SPodName); pod != "" {
			name += " (" + pod + ")"
		}
		s.add(sp.Start, 0, false, "%s takes the query", name)
		by := ""
		if plugin := sp.Attributes.String(semconv.AnsweredBy); plugin != "" {
			by = ", by its plugin " + plugin
		}
		if written, known := sp.Attributes.Bool(semconv.ResponseWritten); known && !written {
			s.add(sp.End, 0, true, "CoreDNS ends the query without an answer%s", by)
			return
		}
		rcode := sp.Attributes.String(semconv.ResponseCode)
		s.add(sp.End, 0, sp.Status == trace.StatusError, "CoreDNS answers %s%s, after %s", cmp.Or(rcode, "something"), by,
			Duration(sp.Duration()))
	case trace.KindClient:
		s.upstream(sp)
	default:
		name := cmp.Or(sp.Attributes.String(semconv.PluginName), sp.Name)
		text := "plugin " + name
		switch {
		case name == "cache" && s.server(semconv.CacheStatus) != "":
			text += ": " + s.server(semconv.CacheStatus)
		case name == s.server(semconv.AnsweredBy), sp.Status == trace.StatusError:
		default:
			return // it passed the query on: no step, though a line in the tree
		}
		s.add(sp.Start, sp.Duration(), sp.Status == trace.StatusError, "%s", text)
	}
}

// server gives the first value that a SERVER span has under key.
func (s *Story) server(key string) string {
	for _, server := range s.Trace.Servers() {
		if v := server.Attributes.String(key); v != "" {
			return v
		}
	}
	return ""
}

func (s *Story) upstream(sp *trace.Span) {
	text := "CoreDNS asks upstream"
	if peer := sp.Peer(); peer.IsValid() {
		text += " " + peer.String()
	}
	if transport := sp.Attributes.String(semconv.NetworkTransport); transport != "" {
		text += " over " + transport
	}
	if connection := sp.Attributes.String(semconv.UpstreamConnection); connection != "" {
		text += " on a " + connection + " connection"
	}
	failed := sp.Status == trace.StatusError
	outcome := cmp.Or(sp.Attributes.String(semconv.ErrorType), sp.Attributes.String(semconv.ResponseCode), sp.Message)
	if outcome == "" && failed {
		outcome = "failed"
	}
	if outcome != "" {
		text += ": " + outcome
	}
	s.add(sp.Start, sp.Duration(), failed, "%s", text)
}

// segment tells where a packet got to.
func (s *Story) segment(sp *trace.Span) {
	stage := sp.Attributes.String(semconv.Segment)
	if stage == string(verdict.Upstream) || sp.Parent != s.Trace.ID.ClientSpanID() {
		return // of a query of CoreDNS's own: its span of the attempt tells of it
	}
	to := sp.Finish()
	who := "the query"
	if sp.IsAnswer() {
		who = "the answer"
	}
	at := ""
	if c := s.Trace.Client(); c != nil && !sp.SameSender(c) {
		if node := sp.String(semconv.K8SNodeName); node != "" {
			at = " on " + node
		}
	}
	reason := sp.Attributes.String(semconv.DropReason)
	switch {
	case reason != "":
		_, why := verdict.DropCause(reason)
		s.add(sp.End, 0, true, "the kernel%s drops %s at %s: %s", at, who, device(to), why)
	case sp.IsTurn() && sp.Stage() == verdict.CoreDNS:
		s.add(sp.End, 0, false, "the answer leaves the DNS server by %s%s, %s after the query was there", device(to), at,
			Duration(sp.Duration()))
	case sp.IsTurn():
		s.add(sp.End, 0, false, "the answer comes back at %s%s, %s after the query left", device(to), at,
			Duration(sp.Duration()))
	default:
		text := who + " " + arrival(to) + at
		if inside, _ := sp.Attributes.Bool(semconv.SegmentTunnel); inside {
			text += ", inside a tunnel's packet"
		}
		if server := sp.Translated(); server.IsValid() && stage == string(verdict.Service) && !sp.IsAnswer() {
			text += ", translated to " + server.String()
		}
		s.add(sp.End, sp.Duration(), false, "%s", text)
	}
}

// arrival tells what happens at a place.
func arrival(p trace.Place) string {
	switch p.Event {
	case "out":
		return "leaves by " + device(p)
	case "in":
		return "arrives at " + device(p)
	case "read":
		return "is read from the socket"
	case "":
		return "gets to an unknown place"
	}
	return p.Event + " at " + device(p)
}

func device(p trace.Place) string { return cmp.Or(p.Device, "no device") }

// MarshalJSON writes the story with its trace ID and question; times are in seconds. The schema's version is its first
// field.
func (s Story) MarshalJSON() ([]byte, error) {
	type step struct {
		At     float64 `json:"at"`
		Took   float64 `json:"took,omitempty"`
		Text   string  `json:"text"`
		Failed bool    `json:"failed,omitempty"`
	}
	out := struct {
		Version   int       `json:"version"`
		TraceID   string    `json:"traceId"`
		Start     time.Time `json:"start"`
		Duration  float64   `json:"duration"`
		Name      string    `json:"name"`
		Type      string    `json:"type"`
		Rcode     string    `json:"rcode,omitempty"`
		Client    string    `json:"client"`
		Lost      bool      `json:"lost"`
		Where     string    `json:"where"`
		Cause     string    `json:"cause,omitempty"`
		Text      string    `json:"text,omitempty"`
		Certainty string    `json:"certainty,omitempty"`
		Evidence  []string  `json:"evidence,omitempty"`
		Steps     []step    `json:"steps"`
		Advice    []string  `json:"advice,omitempty"`
	}{
		Version: 1, TraceID: s.Trace.ID.String(), Start: s.Trace.Start().UTC(), Duration: s.Trace.Duration().Seconds(),
		Name: s.Trace.Name(), Type: s.Trace.Type(), Rcode: s.Trace.Rcode(), Client: s.Trace.Asker().String(),
		Lost: s.Verdict.Lost(), Where: s.Verdict.Where, Cause: s.Verdict.Cause, Text: s.Verdict.Text,
		Certainty: s.Verdict.Certainty, Evidence: s.Verdict.Evidence,
		Advice: s.Advice,
	}
	if s.Verdict.Lost() {
		out.Rcode = "" // CoreDNS's, which the client did not get
	}
	for _, st := range s.Steps {
		out.Steps = append(out.Steps, step{st.At.Seconds(), st.Took.Seconds(), st.Text, st.Failed})
	}
	return json.Marshal(out)
}
