package lookup

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// The places of the synthetic walks.
const (
	podNS    = 1
	nodeNS   = 2
	serverNS = 3
)

var (
	client   = end("10.24.2.10:40000")
	masked   = end("192.168.1.2:61000") // the client behind a source translation
	vip      = end("10.96.0.10:53")
	backend  = end("10.24.1.10:53")
	resolver = &hop.Process{PID: 42, Name: "getent"}
	coredns  = &hop.Process{PID: 7, Name: "coredns"}
	policy   = reason("NETFILTER_DROP")
	noSocket = reason("NO_SOCKET")
	other    = reason("OTHERHOST")
)

func end(s string) hop.Endpoint { return hop.EndpointOf(netip.MustParseAddrPort(s)) }

func reason(name string) hop.Reason {
	r, _ := hop.ReasonByName(name)
	return r
}

// walk builds the packets of a lookup, a microsecond apart.
type walk struct {
	t       testing.TB
	a       *Assembler
	now     int64
	id      uint16
	name    string
	typ     uint16
	skb     uint64
	emitted []Lookup

	location uint64 // from where fragments are dropped
}

func start(t testing.TB, o Options) *walk {
	t.Helper()
	w := &walk{t: t, now: time.Date(2026, 11, 21, 12, 0, 3, 0, time.UTC).UnixNano(), id: 4711, name: "www.example.org.", typ: dns.TypeA, skb: 1}
	o.Emit = func(l *Lookup) {
		c := *l
		c.Hops, c.Name, c.Related = slices.Clone(l.Hops), slices.Clone(l.Name), slices.Clone(l.Related)
		w.emitted = append(w.emitted, c)
	}
	w.a = New(o)
	return w
}

func (w *walk) message(answer bool, rcode int) []byte {
	w.t.Helper()
	m := new(dns.Msg).SetQuestion(w.name, w.typ)
	m.Id = w.id
	if answer {
		m.Response, m.Rcode = true, rcode
		if rcode == dns.RcodeSuccess {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: w.name, Rrtype: dns.TypeA, Class: 1}, A: []byte{192, 0, 2, 1}}}
		}
	}
	b, err := m.Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// packet gives a packet at a place. Dropped ones are made of it.
func (w *walk) packet(kind hop.Kind, netns, ifindex uint32, src, dst hop.Endpoint, answer bool, rcode int) *hop.Packet {
	w.t.Helper()
	w.now += 1000
	b := w.message(answer, rcode)
	h, err := dnswire.ParseHead(b)
	if err != nil {
		w.t.Fatal(err)
	}
	p := &hop.Packet{Transport: 17, PayloadLen: len(b), Payload: b, Head: h, HasHead: true}
	p.Time, p.SKB, p.Kind, p.NetNS, p.IfIndex, p.Src, p.Dst, p.Answer = w.now, w.skb, kind, netns, ifindex, src, dst, answer
	return p
}

func (w *walk) query(kind hop.Kind, netns, ifindex uint32, src, dst hop.Endpoint) *hop.Packet {
	w.t.Helper()
	return w.packet(kind, netns, ifindex, src, dst, false, 0)
}

func (w *walk) add(p *hop.Packet) { w.a.Add(p) }

// there sends the query to the server's pod: five hops.
func (w *walk) there() {
	w.t.Helper()
	w.skb++
	p := w.query(hop.Out, podNS, 2, client, vip)
	p.Local, p.Process = true, resolver
	w.add(p)
	w.add(w.query(hop.In, nodeNS, 5, client, vip))
	w.add(w.query(hop.Out, nodeNS, 6, client, backend))
	w.add(w.query(hop.In, serverNS, 2, client, backend))
}

// read is the server's.
func (w *walk) read(from hop.Endpoint) {
	w.now += 1000
	p := &hop.Packet{Transport: 17}
	p.Kind, p.Time, p.NetNS, p.Src, p.Dst, p.Process = hop.Read, w.now, serverNS, from, end("[::]:53"), coredns
	w.add(p)
}

// back sends the answer to the client.
func (w *walk) back(rcode int) {
	w.t.Helper()
	w.skb++
	p := w.packet(hop.Out, serverNS, 2, backend, client, true, rcode)
	p.Local, p.Process = true, coredns
	w.add(p)
	w.add(w.packet(hop.In, nodeNS, 6, backend, client, true, rcode))
	w.add(w.packet(hop.Out, nodeNS, 5, vip, client, true, rcode))
	w.add(w.packet(hop.In, podNS, 2, vip, client, true, rcode))
}

func (w *walk) drop(netns, ifindex uint32, src, dst hop.Endpoint, answer bool, r hop.Reason) {
	w.t.Helper()
	p := w.packet(hop.Drop, netns, ifindex, src, dst, answer, 0)
	p.Reason = r
	w.add(p)
}

