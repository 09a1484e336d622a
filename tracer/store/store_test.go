package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

var at = time.Date(2026, 11, 21, 12, 1, 7, 113_000_000, time.UTC)

func traceID(n int) link.TraceID { return link.TraceID{0: byte(n >> 8), 1: byte(n), 15: 0xaa} }

func span(trace, id, parent int) *Span {
	s := &Span{
		TraceID: traceID(trace), SpanID: link.SpanID{6: byte(id >> 8), 7: byte(id)}, Name: "s", Kind: KindInternal,
		Start: at.Add(time.Duration(id) * time.Millisecond), End: at.Add(time.Duration(id+1) * time.Millisecond),
	}
	if parent != 0 {
		s.Parent = link.SpanID{6: byte(parent >> 8), 7: byte(parent)}
	}
	return s
}

func TestOldestTraceGoesFirstAndIsCounted(t *testing.T) {
	s := New(Limits{Spans: 10, SpansPerTrace: 4})
	for trace := 1; trace <= 4; trace++ {
		for id := 1; id <= 3; id++ {
			s.Add(span(trace, id, 0))
		}
	}
	if s.Trace(traceID(1)) != nil {
		t.Error("the oldest trace is still there")
	}
	for _, n := range []int{2, 3, 4} {
		if got := s.Trace(traceID(n)); got == nil || len(got.Spans) != 3 {
			t.Errorf("trace %d: %v, want 3 spans", n, got)
		}
	}
	if got, want := s.Stats(), (Stats{Traces: 3, Spans: 9, SpansReceived: 12, TracesEvicted: 1, SpansEvicted: 3}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestOneTraceCannotTakeTheWholeStore(t *testing.T) {
	s := New(Limits{Spans: 10, SpansPerTrace: 4})
	s.Add(span(1, 1, 0))
	refused := 0
	for id := 1; id <= 20; id++ {
		refused += s.Add(span(2, id, 0))
	}
	if refused != 16 || s.Stats().SpansRefused != 16 {
		t.Errorf("refused %d, counted %d, want 16", refused, s.Stats().SpansRefused)
	}
	if s.Trace(traceID(1)) == nil {
		t.Error("another trace had to go")
	}
}

func TestSpanSentTwiceCountsOnce(t *testing.T) {
	s := New(Limits{})
	s.Add(span(1, 1, 0))
	s.Add(span(1, 1, 0))
	if got := s.Stats(); got.Spans != 1 || got.SpansDuplicate != 1 {
		t.Errorf("%+v", got)
	}
}

func TestZeroIDsAreRefused(t *testing.T) {
	s := New(Limits{})
	if got := s.Add(&Span{SpanID: link.SpanID{1}}, &Span{TraceID: link.TraceID{1}}); got != 2 {
		t.Errorf("refused %d, want 2", got)
	}
}

func TestAwait(t *testing.T) {
	s := New(Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go func() {
		s.Add(span(1, 1, 0))
		s.Add(span(2, 1, 0))
		s.Add(span(1, 2, 1))
	}()
	got, err := s.Await(ctx, Filter{}, func(t *Trace) bool { return len(t.Spans) == 2 })
	if err != nil || got.ID != traceID(1) {
		t.Fatalf("%v, %v", got, err)
	}

	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Await(short, Filter{}, func(*Trace) bool { return false }); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestSettle(t *testing.T) {
	s := New(Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var last time.Time
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5 {
			time.Sleep(20 * time.Millisecond)
			s.Add(span(i+1, 1, 0))
			last = time.Now()
		}
	}()
	if err := s.Settle(ctx, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-done
	if since := time.Since(last); since < 200*time.Millisecond {
		t.Errorf("settled %v after the last span", since)
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Settle(short, time.Minute); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
}

func TestManyWritersAndReaders(t *testing.T) {
	s := New(Limits{Spans: 500})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				s.Add(span(w*500+i+1, 1, 0), span(w*500+i+1, 2, 1))
			}
		})
		wg.Go(func() {
			for range 50 {
				for _, tr := range s.Traces(Filter{Limit: 10}) {
					_ = tr.Verdict()
				}
			}
		})
	}
	wg.Wait()
	got := s.Stats()
	if got.Spans > 500 || got.SpansReceived != 4000 || uint64(got.Spans)+got.SpansEvicted != 4000 {
		t.Errorf("%+v", got)
	}
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
			tr := NewTrace(order)
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
		tr := NewTrace([]*Span{server, plugin})
		if tr.Linked() || len(tr.Missing()) != 1 || tr.Missing()[0] != server || tr.Roots[0].Span != server {
			t.Errorf("linked %v, missing %v", tr.Linked(), tr.Missing())
		}
	})
}

