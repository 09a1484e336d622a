// Package joined gives the rows of a whole cluster: one a lookup, made of the spans that the agents of all nodes and
// CoreDNS sent to a store, with the verdict that joins them ([trace.Trace.VerdictAmong]; no other is made here).
package joined

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Row makes the row of a lookup of which v is the verdict. Nil is given of a trace that is no client's lookup: that has
// neither the tracer's CLIENT span nor CoreDNS's SERVER span, or that is of a server's own query.
func Row(t *trace.Trace, v trace.Verdict, revision int) *output.Row {
	client := t.Client()
	top := client
	if top == nil {
		top = t.Server()
	}
	if top == nil || v.Where == "" || t.OfServer() {
		return nil
	}
	who, asked := t.Asker(), t.Asked()
	kind, workload, _ := strings.Cut(who.Workload, "/")
	r := &output.Row{
		Schema: output.SchemaVersion, Time: t.Start().UTC(), Revision: revision, TraceID: t.ID.String(),
		Client: output.Client{
			Address: address(who.Address), Namespace: who.Namespace, Pod: who.Pod, WorkloadKind: kind, Workload: workload,
			Node: who.Node, Process: who.Process, PID: uint32(who.PID),
		},
		Server: address(asked.Address), Transport: t.Transport(), ID: uint16(top.Int(semconv.DNSID)),
		Name: t.Name(), Type: t.Type(), Class: top.String(semconv.QuestionClass),
		Opcode: top.String(semconv.Operation),
		Result: output.Lost, Total: int64(t.Duration()), Attempts: max(1, int(top.Int(semconv.Attempts))),
		Verdict: output.Verdict{
			Where: v.Where, Cause: v.Cause, Text: v.Text, Certainty: v.Certainty, Evidence: v.Evidence, Node: v.Node,
			Joined: v.Joined,
		},
	}
	if !v.Lost() {
		r.Result = cmp.Or(t.Rcode(), "ANSWERED")
	}
	if client != nil {
		clientSays(r, client, v)
	} else {
		r.Client.PodUID = top.String(semconv.ClientPodUID)
		r.ResponseLen = int(top.Int(semconv.ResponseSize))
		r.Truncated, _ = top.Attributes.Bool(semconv.ResponseTruncated)
	}
	serverSays(r, t)
	ways := waysOf(t)
	times(r, t, ways)
	r.Hops, r.Stages = hops(t, ways), stages(t)
	for _, h := range r.Hops {
		if r.Verdict.Drop == "" && v.Lost() && v.Certainty == trace.Certain {
			r.Verdict.Drop = h.Reason
		}
	}
	return r
}

// clientSays adds what only the agent on the client's node knows.
func clientSays(r *output.Row, c *trace.Span, v trace.Verdict) {
	a := c.Attributes
	r.Node = c.String(semconv.K8SNodeName)
	r.Client.PodUID, r.Client.ContainerID = c.String(semconv.K8SPodUID), c.String(semconv.ContainerID)
	r.Answers = a.Strings(semconv.Answers)
	r.AnsweredBy = address(c.Peer())
	r.ResponseLen = int(a.Int(semconv.ResponseSize))
	r.Truncated, _ = a.Bool(semconv.ResponseTruncated)
	r.EventsLost = uint64(max(0, a.Int(semconv.HopsLost)))
	r.Group, r.SearchStep, r.Try = a.String(semconv.Group), int(a.Int(semconv.GroupSearchStep)),
		int(a.Int(semconv.GroupAttempt))
	if v.Lost() {
		r.Verdict.Drop = a.String(semconv.DropReason)
	}
	for _, l := range c.Links {
		if kind := l.Attributes.String(semconv.GroupRelation); kind != "" {
			r.Related = append(r.Related, output.Related{Kind: kind, TraceID: l.TraceID.String()})
		}
	}
}

// serverSays adds what only CoreDNS knows.
func serverSays(r *output.Row, t *trace.Trace) {
	if asked := t.Asked(); asked.Pod != "" || t.Translated().IsValid() {
		r.Instance = &output.Instance{Address: address(t.Translated()), Namespace: asked.Namespace, Pod: asked.Pod,
			Node: asked.Node}
	}
	server := t.Server()
	if server == nil {
		return
	}
	r.Cache = server.Attributes.String(semconv.CacheStatus)
	for _, s := range t.Spans {
		if s.Kind != trace.KindClient || !s.From(semconv.ScopePlugin) || len(r.Upstreams) == maxUpstreams {
			continue
		}
		r.Upstreams = append(r.Upstreams, output.Upstream{
			Address: address(s.Peer()), Transport: s.Attributes.String(semconv.NetworkTransport), Nanos: int64(s.Duration()),
			Result: cmp.Or(s.Attributes.String(semconv.ErrorType), s.Attributes.String(semconv.ResponseCode), "failed"),
			Failed: s.Status == trace.StatusError,
		})
	}
}

