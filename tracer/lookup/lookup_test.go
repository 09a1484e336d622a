package lookup

import (
	"encoding/binary"
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
	w := &walk{t: t, now: time.Date(2026, 11, 21, 12, 0, 3, 0, time.UTC).UnixNano(), id: 4711, name: "www.example.org.",
		typ: dns.TypeA, skb: 1}
	o.Emit = func(l *Lookup) {
		l.Exported = l.Exported || l.Final // as the exporter does
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
	p.Time, p.SKB, p.Kind, p.NetNS, p.IfIndex, p.Src, p.Dst, p.Answer = w.now, w.skb, kind, netns, ifindex, src, dst,
		answer
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
		}, []want{{ending: Dropped, attempts: 1, hops: 5}, {ending: Answered, attempts: 2, hops: 13, delivered: true,
			final: true, answerSeen: true}}},
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
		{"never read, and its server ended long after", func(w *walk) {
			w.there()
			w.wait(DefaultGiveUp + time.Second)
			w.drop(serverNS, 0, client, backend, false, reason("QUEUE_PURGE"))
			w.wait(time.Second)
		}, []want{{ending: GaveUp, attempts: 1, hops: 4, final: true}}},
		{"not read, and its server ended while it was waited for", func(w *walk) {
			w.there()
			w.wait(time.Second)
			w.drop(serverNS, 0, client, backend, false, reason("QUEUE_PURGE"))
			w.wait(time.Second)
		}, []want{{ending: Dropped, attempts: 1, hops: 5}}},
		{"answered after giving up", func(w *walk) {
			w.there()
			w.wait(DefaultGiveUp + time.Second)
			w.back(0)
			w.wait(time.Second)
		}, []want{{ending: GaveUp, attempts: 1, hops: 4, final: true}, {ending: Answered, attempts: 1, hops: 8,
			delivered: true, final: true, answerSeen: true}}},
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
				got.ending, got.attempts, got.hops, got.delivered, got.final, got.answerSeen = l.Ending, l.Attempts, len(l.Hops),
					l.Delivered, l.Final, l.AnswerSeen
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
	p.Conntrack = hop.Conntrack{OrigSrc: client, OrigDst: vip, ReplySrc: backend, ReplyDst: masked,
		Status: hop.SrcNAT | hop.DstNAT}
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

// Two servers asked from one socket with one ID derive one trace ID, but not where one of them sees another source.
func TestOneSocketAsksTwoServers(t *testing.T) {
	other := end("10.96.0.11:53")
	for _, masquerade := range []bool{false, true} {
		w := start(t, Options{})
		for _, to := range []hop.Endpoint{other, vip} {
			p := w.query(hop.Out, podNS, 2, client, to)
			p.Local, p.Process = true, resolver
			w.add(p)
			if to == other && masquerade {
				p = w.query(hop.Out, nodeNS, 6, masked, other)
				p.Tracked = true
				p.Conntrack = hop.Conntrack{
					OrigSrc: client, OrigDst: other, ReplySrc: other, ReplyDst: masked, Status: hop.SrcNAT,
				}
				w.add(p)
			}
		}
		w.add(w.packet(hop.In, podNS, 2, vip, client, true, 0))
		w.read(client)
		w.a.Flush()
		w.want(2)
		for i := range w.emitted {
			if l := &w.emitted[i]; l.Server == vip && l.Beside == masquerade {
				t.Errorf("masquerade %v: beside the other is %v", masquerade, l.Beside)
			}
		}
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
	w.a.serves(serverNS, coredns)
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
	w := start(t, Options{MaxBytes: 1 << 30, Tell: -1})
	for i := range 100_000 {
		w.id = uint16(i)
		p := w.query(hop.Out, podNS, 2,
			end(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 24, 2, byte(i >> 16)}), 40000).String()), vip)
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
	if s := w.a.Stats(); s.InFlight != 0 || w.a.table.n != 0 || w.a.sockets.n != 0 || len(w.a.questions) != 0 {
		t.Errorf("%d in flight, %d keys, %d sockets, %d questions are left", s.InFlight, w.a.table.n, w.a.sockets.n,
			len(w.a.questions))
	}
}

