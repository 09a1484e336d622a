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
	"github.com/dnstrail/dnstrail/tracer/trace"
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
		tr := trace.New(trace.FromOTLP(td))
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

func resource(node string) *trace.Resource {
	return &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: node}}}
}

var (
	tracer = &trace.Scope{Name: semconv.ScopeTracer}
	plugin = &trace.Scope{Name: semconv.ScopePlugin}
)

func id(n byte) link.TraceID { return link.TraceID{0: n, 15: 1} }

// clientSpan is what the agent on node-1 sends of a lookup of trace n.
func clientSpan(n byte, where verdict.Where, cause verdict.Cause, certainty string) *trace.Span {
	s := &trace.Span{
		TraceID: id(n), SpanID: id(n).ClientSpanID(), Name: "DNS A", Kind: trace.KindClient,
		Start: at.Add(time.Duration(n) * time.Second), Resource: resource("node-1"), Scope: tracer,
		Attributes: trace.Attributes{
			{Key: semconv.QuestionName, Value: "n" + string('0'+rune(n)) + ".example."}, {Key: semconv.QuestionType, Value: "A"},
			{Key: semconv.ClientAddress, Value: "10.244.1.10"}, {Key: semconv.ClientPort, Value: int64(4000) +
				int64(n)}, {Key: semconv.DNSID, Value: int64(n)},
			{Key: semconv.VerdictWhere, Value: string(where)}, {Key: semconv.VerdictCause,
				Value: string(cause)}, {Key: semconv.VerdictCertainty, Value: certainty},
			{Key: semconv.TranslatedAddress, Value: "10.244.2.10"}, {Key: semconv.TranslatedPort, Value: int64(53)},
		},
	}
	s.End = s.Start.Add(5 * time.Second)
	if where == verdict.Answered {
		s.End = s.Start.Add(time.Millisecond)
		s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.ResponseCode, Value: "NOERROR"})
	}
	return s
}

// dropSpan is what the agent on node-2 sends of a query that its node dropped.
func dropSpan(n byte) *trace.Span {
	return &trace.Span{
		TraceID: id(n), SpanID: link.SpanID{7: n},
		Parent: id(n).ClientSpanID(), Name: verdict.Dropped, Kind: trace.KindInternal,
		Start: at.Add(time.Duration(n) * time.Second), End: at.Add(time.Duration(n) * time.Second),
		Resource: resource("node-2"), Scope: tracer,
		Attributes: trace.Attributes{
			{Key: semconv.Segment, Value: "node"}, {Key: semconv.DropReason, Value: "NETFILTER_DROP"},
			{Key: semconv.SegmentWay, Value: semconv.WayQuery},
			{Key: semconv.SegmentFromDevice, Value: "eth0"}, {Key: semconv.SegmentFromEvent, Value: "in"},
			{Key: semconv.SegmentFromNetNS, Value: int64(7)},
			{Key: semconv.SegmentToDevice, Value: "eth0"}, {Key: semconv.SegmentToEvent, Value: "drop"},
			{Key: semconv.SegmentToNetNS, Value: int64(7)},
		},
	}
}

// serverSpan is what CoreDNS, on node-2, sends.
func serverSpan(n byte, parent link.SpanID) *trace.Span {
	return &trace.Span{
		TraceID: id(n), SpanID: link.SpanID{6: 1, 7: n}, Parent: parent, Name: "DNS A", Kind: trace.KindServer,
		Start: at.Add(time.Duration(n) * time.Second),
		End:   at.Add(time.Duration(n) * time.Second).Add(time.Millisecond), Resource: resource("node-2"), Scope: plugin,
		Attributes: trace.Attributes{
			{Key: semconv.QuestionName, Value: "n" + string('0'+rune(n)) + ".example."}, {Key: semconv.QuestionType, Value: "A"},
			{Key: semconv.ResponseCode, Value: "NOERROR"}, {Key: semconv.ResponseWritten, Value: true},
		},
	}
}

