package render

import (
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// TestStages: the chain reads in the order in which the packet went, and ends where it was lost.
func TestStages(t *testing.T) {
	const translated = "10.244.2.10"
	for _, tc := range []struct {
		name, where string
		reply       string   // of the conntrack entry
		seen        []string // stages of the segments; with a ! of a drop, with an @ of another node
		want        string
	}{
		{"dropped as it was sent", "client", "", nil, "✗client ·pod-link ·service ·node ·between-nodes ·coredns-socket " +
			"·coredns ·return-path"},
		{"dropped by the client's node", "node", translated, []string{"pod-link", "service", "node!"},
			"✓client ✓pod-link ✓service ✗node ·between-nodes ·coredns-socket ·coredns ·return-path"},
		{"dropped by CoreDNS's node", "node", translated, []string{"pod-link", "service", "node", "between-nodes", "node!"},
			"✓client ✓pod-link ✓service ✓node ✓between-nodes ✗node ·coredns-socket ·coredns ·return-path"},
		{"dropped by CoreDNS's node, as its agent says", "node", translated,
			[]string{"pod-link", "service", "node", "@node!"}, "✓client ✓pod-link ✓service ✓node ✓between-nodes ✗node " +
				"·coredns-socket ·coredns ·return-path"},
		{"not translated, and sent on", "service", "", []string{"pod-link", "node", "between-nodes"},
			"✓client ✓pod-link ✗service ·node ·between-nodes ·coredns-socket ·coredns ·return-path"},
		{"a firewall between", "between-nodes", translated, []string{"pod-link", "service", "node"},
			"✓client ✓pod-link ✓service ✓node ✗between-nodes ·coredns-socket ·coredns ·return-path"},
		{"an answer too late", "client", translated, []string{"pod-link", "service", "node", "between-nodes",
			"coredns-socket", "coredns", "return-path", "client"},
			"✓client ✓pod-link ✓service ✓node ✓between-nodes ✓coredns-socket ✓coredns ✓return-path ✗client"},
		{"upstream silent", "upstream", translated, []string{"pod-link", "service", "node", "between-nodes", "coredns-socket",
			"upstream"},
			"✓client ✓pod-link ✓service ✓node ✓between-nodes ✓coredns-socket ✓coredns ✗upstream ·return-path"},
		{"a process of the node's own", "between-nodes", translated, []string{"node"},
			"✓client ✓service ✓node ✗between-nodes ·coredns-socket ·coredns ·return-path"},
		{"a process of the node's own that asks CoreDNS's own address", "between-nodes", "", nil,
			"✓client ✓node ✗between-nodes ·coredns-socket ·coredns ·return-path"},
		{"the server's own address asked", "coredns-socket", "", []string{"pod-link", "node", "between-nodes",
			"coredns-socket!"}, "✓client ✓pod-link ✓node ✓between-nodes ✗coredns-socket ·coredns ·return-path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := link.TraceID{15: 1}
			at := time.Unix(1795262400, 0)
			scope := &trace.Scope{Name: semconv.ScopeTracer}
			resource := func(node string) *trace.Resource {
				return &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: node}}}
			}
			own := resource("node-1")
			spans := []*trace.Span{{
				TraceID: id, SpanID: id.ClientSpanID(), Kind: trace.KindClient, Start: at,
				End: at.Add(time.Second), Scope: scope, Resource: own,
				Attributes: trace.Attributes{{Key: semconv.VerdictWhere, Value: tc.where},
					{Key: semconv.VerdictCertainty, Value: trace.Certain}, {Key: semconv.TranslatedAddress, Value: tc.reply}},
			}}
			for i, stage := range tc.seen {
				s := &trace.Span{TraceID: id, SpanID: link.SpanID{7: byte(i + 1)}, Parent: id.ClientSpanID(),
					Kind: trace.KindInternal, Start: at, End: at, Scope: scope, Resource: own}
				if rest, ok := strings.CutPrefix(stage, "@"); ok {
					stage, s.Resource = rest, resource("node-2")
				}
				if rest, ok := strings.CutSuffix(stage, "!"); ok {
					stage, s.Attributes = rest, trace.Attributes{{Key: semconv.DropReason, Value: "NETFILTER_DROP"}}
				}
				s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.Segment, Value: stage})
				spans = append(spans, s)
			}
			tr := trace.New(spans)
			d := newDrawing(tr, tr.Verdict(), Options{})
			var got []string
			lost := false
			for _, s := range d.stages() {
				mark := d.g.unseen
				switch {
				case s.lost:
					mark, lost = d.g.lost, true
				case s.passed:
					mark = d.g.passed
					if lost {
						t.Errorf("%s is passed after it was lost", s.name)
					}
				}
				got = append(got, mark+s.name)
			}
			if got := strings.Join(got, " "); got != tc.want {
				t.Errorf("\n got %s\nwant %s", got, tc.want)
			}
		})
	}
}
