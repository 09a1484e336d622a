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

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
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
		Transport: link.UDP, ID: 7, Name: name, Type: dns.TypeA, Class: 1, Client: client, Translated: client, Server: vip,
		Attempts: 1,
		Process:  p, ClientNetNS: 1, Ending: lookup.Answered, AnswerSeen: true, Delivered: true, Final: true,
		AnsweredBy: backend, AnswerSource: vip, Body: dnswire.Body{Answers: []string{"192.0.2.1"}},
		Related: []lookup.Relation{{Kind: lookup.Pair, TraceID: link.TraceID{1},
			SpanID: link.SpanID{2}}}, Group: link.TraceID{1}, SearchStep: 1, AttemptOfGroup: 2,
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
		Kind: identity.Pod, Namespace: "shop", Pod: "cart-1", PodUID: "5e2a0000-0000-4000-8000-000000000001",
		WorkloadKind: "Deployment", Workload: "cart",
		Node: "node-1", ContainerID: strings.Repeat("a", 64), Labels: map[string]string{"app": "cart"},
		Addr: netip.MustParseAddr("10.24.2.10"), Process: "getent", PID: 42,
	}
}

// export sends lookups and gives the resources' spans.
func export(t *testing.T, o Options, lookups ...*lookup.Lookup) (*collector, Stats) {
	t.Helper()
	c := &collector{}
	o.Sample = link.NewRatio(1)
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
		semconv.ServiceName: "cart", semconv.ServiceNamespace: "shop", semconv.K8SPodName: "cart-1",
		semconv.K8SPodIP:          "10.24.2.10",
		semconv.K8SDeploymentName: "cart", semconv.K8SNodeName: "node-1",
		semconv.ContainerID: strings.Repeat("a", 64), semconv.K8SPodLabelPrefix + "app": "cart",
	} {
		if got := attributes(c.got[0].Resource.Attributes)[key]; got != want {
			t.Errorf("resource: %s is %q, want %q", key, got, want)
		}
	}
	spans := c.got[0].ScopeSpans[0].Spans
	client := spans[0]
	key := answered(middle).Key()
	id := key.TraceID(link.EpochOf(middle))
	if hex.EncodeToString(client.TraceId) != id.String() ||
		hex.EncodeToString(client.SpanId) != id.ClientSpanID().String() || len(client.ParentSpanId) != 0 {
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
		if hex.EncodeToString(span.ParentSpanId) != id.ClientSpanID().String() ||
			span.Kind != tracepb.Span_SPAN_KIND_INTERNAL {
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
	lost.Hops = append(lost.Hops[:3:3], hop.Hop{Time: lost.Hops[2].Time + 1, Kind: hop.Drop, Reason: reason, NetNS: 2,
		Dst: lost.Hops[2].Dst})
	away := answered(middle)
	away.ClientNetNS, away.Process = 0, nil
	serves := answered(middle)
	serves.Serves = &lookup.Served{TraceID: link.TraceID{9}, SpanID: link.SpanID{9}}
	late := answered(middle)
	late.FinalBefore, late.Late = true, true
	handshake := answered(middle)
	handshake.Connect, handshake.Ending, handshake.AnswerSeen = true, lookup.GaveUp, false
	c, _ := export(t, Options{Node: "node-1", Host: "host", Version: "v1"}, answered(middle), lost, away, serves, late,
		handshake)
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

// story feeds an assembler the hops of a lookup, and exports what it reports.
type story struct {
	whole     *lookup.Lookup
	at        time.Time
	a         *lookup.Assembler
	reports   int
	skb       uint64
	collector *collector
	exporter  *Exporter
}

func tell(t *testing.T, at time.Time) *story {
	t.Helper()
	s := &story{whole: answered(at), at: at, collector: &collector{}}
	var err error
	if s.exporter, err = New(s.collector, Options{Sample: link.NewRatio(1)}); err != nil {
		t.Fatal(err)
	}
	var j verdict.Judge
	s.a = lookup.New(lookup.Options{Emit: func(l *lookup.Lookup) {
		s.reports++
		v := j.Of(l)
		s.exporter.Add(l, &v, &j, pod())
	}})
	return s
}

// sent gives what was sent in all.
func (s *story) sent(t *testing.T) *collector {
	t.Helper()
	if err := s.exporter.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s.collector
}

// pass has all hops of the query, or of the answer, happen some time after the beginning.
func (s *story) pass(answer bool, rcode int, after time.Duration) {
	s.skb++
	for _, h := range s.whole.Hops {
		if h.Answer != answer || h.Kind == hop.Read {
			continue
		}
		l := s.whole
		h.SKB = s.skb
		p := hop.Packet{Hop: h, Transport: 17, HasHead: true, Head: dnswire.Head{
			ID: l.ID, Name: l.Name, Type: l.Type, Class: l.Class, Questions: 1,
		}}
		p.Time = s.at.Add(after).UnixNano() + h.Time - l.Hops[0].Time
		if answer {
			q := new(dns.Msg).SetQuestion("www.example.org.", l.Type)
			q.Id = l.ID
			p.Payload, _ = new(dns.Msg).SetRcode(q, rcode).Pack() // never fails: a question that is well
			p.PayloadLen = len(p.Payload)
			p.Head.Flags = 0x8000 | dnswire.Flags(rcode)
		}
		s.a.Add(&p)
	}
}

func (s *story) sweep(after time.Duration) { s.a.Sweep(s.at.Add(after).UnixNano()) }

// What is said of a lookup whose spans have gone out is what came since, and of an answer only if there was one.
func TestWhatCameOfAReportedLookup(t *testing.T) {
	for name, tt := range map[string]struct {
		tell     func(*story)
		span     string
		rcode    string
		where    verdict.Where
		segments int
	}{
		"asked again, in vain": {func(s *story) {
			s.pass(false, 0, 0)
			s.sweep(5100 * time.Millisecond)
			s.pass(false, 0, 5200*time.Millisecond)
			s.sweep(11 * time.Second)
		}, verdict.AskedAgain, "", verdict.BetweenNodes, 2},
		"asked again, and answered": {func(s *story) {
			s.pass(false, 0, 0)
			s.sweep(5100 * time.Millisecond)
			s.pass(false, 0, 5200*time.Millisecond)
			s.pass(true, 0, 5300*time.Millisecond)
			s.sweep(6 * time.Second)
		}, verdict.AskedAgain, "NOERROR", verdict.Answered, 4},
		"refused, asked again, in vain": {func(s *story) {
			s.pass(false, 0, 0)
			s.pass(true, dns.RcodeRefused, time.Millisecond)
			s.sweep(time.Second)
			s.pass(false, 0, 1200*time.Millisecond)
			s.sweep(7 * time.Second)
		}, verdict.AskedAgain, "", verdict.BetweenNodes, 2},
		"an answer after all": {func(s *story) {
			s.pass(false, 0, 0)
			s.sweep(5100 * time.Millisecond)
			s.pass(true, dns.RcodeNameError, 5500*time.Millisecond)
			s.sweep(6 * time.Second)
		}, verdict.LateAnswer, "NXDOMAIN", verdict.Answered, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, link.EpochOf(middle).Start().Add(100*time.Millisecond))
			tt.tell(s)
			c := s.sent(t)
			key := s.whole.Key()
			id := key.TraceID(link.EpochOf(s.at))
			var late *tracepb.Span
			below := 0
			spans := spansOf(t, c, id)
			for _, sp := range spans {
				if boolean(sp.Attributes, semconv.VerdictCorrection) {
					if late != nil {
						t.Errorf("%s corrects, and %s, too", late.Name, sp.Name)
					}
					late = sp
				}
			}
			if late == nil {
				t.Fatalf("nothing corrects what was said: %d reports", s.reports)
			}
			for _, sp := range spans {
				if string(sp.ParentSpanId) == string(late.SpanId) {
					below++
				}
			}
			says := attributes(late.Attributes)
			if late.Name != tt.span || says[semconv.ResponseCode] != tt.rcode || says[semconv.VerdictWhere] != string(tt.where) {
				t.Errorf("%s says %q, %s", late.Name, says[semconv.ResponseCode], says[semconv.VerdictWhere])
			}
			if below != tt.segments {
				t.Errorf("%d segments, want %d", below, tt.segments)
			}
		})
	}
}