func (w *walk) wait(d time.Duration) {
	w.now += int64(d)
	w.a.Sweep(w.now)
}

func (w *walk) want(n int) {
	w.t.Helper()
	if len(w.emitted) != n {
		w.t.Fatalf("%d reports, want %d", len(w.emitted), n)
	}
}

func TestLookupsAreAssembled(t *testing.T) {
	if policy == 0 || noSocket == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	type want struct {
		ending           Ending
		attempts, hops   int
		delivered, final bool
		answerSeen       bool
	}
	for _, c := range []struct {
		name string
		do   func(w *walk)
		want []want // a report each
	}{
		{"answered", func(w *walk) {
			w.there()
			w.read(client)
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: Answered, attempts: 1, hops: 9, delivered: true, final: true, answerSeen: true}}},
		{"nothing is reported before the linger is over", func(w *walk) {
			w.there()
			w.back(0)
			w.wait(DefaultLinger / 2)
		}, nil},
		{"retransmitted from the same port, then answered", func(w *walk) {
			w.there()
			w.wait(time.Second)
			w.there()
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: Answered, attempts: 2, hops: 12, delivered: true, final: true, answerSeen: true}}},
		{"asked again right after SERVFAIL", func(w *walk) {
			w.there()
			w.back(dns.RcodeServerFailure)
			w.there()
			w.back(dns.RcodeServerFailure)
			w.wait(time.Second)
		}, []want{{ending: Answered, attempts: 2, hops: 16, delivered: true, final: true, answerSeen: true}}},
		{"dropped: reported within a second, then for good", func(w *walk) {
			w.there()
			w.drop(serverNS, 2, client, backend, false, policy)
			w.wait(900 * time.Millisecond)
			w.wait(10 * time.Second)
		}, []want{{ending: Dropped, attempts: 1, hops: 5}, {ending: Dropped, attempts: 1, hops: 5, final: true}}},
		{"dropped, tried again and answered", func(w *walk) {
			w.there()
			w.drop(serverNS, 2, client, backend, false, policy)
			w.wait(time.Second)
			w.there()
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: Dropped, attempts: 1, hops: 5}, {ending: Answered, attempts: 2, hops: 13, delivered: true, final: true, answerSeen: true}}},
		{"a bridge's copy freed for another station is no drop", func(w *walk) {
			w.there()
			w.drop(nodeNS, 9, client, backend, false, other)
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: Answered, attempts: 1, hops: 9, delivered: true, final: true, answerSeen: true}}},
		{"never answered", func(w *walk) {
			w.there()
			w.wait(DefaultGiveUp + time.Second)
		}, []want{{ending: GaveUp, attempts: 1, hops: 4, final: true}}},
		{"answered after giving up", func(w *walk) {
			w.there()
			w.wait(DefaultGiveUp + time.Second)
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: GaveUp, attempts: 1, hops: 4, final: true}, {ending: Answered, attempts: 1, hops: 8, delivered: true, final: true, answerSeen: true}}},
		{"the answer comes and nobody takes it", func(w *walk) {
			w.there()
			w.back(0)
			w.drop(podNS, 2, vip, client, true, noSocket)
			w.wait(time.Second)
		}, []want{{ending: Dropped, attempts: 1, hops: 9, answerSeen: true}}},
		{"a second answer that nobody takes changes nothing", func(w *walk) {
			w.there()
			w.back(0)
			w.skb++
			w.drop(podNS, 2, vip, client, true, noSocket)
			w.wait(time.Second)
		}, []want{{ending: Answered, attempts: 1, hops: 9, delivered: true, final: true, answerSeen: true}}},
		{"the answer is lost on its way", func(w *walk) {
			w.there()
			w.skb++
			w.add(w.packet(hop.Out, serverNS, 2, backend, client, true, 0))
			w.drop(nodeNS, 6, backend, client, true, policy)
			w.wait(time.Second)
		}, []want{{ending: Dropped, attempts: 1, hops: 6, answerSeen: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			c.do(w)
			w.want(len(c.want))
			for i, want := range c.want {
				l := &w.emitted[i]
				got := want
				got.ending, got.attempts, got.hops, got.delivered, got.final, got.answerSeen = l.Ending, l.Attempts, len(l.Hops), l.Delivered, l.Final, l.AnswerSeen
				if got != want {
					t.Errorf("report %d: %+v, want %+v", i, got, want)
				}
				if l.Revision != i {
					t.Errorf("report %d has revision %d", i, l.Revision)
				}
			}
		})
	}
}

