package export

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/plugin/identity"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// collector takes what is sent; while hang is not nil, it waits for that.
type collector struct {
	mu   sync.Mutex
	got  []*tracepb.ResourceSpans
	hang chan struct{}
	err  error
}

func (*collector) Start(context.Context) error { return nil }
func (*collector) Stop(context.Context) error  { return nil }

func (c *collector) UploadTraces(ctx context.Context, rs []*tracepb.ResourceSpans) error {
	if c.hang != nil {
		select {
		case <-c.hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: rs}) // what comes is not ours to keep
	if err != nil {
		return err
	}
	var data tracepb.TracesData
	if err := proto.Unmarshal(b, &data); err != nil {
		return err
	}
	c.got = append(c.got, data.ResourceSpans...)
	return c.err
}

func end(s string) hop.Endpoint { return hop.EndpointOf(netip.MustParseAddrPort(s)) }

// answered is a lookup from a pod over a node to a server, begun at a time.
func answered(at time.Time) *lookup.Lookup {
	t := at.UnixNano()
	client, vip, backend := end("10.24.2.10:40000"), end("10.96.0.10:53"), end("10.24.1.10:53")
	var buf [link.MaxQName]byte
	name, err := link.AppendQName(buf[:0], "www.example.org.")
	if err != nil {
		panic(err)
	}
	p := &hop.Process{PID: 42, Name: "getent"}
	ct := hop.Conntrack{OrigSrc: client, OrigDst: vip, ReplySrc: backend, ReplyDst: client, Status: hop.DstNAT}
	return &lookup.Lookup{
		Transport: link.UDP, ID: 7, Name: name, Type: dns.TypeA, Class: 1, Client: client, Translated: client, Server: vip, Attempts: 1,
		Process: p, ClientNetNS: 1, Ending: lookup.Answered, AnswerSeen: true, Delivered: true, Final: true,
		AnsweredBy: backend, AnswerSource: vip, Body: dnswire.Body{Answers: []string{"192.0.2.1"}},
		Related: []lookup.Relation{{Kind: lookup.Pair, TraceID: link.TraceID{1}, SpanID: link.SpanID{2}}}, Group: link.TraceID{1}, SearchStep: 1, AttemptOfGroup: 2,
		Hops: []hop.Hop{
			{Time: t, Kind: hop.Out, NetNS: 1, IfIndex: 2, Src: client, Dst: vip, Local: true, Process: p},
			{Time: t + 1000, Kind: hop.In, NetNS: 2, IfIndex: 5, Src: client, Dst: vip},
			{Time: t + 2000, Kind: hop.Out, NetNS: 2, IfIndex: 6, Src: client, Dst: backend, Tracked: true, Conntrack: ct},
			{Time: t + 5000, Kind: hop.In, NetNS: 2, IfIndex: 6, Src: backend, Dst: client, Answer: true},
			{Time: t + 6000, Kind: hop.In, NetNS: 1, IfIndex: 2, Src: vip, Dst: client, Answer: true},
		},
	}
}

func pod() *origin.Origin {
	return &origin.Origin{
		Kind: identity.Pod, Namespace: "shop", Pod: "cart-1", PodUID: "5e2a0000-0000-4000-8000-000000000001", WorkloadKind: "Deployment", Workload: "cart",
		Node: "node-1", ContainerID: strings.Repeat("a", 64), Labels: map[string]string{"app": "cart"}, Addr: netip.MustParseAddr("10.24.2.10"), Process: "getent", PID: 42,
	}
}

// export sends lookups and gives the resources' spans.
func export(t *testing.T, o Options, lookups ...*lookup.Lookup) (*collector, Stats) {
	t.Helper()
	c := &collector{}
	o.Sample = NewRatio(1)
	e, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	var j verdict.Judge
	who := pod()
	for _, l := range lookups {
		v := j.Of(l)
		e.Add(l, &v, &j, who)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, e.Stats()
}

// middle of an epoch: no copies.
var middle = link.EpochOf(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)).Start().Add(4 * time.Second)

func attributes(kvs []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		m[kv.Key] = kv.Value.GetStringValue()
	}
	return m
}

