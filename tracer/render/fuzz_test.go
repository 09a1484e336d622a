package render

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// check joins, judges, tells and draws every trace of spans, and wants nothing but text, within its width.
func check(t *testing.T, spans []*trace.Span) {
	t.Helper()
	s := store.New(store.Limits{Spans: 1000})
	s.Add(spans...)
	all := s.Traces(trace.Filter{})
	trace.Shadows(all)
	for _, tr := range all {
		story := explain.Tell(tr, all)
		js, err := story.MarshalJSON()
		if err != nil || !json.Valid(js) {
			t.Errorf("JSON: %s, %v", js, err)
		}
		for _, o := range []Options{{}, {Width: MinWidth, ASCII: true}} {
			var out strings.Builder
			if err := Story(&out, story, o); err != nil {
				t.Fatal(err)
			}
			isText(t, out.String(), cmp.Or(o.Width, DefaultWidth))
		}
		var page strings.Builder
		if err := Page(&page, story, Options{}); err != nil {
			t.Errorf("page: %v", err)
		}
		isText(t, page.String(), math.MaxInt)
		if row := joined.Row(tr, story.Verdict, 0); row != nil {
			var rows strings.Builder
			text := output.Text{W: &rows, Width: DefaultWidth}
			if err := text.Write(row); err != nil {
				t.Fatal(err)
			}
			isText(t, rows.String(), math.MaxInt) // a word in the reason may be longer than a line
			rows.Reset()
			if err := output.NewJSONL(&rows).Write(row); err != nil || !json.Valid([]byte(rows.String())) {
				t.Errorf("row %q: %v", rows.String(), err)
			}
			isText(t, rows.String(), math.MaxInt)
		}
		// Every span is in one place of the tree, and no more.
		n := 0
		walk(tr.Nested(), func(*trace.Node) bool { n++; return true })
		if n > len(tr.Spans) || n == 0 {
			t.Errorf("%d nodes for %d spans", n, len(tr.Spans))
		}
	}
}

// isText wants lines of printable characters, none wider than width.
func isText(t *testing.T, text string, width int) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("not UTF-8: %q", text)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if w := runewidth.StringWidth(line); w > width {
			t.Errorf("%d cells: %q", w, line)
		}
		if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("not text: %+q", line)
		}
	}
}

// FuzzTrace: whatever somebody sends to the store or puts in a file, it can be joined, judged, told and drawn; nothing
// but text reaches the terminal, within its width.
func FuzzTrace(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		f.Fatalf("no traces: %v", err)
	}
	for _, in := range inputs {
		js, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(js)
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
		if err != nil {
			return
		}
		check(t, trace.FromOTLP(td))
	})
}

// FuzzShape: spans as our programs send them, put together in every way that they do not: at any time, below any
// other, with any words.
func FuzzShape(f *testing.F) {
	f.Add([]byte{})
	for seed := range byte(40) {
		in := make([]byte, 400)
		for i := range in {
			in[i] = byte(i)*seed*7 + byte(i*i)>>3 + seed
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) { check(t, shape(in)) })
}

// hostile are texts that hold what a terminal, a page or a table must not be given.
var hostile = []string{
	"", "a", "shop", "\x1b[2J", "moc.\u202eelgoog", "\u200b\u200d", "東京東京",
	"z\u0301\u0302\u0303\u0304", "bad\xff", "<script>", "\u2028", "\u2800",
	strings.Repeat("long-label.", 40), strings.Repeat("東", 200),
	"a\nb\tc", "\u1100\u1161\u11a8", "👩\u200d👩\U0001f3fb\U0001f3fb",
	"eth0 out netns 4026532201", "eth0 in netns 1", "socket read", "NETFILTER_DROP", "10.0.0.1:53>10.0.0.2:4242",
	"::", "10.0.0.1",
}