func TestALateAnswerCorrectsTheTraceThatWentOut(t *testing.T) {
	at := middle.Add(2 * time.Second)
	s := tell(t, at)
	// The server reads the query three seconds after it was called lost, in the next epoch.
	s.pass(false, 0, 0)
	s.sweep(6 * time.Second)
	s.pass(true, 0, 8*time.Second)
	s.sweep(9 * time.Second)
	if s.reports != 2 {
		t.Fatalf("%d reports, want one of a lost lookup and one that corrects it", s.reports)
	}
	c := s.sent(t)
	key := s.whole.Key()
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

// spansOf gives the spans of one trace, and says which of its span IDs came twice.
func spansOf(t *testing.T, c *collector, id link.TraceID) (spans []*tracepb.Span) {
	t.Helper()
	seen := map[string]bool{}
	for _, rs := range c.got {
		for _, s := range rs.ScopeSpans[0].Spans {
			if link.TraceID(s.TraceId) != id {
				continue
			}
			if seen[string(s.SpanId)] {
				t.Errorf("span ID %x of %s was sent twice", s.SpanId, s.Name)
			}
			seen[string(s.SpanId)] = true
			spans = append(spans, s)
		}
	}
	return spans
}

func boolean(kvs []*commonpb.KeyValue, key string) bool {
	return slices.ContainsFunc(kvs, func(kv *commonpb.KeyValue) bool { return kv.Key == key && kv.Value.GetBoolValue() })
}

func TestAServersOwnQueryStandsInBothTraces(t *testing.T) {
	served := &lookup.Served{TraceID: link.TraceID{9}, SpanID: link.SpanID{8}}
	l := answered(middle)
	l.Serves, l.Own = served, true
	c, _ := export(t, Options{}, l)
	key := l.Key()
	id := key.TraceID(link.EpochOf(middle))
	own, inServed := spansOf(t, c, id), spansOf(t, c, served.TraceID)
	if len(own) != 1 || len(inServed) != 5 {
		t.Fatalf("%d spans under its own ID, %d in the trace of the lookup served, want the CLIENT span alone and all five",
			len(own), len(inServed))
	}
	client, up := own[0], inServed[0]
	isClient := link.SpanID(client.SpanId) == id.ClientSpanID() && client.Kind == tracepb.Span_SPAN_KIND_CLIENT
	if !isClient || len(client.ParentSpanId) != 0 {
		t.Errorf("%s %x %s below %x", client.Name, client.SpanId, client.Kind, client.ParentSpanId)
	}
	says := attributes(client.Attributes)[semconv.ServedTraceID]
	if !boolean(client.Attributes, semconv.ServerQuery) || says != served.TraceID.String() {
		t.Errorf("it does not say whom it serves: %v", client.Attributes)
	}
	linked := func(s *tracepb.Span, to link.TraceID, span link.SpanID, relation string) {
		t.Helper()
		for _, l := range s.Links {
			if attributes(l.Attributes)[semconv.ServedRelation] == relation {
				if link.TraceID(l.TraceId) != to || link.SpanID(l.SpanId) != span {
					t.Errorf("%s links to %x/%x", s.Name, l.TraceId, l.SpanId)
				}
				return
			}
		}
		t.Errorf("%s has no link %q", s.Name, relation)
	}
	linked(client, served.TraceID, served.SpanID, semconv.Serves)
	linked(up, id, id.ClientSpanID(), semconv.ServedBy)
}

func TestOnlyWhoMayDeriveItGetsATraceOfItsOwn(t *testing.T) {
	index := identity.NewIndex()
	for name, tt := range map[string]struct {
		server string
		index  *identity.Index
		own    bool
	}{
		"behind a service address": {"10.96.0.10:53", index, true},
		"in the Internet":          {"192.0.2.53:53", index, false},
		"private":                  {"192.168.7.53:53", index, true},
		"nobody knows anybody":     {"10.1.2.3:53", nil, true},
		"in the Internet, unknown": {"192.0.2.53:53", nil, false},
		"on this host":             {"127.0.0.1:53", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := answered(middle)
			l.Serves, l.Own, l.Server = &lookup.Served{TraceID: link.TraceID{9}, SpanID: link.SpanID{8}}, true, end(tt.server)
			if tt.server != "10.96.0.10:53" {
				for i := range l.Hops {
					l.Hops[i].Dst = l.Server
				}
			}
			c, _ := export(t, Options{Index: tt.index}, l)
			key := l.Key()
			if own := len(spansOf(t, c, key.TraceID(link.EpochOf(middle)))) > 0; own != tt.own {
				t.Errorf("a trace of its own: %v, want %v", own, tt.own)
			}
		})
	}
}

