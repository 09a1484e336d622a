package store

import (
	"net/netip"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestForgedSpansOverturnNothing: without credentials, who learned a trace ID sends spans in the name of the client's
// own agent: its verdict, a correction of it, a second try over TCP. The lookup stays what its agent saw, and who said
// otherwise is named.
func TestForgedSpansOverturnNothing(t *testing.T) {
	id := traceID(1)
	claim := func() (*trace.Resource, *trace.Scope) {
		return &trace.Resource{Attributes: trace.Attributes{
			{Key: semconv.K8SNodeName, Value: "node-1"}, {Key: semconv.K8SPodName, Value: "cart"},
		}}, &trace.Scope{Name: semconv.ScopeTracer}
	}
	clientSpan := func(where string, attributes ...trace.Attribute) *trace.Span {
		r, scope := claim()
		return &trace.Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: trace.KindClient, Name: "DNS A", Start: at,
			End: at.Add(time.Second), Resource: r, Scope: scope,
			Attributes: append(trace.Attributes{
				{Key: semconv.VerdictWhere, Value: where}, {Key: semconv.VerdictCertainty, Value: trace.Certain},
				{Key: semconv.ProcessPID, Value: int64(4711)}, {Key: semconv.NetworkTransport, Value: "udp"},
			}, attributes...),
		}
	}
	below := func(name, where string, attributes ...trace.Attribute) *trace.Span {
		s := clientSpan(where, attributes...)
		s.SpanID, s.Parent, s.Kind, s.Name = link.SpanID{9}, id.ClientSpanID(), trace.KindInternal, name
		return s
	}
	const agent, attacker = "192.168.100.11", "10.244.1.66"
	early := clientSpan(string(verdict.Node))
	early.Start = at.Add(-time.Hour)
	correction := trace.Attribute{Key: semconv.VerdictCorrection, Value: true}
	for name, forged := range map[string]*trace.Span{
		"a verdict":      clientSpan(string(verdict.Node), trace.Attribute{Key: semconv.VerdictText, Value: "forged"}),
		"an earlier one": early,
		"a correction":   below(verdict.LateAnswer, string(verdict.Node), correction),
		"a try over TCP": below("x", string(verdict.Node), trace.Attribute{Key: semconv.NetworkTransport,
			Value: "tcp"}),
		"a drop": below(verdict.Dropped, string(verdict.Node),
			trace.Attribute{Key: semconv.DropReason, Value: "NETFILTER_DROP"}),
		"its own sender's name": clientSpan(string(verdict.Node), trace.Attribute{Key: semconv.SenderAddress, Value: agent}),
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Limits{})
			s.Receive(otlp(clientSpan(trace.Answered)), caller(agent))
			s.Receive(otlp(forged), caller(attacker))
			tr := s.Trace(id)
			if len(tr.Spans) != 2 {
				t.Fatalf("%d spans", len(tr.Spans))
			}
			if v := tr.Verdict(); v.Lost() || v.Where != trace.Answered {
				t.Errorf("%+v", v)
			}
			for _, s := range tr.Contradicted() {
				if s.Sender() != attacker {
					t.Errorf("said by %s", s.Sender())
				}
			}
			if forged.Kind == trace.KindClient && len(tr.Contradicted()) != 1 {
				t.Error("who said otherwise is not named")
			}
			// A reader is sent the same by the query API, and comes to the same.
			again := trace.New(trace.FromOTLP(trace.ToOTLP(tr.Spans)))
			if v := again.Verdict(); v.Lost() {
				t.Errorf("a reader finds %+v", v)
			}
		})
	}
	// The agent itself may take back what it said.
	s := New(Limits{})
	s.Receive(otlp(clientSpan(string(verdict.Node))), caller(agent))
	s.Receive(otlp(below(verdict.LateAnswer, trace.Answered, correction)), caller(agent))
	if v := s.Trace(id).Verdict(); v.Lost() {
		t.Errorf("its own correction: %+v", v)
	}
}

