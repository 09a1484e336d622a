package trace

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// TestWhyCoreDNSFailed: the client got a failure, and CoreDNS's spans and the agents' tell what it comes from.
func TestWhyCoreDNSFailed(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	id := traceID(9)
	failed := func(rcode string) *Span {
		return &Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at, End: at.Add(time.Second),
			Attributes: Attributes{
				{semconv.VerdictWhere, "coredns"}, {semconv.VerdictCause, "server-failure"}, {semconv.VerdictCertainty, Inferred},
				{semconv.VerdictAnswered, true}, {semconv.ResponseCode, rcode},
			},
		}
	}
	server := func(rcode string, more ...Attribute) *Span {
		s := span(9, 30, 0)
		s.Parent, s.Scope, s.Kind = id.ClientSpanID(), plugin, KindServer
		s.Attributes = append(Attributes{{semconv.ResponseWritten, true}, {semconv.ResponseCode, rcode}}, more...)
		return s
	}
	asked := Attributes{{semconv.ServerAddress, "192.0.2.53"}, {semconv.ServerPort, int64(53)}}
	attempt := func(err string) *Span {
		s := span(9, 31, 30)
		s.Scope, s.Kind, s.Status = plugin, KindClient, StatusError
		s.Attributes = append(slices.Clone(asked), Attribute{semconv.ErrorType, err},
			Attribute{semconv.NetworkPeerAddress, "192.0.2.53"}, Attribute{semconv.NetworkPeerPort, int64(53)})
		return s
	}
	packets := func(reason string) *Span {
		s := span(9, 32, 31)
		s.Scope, s.Kind = tracer, KindInternal
		s.Attributes = append(slices.Clone(asked), Attribute{semconv.Segment, "upstream"},
			Attribute{semconv.VerdictWhere, "node"},
			Attribute{semconv.DropReason, reason})
		return s
	}
	by := func(name string) Attribute { return Attribute{semconv.AnsweredBy, name} }
	for _, tc := range []struct {
		name                          string
		rcode                         string
		spans                         []*Span
		where, cause, certainty, text string
	}{
		{
			"the limit of forward", "REFUSED",
			[]*Span{server("REFUSED", by("forward"), Attribute{semconv.FailureCause, semconv.FailedByLimit})},
			"coredns", "refused", Certain, "max_concurrent",
		},
		{"refused by another plugin", "REFUSED", []*Span{server("REFUSED", by("acl"))}, "coredns", "refused", Certain, "acl"},
		{
			"no healthy upstream", "SERVFAIL", []*Span{server("SERVFAIL", by("forward"))},
			"coredns", "server-failure", Certain, "healthy",
		},
		{
			"unreachable, nobody saw why", "SERVFAIL", []*Span{server("SERVFAIL"), attempt("host_unreachable")},
			"upstream", "no-route", Inferred, "192.0.2.53",
		},
		{
			"unreachable, its neighbor was not found", "SERVFAIL",
			[]*Span{server("SERVFAIL"), attempt("host_unreachable"), packets("NEIGH_FAILED")},
			"upstream", "neighbour-unresolved", Certain, "192.0.2.53",
		},
		{
			"no network", "SERVFAIL", []*Span{server("SERVFAIL"), attempt("network_unreachable")},
			"upstream", "no-route", Certain, "192.0.2.53",
		},
		{
			"timed out, a packet was dropped", "SERVFAIL",
			[]*Span{server("SERVFAIL"), attempt("timeout"), packets("NETFILTER_DROP")},
			"upstream", "timeout", Certain, "192.0.2.53",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := New(append(tc.spans, failed(tc.rcode))).Verdict()
			if got.Where != tc.where || got.Cause != tc.cause || got.Certainty != tc.certainty ||
				!strings.Contains(got.Text, tc.text) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestAnOldEntryIsToBlame: the agent on the other node sees that no socket listens, the client's why it was asked.
func TestAnOldEntryIsToBlame(t *testing.T) {
	tracer := &Scope{Name: semconv.ScopeTracer}
	id := traceID(9)
	client := &Span{
		TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at, End: at.Add(time.Second),
		Attributes: Attributes{
			{semconv.VerdictWhere, "service"}, {semconv.VerdictCause, "dead-endpoint"}, {semconv.VerdictCertainty, Inferred},
		},
	}
	other := span(9, 20, 0)
	other.Parent, other.Scope, other.Kind = id.ClientSpanID(), tracer, KindInternal
	other.Resource = &Resource{Attributes: Attributes{{semconv.K8SNodeName, "node-2"}}}
	other.Attributes = Attributes{
		{semconv.Segment, "node"}, {semconv.SegmentToEvent, "drop"}, {semconv.DropReason, "NO_SOCKET"},
		{semconv.VerdictWhere, "coredns-socket"}, {semconv.VerdictCause, "no-listener"}, {semconv.VerdictCertainty, Certain},
	}
	other.Attributes = append(other.Attributes, Attribute{semconv.SegmentToOwnerKind, semconv.OwnerPod},
		Attribute{semconv.SegmentToOwnerName, "shop/idle-1"})
	v := New([]*Span{client, other}).Verdict()
	if v.Where != "service" || v.Cause != "dead-endpoint" || !v.Joined || !strings.Contains(v.Text, "pod shop/idle-1") {
		t.Errorf("%+v", v)
	}
}

// TestAnAgentElsewhereThatIsNotSure saw the drop, and not whether it is what ended the lookup or why.
func TestAnAgentElsewhereThatIsNotSure(t *testing.T) {
	tracer := &Scope{Name: semconv.ScopeTracer}
	id := traceID(9)
	client := &Span{
		TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at, End: at.Add(5 * time.Second),
		Attributes: Attributes{
			{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCause, "no-reply-seen"}, {semconv.VerdictCertainty,
				Inferred},
		},
	}
	other := span(9, 20, 0)
	other.Parent, other.Scope, other.Kind = id.ClientSpanID(), tracer, KindInternal
	other.Resource = &Resource{Attributes: Attributes{{semconv.K8SNodeName, "node-2"}}}
	other.Attributes = Attributes{
		{semconv.Segment, "node"}, {semconv.SegmentToEvent, "drop"}, {semconv.DropReason, "NOT_SPECIFIED"},
		{semconv.VerdictWhere, "node"}, {semconv.VerdictCause, "no-route"}, {semconv.VerdictCertainty, Inferred},
		{semconv.VerdictText, "there is no route, or forwarding is off"},
	}
	v := New([]*Span{client, other}).Verdict()
	if v.Where != "node" || v.Cause != "no-route" || v.Certainty != Inferred || v.Node != "node-2" {
		t.Errorf("%+v", v)
	}
}

// TestAServerInThePodAsksCoreDNS: its own spans are not there, and CoreDNS's, of another trace, tell why it failed.
func TestAServerInThePodAsksCoreDNS(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	says := func(s *Span, where, cause, certainty string, answered bool) *Span {
		s.Scope = tracer
		s.Attributes = append(s.Attributes, Attribute{semconv.VerdictWhere, where}, Attribute{semconv.VerdictCause, cause},
			Attribute{semconv.VerdictText, "the agent's word"}, Attribute{semconv.VerdictCertainty, certainty},
			Attribute{semconv.VerdictAnswered, answered})
		if answered {
			s.Attributes = append(s.Attributes, Attribute{semconv.ResponseCode, "SERVFAIL"})
		}
		return s
	}
	client := says(queryOf(1, link.TraceID{}), "upstream", "server-failure", Inferred, true)
	up := says(upstreamIn(1, 2, traceID(2)), "coredns", "server-failure", Inferred, true)
	own := says(queryOf(2, traceID(1)), "coredns", "server-failure", Inferred, true)
	server := serverIn(2, 3)
	server.Attributes = Attributes{{semconv.ResponseWritten, true}, {semconv.ResponseCode, "SERVFAIL"}}
	attempt := span(2, 4, 3)
	attempt.Scope, attempt.Kind, attempt.Status = plugin, KindClient, StatusError
	attempt.Attributes = Attributes{
		{semconv.ErrorType, "timeout"}, {semconv.NetworkPeerAddress, "192.0.2.53"}, {semconv.NetworkPeerPort, int64(53)},
	}
	for _, tt := range []struct {
		name        string
		own         []*Span
		cause, text string
	}{
		{"CoreDNS's spans are here", []*Span{own, server, attempt}, "timeout", "192.0.2.53"},
		{"CoreDNS's spans are not here", []*Span{own}, "server-failure", "the agent's word"},
		{"nothing of it is here", nil, "server-failure", "the agent's word"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			traces := map[link.TraceID]*Trace{}
			if len(tt.own) > 0 {
				traces[traceID(2)] = New(tt.own)
			}
			v := New([]*Span{client, up}).Whole(func(id link.TraceID) *Trace { return traces[id] }).Verdict()
			if v.Where != "upstream" || v.Cause != tt.cause || v.Certainty != Inferred || !v.Replied ||
				!strings.Contains(v.Text, tt.text) {
				t.Errorf("%+v", v)
			}
		})
	}
}

// TestServersInARowThatNameEachOther: what is received may be nested as deep as it likes, and the verdict comes soon.
func TestServersInARowThatNameEachOther(t *testing.T) {
	var spans []*Span
	for n := 1; n <= 400; n++ {
		c, up := queryOf(n, link.TraceID{}), upstreamIn(n, 1000+n, traceID(n+1))
		c.Attributes = append(c.Attributes, Attribute{semconv.VerdictWhere, "upstream"},
			Attribute{semconv.VerdictCause, "timeout"})
		up.Attributes = append(up.Attributes, Attribute{semconv.VerdictWhere, "upstream"})
		if n > 1 {
			c.Parent = spans[len(spans)-1].SpanID
		}
		spans = append(spans, c, up)
	}
	begin := time.Now()
	if v := New(spans).Verdict(); v.Where != "upstream" || v.Cause != "timeout" {
		t.Errorf("%+v", v)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestDeadEndpointByBothSides: the client's agent knows that its query was translated, and by what entry, the agent at
// the endpoint what became of it there. Neither alone knows that the endpoint is dead.
func TestDeadEndpointByBothSides(t *testing.T) {
	tracer := &Scope{Name: semconv.ScopeTracer}
	id := traceID(9)
	client := func(more ...Attribute) *Span {
		return &Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at, End: at.Add(time.Second),
			Attributes: append(Attributes{
				{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCause, "no-reply-seen"},
				{semconv.VerdictCertainty, Inferred},
				{semconv.ServerAddress, "10.96.0.10"}, {semconv.ServerPort, int64(53)},
			}, more...),
		}
	}
	translated := Attributes{{semconv.TranslatedAddress, "10.244.2.10"}, {semconv.TranslatedPort, int64(53)}}
	older := append(slices.Clone(translated), Attribute{semconv.ConntrackOlder, true})
	// The word of the agent there stands on its last span, which may be after the drop: a reset that went back.
	there := func(reason, where, cause, certainty string) []*Span {
		drop, after := span(9, 20, 0), span(9, 21, 0)
		for _, s := range []*Span{drop, after} {
			s.Parent, s.Scope, s.Kind = id.ClientSpanID(), tracer, KindInternal
			s.Resource = &Resource{Attributes: Attributes{{semconv.K8SNodeName, "node-2"}}}
		}
		drop.Attributes = Attributes{
			{semconv.Segment, "node"}, {semconv.SegmentToEvent, "drop"}, {semconv.DropReason, reason},
		}
		after.Attributes = Attributes{
			{semconv.Segment, "return-path"}, {semconv.VerdictWhere, where}, {semconv.VerdictCause, cause},
			{semconv.VerdictCertainty, certainty},
		}
		return []*Span{drop, after}
	}
	noRoute := there("IP_INADDRERRORS", "node", "no-route", Certain)
	noNeighbour := there("NEIGH_FAILED", "node", "neighbour-unresolved", Certain)
	moved := there("NO_SOCKET", "service", "dead-endpoint", Inferred)
	noSocket := there("NO_SOCKET", "coredns-socket", "no-listener", Certain)
	policy := there("NETFILTER_DROP", "node", "policy-drop", Certain)
	for _, tc := range []struct {
		name                    string
		spans                   []*Span
		client                  Attributes
		where, cause, certainty string
	}{
		{"the way has gone since", noRoute, older, "service", "dead-endpoint", Inferred},
		{"no way, and a new entry", noRoute, translated, "node", "no-route", Certain},
		{"no way, and no translation", noRoute, nil, "node", "no-route", Certain},
		{"nobody has the address", noNeighbour, translated, "service", "dead-endpoint", Inferred},
		{"it is another's now", moved, translated, "service", "dead-endpoint", Inferred},
		{"it is another's now, and was asked itself", moved, nil, "node", "no-listener", Certain},
		{"no listener", noSocket, translated, "coredns-socket", "no-listener", Certain},
		{"no listener, an old entry", noSocket, older, "coredns-socket", "no-listener", Inferred},
		{"a policy, an old entry", policy, older, "node", "policy-drop", Certain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := New(append(slices.Clone(tc.spans), client(tc.client...))).Verdict()
			if got.Where != tc.where || got.Cause != tc.cause || got.Certainty != tc.certainty {
				t.Errorf("%+v", got)
			}
		})
	}
}