func TestSpansOfALookup(t *testing.T) {
	c, s := export(t, Options{}, answered(middle))
	if len(c.got) != 1 || s.Sent != s.Made || s.Copies != 0 {
		t.Fatalf("%d resources, %+v", len(c.got), s)
	}
	for key, want := range map[string]string{
		semconv.ServiceName: "cart", semconv.ServiceNamespace: "shop", semconv.K8SPodName: "cart-1", semconv.K8SPodIP: "10.24.2.10",
		semconv.K8SDeploymentName: "cart", semconv.K8SNodeName: "node-1", semconv.ContainerID: strings.Repeat("a", 64), semconv.K8SPodLabelPrefix + "app": "cart",
	} {
		if got := attributes(c.got[0].Resource.Attributes)[key]; got != want {
			t.Errorf("resource: %s is %q, want %q", key, got, want)
		}
	}
	spans := c.got[0].ScopeSpans[0].Spans
	client := spans[0]
	key := answered(middle).Key()
	id := key.TraceID(link.EpochOf(middle))
	if hex.EncodeToString(client.TraceId) != id.String() || hex.EncodeToString(client.SpanId) != id.ClientSpanID().String() || len(client.ParentSpanId) != 0 {
		t.Errorf("the CLIENT span is %x/%x below %x", client.TraceId, client.SpanId, client.ParentSpanId)
	}
	if client.Kind != tracepb.Span_SPAN_KIND_CLIENT || client.Name != "DNS A" || client.Status != nil {
		t.Errorf("%s %s %v", client.Kind, client.Name, client.Status)
	}
	if len(client.Links) != 1 || attributes(client.Links[0].Attributes)[semconv.GroupRelation] != "pair" {
		t.Errorf("links %v", client.Links)
	}
	var stages []string
	for _, span := range spans[1:] {
		if hex.EncodeToString(span.ParentSpanId) != id.ClientSpanID().String() || span.Kind != tracepb.Span_SPAN_KIND_INTERNAL {
			t.Errorf("%s is below %x", span.Name, span.ParentSpanId)
		}
		stages = append(stages, span.Name)
	}
	if want := "pod link, service translation, beyond this node, return: pod link"; strings.Join(stages, ", ") != want {
		t.Errorf("segments %q, want %q", strings.Join(stages, ", "), want)
	}
}

