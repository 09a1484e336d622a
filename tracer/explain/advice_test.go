package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/store"
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
	tr := store.NewTrace([]*store.Span{{TraceID: link.TraceID{1}, SpanID: link.SpanID{1}, Start: time.Unix(1, 0), End: time.Unix(2, 0)}})
	for _, tt := range []struct{ evidence, node, want string }{
		{"dropped at cbr0 on node node-1: NETFILTER_DROP", "", "rules that drop port 53 on node-1:"},
		{"dropped at eth0 in pod kube-system/coredns-1: NETFILTER_DROP", "", "rules that drop port 53 on the network namespace of pod kube-system/coredns-1:"},
		{"dropped at eth0 in network namespace 7: NETFILTER_DROP", "", "rules that drop port 53 on the client's node:"},
		{"dropped at eth0 as seen on node-2: NETFILTER_DROP", "node-2", "rules that drop port 53 on node-2:"},
	} {
		v := store.Verdict{Where: string(verdict.Node), Cause: string(verdict.CausePolicyDrop), Evidence: []string{tt.evidence}, Node: tt.node}
		if got := advice(tr, v); len(got) == 0 || !strings.HasPrefix(got[0], tt.want) {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