// shape makes spans of one trace of what in says, four in five of them such as the tracer or the plugin makes.
func shape(in []byte) []*trace.Span {
	next := func() int {
		if len(in) == 0 {
			return 0
		}
		b := in[0]
		in = in[1:]
		return int(b)
	}
	pick := func(list []string) string { return list[next()%len(list)] }
	times := []time.Time{
		time.Unix(0, 0).UTC(), time.Unix(0, math.MinInt64).UTC(), time.Unix(0, math.MaxInt64).UTC(),
		time.Unix(0, -1).UTC(), time.Unix(0, 1).UTC(), {},
	}
	at := func() time.Time {
		if b := next(); b < len(times) {
			return times[b]
		}
		return time.Unix(1_800_000_000, int64(next())<<(next()%40)).UTC()
	}
	id := link.TraceID{1}
	scopes := []*trace.Scope{{Name: semconv.ScopeTracer}, {Name: semconv.ScopePlugin}, nil}
	resources := []*trace.Resource{nil, {}}
	for i := range 3 {
		resources = append(resources, &trace.Resource{Attributes: trace.Attributes{
			{Key: semconv.K8SNodeName, Value: fmt.Sprint("node-", i)}, {Key: semconv.K8SPodName, Value: pick(hostile)},
		}})
	}
	names := append([]string{
		verdict.DNSServer, verdict.BeyondThisNode, verdict.Dropped, verdict.LateAnswer, "client socket",
	}, hostile...)
	words := slices.Concat([]string{
		trace.Answered, trace.Certain, trace.Inferred, "udp", "tcp", "A", "NOERROR", "SERVFAIL",
	}, trace.Stages, hostile)
	var spans []*trace.Span
	for n := 0; len(in) > 0 && n < 40; n++ {
		s := &trace.Span{
			TraceID: id, SpanID: link.SpanID{byte(next() % 16), 1}, Parent: link.SpanID{byte(next() % 16), 1},
			Name: pick(names), Kind: trace.Kind(next() % 7), Start: at(), End: at(),
			Status: trace.Status(next() % 4), Message: pick(hostile),
			Scope: scopes[next()%len(scopes)], Resource: resources[next()%len(resources)],
		}
		if next()%3 == 0 {
			s.SpanID = id.ClientSpanID()
		}
		if next()%2 == 0 {
			s.Parent = id.ClientSpanID()
		}
		if next()%4 == 0 {
			s.Parent = link.SpanID{}
		}
		for range next() % 12 {
			key := semconv.All[(next()<<8|next())%len(semconv.All)].Name
			var v any
			switch next() % 8 {
			case 0:
				v = int64(next()) << (next() % 64)
			case 1:
				v = next()%2 == 0
			case 2:
				v = math.Float64frombits(uint64(next()) << 56)
			case 3:
				v = []any{pick(hostile), int64(1), nil}
			case 4:
				v = map[string]any{pick(hostile): []byte(pick(hostile))}
			default:
				v = pick(words)
			}
			s.Attributes = append(s.Attributes, trace.Attribute{Key: key, Value: v})
		}
		spans = append(spans, s)
	}
	return spans
}

// TestTimesBeyondReason: spans whose times no lookup has, each alone and with a right one.
func TestTimesBeyondReason(t *testing.T) {
	id := link.TraceID{1}
	resource, scope := &trace.Resource{}, &trace.Scope{Name: semconv.ScopeTracer}
	now := time.Unix(1_800_000_000, 0).UTC()
	first, last := time.Unix(0, math.MinInt64).UTC(), time.Unix(0, math.MaxInt64).UTC()
	span := func(n byte, start, end time.Time, stage string) *trace.Span {
		return &trace.Span{
			TraceID: id, SpanID: link.SpanID{n}, Parent: id.ClientSpanID(), Kind: trace.KindInternal,
			Start: start, End: end, Resource: resource, Scope: scope,
			Attributes: trace.Attributes{{Key: semconv.Segment, Value: stage}, {Key: semconv.SegmentToDevice, Value: "eth0"}},
		}
	}
	client := span(0, now, now.Add(time.Second), "")
	client.SpanID, client.Parent, client.Kind = id.ClientSpanID(), link.SpanID{}, trace.KindClient
	client.Attributes = trace.Attributes{
		{Key: semconv.VerdictWhere, Value: "node"}, {Key: semconv.QuestionName, Value: "a.example."},
	}
	for name, times := range map[string][2]time.Time{
		"starts in 1677":        {first, now},
		"all that can be":       {first, last},
		"ends before it starts": {now.Add(time.Hour), now},
		"ends in 1677":          {last, first},
		"outside":               {now.Add(-24 * time.Hour), now.Add(-23 * time.Hour)},
		"zero":                  {{}, {}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, stage := range []string{"pod-link", string(verdict.Upstream), string(verdict.CoreDNS), ""} {
				odd := span(1, times[0], times[1], stage)
				check(t, []*trace.Span{odd})
				check(t, []*trace.Span{client, odd})
				check(t, []*trace.Span{client, odd, span(2, now, now.Add(time.Millisecond), "node")})
				asks := *client
				asks.Start, asks.End = times[0], times[1]
				check(t, []*trace.Span{&asks, odd, span(2, now, now.Add(time.Millisecond), "node")})
			}
		})
	}
}
