package trace

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// Of spans that several programs sent under one trace ID, each lookup has what is its own, in whatever order they came.
func TestLookups(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	on := func(node string, more ...Attribute) *Resource {
		return &Resource{Attributes: append(Attributes{{semconv.K8SNodeName, node}}, more...)}
	}
	node1, node2, pod := on("node-1"), on("node-2"), on("node-1", Attribute{semconv.K8SPodName, "cart"})
	id := traceID(1)
	derived := id.ClientSpanID()
	server := func(address string) Attributes {
		return Attributes{{semconv.ServerAddress, address}, {semconv.ServerPort, int64(53)}}
	}
	span := func(n byte, parent link.SpanID, kind Kind, scope *Scope, r *Resource, a Attributes) *Span {
		return &Span{
			TraceID: id, SpanID: link.SpanID{7: n}, Parent: parent, Kind: kind, Scope: scope, Resource: r, Attributes: a,
			Name: fmt.Sprint(n), Start: at.Add(time.Duration(n) * time.Millisecond), End: at.Add(time.Second),
		}
	}
	translated := func(address string) Attribute { return Attribute{semconv.TranslatedAddress, address} }
	segment := Attribute{semconv.Segment, "node"}

	first := span(1, link.SpanID{}, KindClient, tracer, pod, append(server("10.96.0.10"), translated("10.244.2.10")))
	first.SpanID = derived
	second := span(2, derived, KindClient, tracer, pod, server("10.244.2.11"))
	dns := func(n byte, address string) *Span {
		list := []any{address, "fd00::1"}
		pod := on("node-2", Attribute{semconv.K8SPodName, address}, Attribute{semconv.HostIP, list})
		return span(n, derived, KindServer, plugin, pod, nil)
	}
	spans := []*Span{
		first, span(10, derived, KindInternal, tracer, pod, Attributes{segment}),
		second, span(20, second.SpanID, KindInternal, tracer, pod, Attributes{segment}),
		dns(30, "10.244.2.10"), span(31, link.SpanID{7: 30}, KindInternal, plugin, node2, nil),
		dns(40, "10.244.2.11"), span(41, link.SpanID{7: 40}, KindInternal, plugin, node2, nil),
		span(50, derived, KindInternal, tracer, node2, append(server("10.244.2.10"), segment)),
		span(60, derived, KindInternal, tracer, node2, append(server("10.244.2.11"), segment)),
		// An agent between, which translates no more; and one that tells neither server nor anything.
		span(70, derived, KindInternal, tracer, node1, append(server("10.96.0.10"), segment)),
		span(80, derived, KindInternal, tracer, node1, Attributes{segment}),
	}
	want := map[string][]byte{
		"10.96.0.10:53":  {1, 10, 30, 31, 50, 70},
		"10.244.2.11:53": {2, 20, 40, 41, 60},
	}
	name := func(s *Span) byte {
		var n byte
		_, _ = fmt.Sscan(s.Name, &n)
		return n
	}
	check := func(t *testing.T, spans []*Span, want map[string][]byte) {
		t.Helper()
		got := New(spans).Lookups()
		if len(got) != len(want) {
			t.Errorf("%d lookups, want %d", len(got), len(want))
		}
		for _, l := range got {
			key := l.Asked().Address.String()
			var have []byte
			for _, s := range l.Spans {
				have = append(have, name(s))
			}
			slices.Sort(have)
			if !slices.Equal(have, want[key]) {
				t.Errorf("%s has spans %v, want %v", key, have, want[key])
			}
			if c := l.Client(); c != nil && (c.Parent != link.SpanID{} || c.SpanID != derived || len(l.Roots) != 1) {
				t.Errorf("%s: client %v below %v, %d roots", key, c.SpanID, c.Parent, len(l.Roots))
			}
		}
	}
	backwards := slices.Clone(spans)
	slices.Reverse(backwards)
	for order, spans := range map[string][]*Span{"in order": spans, "backwards": backwards} {
		t.Run(order, func(t *testing.T) { check(t, spans, want) })
	}
	if first.SpanID != derived || second.Parent != derived || second.SpanID == derived {
		t.Error("the spans themselves were changed")
	}

	without := func(gone ...byte) []*Span {
		return slices.DeleteFunc(slices.Clone(spans), func(s *Span) bool { return slices.Contains(gone, name(s)) })
	}
	t.Run("the second alone was told", func(t *testing.T) {
		check(t, without(1, 10, 70, 80), map[string][]byte{"10.244.2.11:53": {2, 20, 40, 41, 60}})
	})
	t.Run("a translation out of sight", func(t *testing.T) {
		// Nothing tells which of the two CoreDNS is the one behind the address asked: what both say may be of this lookup.
		alone := span(1, link.SpanID{}, KindClient, tracer, pod, server("10.96.0.99"))
		alone.SpanID = derived
		check(t, append(without(1, 2, 10, 20, 50, 60, 70, 80), alone), map[string][]byte{
			"10.96.0.99:53": {1, 30, 31, 40, 41},
		})
	})
	t.Run("no agent saw the client", func(t *testing.T) {
		got := New(without(1, 2, 10, 20, 70, 80)).Lookups()
		if len(got) != 2 || got[0].Key().Pod == got[1].Key().Pod || got[0].Key().Server.IsValid() {
			t.Errorf("%d lookups: %+v", len(got), got)
		}
	})
	t.Run("one alone is as it came", func(t *testing.T) {
		tr := New(without(2, 20, 40, 41, 60))
		if got := tr.Lookups(); len(got) != 1 || got[0] != tr {
			t.Errorf("%d lookups, %p of %p", len(got), got[0], tr)
		}
	})
}