// TestAnotherNodesCredentialChangesNothing: who holds a credential of node-2 says this and that of a lookup of a client
// on node-1: in the name of node-1, which is refused, and in its own. What the agent of node-1 saw stays: an answer,
// and a drop; and who said otherwise is told from who saw it.
func TestAnotherNodesCredentialChangesNothing(t *testing.T) {
	id := traceID(1)
	as := func(subject string) access.Caller {
		c, err := access.ParseSubject(subject)
		if err != nil {
			t.Fatal(err)
		}
		c.Address = netip.MustParseAddr("10.244.1.66")
		return c
	}
	span := func(node, where string, n byte, attributes ...trace.Attribute) *trace.Span {
		s := &trace.Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: trace.KindClient, Name: "DNS A", Start: at, End: at.Add(time.Second),
			Resource: &trace.Resource{Attributes: trace.Attributes{
				{Key: semconv.K8SNodeName, Value: node}, {Key: semconv.K8SPodName, Value: "cart"},
			}},
			Scope: &trace.Scope{Name: semconv.ScopeTracer},
			Attributes: append(trace.Attributes{
				{Key: semconv.VerdictWhere, Value: where}, {Key: semconv.VerdictCertainty, Value: trace.Certain},
				{Key: semconv.VerdictCause, Value: string(verdict.CausePolicyDrop)}, {Key: semconv.ProcessPID, Value: int64(4711)},
			}, attributes...),
		}
		if n > 0 {
			s.SpanID, s.Parent, s.Kind, s.Name = link.SpanID{n}, id.ClientSpanID(), trace.KindInternal, verdict.LateAnswer
		}
		return s
	}
	for _, truth := range []string{trace.Answered, string(verdict.Node)} {
		for _, lie := range []string{trace.Answered, string(verdict.Node), string(verdict.CoreDNS), string(verdict.Client)} {
			for _, node := range []string{"node-1", "node-2", ""} {
				t.Run(truth+", said to be "+lie+" by "+node, func(t *testing.T) {
					s := New(Limits{})
					s.Receive(otlp(span("node-1", truth, 0)), as("node/node-1"))
					for range 2 {
						wrong := otlp(
							span(node, lie, 0), span(node, lie, 1, trace.Attribute{Key: semconv.VerdictCorrection, Value: true}),
							span(node, lie, 2, trace.Attribute{Key: semconv.NetworkTransport, Value: "tcp"}),
						)
						refused := s.Receive(wrong, as("node/node-2"))
						if want := 3; (refused == want) != (node != "node-2") {
							t.Errorf("%d of %d were refused", refused, want)
						}
					}
					tr := s.Trace(id)
					if v := tr.Verdict(); v.Where != truth || v.Certainty != trace.Certain {
						t.Errorf("%+v", v)
					}
					if got := tr.Client().Sender(); got != "node/node-1" {
						t.Errorf("the client's side is %s's", got)
					}
					for _, c := range tr.Contradicted() {
						if c.Sender() != "node/node-2" {
							t.Errorf("contradicted by %s", c.Sender())
						}
					}
					if n := len(tr.Contradicted()); (n > 0) != (node == "node-2" && lie != truth) {
						t.Errorf("%d contradict", n)
					}
				})
			}
		}
	}
}

// TestWhoSpeaksFirstIsNotBelieved: who holds a credential of node-2 tells of a lookup of a pod on node-1 before the
// agent of node-1 does. CoreDNS knows from Kubernetes where the pod runs, so what node-1 saw counts as soon as it is
// there.
func TestWhoSpeaksFirstIsNotBelieved(t *testing.T) {
	id := traceID(1)
	as := func(subject string) access.Caller {
		c, err := access.ParseSubject(subject)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	client := func(node, where string) *trace.Span {
		return &trace.Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: trace.KindClient, Name: "DNS A", Start: at, End: at.Add(time.Second),
			Resource: &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: node}}},
			Scope:    &trace.Scope{Name: semconv.ScopeTracer},
			Attributes: trace.Attributes{
				{Key: semconv.VerdictWhere, Value: where}, {Key: semconv.VerdictCertainty, Value: trace.Certain},
				{Key: semconv.ProcessPID, Value: int64(4711)},
			},
		}
	}
	server := func(kind string) *trace.Span {
		return &trace.Span{
			TraceID: id, SpanID: link.SpanID{9}, Parent: id.ClientSpanID(), Kind: trace.KindServer, Name: "DNS A",
			Start: at.Add(time.Millisecond), End: at.Add(2 * time.Millisecond),
			Resource: &trace.Resource{Attributes: trace.Attributes{
				{Key: semconv.K8SNamespaceName, Value: "kube-system"}, {Key: semconv.K8SPodName, Value: "coredns-1"},
			}},
			Scope: &trace.Scope{Name: semconv.ScopePlugin},
			Attributes: trace.Attributes{
				{Key: semconv.ClientKind, Value: kind}, {Key: semconv.ClientNodeName, Value: "node-1"},
			},
		}
	}
	for kind, want := range map[string]string{
		"pod":  "node/node-1",
		"node": "node/node-2", // it may be the node that translated the address
	} {
		t.Run(kind, func(t *testing.T) {
			s := New(Limits{})
			for _, sent := range []struct {
				span *trace.Span
				by   string
			}{
				{client("node-2", string(verdict.Node)), "node/node-2"},
				{server(kind), "pod/kube-system/coredns-1"},
				{client("node-1", trace.Answered), "node/node-1"},
			} {
				if refused := s.Receive(otlp(sent.span), as(sent.by)); refused > 0 {
					t.Fatalf("%s was refused", sent.by)
				}
			}
			tr := s.Trace(id)
			if got := tr.Client().Sender(); got != want {
				t.Errorf("the client's side is %s's", got)
			}
			if len(tr.Contradicted()) != 1 {
				t.Error("who said otherwise is not named")
			}
		})
	}
}