func TestParentsInACircleStillEnd(t *testing.T) {
	tr := NewTrace([]*Span{span(1, 1, 3), span(1, 2, 1), span(1, 3, 2), span(1, 4, 4)})
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
		TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: &Scope{Name: semconv.ScopeTracer}, Start: at, End: at.Add(time.Millisecond),
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
	return NewTrace(spans)
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
			if len(got) != 1 || !got[traceID(tc.shadow)] {
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
		return &Span{TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Start: at, End: at.Add(5 * time.Second), Attributes: a}
	}
	agent := func(a Attributes) *Span {
		s := span(9, 20, 0)
		s.Parent, s.Scope, s.Attributes = id.ClientSpanID(), tracer, a
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
		s.Name = verdict.LateAnswer
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
		{"truncated, and TCP blocked", []*Span{client(append(said("answered", "answered", Certain), Attribute{semconv.NetworkTransport, "udp"})), agent(append(said("node", "policy-drop", Certain), Attribute{semconv.NetworkTransport, "tcp"})), server(true)}, "node", Certain, false},
		{"a drop that was seen stands", []*Span{client(said("node", "policy-drop", Certain)), server(true)}, "node", Certain, false},
		{"left the node and nobody else watched", []*Span{client(said("between-nodes", "not-seen", Inferred))}, "between-nodes", Inferred, false},
		{"the other node saw it dropped", []*Span{client(said("between-nodes", "not-seen", Inferred)), agent(said("coredns-socket", "no-listener", Certain))}, "coredns-socket", Certain, true},
		{"the other node saw more", []*Span{client(said("between-nodes", "not-seen", Inferred)), agent(said("coredns", "no-answer", Inferred))}, "coredns", Inferred, true},
		{"the other node knows less", []*Span{client(said("coredns", "no-answer", Inferred)), agent(said("node", "x", Inferred))}, "coredns", Inferred, false},
		{"CoreDNS answered, so it was lost on its way back", []*Span{client(said("between-nodes", "not-seen", Inferred)), server(true)}, "return-path", Inferred, true},
		{"CoreDNS dropped it", []*Span{client(said("between-nodes", "not-seen", Inferred)), server(false)}, "coredns", Certain, true},
		{"CoreDNS knows which plugin", []*Span{client(said("coredns", "no-answer", Certain)), server(false)}, "coredns", Certain, true},
		{"CoreDNS took longer than the client waited", []*Span{client(said("coredns", "no-answer", Certain)), slow(server(true))}, "coredns", Certain, true},
		{"its upstreams did", []*Span{client(said("coredns", "no-answer", Certain)), slow(server(true), Attribute{semconv.UpstreamAttempts, int64(3)})}, "upstream", Certain, true},
		{"nothing was seen to leave", []*Span{client(said("coredns", "no-answer", Certain)), server(true)}, "coredns", Certain, false},
		{"the answer left the other node", []*Span{client(said("between-nodes", "no-reply-seen", Inferred)), agent(said("answered", "answered", Certain))}, "return-path", Inferred, true},
		{"a query of CoreDNS's own is another matter", []*Span{client(said("between-nodes", "no-reply-seen", Inferred)), agent(append(said("return-path", "dropped", Certain), Attribute{semconv.Segment, "upstream"}))}, "between-nodes", Inferred, false},
		{"SERVFAIL is an answer", []*Span{client(append(said("upstream", "timeout", Inferred), Attribute{semconv.VerdictAnswered, true})), server(true)}, "upstream", Inferred, false},
		{"called lost, and corrected", []*Span{client(said("coredns-socket", "not-read", Certain)), late(said("client", "answer-too-late", Certain))}, "client", Certain, false},
		{"the client was gone", []*Span{client(said("client", "socket-closed", Inferred)), server(true)}, "client", Inferred, false},
		{"no tracer", []*Span{server(true)}, "answered", Inferred, true},
		{"no tracer, dropped", []*Span{server(false)}, "coredns", Certain, true},
		{"one attempt dropped, one answered", []*Span{client(said("coredns", "no-answer", Inferred)), server(true), server(false)}, "return-path", Inferred, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := NewTrace(tc.spans).Verdict()
			if got.Where != tc.where || got.Certainty != tc.certainty || got.Joined != tc.joined {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestParseTraceID(t *testing.T) {
	want := "4bf92f3577b34da6a3ce929d0e0e4736"
	if id, err := ParseTraceID("4BF92F3577B34DA6A3CE929D0E0E4736"); err != nil || id.String() != want {
		t.Errorf("%v, %v", id, err)
	}
	for _, bad := range []string{"", "4bf9", want + "00", "00000000000000000000000000000000", "xyz92f3577b34da6a3ce929d0e0e4736"} {
		if _, err := ParseTraceID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A lookup through a cache miss has about 16 spans with 12 attributes each.
func BenchmarkReceive(b *testing.B) {
	var spans []*Span
	for i := 1; i <= 16; i++ {
		s := span(1, i, 1)
		for k := range 12 {
			s.Attributes = append(s.Attributes, Attribute{semconv.All[k].Name, fmt.Sprint("value ", k)})
		}
		spans = append(spans, s)
	}
	td := ToOTLP(spans)
	s := New(Limits{})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		got := FromOTLP(td)
		for _, sp := range got {
			sp.TraceID = link.TraceID{0: byte(n >> 16), 1: byte(n >> 8), 2: byte(n), 15: 1}
		}
		s.Add(got...)
	}
}

// A lookup that left node-1 is said to be lost on the way only where the tracer on node-2 was watching.
func TestVerdictAmong(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	on := func(node string) *Resource { return &Resource{Attributes: Attributes{{semconv.K8SNodeName, node}}} }
	translated := Attribute{semconv.ConntrackReply, "10.244.2.10:53>10.244.1.10:4711"}
	lost := func() *Trace {
		id := traceID(1)
		return NewTrace([]*Span{{
			TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Resource: on("node-1"), Start: at, End: at.Add(5 * time.Second),
			Attributes: Attributes{{semconv.VerdictWhere, "between-nodes"}, {semconv.VerdictCause, "no-reply-seen"}, {semconv.VerdictCertainty, Inferred}, translated},
		}})
	}
	answered := func(when time.Time, withAgent bool) *Trace {
		id := traceID(2)
		spans := []*Span{
			{TraceID: id, SpanID: id.ClientSpanID(), Kind: KindClient, Scope: tracer, Resource: on("node-1"), Start: when, End: when.Add(time.Millisecond), Attributes: Attributes{translated}},
			{TraceID: id, SpanID: link.SpanID{1}, Parent: id.ClientSpanID(), Kind: KindServer, Scope: plugin, Resource: on("node-2"), Start: when, End: when.Add(time.Millisecond)},
		}
		if withAgent {
			spans = append(spans, &Span{TraceID: id, SpanID: link.SpanID{2}, Parent: id.ClientSpanID(), Kind: KindInternal, Scope: tracer, Resource: on("node-2"), Start: when, End: when})
		}
		return NewTrace(spans)
	}
	for _, tc := range []struct {
		name   string
		others []*Trace
		cause  string
		more   int // lines of evidence
	}{
		{"nobody else", nil, "no-reply-seen", 0},
		{"node-2 is known, and not watched", []*Trace{answered(at, false)}, "no-reply-seen", 1},
		{"node-2 was watched", []*Trace{answered(at, true)}, "not-seen-further", 1},
		{"node-2 was watched, long ago", []*Trace{answered(at.Add(-time.Hour), true)}, "no-reply-seen", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := lost()
			v := l.VerdictAmong(append(tc.others, l))
			if v.Where != "between-nodes" || v.Cause != tc.cause || v.Certainty != Inferred || len(v.Evidence) != tc.more {
				t.Errorf("%+v", v)
			}
		})
	}
}
