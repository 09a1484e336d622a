package trace

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

var at = time.Date(2026, 11, 21, 12, 1, 7, 113_000_000, time.UTC)

func traceID(n int) link.TraceID { return link.TraceID{0: byte(n >> 8), 1: byte(n), 15: 0xaa} }

func span(n, id, parent int) *Span {
	s := &Span{
		TraceID: traceID(n), SpanID: link.SpanID{6: byte(id >> 8), 7: byte(id)}, Name: "s", Kind: KindInternal,
		Start: at.Add(time.Duration(id) * time.Millisecond), End: at.Add(time.Duration(id+1) * time.Millisecond),
	}
	if parent != 0 {
		s.Parent = link.SpanID{6: byte(parent >> 8), 7: byte(parent)}
	}
	return s
}

func TestJoin(t *testing.T) {
	id := traceID(7)
	client := span(7, 1, 0)
	client.SpanID, client.Kind, client.Scope = id.ClientSpanID(), KindClient, &Scope{Name: semconv.ScopeTracer}
	client.End = client.Start.Add(time.Second)
	client.Attributes = Attributes{{semconv.ProcessPID, int64(42)}}
	segment := span(7, 2, 0)
	segment.Parent, segment.Scope = client.SpanID, client.Scope
	server := span(7, 3, 0)
	server.Parent, server.Kind, server.Scope = client.SpanID, KindServer, &Scope{Name: semconv.ScopePlugin}
	plugin := span(7, 4, 3)
	other := *client // another agent's: it did not see the process
	other.Attributes = nil

	for name, order := range map[string][]*Span{
		"as it happened": {client, segment, server, plugin, &other},
		"children first": {plugin, server, segment, &other, client},
	} {
		t.Run(name, func(t *testing.T) {
			tr := New(order)
			if !tr.Linked() || tr.Client() != client || tr.Server() != server {
				t.Fatalf("linked %v, client %p of %p, server %p of %p", tr.Linked(), tr.Client(), client, tr.Server(), server)
			}
			if len(tr.Roots) != 1 || len(tr.Roots[0].Children) != 2 || tr.Roots[0].Children[1].Children[0].Span != plugin {
				t.Errorf("tree %+v", tr.Roots)
			}
			if m := tr.Missing(); len(m) != 0 {
				t.Errorf("missing %v", m)
			}
		})
	}

	t.Run("client missing", func(t *testing.T) {
		tr := New([]*Span{server, plugin})
		if tr.Linked() || len(tr.Missing()) != 1 || tr.Missing()[0] != server || tr.Roots[0].Span != server {
			t.Errorf("linked %v, missing %v", tr.Linked(), tr.Missing())
		}
	})
}

func TestParentsInACircleStillEnd(t *testing.T) {
	tr := New([]*Span{span(1, 1, 3), span(1, 2, 1), span(1, 3, 2), span(1, 4, 4)})
	n := 0
	var count func([]*Node)
	count = func(nodes []*Node) {
		for _, node := range nodes {
			n++
			count(node.Children)
		}
	}
	count(tr.Roots)
	if n != 4 {
		t.Errorf("%d of 4 spans in the tree", n)
	}
}

func lookup(n int, linked, isCopy bool) *Trace {
	id := traceID(n)
	c := &Span{
		TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: &Scope{Name: semconv.ScopeTracer}, Start: at,
		End:        at.Add(time.Millisecond),
		Attributes: Attributes{{semconv.ClientPort, int64(5353)}, {semconv.DNSID, int64(1)}, {semconv.QuestionName, "a."}},
	}
	if isCopy {
		c.Attributes = append(c.Attributes, Attribute{semconv.LinkCopy, true})
	}
	spans := []*Span{c}
	if linked {
		s := span(n, 2, 0)
		s.Parent, s.Kind, s.Scope = c.SpanID, KindServer, &Scope{Name: semconv.ScopePlugin}
		spans = append(spans, s)
	}
	return New(spans)
}