func TestEveryAttributeIsOnTheList(t *testing.T) {
	known := map[string]bool{}
	var prefixes []string
	for _, a := range semconv.All {
		known[a.Name] = true
		if a.Type == "template" {
			prefixes = append(prefixes, a.Name)
		}
	}
	lost := answered(middle)
	lost.Ending, lost.AnswerSeen, lost.Delivered, lost.Class, lost.EventsLost = lookup.Dropped, false, false, 3, 2
	reason, _ := hop.ReasonByName("NETFILTER_DROP")
	lost.Hops = append(lost.Hops[:3:3], hop.Hop{Time: lost.Hops[2].Time + 1, Kind: hop.Drop, Reason: reason, NetNS: 2, Dst: lost.Hops[2].Dst})
	away := answered(middle)
	away.ClientNetNS, away.Process = 0, nil
	serves := answered(middle)
	serves.Serves = &lookup.Served{TraceID: link.TraceID{9}, SpanID: link.SpanID{9}}
	late := answered(middle)
	late.FinalBefore, late.Late = true, true
	handshake := answered(middle)
	handshake.Handshake, handshake.Ending, handshake.AnswerSeen = 1, lookup.GaveUp, false
	c, _ := export(t, Options{Node: "node-1", Host: "host", Version: "v1"}, answered(middle), lost, away, serves, late, handshake)
	check := func(where string, kvs []*commonpb.KeyValue) {
		for _, kv := range kvs {
			ok := known[kv.Key]
			for _, p := range prefixes {
				ok = ok || strings.HasPrefix(kv.Key, p)
			}
			if !ok {
				t.Errorf("%s carries %s, which semconv does not list", where, kv.Key)
			}
		}
	}
	n := 0
	for _, rs := range c.got {
		check("a resource", rs.Resource.Attributes)
		for _, span := range rs.ScopeSpans[0].Spans {
			n++
			check(span.Name, span.Attributes)
			for _, l := range span.Links {
				check("a link of "+span.Name, l.Attributes)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d spans", n)
	}
}

func TestALookupAtAnEpochBoundaryIsSentTwice(t *testing.T) {
	boundary := link.EpochOf(middle).Start()
	c, s := export(t, Options{Guard: 50 * time.Millisecond}, answered(boundary.Add(-time.Millisecond)))
	ids := map[string]bool{}
	for _, span := range c.got[0].ScopeSpans[0].Spans {
		isCopy := false
		for _, kv := range span.Attributes {
			isCopy = isCopy || kv.Key == semconv.LinkCopy && kv.Value.GetBoolValue()
		}
		ids[hex.EncodeToString(span.TraceId)] = isCopy
	}
	if s.Copies != 1 || len(ids) != 2 {
		t.Fatalf("%d copies, %d traces", s.Copies, len(ids))
	}
	key := answered(middle).Key()
	if id := key.TraceID(link.EpochOf(boundary) - 1).String(); ids[id] {
		t.Error("the epoch of the arrival is marked as the copy")
	}
	if id := key.TraceID(link.EpochOf(boundary)).String(); !ids[id] {
		t.Error("the copy is not marked")
	}
}

func TestALateAnswerCorrectsTheTraceThatWentOut(t *testing.T) {
	at := middle.Add(2 * time.Second)
	var reports []*lookup.Lookup
	a := lookup.New(lookup.Options{Emit: func(l *lookup.Lookup) {
		c := *l
		c.Hops, c.Name = slices.Clone(l.Hops), slices.Clone(l.Name)
		reports = append(reports, &c)
	}})
	whole := answered(at)
	packet := func(h hop.Hop, after time.Duration) {
		p := hop.Packet{Hop: h, Transport: 17, HasHead: true, Head: dnswire.Head{ID: whole.ID, Name: whole.Name, Type: whole.Type, Class: whole.Class, Questions: 1}}
		p.Time = at.Add(after).UnixNano()
		if h.Answer {
			p.Head.Flags = 0x8000
		}
		a.Add(&p)
	}
	// The server reads the query three seconds after it was called lost, in the next epoch.
	for _, h := range whole.Hops {
		if !h.Answer && h.Kind != hop.Read {
			packet(h, 0)
		}
	}
	a.Sweep(at.Add(6 * time.Second).UnixNano())
	for _, h := range whole.Hops {
		if h.Answer {
			packet(h, 8*time.Second)
		}
	}
	a.Sweep(at.Add(9 * time.Second).UnixNano())
	if len(reports) != 2 || !reports[1].FinalBefore {
		t.Fatalf("%d reports, want one of a lost lookup and one that corrects it", len(reports))
	}
	c, _ := export(t, Options{}, reports...)
	key := whole.Key()
	first := key.TraceID(link.EpochOfNanos(at.UnixNano()))
	corrections, clients := 0, 0
	all := map[link.TraceID]bool{}
	for _, rs := range c.got {
		for _, s := range rs.ScopeSpans[0].Spans {
			all[link.TraceID(s.TraceId)] = true
			switch {
			case link.TraceID(s.TraceId) != first:
			case s.Name == verdict.LateAnswer:
				corrections++
				if got := attributes(s.Attributes)[semconv.VerdictWhere]; got != string(verdict.Answered) {
					t.Errorf("the correction says %q", got)
				}
			case s.Kind == tracepb.Span_SPAN_KIND_CLIENT:
				clients++
			}
		}
	}
	if len(all) != 2 {
		t.Errorf("%d traces, want that of the query's epoch and that of the answer's", len(all))
	}
	if corrections != 1 || clients != 1 {
		t.Errorf("the trace that called it lost has %d corrections and %d CLIENT spans, want one each", corrections, clients)
	}
}

func TestACollectorThatHangsCostsSpansAndNoTime(t *testing.T) {
	c := &collector{hang: make(chan struct{})}
	e, err := New(c, Options{Sample: NewRatio(1), Batch: 1, Queue: 2})
	if err != nil {
		t.Fatal(err)
	}
	var j verdict.Judge
	began := time.Now()
	for range 100 {
		l := answered(middle)
		v := j.Of(l)
		e.Add(l, &v, &j, pod())
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %s", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
	s := e.Stats()
	if s.Dropped == 0 || s.Made != s.Sent+s.Dropped+s.Failed {
		t.Errorf("%+v: every span must be accounted for", s)
	}
	if err := e.LastError(); !errors.Is(err, context.Canceled) {
		t.Errorf("the last error is %v", err)
	}
}

func TestRatio(t *testing.T) {
	for _, bad := range []string{"", "x", "-0.1", "1.1", "NaN"} {
		if _, err := ParseRatio(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	none, half, all := NewRatio(0), NewRatio(0.5), NewRatio(1)
	low, high := link.TraceID{8: 0x7f, 15: 1}, link.TraceID{8: 0x80}
	most := link.TraceID{8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}
	if none.Keeps(link.TraceID{15: 1}) || !all.Keeps(most) || !half.Keeps(low) || half.Keeps(high) {
		t.Error("the bounds are wrong")
	}
}

// BenchmarkAdd is what a lookup of which all spans are kept costs: its spans are made, and marshaled as a transport does it.
func BenchmarkAdd(b *testing.B) {
	e, err := New(&marshaler{}, Options{Sample: NewRatio(1), Queue: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	var j verdict.Judge
	l, who := answered(middle), pod()
	v := j.Of(l)
	b.ReportAllocs()
	for b.Loop() {
		e.Add(l, &v, &j, who)
	}
	if err := e.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// marshaler marshals what it is to send, and throws it away.
type marshaler struct{ buf []byte }

func (*marshaler) Start(context.Context) error { return nil }
func (*marshaler) Stop(context.Context) error  { return nil }

func (m *marshaler) UploadTraces(_ context.Context, rs []*tracepb.ResourceSpans) (err error) {
	m.buf, err = proto.MarshalOptions{}.MarshalAppend(m.buf[:0], &tracepb.TracesData{ResourceSpans: rs})
	return err
}
