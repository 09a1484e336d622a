package joined

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

var update = flag.Bool("update", false, "write testdata anew")

// TestGolden: the traces that the drawings are tested with, as rows.
func TestGolden(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	defer func() { time.Local = local }()
	inputs, err := filepath.Glob("../render/testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	var lines, text bytes.Buffer
	js := json.NewEncoder(&lines)
	js.SetEscapeHTML(false)
	js.SetIndent("", " ")
	wide := &output.Text{W: &text, Wide: true}
	for _, input := range inputs {
		b, err := os.ReadFile(input)
		if err != nil {
			t.Fatal(err)
		}
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(b)
		if err != nil {
			t.Fatal(err)
		}
		tr := store.NewTrace(store.FromOTLP(td))
		row := Row(tr, tr.Verdict(), 0)
		if row == nil {
			t.Errorf("%s is no row", input)
			continue
		}
		if err := js.Encode(row); err != nil {
			t.Fatal(err)
		}
		if err := wide.Write(row); err != nil {
			t.Fatal(err)
		}
	}
	for name, got := range map[string][]byte{"rows.json": lines.Bytes(), "rows.txt": text.Bytes()} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs (write it anew with -update):\n%s", path, got)
		}
	}
}

var at = time.Date(2026, 11, 21, 12, 1, 7, 0, time.UTC)

func resource(node string) *store.Resource {
	return &store.Resource{Attributes: store.Attributes{{Key: semconv.K8SNodeName, Value: node}}}
}

var (
	tracer = &store.Scope{Name: semconv.ScopeTracer}
	plugin = &store.Scope{Name: semconv.ScopePlugin}
)

func id(n byte) link.TraceID { return link.TraceID{0: n, 15: 1} }

// clientSpan is what the agent on node-1 sends of a lookup of trace n.
func clientSpan(n byte, where verdict.Where, cause verdict.Cause, certainty string) *store.Span {
	s := &store.Span{
		TraceID: id(n), SpanID: id(n).ClientSpanID(), Name: "DNS A", Kind: store.KindClient, Start: at.Add(time.Duration(n) * time.Second), Resource: resource("node-1"), Scope: tracer,
		Attributes: store.Attributes{
			{Key: semconv.QuestionName, Value: "n" + string('0'+rune(n)) + ".example."}, {Key: semconv.QuestionType, Value: "A"},
			{Key: semconv.ClientAddress, Value: "10.244.1.10"}, {Key: semconv.ClientPort, Value: int64(4000) + int64(n)}, {Key: semconv.DNSID, Value: int64(n)},
			{Key: semconv.VerdictWhere, Value: string(where)}, {Key: semconv.VerdictCause, Value: string(cause)}, {Key: semconv.VerdictCertainty, Value: certainty},
			{Key: semconv.ConntrackReply, Value: "10.244.2.10:53>10.244.1.10:4000"},
		},
	}
	s.End = s.Start.Add(5 * time.Second)
	if where == verdict.Answered {
		s.End = s.Start.Add(time.Millisecond)
		s.Attributes = append(s.Attributes, store.Attribute{Key: semconv.ResponseCode, Value: "NOERROR"})
	}
	return s
}

// dropSpan is what the agent on node-2 sends of a query that its node dropped.
func dropSpan(n byte) *store.Span {
	return &store.Span{
		TraceID: id(n), SpanID: link.SpanID{7: n}, Parent: id(n).ClientSpanID(), Name: verdict.Dropped, Kind: store.KindInternal,
		Start: at.Add(time.Duration(n) * time.Second), End: at.Add(time.Duration(n) * time.Second), Resource: resource("node-2"), Scope: tracer,
		Attributes: store.Attributes{
			{Key: semconv.Segment, Value: "node"}, {Key: semconv.DropReason, Value: "NETFILTER_DROP"},
			{Key: semconv.SegmentFrom, Value: "eth0 in netns 7"}, {Key: semconv.SegmentTo, Value: "eth0 drop netns 7"},
		},
	}
}