func TestShadows(t *testing.T) {
	for _, tc := range []struct {
		name   string
		traces []*Trace
		shadow int
	}{
		{"original linked", []*Trace{lookup(1, true, false), lookup(2, false, true)}, 2},
		{"copy linked", []*Trace{lookup(1, false, false), lookup(2, true, true)}, 1},
		{"lost", []*Trace{lookup(1, false, false), lookup(2, false, true)}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Shadows(tc.traces)
			if len(got) != 1 || !got[tc.traces[tc.shadow-1]] {
				t.Errorf("shadows %v, want trace %d", got, tc.shadow)
			}
		})
	}
}

func TestVerdictOverSeveralPrograms(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	said := func(where, cause, certainty string) Attributes {
		return Attributes{{semconv.VerdictWhere, where}, {semconv.VerdictCause, cause}, {semconv.VerdictCertainty, certainty}}
	}
	id := traceID(9)
	client := func(a Attributes) *Span {
		return &Span{TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at,
			End: at.Add(5 * time.Second), Attributes: a}
	}
	agent := func(a Attributes) *Span {
		s := span(9, 20, 0)
		s.Parent, s.Scope, s.Kind = id.ClientSpanID(), tracer, KindInternal
		s.Attributes = append(slices.Clone(a), Attribute{semconv.SegmentFromDevice, "eth0"})
		if a.String(semconv.Segment) == "" && a.String(semconv.NetworkTransport) == "" {
			s.Attributes = append(s.Attributes, Attribute{semconv.Segment, "node"})
		}
		if a.String(semconv.NetworkTransport) == "" {
			s.Resource = &Resource{Attributes: Attributes{{semconv.K8SNodeName, "node-2"}}}
		}
		return s
	}
	server := func(written bool) *Span {
		s := span(9, 30, 0)
		s.Parent, s.Scope, s.Kind = id.ClientSpanID(), plugin, KindServer
		s.Attributes = Attributes{{semconv.ResponseWritten, written}, {semconv.ResponseCode, "NOERROR"}}
		if !written {
			s.Attributes = append(s.Attributes, Attribute{semconv.AnsweredBy, "acl"})
		}
		return s
	}
	late := func(a Attributes) *Span {
		s := agent(a)
		s.Resource = nil // of the client's own agent
		s.Attributes = append(s.Attributes, Attribute{semconv.VerdictCorrection, true})
		return s
	}
	slow := func(s *Span, more ...Attribute) *Span {
		s.End = s.Start.Add(6 * time.Second)
		s.Attributes = append(s.Attributes, more...)
		return s
	}
	for _, tc := range []struct {
		name             string
		spans            []*Span
		where, certainty string
		joined           bool
	}{
		{"answered", []*Span{client(said("answered", "", "certain")), server(true)}, "answered", Certain, false},
		{"truncated, and TCP blocked",
			[]*Span{client(append(said("answered", "answered", Certain), Attribute{semconv.NetworkTransport, "udp"})),
				agent(append(said("node", "policy-drop", Certain), Attribute{semconv.NetworkTransport, "tcp"})),
				server(true)}, "node", Certain, false},
		{"a drop that was seen stands",
			[]*Span{client(append(said("node", "policy-drop", Certain), Attribute{semconv.DropReason, "NETFILTER_DROP"})),
				server(true)}, "node", Certain, false},
		{"left the node and nobody else watched", []*Span{client(said("between-nodes", "not-seen", Inferred))},
			"between-nodes", Inferred, false},
		{"the other node saw it dropped", []*Span{client(said("between-nodes", "not-seen", Inferred)),
			agent(said("coredns-socket", "no-listener", Certain))}, "coredns-socket", Certain, true},
		{"the other node saw more", []*Span{client(said("between-nodes", "not-seen", Inferred)),
			agent(said("coredns", "no-answer", Inferred))}, "coredns", Inferred, true},
		{"the other node knows less", []*Span{client(said("coredns", "no-answer", Inferred)),
			agent(said("node", "x", Inferred))}, "coredns", Inferred, false},
		{"CoreDNS answered, so it was lost on its way back", []*Span{client(said("between-nodes", "not-seen", Inferred)),
			server(true)}, "return-path", Inferred, true},
		{"CoreDNS dropped it", []*Span{client(said("between-nodes", "not-seen", Inferred)), server(false)}, "coredns",
			Certain, true},
		{"CoreDNS knows which plugin", []*Span{client(said("coredns", "no-answer", Certain)), server(false)}, "coredns",
			Certain, true},
		{"CoreDNS took longer than the client waited", []*Span{client(said("coredns", "no-answer", Certain)),
			slow(server(true))}, "coredns", Certain, true},
		{"its upstreams did", []*Span{client(said("coredns", "no-answer", Certain)),
			slow(server(true), Attribute{semconv.UpstreamAttempts, int64(3)},
				Attribute{semconv.UpstreamDuration, 5.5})}, "upstream", Certain, true},
		{"CoreDNS wrote what nobody saw leave", []*Span{client(said("coredns", "no-answer", Inferred)), server(true)},
			"return-path", Inferred, true},
		{"the answer left the other node", []*Span{client(said("between-nodes", "no-reply-seen", Inferred)),
			agent(said("answered", "answered", Certain))}, "return-path", Inferred, true},
		{"a query of CoreDNS's own is another matter", []*Span{client(said("between-nodes", "no-reply-seen", Inferred)),
			agent(append(said("return-path", "dropped", Certain),
				Attribute{semconv.Segment, "upstream"}))}, "between-nodes", Inferred, false},
		{"SERVFAIL is an answer", []*Span{
			client(append(said("upstream", "timeout", Inferred), Attribute{semconv.VerdictAnswered, true})),
			server(true),
		}, "upstream", Inferred, false},
		{"called lost, and corrected", []*Span{client(said("coredns-socket", "not-read", Certain)),
			late(said("client", "answer-too-late", Certain))}, "client", Certain, false},
		{"the client was gone", []*Span{client(said("client", "socket-closed", Inferred)), server(true)}, "client", Inferred,
			false},
		{"no tracer", []*Span{server(true)}, "answered", Inferred, true},
		{"no tracer, dropped", []*Span{server(false)}, "coredns", Certain, true},
		{"one attempt dropped, one answered", []*Span{client(said("coredns", "no-answer", Inferred)), server(true),
			server(false)}, "return-path", Inferred, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := New(tc.spans).Verdict()
			if got.Where != tc.where || got.Certainty != tc.certainty || got.Joined != tc.joined {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestParseID(t *testing.T) {
	want := "4bf92f3577b34da6a3ce929d0e0e4736"
	if id, err := ParseID("4BF92F3577B34DA6A3CE929D0E0E4736"); err != nil || id.String() != want {
		t.Errorf("%v, %v", id, err)
	}
	for _, bad := range []string{"", "4bf9", want + "00", "00000000000000000000000000000000",
		"xyz92f3577b34da6a3ce929d0e0e4736"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A lookup that left node-1 is said to be lost on the way only where the tracer on node-2 was watching.
func TestVerdictAmong(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	on := func(node string) *Resource { return &Resource{Attributes: Attributes{{semconv.K8SNodeName, node}}} }
	translated := Attribute{semconv.TranslatedAddress, "10.244.2.10"}
	lost := func() *Trace {
		id := traceID(1)
		return New([]*Span{{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer,
			Resource: on("node-1"), Start: at, End: at.Add(5 * time.Second),
			Attributes: Attributes{{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCause, "no-reply-seen"},
				{semconv.VerdictCertainty, Inferred}, translated},
		}})
	}
	number := 1
	answered := func(when time.Time, withAgent bool) *Trace {
		number++
		id := traceID(number)
		spans := []*Span{
			{TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Resource: on("node-1"), Start: when,
				End: when.Add(time.Millisecond), Attributes: Attributes{translated}},
			{TraceID: id, SpanID: link.SpanID{1}, Parent: id.ClientSpanID(), Kind: KindServer, Scope: plugin,
				Resource: on("node-2"), Start: when, End: when.Add(time.Millisecond)},
		}
		if withAgent {
			spans = append(spans, &Span{TraceID: id, SpanID: link.SpanID{2}, Parent: id.ClientSpanID(), Kind: KindInternal,
				Scope: tracer, Resource: on("node-2"), Start: when, End: when})
		}
		return New(spans)
	}
	for _, tc := range []struct {
		name   string
		others []*Trace
		cause  string
		more   int // lines of evidence
	}{
		{"nobody else", nil, "no-reply-seen", 0},
		{"node-2 is known, and not watched", []*Trace{answered(at, false)}, "no-reply-seen", 1},
		{
			"node-2 was watched before and after",
			[]*Trace{answered(at.Add(-time.Second), true), answered(at.Add(time.Second), true)}, "not-seen-further", 1,
		},
		{"node-2 was watched before alone", []*Trace{answered(at.Add(-time.Second), true)}, "no-reply-seen", 1},
		{"node-2 was watched after alone", []*Trace{answered(at.Add(time.Second), true)}, "no-reply-seen", 1},
		{
			"node-2 was watched, long ago and long after",
			[]*Trace{answered(at.Add(-time.Hour), true), answered(at.Add(time.Hour), true)}, "no-reply-seen", 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := lost()
			v := l.VerdictAmong(NewOthers(append(tc.others, l)))
			if v.Where != "between-nodes" || v.Cause != tc.cause || v.Certainty != Inferred || len(v.Evidence) != tc.more {
				t.Errorf("%+v", v)
			}
		})
	}
}

// CoreDNS names its own addresses: which node an address is on is known of lookups that came by whatever way.
func TestNodeOfAnAddress(t *testing.T) {
	server := func(n int, node, address string) *Trace {
		s := span(n, 2, 0)
		s.Kind, s.Scope = KindServer, &Scope{Name: semconv.ScopePlugin}
		s.Resource = &Resource{Attributes: Attributes{
			{semconv.K8SNodeName, node}, {semconv.HostIP, []any{address, "fd00::" + address[len(address)-1:]}},
		}}
		return New([]*Span{s})
	}
	traces := []*Trace{server(1, "node-1", "10.244.1.1"), server(2, "node-2", "10.244.2.2")}
	for address, want := range map[string]string{"10.244.2.2": "node-2", "fd00::1": "node-1", "10.244.2.3": ""} {
		if got := NewOthers(traces).nodeOf(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s is on %q, want %q", address, got, want)
		}
	}
}

// TestTheOtherNodeSawTheQueryLast: what lies behind the way between the nodes is a node again, and its agent knows more
// than the one that saw the query leave.
func TestTheOtherNodeSawTheQueryLast(t *testing.T) {
	id := traceID(9)
	on := func(node string) *Resource {
		return &Resource{Attributes: Attributes{{semconv.K8SNodeName, node}}}
	}
	verdict := func(where, cause string) Attributes {
		return Attributes{
			{semconv.VerdictWhere, where}, {semconv.VerdictCause, cause}, {semconv.VerdictCertainty, Inferred},
			{semconv.VerdictAnswered, false}, {semconv.Segment, where},
		}
	}
	client := &Span{
		TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: &Scope{Name: semconv.ScopeTracer}, Start: at,
		End: at.Add(5 * time.Second), Resource: on("node-1"), Attributes: verdict("between-nodes", "no-reply-seen"),
	}
	far := span(9, 2, 0)
	far.Parent, far.Scope, far.Resource = client.SpanID, client.Scope, on("node-2")
	far.Attributes = verdict("node", "not-seen-further")
	tr := New([]*Span{client, far})
	if v := tr.Verdict(); v.Where != "node" || v.Node != "node-2" || v.Certainty != Inferred {
		t.Errorf("judged %s/%s of %q, %s", v.Where, v.Cause, v.Node, v.Certainty)
	}
	far.Attributes = verdict("client", "no-route")
	if v := New([]*Span{client, far}).Verdict(); v.Where != "between-nodes" {
		t.Errorf("an agent that saw less has the last word: %s/%s", v.Where, v.Cause)
	}
}