// TestWhenALookupIsShown: what comes when, and the rows that follow.
func TestWhenALookupIsShown(t *testing.T) {
	inferred := func(n byte) *trace.Span {
		return clientSpan(n, verdict.BetweenNodes, verdict.CauseNoReply, trace.Inferred)
	}
	earlier := dropSpan(5)
	earlier.Start = at
	type event struct {
		after time.Duration // since the step before
		spans []*trace.Span
		want  string // the rows at this moment: name result where/cause revision
	}
	for _, tt := range []struct {
		name   string
		filter output.Filter
		events []event
	}{
		{"an answer, when nothing more comes", output.Filter{}, []event{
			{0, []*trace.Span{clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain)}, ""},
			{time.Second, []*trace.Span{serverSpan(1, id(1).ClientSpanID())}, ""},
			{time.Second, nil, ""},
			{time.Second, nil, "n1.example. NOERROR answered/answered 0"},
			{time.Minute, nil, ""},
		}},
		{"a drop that was seen, at once", output.Filter{}, []event{
			{0, []*trace.Span{clientSpan(1, verdict.Node, verdict.CausePolicyDrop, trace.Certain)},
				"n1.example. LOST node/policy-drop 0"},
		}},
		{"what another node saw, as one row", output.Filter{}, []event{
			{0, []*trace.Span{inferred(1)}, ""},
			{time.Second, []*trace.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 0"},
		}},
		{"what another node saw, late: a correction", output.Filter{}, []event{
			{0, []*trace.Span{inferred(1)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*trace.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 1"},
			{2 * time.Second, []*trace.Span{serverSpan(2, link.SpanID{})}, ""},
		}},
		{"a correction passes the filter that its row passed", output.Filter{Wheres: []string{"between-nodes"}}, []event{
			{0, []*trace.Span{inferred(1), clientSpan(2, verdict.Answered, verdict.CauseAnswered, trace.Certain)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*trace.Span{dropSpan(1)}, "n1.example. LOST node/policy-drop 1"},
		}},
		{"other lookups show that the other node was watched", output.Filter{}, []event{
			{0, []*trace.Span{inferred(1)}, ""},
			{2 * time.Second, nil, "n1.example. LOST between-nodes/no-reply-seen 0"},
			{2 * time.Second, []*trace.Span{
				earlier, clientSpan(2, verdict.Answered, verdict.CauseAnswered, trace.Certain), serverSpan(2, id(2).ClientSpanID()),
			}, ""},
			{2 * time.Second, []*trace.Span{dropSpan(3)},
				"n1.example. LOST between-nodes/not-seen-further 1, n2.example. NOERROR answered/answered 0"},
		}},
		{"CoreDNS's side alone, when its tracer does not speak", output.Filter{}, []event{
			{0, []*trace.Span{serverSpan(1, id(1).ClientSpanID())}, ""},
			{11 * time.Second, nil, ""},
			{2 * time.Second, nil, "n1.example. NOERROR answered/ 0"},
		}},
		{"CoreDNS's side alone, where it knows of no tracer", output.Filter{}, []event{
			{0, []*trace.Span{serverSpan(1, link.SpanID{})}, ""},
			{2 * time.Second, nil, "n1.example. NOERROR answered/ 0"},
		}},
		{"in order of time", output.Filter{}, []event{
			{0, []*trace.Span{
				clientSpan(3, verdict.Node, verdict.CausePolicyDrop, trace.Certain), clientSpan(1, verdict.Node,
					verdict.CausePolicyDrop, trace.Certain),
			}, "n1.example. LOST node/policy-drop 0, n3.example. LOST node/policy-drop 0"},
		}},
		{"one of which ever more comes", output.Filter{}, []event{
			{0, []*trace.Span{inferred(1)}, ""},
			{time.Second, []*trace.Span{serverSpan(1, link.SpanID{9})}, ""},
			{5 * time.Second, []*trace.Span{dropSpan(4)}, "n1.example. LOST return-path/not-seen-further 0"},
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

// TestOneRowForBothTraceIDs: a lookup at an epoch boundary is sent under two, and CoreDNS's side comes under one of
// them.
func TestOneRowForBothTraceIDs(t *testing.T) {
	original, copied := clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain),
		clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain)
	copied.TraceID, copied.SpanID = id(9), id(9).ClientSpanID()
	copied.Attributes = append(slices.Clone(copied.Attributes), trace.Attribute{Key: semconv.LinkCopy, Value: true})
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
	c, err := rowapi.NewStoreClient(srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := byte(1); n <= 4; n++ {
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, trace.Certain))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	names := func(f output.Filter, last int) string {
		var got []string
		if err := c.Lookups(ctx, &f, last, false,
			func(r *output.Row) error { got = append(got, r.Name); return nil }); err != nil {
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
	s.Add(clientSpan(5, verdict.Node, verdict.CausePolicyDrop, trace.Certain))
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
	if err := c.Stats(ctx, &stats); err != nil || stats.SpansReceived != 5 ||
		!slices.Equal(stats.Nodes, []string{"node-1"}) {
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
		c := clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain)
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
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, trace.Certain))
	}
	changed, missed := w.Take()
	if len(changed) != 2 || missed != 3 {
		t.Errorf("%d changed, %d missed, want 2 and 3", len(changed), missed)
	}
	l.rows(changed, at)
	for n := byte(6); n <= 7; n++ {
		s.Add(clientSpan(n, verdict.Answered, verdict.CauseAnswered, trace.Certain))
	}
	if l.rows(nil, at.Add(2*time.Second)); l.gone != 2 {
		t.Errorf("%d gone while they waited, want 2", l.gone)
	}
	w.Close()
	w.Take()
	s.Add(clientSpan(8, verdict.Answered, verdict.CauseAnswered, trace.Certain))
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
		spans := trace.FromOTLP(td)
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

// A server's own query is a trace of its own, since the server that it asks derives one. It is part of the client's
// row.
func TestAServersOwnQueryIsNoRow(t *testing.T) {
	s := store.New(store.Limits{})
	own := clientSpan(2, verdict.Answered, verdict.CauseAnswered, trace.Certain)
	own.Attributes = append(own.Attributes, trace.Attribute{Key: semconv.ServerQuery, Value: true},
		trace.Attribute{Key: semconv.ServedTraceID, Value: id(1).String()})
	untied := clientSpan(3, verdict.Node, verdict.CausePolicyDrop, trace.Certain)
	untied.Attributes = append(untied.Attributes, trace.Attribute{Key: semconv.ServerQuery, Value: true})
	s.Add(clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain), own, untied)
	look := newLook(s, &output.Filter{})
	rows := append(look.past(), look.rows([]link.TraceID{id(1), id(2), id(3)}, time.Now())...)
	rows = append(rows, look.rows(nil, time.Now().Add(time.Minute))...)
	if len(rows) != 1 || rows[0].TraceID != id(1).String() {
		t.Errorf("%d rows, want the client's alone: %+v", len(rows), rows)
	}
}

// asking makes a client's span one of a query to a server, which asks at the same time as that with the derived ID.
func asking(s *trace.Span, server, translated string, beside bool) *trace.Span {
	s.Attributes = slices.DeleteFunc(s.Attributes, func(a trace.Attribute) bool {
		return a.Key == semconv.TranslatedAddress
	})
	s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.ServerAddress, Value: server},
		trace.Attribute{Key: semconv.ServerPort, Value: int64(53)},
		trace.Attribute{Key: semconv.TranslatedAddress, Value: translated})
	if beside {
		s.Parent, s.SpanID = s.SpanID, link.SpanID{5: 1, 7: s.SpanID[7]}
	}
	return s
}

// serverAt makes CoreDNS's span one of the CoreDNS at an address.
func serverAt(s *trace.Span, address string) *trace.Span {
	s.SpanID[5] = address[len(address)-1]
	s.Resource = &trace.Resource{Attributes: trace.Attributes{
		{Key: semconv.K8SNodeName, Value: "node-2"}, {Key: semconv.K8SPodName, Value: "dns-" + address},
		{Key: semconv.HostIP, Value: []any{address}},
	}}
	return s
}

// One socket that asks two servers the same with one ID has one trace, and a row for each server.
func TestEachServerAskedHasItsRow(t *testing.T) {
	const first, second = "10.96.0.10", "10.244.2.11"
	answered := asking(clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain), second, second, true)
	lost := asking(clientSpan(1, verdict.BetweenNodes, verdict.CauseNoReply, trace.Inferred), first, "10.244.2.10", false)
	dropping := serverAt(serverSpan(1, id(1).ClientSpanID()), "10.244.2.10")
	dropping.Attributes = append(dropping.Attributes[:2:2], trace.Attribute{Key: semconv.ResponseWritten, Value: false})
	answering := serverAt(serverSpan(1, id(1).ClientSpanID()), second)

	s := store.New(store.Limits{})
	w := s.Watch()
	l := newLook(s, &output.Filter{})
	now := at.Add(time.Minute)
	step := func(after time.Duration, want string, spans ...*trace.Span) {
		t.Helper()
		now = now.Add(after)
		s.Add(spans...)
		changed, _ := w.Take()
		var list []string
		for _, r := range l.rows(changed, now) {
			list = append(list, r.Server+" "+r.Result+" "+r.Verdict.Where+"/"+r.Verdict.Cause+" "+string('0'+rune(r.Revision)))
			if r.TraceID != id(1).String() {
				t.Errorf("trace %s", r.TraceID)
			}
		}
		slices.Sort(list)
		if got := strings.Join(list, ", "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	step(0, "", answered, dropping, answering)
	step(2*time.Second, "10.244.2.11:53 NOERROR answered/answered 0")
	step(3*time.Second, "10.96.0.10:53 LOST coredns/no-answer 0", lost)
	step(time.Minute, "")
	if got := newLook(s, &output.Filter{}).past(); len(got) != 2 {
		t.Errorf("%d rows of the past, want 2", len(got))
	}
}

// A row that was told by CoreDNS's word alone is corrected, not given again, when the client's agent speaks.
func TestTheClientsAgentCorrectsWhatCoreDNSAloneTold(t *testing.T) {
	s := store.New(store.Limits{})
	w := s.Watch()
	l := newLook(s, &output.Filter{})
	s.Add(serverAt(serverSpan(1, id(1).ClientSpanID()), "10.244.2.10"))
	changed, _ := w.Take()
	l.rows(changed, at)
	if got, want := said(l.rows(nil, at.Add(13*time.Second))), "n1.example. NOERROR answered/ 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	dropped := clientSpan(1, verdict.ReturnPath, verdict.CausePolicyDrop, trace.Certain)
	s.Add(asking(dropped, "10.96.0.10", "10.244.2.10", false))
	changed, _ = w.Take()
	want := "n1.example. LOST return-path/policy-drop 1"
	if got := said(l.rows(changed, at.Add(14*time.Second))); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Of a lookup at an epoch boundary the row has the trace ID under which CoreDNS's side is, also where the other comes
// first.
func TestTheRowHasTheLinkedTrace(t *testing.T) {
	original := clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain)
	copied := clientSpan(1, verdict.Answered, verdict.CauseAnswered, trace.Certain)
	copied.TraceID, copied.SpanID = id(2), id(2).ClientSpanID()
	mark := trace.Attributes{{Key: semconv.LinkCopy, Value: true}}
	copied.Attributes = append(copied.Attributes, mark...)
	original.Links = []trace.Link{{TraceID: id(2), SpanID: id(2).ClientSpanID(), Attributes: mark}}
	copied.Links = []trace.Link{{TraceID: id(1), SpanID: id(1).ClientSpanID(), Attributes: mark}}
	server := serverSpan(2, id(2).ClientSpanID())

	s := store.New(store.Limits{})
	w := s.Watch()
	l := newLook(s, &output.Filter{})
	s.Add(original, copied)
	changed, _ := w.Take()
	l.rows(changed, at)
	s.Add(server)
	changed, _ = w.Take()
	rows := l.rows(changed, at.Add(time.Second))
	rows = append(rows, l.rows(nil, at.Add(1600*time.Millisecond))...) // the original has settled, the copy has not
	rows = append(rows, l.rows(nil, at.Add(time.Minute))...)
	if len(rows) != 1 || rows[0].TraceID != id(2).String() || rows[0].Revision != 0 {
		t.Errorf("%d rows, want one under %v: %+v", len(rows), id(2), rows)
	}
}

// A lookup was told as lost between the nodes, and is looked at again for a while. Meanwhile CoreDNS reads the query,
// in another epoch, and the client's agent sends all of it under that trace ID, too.
func TestALookupThatGoesOnUnderAnotherTraceIDStaysOneRow(t *testing.T) {
	mark := trace.Attributes{{Key: semconv.LinkCopy, Value: true}}
	under := func(n byte, s *trace.Span) *trace.Span {
		s.TraceID, s.Parent = id(n), id(n).ClientSpanID()
		return s
	}
	lost := func(n byte) *trace.Span {
		c := clientSpan(1, verdict.BetweenNodes, verdict.CauseNoReply, trace.Inferred)
		c.TraceID, c.SpanID = id(n), id(n).ClientSpanID()
		return c
	}
	late := func(n byte) *trace.Span {
		c := clientSpan(1, verdict.Client, verdict.CauseTooLate, trace.Certain)
		c.SpanID, c.Kind, c.Name = link.SpanID{5: 1, 7: n}, trace.KindInternal, "late answer"
		c.Attributes = append(c.Attributes, trace.Attribute{Key: semconv.VerdictCorrection, Value: true})
		return under(n, c)
	}
	copied, server := lost(2), under(2, serverSpan(1, id(2).ClientSpanID()))
	copied.Attributes = append(copied.Attributes, mark...)
	copied.Links = []trace.Link{{TraceID: id(1), SpanID: id(1).ClientSpanID(), Attributes: mark}}
	server.Start = copied.Start.Add(9 * time.Second)
	server.End = server.Start.Add(time.Millisecond)

	s := store.New(store.Limits{})
	w := s.Watch()
	l := newLook(s, &output.Filter{})
	now := at.Add(time.Minute)
	var rows []*output.Row
	step := func(after time.Duration, spans ...*trace.Span) {
		s.Add(spans...)
		changed, _ := w.Take()
		now = now.Add(after)
		rows = append(rows, l.rows(changed, now)...)
	}
	step(0, lost(1))
	step(2 * time.Second)
	step(0, late(1), copied, late(2), server)
	for range 40 {
		step(time.Second)
	}
	if got := said(rows); got != "n1.example. LOST between-nodes/no-reply-seen 0, n1.example. LOST "+
		"client/answer-too-late 1" {
		t.Errorf("rows %s", got)
	}
}

// CoreDNS reads a query when its client has long gone, in another epoch: under the trace ID that it derives then nobody
// sends a CLIENT span.
func TestAQueryThatWasReadLateIsNoRowOfItsOwn(t *testing.T) {
	late := func(after time.Duration, question string) *trace.Span {
		s := serverSpan(2, id(2).ClientSpanID())
		asked := clientSpan(1, verdict.CoreDNSSocket, verdict.CauseNotRead, trace.Certain)
		s.Start = asked.Start.Add(after)
		s.End = s.Start.Add(time.Millisecond)
		kept := asked.Attributes[1:5:5]
		s.Attributes = append(append(kept, trace.Attribute{Key: semconv.QuestionName, Value: question}), s.Attributes...)
		return s
	}
	for name, tt := range map[string]struct {
		server *trace.Span
		rows   int
	}{
		"when the client had gone": {late(7*time.Second, "N1.example."), 1},
		"another question":         {late(7*time.Second, "n2.example."), 2},
		"before the client asked":  {late(-time.Second, "n1.example."), 2},
		"minutes later":            {late(time.Hour, "n1.example."), 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := store.New(store.Limits{})
			look := newLook(s, &output.Filter{})
			s.Add(clientSpan(1, verdict.CoreDNSSocket, verdict.CauseNotRead, trace.Certain))
			now := time.Now()
			rows := look.rows([]link.TraceID{id(1)}, now)
			rows = append(rows, look.rows(nil, now.Add(5*time.Second))...)
			s.Add(tt.server)
			rows = append(rows, look.rows([]link.TraceID{id(2)}, now.Add(8*time.Second))...)
			rows = append(rows, look.rows(nil, now.Add(time.Minute))...)
			if len(rows) != tt.rows {
				t.Errorf("%d rows, want %d: %+v", len(rows), tt.rows, rows)
			}
			if past := newLook(s, &output.Filter{}).past(); len(past) != tt.rows {
				t.Errorf("%d rows of the past, want %d", len(past), tt.rows)
			}
		})
	}
}
