package render

import (
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestWhoSaidWhat: a lookup of which two senders say that they are its client's agent is told as the first said, and
// the other is named with what it said, on the terminal and on the page; what it wrote is shown harmlessly.
func TestWhoSaidWhat(t *testing.T) {
	id := link.TraceID{1}
	at := time.Unix(1_800_000_000, 0).UTC()
	say := func(sender string, received int64, where verdict.Where, text string) *trace.Span {
		return &trace.Span{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: trace.KindClient, Name: "DNS A", Start: at,
			End: at.Add(time.Millisecond),
			Resource: &trace.Resource{Attributes: trace.Attributes{
				{Key: semconv.K8SNodeName, Value: "node-1"}, {Key: semconv.SenderAddress, Value: sender}, {Key: semconv.SenderTime,
					Value: received},
			}},
			Scope: &trace.Scope{Name: semconv.ScopeTracer},
			Attributes: trace.Attributes{
				{Key: semconv.QuestionName, Value: "cart.example."}, {Key: semconv.QuestionType, Value: "A"},
				{Key: semconv.ClientAddress, Value: "10.244.1.10"}, {Key: semconv.ProcessPID, Value: int64(1)},
				{Key: semconv.VerdictWhere, Value: string(where)}, {Key: semconv.VerdictCertainty, Value: trace.Certain},
				{Key: semconv.VerdictText, Value: text},
			},
		}
	}
	tr := trace.New([]*trace.Span{
		say("10.244.1.66", 2, verdict.Node, "call \x1b[31m555-0100 \u202e<script>"),
		say("192.168.100.11", 1, verdict.Answered, "answered"),
	})
	story := explain.Tell(tr, nil)
	if story.Verdict.Where != string(verdict.Answered) {
		t.Fatalf("%+v", story.Verdict)
	}
	var text, page strings.Builder
	if err := Story(&text, story, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := Page(&page, story, Options{}); err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(text.String()), " ")
	if !strings.Contains(words, "said by 10.244.1.66, and not heeded, since 192.168.100.11 spoke for this client first") {
		t.Errorf("who said otherwise is not told:\n%s", text.String())
	}
	if !strings.Contains(page.String(), "said by 10.244.1.66") {
		t.Error("who said otherwise is not told on the page")
	}
	for name, shown := range map[string]string{"terminal": text.String(), "page": page.String()} {
		if strings.ContainsAny(shown, "\x1b\u202e") || strings.Contains(shown, "555-0100 \u202e<script>") {
			t.Errorf("on the %s what a stranger wrote is not harmless", name)
		}
	}
}
