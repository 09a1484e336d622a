package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

func TestEveryCauseHasAdvice(t *testing.T) {
	well := map[verdict.Cause]bool{verdict.CauseAnswered: true, verdict.CauseCorrected: true}
	for _, cause := range verdict.Causes {
		switch tell := causes[cause]; {
		case well[cause]:
		case tell == nil:
			t.Errorf("nothing is said of %s", cause)
		case len(tell(&scene{})) == 0:
			t.Errorf("%s: no advice", cause)
		}
	}
}

// TestAdviceNamesThePlace: the machine on which something is to be looked at.
func TestAdviceNamesThePlace(t *testing.T) {
	tr := trace.New([]*trace.Span{{TraceID: link.TraceID{1}, SpanID: link.SpanID{1}, Start: time.Unix(1, 0),
		End: time.Unix(2, 0)}})
	at := func(netns uint32, kind verdict.OwnerKind, name string) trace.Place {
		return trace.Place{Device: "eth0", Event: "drop", NetNS: netns, Owner: verdict.Owner{Kind: kind, Name: name}}
	}
	for _, tt := range []struct {
		at         trace.Place
		node, want string
	}{
		{at(7, semconv.OwnerNode, "node-1"), "", "rules that drop port 53 on node-1:"},
		{at(7, semconv.OwnerHost, "laptop"), "", "rules that drop port 53 on laptop:"},
		{at(7, semconv.OwnerPod, "kube-system/coredns-1"), "", "rules that drop port 53 on the network namespace of pod " +
			"kube-system/coredns-1:"},
		{at(7, "", ""), "", "rules that drop port 53 on the machine of network namespace 7 "},
		{at(0, "", ""), "", "rules that drop port 53 on the client's node:"},
		{at(7, "", ""), "node-2", "rules that drop port 53 on node-2:"},
	} {
		v := trace.Verdict{Where: string(verdict.Node), Cause: string(verdict.CausePolicyDrop), DropAt: tt.at, Node: tt.node}
		if got := advice(tr, v); len(got) == 0 || !strings.HasPrefix(got[0], tt.want) {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// TestAdviceNamesThePortBehindTheTranslation: rules are judged after it, and a proxy in the pod is found by it.
func TestAdviceNamesThePortBehindTheTranslation(t *testing.T) {
	for _, tt := range []struct {
		server, behind string
		cause          verdict.Cause
		want           string
	}{
		{"10.244.2.10", "5353", verdict.CausePolicyDrop, "rules and network policies for port 5353, not 53"},
		{"10.244.2.10", "5353", verdict.CauseVanished, "--port (53,5353)"},
		{"127.0.0.1", "15053", verdict.CauseNotRead, "nat OUTPUT"},
		{"10.244.2.10", "", verdict.CausePolicyDrop, ""},
	} {
		got := (&scene{server: tt.server, asked: "53", behind: tt.behind}).pastTheTranslation(tt.cause)
		if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s %s %s: %q, want %q in it", tt.server, tt.behind, tt.cause, got, tt.want)
		}
	}
}