func TestSourceTranslationIsFollowed(t *testing.T) {
	w := start(t, Options{})
	p := w.query(hop.Out, podNS, 2, client, vip)
	p.Local, p.Process = true, resolver
	w.add(p)
	p = w.query(hop.Out, nodeNS, 6, masked, backend)
	p.Tracked = true
	p.Conntrack = hop.Conntrack{OrigSrc: client, OrigDst: vip, ReplySrc: backend, ReplyDst: masked, Status: hop.SrcNAT | hop.DstNAT}
	w.add(p)
	w.add(w.query(hop.In, serverNS, 2, masked, backend))
	w.read(masked)
	w.add(w.packet(hop.Out, serverNS, 2, backend, masked, true, 0))
	w.add(w.packet(hop.In, podNS, 2, vip, client, true, 0))
	w.wait(time.Second)
	w.want(1)
	l := &w.emitted[0]
	if l.Client != client || l.Translated != masked || len(l.Hops) != 6 || l.Ending != Answered {
		t.Errorf("client %s, translated %s, %d hops, %s", l.Client, l.Translated, len(l.Hops), l.Ending)
	}
	if k := l.Key(); k.Client != masked.AddrPort() {
		t.Errorf("the key's client is %s, the server's socket saw %s", k.Client, masked)
	}
}

func TestReadsGoToTheLookupsInTheOrderOfDelivery(t *testing.T) {
	w := start(t, Options{})
	for w.id = 1; w.id <= 3; w.id++ {
		w.there()
	}
	w.read(client)
	w.read(client)
	for w.id = 1; w.id <= 3; w.id++ {
		w.back(0)
	}
	w.wait(time.Second)
	w.want(3)
	for i, want := range []bool{true, true, false} {
		read := slices.ContainsFunc(w.emitted[i].Hops, func(h hop.Hop) bool { return h.Kind == hop.Read })
		if read != want {
			t.Errorf("lookup %d: read %t, want %t", w.emitted[i].ID, read, want)
		}
	}
}

func TestUpstreamQueriesAreTiedToTheLookupTheyServe(t *testing.T) {
	t.Run("of one whose client waits", func(t *testing.T) { upstreamQueryIsTied(t, 0) })
	t.Run("of one that was called lost", func(t *testing.T) { upstreamQueryIsTied(t, DefaultGiveUp+time.Second) })
}

// upstreamQueryIsTied has a server read a query some time after it came, and ask an upstream.
func upstreamQueryIsTied(t *testing.T, stopped time.Duration) {
	t.Helper()
	w := start(t, Options{})
	w.there()
	w.a.serves(serverNS)
	w.wait(stopped)
	w.emitted = nil
	w.read(client)
	up := w.query(hop.Out, serverNS, 2, end("10.24.1.10:50000"), end("192.0.2.53:53"))
	up.Head.ID, up.Local, up.Process, up.SKB = 99, true, coredns, 900
	w.add(up)
	if stopped > 0 {
		w.back(0)
	}
	w.wait(DefaultGiveUp + time.Second)
	w.want(2)
	var served, upstream *Lookup
	for i := range w.emitted {
		if w.emitted[i].Serves != nil {
			upstream = &w.emitted[i]
		} else {
			served = &w.emitted[i]
		}
	}
	if upstream == nil {
		t.Fatal("the upstream query stands alone")
	}
	key := served.Key()
	if epochs := served.Epochs(nil, 0); upstream.Serves.TraceID != key.TraceID(epochs[0]) {
		t.Error("the upstream query is in another trace than the lookup it serves")
	}
	if len(served.Upstreams) != 1 || served.Upstreams[0].Answered {
		t.Errorf("upstreams %+v, want one, unanswered", served.Upstreams)
	}
}

func TestEpochsAtABoundary(t *testing.T) {
	boundary := link.EpochOfNanos(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).UnixNano()).Start().UnixNano()
	guard := 50 * time.Millisecond
	for _, c := range []struct {
		name     string
		arrived  time.Duration // of the query, after the boundary
		answered time.Duration // after that; 0: never
		want     int
	}{
		{"in the middle", 4 * time.Second, time.Millisecond, 1},
		{"just before", -20 * time.Millisecond, time.Millisecond, 2},
		{"just after", 20 * time.Millisecond, time.Millisecond, 2},
		{"a slow answer across it, the read not seen", -time.Second, 2 * time.Second, 2},
		{"lost in the middle", 4 * time.Second, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Lookup{Attempts: 1, Hops: []hop.Hop{{Time: boundary + int64(c.arrived), Kind: hop.In}}}
			if c.answered > 0 {
				l.Hops = append(l.Hops, hop.Hop{Time: boundary + int64(c.arrived+c.answered), Kind: hop.Out, Answer: true})
			}
			got := l.Epochs(nil, guard)
			if len(got) != c.want || got[0] != link.EpochOfNanos(boundary+int64(c.arrived)) {
				t.Errorf("epochs %v, want %d of them, that of the arrival first", got, c.want)
			}
		})
	}
}