// stages gives how long the lookup spent at each stage: each moment counts for the innermost that was seen of it. What
// is not in it was seen by nobody.
func stages(t *trace.Trace) []output.Stage {
	spent := map[string]time.Duration{}
	var visit func(nodes []*trace.Node)
	visit = func(nodes []*trace.Node) {
		for _, n := range nodes {
			s := n.Span
			switch {
			case s == t.Client():
			case s.Kind == trace.KindClient && s.From(semconv.ScopePlugin):
				spent[string(verdict.Upstream)] += s.Duration()
				continue // an attempt is one thing, whatever was seen of it on the network
			case s.From(semconv.ScopePlugin):
				spent[string(verdict.CoreDNS)] += max(0, n.Self())
			case s.IsAnswer():
				spent[string(verdict.ReturnPath)] += max(0, n.Self())
			case s.Stage() == verdict.Upstream:
				continue // a query of the server's own, of which the server does not tell
			case s.Stage() != "":
				spent[string(s.Stage())] += max(0, n.Self())
			}
			visit(n.Children)
		}
	}
	visit(t.Nested())
	var list []output.Stage
	for _, name := range trace.Stages {
		if d := spent[name]; d > 0 {
			list = append(list, output.Stage{Stage: name, Nanos: int64(d)})
		}
	}
	return list
}

// maxUpstreams is how many attempts of one lookup a row tells of.
const maxUpstreams = 16

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// waysOf gives the tracers' segments of the lookup itself, without those of the queries that CoreDNS made for it.
func waysOf(t *trace.Trace) []*trace.Span {
	apart := map[link.SpanID]bool{}
	for _, s := range t.Spans {
		if s.From(semconv.ScopeTracer) && s.Kind == trace.KindInternal && s.Parent == t.ID.ClientSpanID() &&
			s.Attributes.String(semconv.Segment) == string(verdict.Upstream) {
			apart[s.SpanID] = true
		}
	}
	var ways []*trace.Span
	for _, s := range t.Spans {
		switch {
		case s.TraceID != t.ID, apart[s.SpanID], apart[s.Parent]:
		case s.From(semconv.ScopeTracer) && s.Kind == trace.KindInternal && s.Finish() != (trace.Place{}):
			ways = append(ways, s)
		}
	}
	return ways
}

// times splits the time of an answered lookup. What another node's clock says counts only where it fits into the
// client's own view of it.
func times(r *output.Row, t *trace.Trace, ways []*trace.Span) {
	client := t.Client()
	if client == nil || r.Result == output.Lost {
		return
	}
	var beyond, inside *trace.Span
	for _, w := range ways { // of several attempts the last one
		switch {
		case !w.IsTurn():
		case w.Stage() == verdict.CoreDNS:
			inside = w
		case w.SameSender(client):
			beyond = w
		}
	}
	if s := t.Server(); inside == nil && s != nil {
		inside = s
	}
	if inside != nil && !inside.SameSender(client) && (beyond == nil || inside.Start.Before(beyond.Start) ||
		inside.End.After(beyond.End)) {
		inside = nil
	}
	part := cmp.Or(inside, beyond)
	if part == nil {
		return
	}
	r.ServerSeen = inside != nil
	to, at, back := int64(part.Start.Sub(client.Start)), int64(part.Duration()), int64(client.End.Sub(part.End))
	if to >= 0 && back >= 0 {
		r.ToServer, r.AtServer, r.Return = &to, &at, &back
	}
}

// hops gives the places at which the lookup was seen, by the ends of the segments.
func hops(t *trace.Trace, ways []*trace.Span) []output.Hop {
	list := []output.Hop{}
	add := func(s *trace.Span, p trace.Place, nanos int64, answer bool) *output.Hop {
		if p == (trace.Place{}) {
			return nil
		}
		h := output.Hop{Nanos: nanos, Answer: answer, Node: s.Node(), Device: p.Device, Kind: p.Event, NetNS: p.NetNS}
		// Where one segment ends the next begins.
		for i := range list {
			if o := &list[i]; o.Nanos == h.Nanos && o.Kind == h.Kind && o.Device == h.Device && o.NetNS == h.NetNS {
				return o
			}
		}
		list = append(list, h)
		return &list[len(list)-1]
	}
	for _, s := range ways {
		a := s.Attributes
		add(s, s.Begin(), int64(s.Start.Sub(t.Start())), s.IsAnswer())
		h := add(s, s.Finish(), int64(s.End.Sub(t.Start())), s.IsAnswer() || s.IsTurn())
		if h == nil {
			continue
		}
		h.Reason = a.String(semconv.DropReason)
		if orig, reply := a.String(semconv.ConntrackOriginal), a.String(semconv.ConntrackReply); orig != "" {
			h.Conntrack = orig + " / " + reply + " " + a.String(semconv.ConntrackStatus)
		}
	}
	slices.SortStableFunc(list, func(a, b output.Hop) int { return cmp.Compare(a.Nanos, b.Nanos) })
	return list
}