func TestRelations(t *testing.T) {
	type relation struct {
		kind RelationKind
		to   uint16 // the ID of the lookup that is named
	}
	var seq uint32
	ask := func(w *walk, tr link.Transport, id, port uint16, name string, typ uint16) {
		w.t.Helper()
		w.id, w.name, w.typ = id, name, typ
		from := client
		from.Port = port
		p := w.query(hop.Out, podNS, 2, from, vip)
		if tr == link.TCP {
			m := new(dns.Msg).SetQuestion(name, typ)
			m.Id = id
			q, err := m.Pack()
			if err != nil {
				w.t.Fatal(err)
			}
			p.Transport, p.HasHead, p.TCPFlags = uint8(tr), false, 0x18
			p.Payload = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
			p.PayloadLen, p.Seq = len(p.Payload), seq
			seq += uint32(len(p.Payload))
		}
		p.Local, p.Process = true, resolver
		w.add(p)
	}
	answer := func(w *walk, id, port uint16, name string, typ uint16, rcode int, truncated bool) {
		w.t.Helper()
		w.id, w.name, w.typ = id, name, typ
		to := client
		to.Port = port
		p := w.packet(hop.In, podNS, 2, vip, to, true, rcode)
		if truncated {
			p.Head.Flags |= 1 << 9
		}
		w.add(p)
	}
	const a, aaaa, udp, tcp = dns.TypeA, dns.TypeAAAA, link.UDP, link.TCP
	const www, cluster = "www.example.org.", "www.example.org.cluster.local."
	for _, c := range []struct {
		name     string
		do       func(w *walk)
		want     []relation // of the last lookup
		step     int
		try      int
		sameWith uint16 // the ID of a lookup of the same group; 0 for none
	}{
		{"A and AAAA", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			ask(w, udp, 2, 40000, www, aaaa)
		}, []relation{{Pair, 1}}, 0, 1, 1},
		{"AAAA on a busy machine, when A has been answered for long", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			answer(w, 1, 40000, www, a, 0, false)
			w.wait(time.Second)
			ask(w, udp, 2, 40001, www, aaaa)
		}, []relation{{Pair, 1}}, 0, 1, 1},
		{"AAAA while A has waited for three seconds", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			w.wait(3 * time.Second)
			ask(w, udp, 2, 40001, www, aaaa)
		}, []relation{{Pair, 1}}, 0, 1, 1},
		{"A, when the AAAA before it has its A", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			ask(w, udp, 2, 40001, www, aaaa)
			answer(w, 1, 40000, www, a, 0, false)
			answer(w, 2, 40001, www, aaaa, 0, false)
			ask(w, udp, 3, 40002, www, a)
		}, nil, 0, 1, 0},
		{"two threads ask for both: the nearest", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			ask(w, udp, 2, 40001, www, aaaa)
			answer(w, 1, 40000, www, a, 0, false)
			answer(w, 2, 40001, www, aaaa, 0, false)
			ask(w, udp, 3, 40002, www, a)
			ask(w, udp, 4, 40003, www, aaaa)
		}, []relation{{Pair, 3}}, 0, 1, 3},
		{"the socket tells before the time", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			answer(w, 1, 40000, www, a, 0, false)
			ask(w, udp, 2, 40001, www, a)
			ask(w, udp, 3, 40000, www, aaaa)
		}, []relation{{Pair, 1}}, 0, 1, 1},
		{"again from another port", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			w.wait(DefaultGiveUp + time.Second)
			ask(w, udp, 2, 40001, www, a)
		}, []relation{{Retry, 1}}, 0, 2, 1},
		{"again after an answer", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			answer(w, 1, 40000, www, a, 0, false)
			ask(w, udp, 2, 40001, www, a)
		}, nil, 0, 1, 0},
		{"again after a failure", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			answer(w, 1, 40000, www, a, dns.RcodeServerFailure, false)
			ask(w, udp, 2, 40001, www, a)
		}, []relation{{Retry, 1}}, 0, 2, 1},
		{"again after an outage and an answer", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			w.wait(DefaultGiveUp + time.Second)
			ask(w, udp, 2, 40001, www, a)
			answer(w, 2, 40001, www, a, 0, false)
			ask(w, udp, 3, 40002, www, a)
		}, nil, 0, 1, 0},
		{"both of a pair again", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			ask(w, udp, 2, 40000, www, aaaa)
			w.wait(DefaultGiveUp + time.Second)
			ask(w, udp, 3, 40001, www, a)
			ask(w, udp, 4, 40001, www, aaaa)
		}, []relation{{Retry, 2}, {Pair, 3}}, 0, 2, 1},
		{"both of a pair over TCP, one answer truncated", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			ask(w, udp, 2, 40000, www, aaaa)
			answer(w, 1, 40000, www, a, 0, true)
			ask(w, tcp, 1, 40001, www, a)
			ask(w, tcp, 3, 40001, www, aaaa)
		}, []relation{{Truncated, 2}, {Pair, 1}}, 0, 1, 1},
		{"the same lookup again after a failure", func(w *walk) {
			ask(w, udp, 1, 40000, cluster, a)
			answer(w, 1, 40000, cluster, a, dns.RcodeNameError, false)
			ask(w, udp, 2, 40001, www, a)
			answer(w, 2, 40001, www, a, dns.RcodeServerFailure, false)
			w.wait(time.Second)
			ask(w, udp, 2, 40001, www, a)
		}, []relation{{Search, 1}}, 1, 1, 1},
		{"over TCP without a reason seen", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			w.wait(DefaultGiveUp + time.Second)
			ask(w, tcp, 2, 40001, www, a)
		}, []relation{{Retry, 1}}, 0, 2, 1},
		{"the search path", func(w *walk) {
			ask(w, udp, 1, 40000, "db.shop.svc.cluster.local.", a)
			answer(w, 1, 40000, "db.shop.svc.cluster.local.", a, dns.RcodeNameError, false)
			ask(w, udp, 2, 40001, "db.svc.cluster.local.", a)
		}, []relation{{Search, 1}}, 1, 1, 1},
		{"the search path, at its end the name itself", func(w *walk) {
			ask(w, udp, 1, 40000, cluster, a)
			answer(w, 1, 40000, cluster, a, dns.RcodeNameError, false)
			ask(w, udp, 2, 40001, www, a)
		}, []relation{{Search, 1}}, 1, 1, 1},
		{"the search path of a pair", func(w *walk) {
			ask(w, udp, 1, 40000, cluster, a)
			ask(w, udp, 2, 40000, cluster, aaaa)
			answer(w, 1, 40000, cluster, a, dns.RcodeNameError, false)
			answer(w, 2, 40000, cluster, aaaa, dns.RcodeNameError, false)
			ask(w, udp, 3, 40001, www, a)
			ask(w, udp, 4, 40001, www, aaaa)
		}, []relation{{Pair, 3}, {Search, 2}}, 1, 1, 1},
		{"the search path all at once", func(w *walk) {
			ask(w, udp, 1, 40000, "db.shop.svc.cluster.local.", a)
			ask(w, udp, 2, 40000, "db.svc.cluster.local.", a)
			ask(w, udp, 3, 40000, "db.cluster.local.", a)
		}, []relation{{Search, 2}}, 2, 1, 1},
		{"another name after one that does not exist", func(w *walk) {
			ask(w, udp, 1, 40000, www, a)
			answer(w, 1, 40000, www, a, dns.RcodeNameError, false)
			ask(w, udp, 2, 40001, "www.example.com.", a)
		}, nil, 0, 1, 0},
		{"a server that looks whether its upstream is alive", func(w *walk) {
			ask(w, udp, 1, 40000, ".", dns.TypeNS)
			ask(w, udp, 2, 40001, ".", dns.TypeNS)
		}, nil, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, Options{})
			c.do(w)
			w.a.Flush()
			byTrace := map[link.TraceID]uint16{}
			var last *Lookup
			var with link.TraceID
			for i := range w.emitted {
				l := &w.emitted[i]
				key := l.Key()
				byTrace[key.TraceID(link.EpochOfNanos(l.Start()))] = l.ID
				if l.ID == c.sameWith {
					with = l.Group
				}
				if last == nil || l.Start() > last.Start() {
					last = l
				}
			}
			var got []relation
			for _, r := range last.Related {
				got = append(got, relation{r.Kind, byTrace[r.TraceID]})
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("belongs to %v, want %v", got, c.want)
			}
			if last.SearchStep != c.step || last.AttemptOfGroup != c.try {
				t.Errorf("step %d, try %d; want %d, %d", last.SearchStep, last.AttemptOfGroup, c.step, c.try)
			}
			if c.sameWith != 0 && last.Group != with {
				t.Errorf("group %s, want that of %d, %s", last.Group, c.sameWith, with)
			}
		})
	}
}