// serverSpan is what CoreDNS, on node-2, sends.
func serverSpan(n byte, parent link.SpanID) *store.Span {
	return &store.Span{
		TraceID: id(n), SpanID: link.SpanID{6: 1, 7: n}, Parent: parent, Name: "DNS A", Kind: store.KindServer,
		Start: at.Add(time.Duration(n) * time.Second), End: at.Add(time.Duration(n) * time.Second).Add(time.Millisecond), Resource: resource("node-2"), Scope: plugin,
		Attributes: store.Attributes{
			{Key: semconv.QuestionName, Value: "n" + string('0'+rune(n)) + ".example."}, {Key: semconv.QuestionType, Value: "A"},
			{Key: semconv.ResponseCode, Value: "NOERROR"}, {Key: semconv.ResponseWritten, Value: true},
		},
	}
}

// TestWhenALookupIsShown: what comes when, and the rows that follow.
func TestWhenALookupIsShown(t *testing.T) {
	inferred := func(n byte) *store.Span {
		return clientSpan(n, verdict.BetweenNodes, verdict.CauseNoReply, store.Inferred)
	}
	type event struct {
		after time.Duration // since the step before
		spans []*store.Span
		want  string // the rows at this moment: name result where/cause revision
	}
	for _, tt := range []struct {
		name   string
		filter output.Filter
		events []event
	}{
		{"an answer, when nothing more comes", output.Filter{}, []event{
			{0, []*store.Span{clientSpan(1, verdict.Answered, verdict.CauseAnswered, store.Certain)}, ""},
			{time.Second, []*store.Span{serverSpan(1, id(1).ClientSpanID())}, ""},
			{time.Second, nil, ""},
			{time.Second, nil, "n1.example. NOERROR answered/answered 0"},
			{time.Minute, nil, ""},
		}},
		{"a drop that was seen, at once", output.Filter{}, []event{
			{0, []*store.Span{clientSpan(1, verdict.Node, verdict.CausePolicyDrop, store.Certain)}, "n1.example. LOST node/policy-drop 0"},
		}},
		{"what another node saw, as one row", output.Filter{}, []event{
			{0, []*store.Span{inferred(1)}, ""},
			{time.Second, []*store.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 0"},
		}},
		{"what another node saw, late: a correction", output.Filter{}, []event{
			{0, []*store.Span{inferred(1)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*store.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 1"},
			{2 * time.Second, []*store.Span{serverSpan(2, link.SpanID{})}, ""},
		}},
		{"a correction passes the filter that its row passed", output.Filter{Wheres: []string{"between-nodes"}}, []event{
			{0, []*store.Span{inferred(1), clientSpan(2, verdict.Answered, verdict.CauseAnswered, store.Certain)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*store.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 1"},
		}},
		{"other lookups show that the other node was watched", output.Filter{}, []event{
			{0, []*store.Span{inferred(1)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*store.Span{
				clientSpan(2, verdict.Answered, verdict.CauseAnswered, store.Certain), serverSpan(2, id(2).ClientSpanID()), dropSpan(3),
			}, "n1.example. LOST between-nodes/not-seen-further 1"},
			{2 * time.Second, nil, "n2.example. NOERROR answered/answered 0"},
		}},
		{"CoreDNS's side alone, when its tracer does not speak", output.Filter{}, []event{
			{0, []*store.Span{serverSpan(1, id(1).ClientSpanID())}, ""},
			{11 * time.Second, nil, ""},
			{2 * time.Second, nil, "n1.example. NOERROR answered/ 0"},
		}},
		{"CoreDNS's side alone, where it knows of no tracer", output.Filter{}, []event{
			{0, []*store.Span{serverSpan(1, link.SpanID{})}, ""},
			{2 * time.Second, nil, "n1.example. NOERROR answered/ 0"},
		}},
		{"in order of time", output.Filter{}, []event{
			{0, []*store.Span{
				clientSpan(3, verdict.Node, verdict.CausePolicyDrop, store.Certain), clientSpan(1, verdict.Node, verdict.CausePolicyDrop, store.Certain),
			}, "n1.example. LOST node/policy-drop 0, n3.example. LOST node/policy-drop 0"},
		}},
		{"one of which ever more comes", output.Filter{}, []event{
			{0, []*store.Span{inferred(1)}, ""},
			{time.Second, []*store.Span{serverSpan(1, link.SpanID{9})}, ""},
			{5 * time.Second, []*store.Span{dropSpan(4)}, "n1.example. LOST return-path/not-seen-further 0"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := store.New(store.Limits{})
			w := s.Watch()
			l := newLook(s, &tt.filter)
			now := at.Add(time.Minute)
			for i, e := range tt.events {
				now = now.Add(e.after)
				s.Add(e.spans...)
				changed, _ := w.Take()
				if got := said(l.rows(changed, now)); got != e.want {
					t.Errorf("event %d: %q, want %q", i, got, e.want)
				}
			}
		})
	}
}

func said(rows []*output.Row) string {
	var list []string
	for _, r := range rows {
		list = append(list, r.Name+" "+r.Result+" "+r.Verdict.Where+"/"+r.Verdict.Cause+" "+string('0'+rune(r.Revision)))
	}
	return strings.Join(list, ", ")
}

// TestOneRowForBothTraceIDs: a lookup at an epoch boundary is sent under two, and CoreDNS's side comes under one of them.
func TestOneRowForBothTraceIDs(t *testing.T) {
	original, copied := clientSpan(1, verdict.Answered, verdict.CauseAnswered, store.Certain), clientSpan(1, verdict.Answered, verdict.CauseAnswered, store.Certain)
	copied.TraceID, copied.SpanID = id(9), id(9).ClientSpanID()
	copied.Attributes = append(slices.Clone(copied.Attributes), store.Attribute{Key: semconv.LinkCopy, Value: true})
	for _, linked := range []byte{1, 9} {
		s := store.New(store.Limits{})
		w := s.Watch()
		l := newLook(s, &output.Filter{})
		server := serverSpan(1, id(linked).ClientSpanID())
		server.TraceID = id(linked)
		s.Add(original, copied, server)
		changed, _ := w.Take()
		rows := l.rows(changed, at)
		rows = append(rows, l.rows(nil, at.Add(2*time.Second))...)
		if len(rows) != 1 {
			t.Errorf("linked under %d: %d rows, %s", linked, len(rows), said(rows))
			continue
		}
		if past := newLook(s, &output.Filter{}).past(); len(past) != 1 || past[0].TraceID != id(linked).String() {
			t.Errorf("linked under %d: %d rows of the past", linked, len(past))
		}
	}
}

// TestOverHTTP asks a store as observe does: the past, and what comes.
func TestOverHTTP(t *testing.T) {
	s := store.New(store.Limits{})
	srv := httptest.NewServer(Handler(s, http.NotFoundHandler()))
	defer srv.Close()
	c, err := rowapi.NewStoreClient(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for n := byte(1); n <= 4; n++ {
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, store.Certain))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	names := func(f output.Filter, last int) string {
		var got []string
		if err := c.Lookups(ctx, &f, last, false, func(r *output.Row) error { got = append(got, r.Name); return nil }); err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, " ")
	}
	for _, tt := range []struct {
		name string
		f    output.Filter
		last int
		want string
	}{
		{"all", output.Filter{}, 0, "n1.example. n2.example. n3.example. n4.example."},
		{"the last two", output.Filter{}, 2, "n3.example. n4.example."},
		{"since", output.Filter{Since: at.Add(4 * time.Second)}, 0, "n4.example."},
		{"none is lost", output.Filter{Lost: new(true)}, 0, ""},
	} {
		if got := names(tt.f, tt.last); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	rows := make(chan *output.Row, 8)
	done := make(chan error, 1)
	follow, stop := context.WithCancel(ctx)
	go func() {
		done <- c.Lookups(follow, &output.Filter{}, 1, true, func(r *output.Row) error { rows <- r; return nil })
	}()
	if got := <-rows; got.Name != "n4.example." {
		t.Errorf("the past begins with %s", got.Name)
	}
	s.Add(clientSpan(5, verdict.Node, verdict.CausePolicyDrop, store.Certain))
	select {
	case got := <-rows:
		if got.Name != "n5.example." || got.Result != output.Lost {
			t.Errorf("%s %s came", got.Name, got.Result)
		}
	case <-ctx.Done():
		t.Fatal("a lookup that comes is not shown")
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	var stats Stats
	if err := c.Stats(ctx, &stats); err != nil || stats.SpansReceived != 5 || !slices.Equal(stats.Nodes, []string{"node-1"}) {
		t.Errorf("%+v, %v", stats, err)
	}
}

// BenchmarkRows: an answered lookup, from its spans to its row; five thousand of them a second.
func BenchmarkRows(b *testing.B) {
	s := store.New(store.Limits{})
	w := s.Watch()
	l := newLook(s, &output.Filter{})
	now := at
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := clientSpan(1, verdict.Answered, verdict.CauseAnswered, store.Certain)
		c.TraceID = link.TraceID{0: byte(i), 1: byte(i >> 8), 2: byte(i >> 16), 15: 1}
		c.SpanID, c.Start = c.TraceID.ClientSpanID(), c.Start.Add(time.Duration(i))
		s.Add(c)
		if i%1000 == 999 {
			changed, _ := w.Take()
			now = now.Add(tick)
			l.rows(changed, now)
		}
	}
}

// TestLookupsThatTheStoreLetGoAreCounted: a store too small for what comes.
func TestLookupsThatTheStoreLetGoAreCounted(t *testing.T) {
	s := store.New(store.Limits{Spans: 2})
	l := newLook(s, &output.Filter{})
	w := s.Watch()
	for n := byte(1); n <= 5; n++ {
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, store.Certain))
	}
	changed, missed := w.Take()
	if len(changed) != 2 || missed != 3 {
		t.Errorf("%d changed, %d missed, want 2 and 3", len(changed), missed)
	}
	l.rows(changed, at)
	for n := byte(6); n <= 7; n++ {
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, store.Certain))
	}
	if l.rows(nil, at.Add(2*time.Second)); l.gone != 2 {
		t.Errorf("%d gone while they waited, want 2", l.gone)
	}
	w.Close()
	w.Take()
	s.Add(clientSpan(8, verdict.Answered, verdict.CauseAnswered, store.Certain))
	if changed, _ := w.Take(); len(changed) != 0 {
		t.Error("a watch that was closed goes on")
	}
}

// BenchmarkPast: what a reader waits for at first, of five thousand lookups of nineteen spans each.
func BenchmarkPast(b *testing.B) {
	js, err := os.ReadFile("../render/testdata/two-agents-slow-upstream.json")
	if err != nil {
		b.Fatal(err)
	}
	td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
	if err != nil {
		b.Fatal(err)
	}
	s := store.New(store.Limits{Spans: 1_000_000})
	for n := range 5000 {
		spans := store.FromOTLP(td)
		to := link.TraceID{0: byte(n), 1: byte(n >> 8), 15: 1}
		client := spans[0].TraceID.ClientSpanID()
		for _, sp := range spans {
			if sp.SpanID == client {
				sp.SpanID = to.ClientSpanID()
				sp.Start = sp.Start.Add(time.Duration(n))
			}
			if sp.Parent == client {
				sp.Parent = to.ClientSpanID()
			}
			sp.TraceID = to
		}
		s.Add(spans...)
	}
	b.ReportAllocs()
	for b.Loop() {
		if rows := newLook(s, &output.Filter{}).past(); len(rows) != 5000 {
			b.Fatalf("%d rows", len(rows))
		}
	}
}