func TestTheOldestIsEmittedWhenTheTableIsFull(t *testing.T) {
	const most = 1000
	w := start(t, Options{MaxInFlight: most})
	for i := range most + 24 {
		w.id = uint16(i)
		w.there()
	}
	w.want(24)
	if s := w.a.Stats(); s.Evicted != 24 || s.InFlight != most {
		t.Errorf("%+v", s)
	}
	for i := range w.emitted {
		if w.emitted[i].Ending != Evicted || w.emitted[i].ID != uint16(i) {
			t.Fatalf("report %d: %s of ID %d", i, w.emitted[i].Ending, w.emitted[i].ID)
		}
	}
}

func TestALateAnswerFindsItsLookupAmong100000Unanswered(t *testing.T) {
	w := start(t, Options{})
	for i := range 100_000 {
		w.id = uint16(i)
		p := w.query(hop.Out, podNS, 2, end(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 24, 2, byte(i >> 16)}), 40000).String()), vip)
		p.Local, p.Process = true, resolver
		w.add(p)
	}
	w.id = 7
	w.add(w.packet(hop.In, podNS, 2, vip, end("10.24.2.0:40000"), true, 0))
	w.wait(time.Second)
	w.want(1)
	if w.emitted[0].ID != 7 || w.emitted[0].Ending != Answered {
		t.Errorf("%s of ID %d", w.emitted[0].Ending, w.emitted[0].ID)
	}
	w.wait(DefaultGiveUp)
	w.want(100_000)
	w.wait(DefaultKeepLost + time.Second)
	if s := w.a.Stats(); s.InFlight != 0 || len(w.a.table) != 0 || len(w.a.flows) != 0 || len(w.a.questions) != 0 {
		t.Errorf("%d in flight, %d keys, %d flows, %d questions are left", s.InFlight, len(w.a.table), len(w.a.flows), len(w.a.questions))
	}
}

func TestRelations(t *testing.T) {
	ask := func(w *walk, id uint16, port uint16, name string, typ uint16) {
		w.t.Helper()
		w.id, w.name, w.typ = id, name, typ
		from := client
		from.Port = port
		p := w.query(hop.Out, podNS, 2, from, vip)
		p.Local, p.Process = true, resolver
		w.add(p)
	}
	answer := func(w *walk, port uint16, rcode int) {
		w.t.Helper()
		to := client
		to.Port = port
		w.add(w.packet(hop.In, podNS, 2, vip, to, true, rcode))
	}
	for _, c := range []struct {
		name string
		do   func(w *walk)
		want RelationKind // of the last lookup; "" for none
	}{
		{"A and AAAA", func(w *walk) {
			ask(w, 1, 40000, "www.example.org.", dns.TypeA)
			ask(w, 2, 40000, "www.example.org.", dns.TypeAAAA)
		}, Pair},
		{"again from another port", func(w *walk) {
			ask(w, 1, 40000, "www.example.org.", dns.TypeA)
			w.wait(DefaultGiveUp + time.Second)
			ask(w, 2, 40001, "www.example.org.", dns.TypeA)
		}, Retry},
		{"again after an answer", func(w *walk) {
			ask(w, 1, 40000, "www.example.org.", dns.TypeA)
			answer(w, 40000, 0)
			ask(w, 2, 40001, "www.example.org.", dns.TypeA)
		}, ""},
		{"the search path", func(w *walk) {
			ask(w, 1, 40000, "db.shop.svc.cluster.local.", dns.TypeA)
			answer(w, 40000, dns.RcodeNameError)
			ask(w, 2, 40001, "db.svc.cluster.local.", dns.TypeA)
		}, Search},
		{"the search path, at its end the name itself", func(w *walk) {
			ask(w, 1, 40000, "www.example.org.cluster.local.", dns.TypeA)
			answer(w, 40000, dns.RcodeNameError)
			ask(w, 2, 40001, "www.example.org.", dns.TypeA)
		}, Search},
		{"another name after one that does not exist", func(w *walk) {
			ask(w, 1, 40000, "www.example.org.", dns.TypeA)
			answer(w, 40000, dns.RcodeNameError)
			ask(w, 2, 40001, "www.example.com.", dns.TypeA)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			c.do(w)
			w.a.Flush()
			last := &w.emitted[len(w.emitted)-1]
			kind := RelationKind("")
			if len(last.Related) > 0 {
				kind = last.Related[0].Kind
			}
			if kind != c.want {
				t.Errorf("%q, want %q", kind, c.want)
			}
		})
	}
}