// Whoever sends spans of a trace in a circle, in a chain or of ever more servers costs no more than their number.
func TestPartingTakesNoLongerThanTheSpansAreMany(t *testing.T) {
	tracer, plugin := &Scope{Name: semconv.ScopeTracer}, &Scope{Name: semconv.ScopePlugin}
	runtime.LockOSThread() // time of others on a busy machine does not count
	defer runtime.UnlockOSThread()
	took := func(n, times int) time.Duration {
		id := traceID(1)
		number := func(kind byte, i int) link.SpanID { return link.SpanID{1: kind, 6: byte(i >> 8), 7: byte(i)} }
		address := func(i, last int) string { return fmt.Sprintf("10.%d.%d.%d", i>>8, i&0xff, last) }
		var spans []*Span
		for i := 1; i <= n; i++ {
			chain := span(1, i, i%n+1)
			client, segment, server := span(1, 0, 0), span(1, 0, 0), span(1, 0, 0)
			for kind, s := range []*Span{client, segment, server} {
				s.SpanID, s.Parent, s.Scope = number(byte(1+kind), i), id.ClientSpanID(), tracer
			}
			client.Kind = KindClient
			client.Attributes = Attributes{{semconv.ServerAddress, address(i, 1)}, {semconv.ServerPort, int64(53)}}
			segment.Attributes = Attributes{
				{semconv.Segment, "service"}, {semconv.ServerAddress, "10.0.1.1"}, {semconv.ServerPort, int64(53)},
				{semconv.TranslatedAddress, address(i, 2)},
			}
			server.Kind, server.Scope = KindServer, plugin
			server.Resource = &Resource{Attributes: Attributes{
				{semconv.K8SPodName, fmt.Sprint(i)}, {semconv.HostIP, []any{address(i, 1)}},
			}}
			spans = append(spans, chain, client, segment, server)
		}
		tr := New(spans)
		best := time.Hour
		for range 3 {
			begin := ofThread(t)
			for range times {
				if got := len(tr.Lookups()); got != maxLookups {
					t.Fatalf("%d lookups, want %d", got, maxLookups)
				}
			}
			best = min(best, ofThread(t)-begin)
		}
		return best
	}
	few, many := took(400, 16), took(6400, 1)
	if tick := 10 * time.Millisecond; many > 6*max(few, tick) {
		t.Errorf("16 times as many spans at once take %v, one after the other %v", many, few)
	}
}

// ofThread gives the processor's time that this thread has had.
func ofThread(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