func TestACollectorThatHangsCostsSpansAndNoTime(t *testing.T) {
	c := &collector{hang: make(chan struct{})}
	e, err := New(c, Options{Sample: link.NewRatio(1), Batch: 1, Queue: 2})
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

// TestTheQueueIsBoundedInBytes: a collector that hangs makes nothing be kept beyond the memory for it.
func TestTheQueueIsBoundedInBytes(t *testing.T) {
	most := int64(64 << 10)
	o := Options{Sample: link.NewRatio(1), Batch: 1, Queue: 10_000, QueueBytes: int(most)}
	e, err := New(&collector{hang: make(chan struct{})}, o)
	if err != nil {
		t.Fatal(err)
	}
	var j verdict.Judge
	for i := range 1000 {
		l := answered(middle)
		v := j.Of(l)
		e.Add(l, &v, &j, pod())
		q := e.queued.Load()
		if i == 0 {
			most = max(most, q) // one alone always has room, and may lie in memory that was another's, a larger one's
		}
		if q > most {
			t.Fatalf("%d bytes are queued of %d", q, most)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
	if s := e.Stats(); s.Dropped == 0 || s.Made != s.Sent+s.Dropped+s.Failed || e.queued.Load() != 0 {
		t.Errorf("%+v, %d bytes queued at the end", s, e.queued.Load())
	}
}

// TestSpansThatWaitArePacked: a collector that hangs for a while finds more waiting than would have room as they are,
// and gets them as they were.
func TestSpansThatWaitArePacked(t *testing.T) {
	const most = 1 << 20
	c := &collector{hang: make(chan struct{})}
	o := Options{Sample: link.NewRatio(1), Batch: 256, Queue: 10_000, QueueBytes: most}
	e, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	var j verdict.Judge
	size, who := 0, pod()
	for i := 0; e.Stats().Dropped == 0; i++ {
		l := answered(middle.Add(time.Duration(i) * time.Microsecond))
		l.ID = uint16(i)
		v := j.Of(l)
		e.Add(l, &v, &j, who)
	}
	s := e.Stats()
	close(c.hang)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spans := map[string]bool{}
	for _, rs := range c.got {
		size += proto.Size(rs)
		for _, span := range rs.ScopeSpans[0].Spans {
			spans[string(span.TraceId)+string(span.SpanId)] = true
		}
	}
	if end := e.Stats(); end.Sent != end.Made-end.Dropped || len(spans) != int(end.Sent) {
		t.Errorf("%+v, then %+v: %d different spans came", s, end, len(spans))
	}
	if size < 3*most {
		t.Errorf("%d bytes of spans waited in %d", size, most)
	}
}

// BenchmarkAdd is what a lookup of which all spans are kept costs: its spans are made, and marshaled as a transport
// does it.
func BenchmarkAdd(b *testing.B) {
	e, err := New(&marshaler{}, Options{Sample: link.NewRatio(1), Queue: 1 << 20})
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
