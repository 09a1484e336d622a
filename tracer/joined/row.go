// Package joined gives the rows of a whole cluster: one a lookup, made of the spans that the agents of all nodes and CoreDNS sent to a store, with the verdict that
// joins them ([store.Trace.VerdictAmong]; no other is made here).
package joined

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Row makes the row of a lookup of which v is the verdict. Nil is given of a trace that is no lookup's: that has neither the tracer's CLIENT span nor CoreDNS's SERVER span.
func Row(t *store.Trace, v store.Verdict, revision int) *output.Row {
	client := t.Client()
	top := client
	if top == nil {
		top = t.Server()
	}
	if top == nil || v.Where == "" {
		return nil
	}
	who, asked := t.Asker(), t.Asked()
	kind, workload, _ := strings.Cut(who.Workload, "/")
	r := &output.Row{
		Schema: output.SchemaVersion, Time: t.Start().UTC(), Revision: revision, TraceID: t.ID.String(),
		Client: output.Client{
			Address: address(who.Address), Namespace: who.Namespace, Pod: who.Pod, WorkloadKind: kind, Workload: workload, Node: who.Node,
			Process: who.Process, PID: uint32(who.PID),
		},
		Server: address(asked.Address), Transport: t.Transport(), ID: uint16(top.Int(semconv.DNSID)),
		Name: t.Name(), Type: t.Type(), Class: top.String(semconv.QuestionClass),
		Result: output.Lost, Total: int64(t.Duration()), Attempts: max(1, int(top.Int(semconv.Attempts))),
		Verdict: output.Verdict{
			Where: v.Where, Cause: v.Cause, Text: v.Text, Certainty: v.Certainty, Evidence: v.Evidence, Node: v.Node, Joined: v.Joined,
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
	ways := waysOf(t)
	times(r, t, ways)
	r.Hops = hops(t, ways)
	for _, h := range r.Hops {
		if r.Verdict.Drop == "" && v.Lost() && v.Certainty == store.Certain {
			r.Verdict.Drop = h.Reason
		}
	}
	return r
}

// clientSays adds what only the agent on the client's node knows.
func clientSays(r *output.Row, c *store.Span, v store.Verdict) {
	a := c.Attributes
	r.Node = c.String(semconv.K8SNodeName)
	r.Client.PodUID, r.Client.ContainerID = c.String(semconv.K8SPodUID), c.String(semconv.ContainerID)
	r.Answers = a.Strings(semconv.Answers)
	r.AnsweredBy = address(c.Peer())
	r.ResponseLen = int(a.Int(semconv.ResponseSize))
	r.Truncated, _ = a.Bool(semconv.ResponseTruncated)
	r.EventsLost = uint64(max(0, a.Int(semconv.HopsLost)))
	r.Group, r.SearchStep, r.Try = a.String(semconv.Group), int(a.Int(semconv.GroupSearchStep)), int(a.Int(semconv.GroupAttempt))
	if v.Lost() {
		r.Verdict.Drop = a.String(semconv.DropReason)
	}
	for _, l := range c.Links {
		if kind := l.Attributes.String(semconv.GroupRelation); kind != "" {
			r.Related = append(r.Related, output.Related{Kind: kind, TraceID: l.TraceID.String()})
		}
	}
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// waysOf gives the tracers' segments of the lookup itself, without those of the queries that CoreDNS made for it.
func waysOf(t *store.Trace) []*store.Span {
	apart := map[link.SpanID]bool{}
	for _, s := range t.Spans {
		if s.From(semconv.ScopeTracer) && s.Kind == store.KindInternal && s.Parent == t.ID.ClientSpanID() && s.Attributes.String(semconv.Segment) == string(verdict.Upstream) {
			apart[s.SpanID] = true
		}
	}
	var ways []*store.Span
	for _, s := range t.Spans {
		if s.From(semconv.ScopeTracer) && s.Kind == store.KindInternal && s.Attributes.String(semconv.SegmentTo) != "" && !apart[s.SpanID] && !apart[s.Parent] {
			ways = append(ways, s)
		}
	}
	return ways
}

// times splits the time of an answered lookup. What another node's clock says counts only where it fits into the client's own view of it.
func times(r *output.Row, t *store.Trace, ways []*store.Span) {
	client := t.Client()
	if client == nil || r.Result == output.Lost {
		return
	}
	var beyond, inside *store.Span
	for _, w := range ways { // of several attempts the last one
		switch w.Name {
		case verdict.BeyondThisNode:
			if w.SameSender(client) {
				beyond = w
			}
		case verdict.DNSServer:
			inside = w
		}
	}
	if s := t.Server(); inside == nil && s != nil {
		inside = s
	}
	if inside != nil && !inside.SameSender(client) && (beyond == nil || inside.Start.Before(beyond.Start) || inside.End.After(beyond.End)) {
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
func hops(t *store.Trace, ways []*store.Span) []output.Hop {
	list := []output.Hop{}
	add := func(s *store.Span, place string, nanos int64, answer bool) *output.Hop {
		h := output.Hop{Nanos: nanos, Answer: answer, Node: cmp.Or(s.String(semconv.K8SNodeName), s.String(semconv.HostName))}
		if p, ok := verdict.ParsePlace(place); ok {
			h.Device, h.Kind, h.NetNS = p.Device, p.Kind, p.NetNS
		} else {
			return nil
		}
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
		turns := s.Name == verdict.DNSServer || s.Name == verdict.BeyondThisNode // from the query to its answer
		answer := !turns && (t.Answers(s) || s.Name == verdict.ClientSocket)
		add(s, a.String(semconv.SegmentFrom), int64(s.Start.Sub(t.Start())), answer)
		h := add(s, a.String(semconv.SegmentTo), int64(s.End.Sub(t.Start())), answer || turns)
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
