package lookup

import (
	"slices"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A datagram that the kernel dropped on its last step is not what the client reads next.
func TestADroppedAnswerIsNotRead(t *testing.T) {
	if policy == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	w := start(t, Options{})
	w.there()
	w.back(0)
	w.drop(podNS, 2, vip, client, true, policy)
	w.wait(time.Second)
	w.id = 4712
	w.there()
	w.back(0)
	p := &hop.Packet{Transport: 17}
	p.Kind, p.Time, p.NetNS, p.Src, p.Dst, p.Process = hop.Read, w.now+1000, podNS, vip, client, resolver
	w.add(p)
	w.wait(30 * time.Second)
	for _, l := range w.emitted {
		if l.ID == 4711 && (l.Ending == Answered || l.ReadByClient) {
			t.Errorf("the dropped answer was read: %s, revision %d", l.Ending, l.Revision)
		}
		if l.ID == 4712 && !l.ReadByClient {
			t.Error("the answer that was read was not")
		}
	}
}

func TestAttemptsThatTheSenderDropsAreCounted(t *testing.T) {
	if policy == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	w := start(t, Options{})
	for range 2 {
		p := w.query(hop.Drop, podNS, 0, client, vip)
		p.Local, p.Process, p.Reason = true, resolver, policy
		w.add(p)
		w.wait(2 * time.Second)
	}
	w.there()
	w.back(0)
	w.wait(time.Second)
	last := w.emitted[len(w.emitted)-1]
	if last.Attempts != 3 || last.Ending != Answered {
		t.Errorf("%d attempts, %s; want 3, answered", last.Attempts, last.Ending)
	}
}

// A node that sees no translation sees a query to two servers at one place, on its way to each.
func TestTwoServersAskedAtOnceAreToldApartBehindTheTranslation(t *testing.T) {
	w := start(t, Options{})
	second := end("10.24.1.11:53")
	for i, to := range []hop.Endpoint{backend, second} {
		w.skb = uint64(100 + i)
		w.add(w.query(hop.In, nodeNS, 6, client, to))
		w.add(w.query(hop.Out, nodeNS, 7+uint32(i), client, to))
	}
	w.wait(30 * time.Second)
	w.want(2)
	for _, l := range w.emitted {
		if l.Attempts != 1 {
			t.Errorf("%d attempts to %s", l.Attempts, l.Server)
		}
	}
}

// segmentOf gives a segment of a stream of queries at one device of the node.
func (w *walk) segmentOf(b []byte, from, to int) *hop.Packet {
	w.now += 1000
	p := &hop.Packet{Transport: 6, PayloadLen: to - from, Payload: b[from:to], Seq: 1000 + uint32(from), TCPFlags: tcpACK}
	p.Time, p.Kind, p.NetNS, p.IfIndex, p.Src, p.Dst = w.now, hop.In, nodeNS, 5, client, vip
	return p
}

// A read that is told before the segment which it read waits where the next segment begins: that segment's bytes are
// kept beside it.
func TestAReadThatWaitsDoesNotStandForASegment(t *testing.T) {
	b, ends := queries(t, 3)
	w := start(t, Options{})
	syn := w.segmentOf(b, 0, 0)
	syn.Seq, syn.TCPFlags = 999, tcpSYN
	w.add(syn)
	read := w.segmentOf(b, 0, ends[0])
	read.Kind, read.Payload, read.IfIndex = hop.Read, nil, 0
	w.add(read)
	w.add(w.segmentOf(b, ends[0], ends[1]))
	w.add(w.segmentOf(b, 0, ends[0]))
	w.add(w.segmentOf(b, ends[1], ends[2]))
	if s := w.a.Stats(); s.BytesCut != 0 {
		t.Errorf("%d bytes were taken for ones that were not captured", s.BytesCut)
	}
	w.a.Flush()
	n := 0
	for _, l := range w.emitted {
		if !l.Connect {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d lookups of 3 were found", n)
	}
}

func TestSegmentsBehindALostOneAreTakenWhenItIsSentAgain(t *testing.T) {
	b, ends := queries(t, 4)
	w := start(t, Options{})
	syn := w.segmentOf(b, 0, 0)
	syn.Seq, syn.TCPFlags = 999, tcpSYN
	w.add(syn)
	w.add(w.segmentOf(b, 0, ends[0]))
	w.add(w.segmentOf(b, ends[1], ends[2]))
	w.add(w.segmentOf(b, ends[2], ends[3]))
	w.wait(300 * time.Millisecond)
	w.add(w.segmentOf(b, ends[0], ends[1]))
	if n := w.a.Stats().Lookups - 1; n != 4 {
		t.Errorf("%d lookups, want 4", n)
	}
	if n := w.a.streams.held; n != 0 || len(w.a.streams.gaps) != 0 {
		t.Errorf("%d packets held, %d gaps", n, len(w.a.streams.gaps))
	}
}

func TestAStreamGoesOnBehindBytesThatNeverCome(t *testing.T) {
	b, ends := queries(t, 4)
	w := start(t, Options{})
	syn := w.segmentOf(b, 0, 0)
	syn.Seq, syn.TCPFlags = 999, tcpSYN
	w.add(syn)
	w.add(w.segmentOf(b, 0, ends[0]))
	w.add(w.segmentOf(b, ends[1], ends[2]))
	w.add(w.segmentOf(b, ends[2], ends[3]))
	w.wait(2 * time.Second)
	if n := w.a.Stats().Lookups - 1; n != 3 {
		t.Errorf("%d lookups, want 3", n)
	}
	if n := w.a.streams.held; n != 0 || len(w.a.streams.gaps) != 0 {
		t.Errorf("%d packets held, %d gaps", n, len(w.a.streams.gaps))
	}
}

func TestWhatIsHeldOfStreamsIsBounded(t *testing.T) {
	b, ends := queries(t, 3)
	w := start(t, Options{})
	for i := range 4 * maxHeld {
		p := w.segmentOf(b, ends[i%2], ends[i%2+1])
		p.Seq += uint32(i+1) * 100000
		w.add(p)
		if w.a.streams.held > maxHeldInAll {
			t.Fatalf("%d packets held", w.a.streams.held)
		}
	}
	w.wait(time.Minute)
	if n := w.a.streams.held; n > 0 {
		t.Errorf("%d packets held after a minute", n)
	}
}

// arrivals counts the hops at the server.
func arrivals(e *entry) (n int) {
	for i := range e.Hops {
		if e.Hops[i].NetNS == serverNS {
			n++
		}
	}
	return n
}

// The end of a query whose first segment was dropped is of no use to the server: it has not come there until that
// segment has.
func TestAMessageHasNotComeWithoutItsFirstSegment(t *testing.T) {
	if policy == 0 {
		t.Skip("this kernel has no drop reasons")
	}
	b, ends := queries(t, 1)
	w := start(t, Options{})
	syn := w.segmentOf(b, 0, 0)
	syn.Seq, syn.TCPFlags = 999, tcpSYN
	w.add(syn)
	drop := w.segmentOf(b, 0, 20)
	drop.Kind, drop.Reason = hop.Drop, policy
	w.add(drop)
	tail := w.segmentOf(b, 20, ends[0])
	tail.NetNS = serverNS
	w.add(tail)
	if e := w.a.ages.last.e; arrivals(e) > 0 {
		t.Errorf("the query came to the server by its end alone: %d hops", len(e.Hops))
	}
	again := w.segmentOf(b, 0, 20)
	again.NetNS = serverNS
	w.add(again)
	if arrivals(w.a.ages.last.e) != 1 {
		t.Error("the query did not come with its first segment")
	}
}

// Each final report says which epochs were told before it, so that none is told twice.
func TestEpochsOfALaterReportAreThoseOfTheReportBefore(t *testing.T) {
	told := map[link.Epoch]int{}
	w := start(t, Options{})
	emit := w.a.o.Emit
	w.a.o.Emit = func(l *Lookup) {
		emit(l)
		if !l.Final {
			return
		}
		var before []link.Epoch
		if l.FinalBefore {
			before = l.EpochsBefore(nil, link.DefaultGuard)
		}
		for _, e := range l.Epochs(nil, link.DefaultGuard) {
			if !slices.Contains(before, e) {
				told[e]++
			}
		}
	}
	for range 3 {
		w.there()
		w.wait(6 * time.Second) // given up each time, and asked again while a late answer is waited for
	}
	w.there()
	w.back(0)
	w.wait(time.Minute)
	if len(told) < 3 {
		t.Fatalf("%d epochs", len(told))
	}
	for e, n := range told {
		if n != 1 {
			t.Errorf("epoch %d was told %d times", e, n)
		}
	}
}

// An answer of several segments has come when all of it has. TCP sends the last segment again by itself where nothing
// is acknowledged (RFC 8985, tail loss probe): it may pass where larger ones do not.
func TestTheEndOfAnAnswerIsNotTheAnswer(t *testing.T) {
	for name, headComes := range map[string]bool{"the rest comes, too": true, "the rest never comes": false} {
		w := start(t, Options{})
		prefixed := func(b []byte) []byte { return append([]byte{0, byte(len(b))}, b...) }
		add := func(kind hop.Kind, netns, ifindex uint32, src, dst hop.Endpoint, seq uint32, data []byte, flags uint8) {
			w.now += 1000
			w.skb++
			p := &hop.Packet{Transport: 6, PayloadLen: len(data), Payload: data, TCPFlags: flags}
			p.Seq, p.SKB, p.Time, p.Kind, p.NetNS, p.IfIndex, p.Src, p.Dst = seq, w.skb, w.now, kind, netns, ifindex, src, dst
			if kind == hop.Drop {
				p.Reason = policy
			}
			if p.Local = kind == hop.Out && netns == podNS; p.Local {
				p.Process = resolver
			}
			w.add(p)
		}
		add(hop.Out, podNS, 2, client, vip, 999, nil, tcpSYN)
		add(hop.In, podNS, 2, vip, client, 4999, nil, tcpSYN|tcpACK)
		add(hop.Out, podNS, 2, client, vip, 1000, prefixed(w.message(false, 0)), tcpACK)
		answer := prefixed(w.message(true, 0))
		tail := len(answer) - 10
		segment := func(kind hop.Kind, netns, ifindex uint32, from, to int) {
			add(kind, netns, ifindex, vip, client, 5000+uint32(from), answer[from:to], tcpACK)
		}
		segment(hop.In, nodeNS, 6, 0, len(answer))
		segment(hop.Drop, nodeNS, 6, 0, len(answer))
		segment(hop.In, nodeNS, 6, tail, len(answer))
		segment(hop.In, podNS, 2, tail, len(answer))
		if headComes {
			segment(hop.In, nodeNS, 6, 0, tail)
			segment(hop.In, podNS, 2, 0, tail)
		}
		w.wait(30 * time.Second)
		var last *Lookup
		for i := range w.emitted {
			if !w.emitted[i].Connect {
				last = &w.emitted[i]
			}
		}
		if last == nil || last.Delivered != headComes || (last.Ending == Answered) != headComes {
			t.Errorf("%s: %+v", name, last)
		}
	}
}

// A connection that ends behind bytes that were not seen may have brought the answer in them.
func TestTheEndBehindBytesThatWereNotSeenTellsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		unseen uint32
		reset  bool // behind the end
		want   bool
	}{"nothing was sent": {0, false, false}, "something was": {40, false, true}, "reset behind its end": {0, true,
		false}} {
		b, ends := queries(t, 2)
		w := start(t, Options{})
		syn := w.segmentOf(b, 0, 0)
		syn.Seq, syn.TCPFlags = 999, tcpSYN
		w.add(syn)
		back := func(seq uint32, flags uint8) {
			p := w.segmentOf(b, 0, 0)
			p.Src, p.Dst, p.Seq, p.TCPFlags = vip, client, seq, flags
			w.add(p)
		}
		back(4999, tcpSYN|tcpACK)
		w.add(w.segmentOf(b, 0, ends[0]))
		w.add(w.segmentOf(b, ends[0], ends[1]))
		back(5000+c.unseen, tcpFIN|tcpACK)
		if c.reset {
			back(5001, tcpRST) // the end itself has a number
		}
		w.wait(30 * time.Second)
		n := 0
		for _, l := range w.emitted {
			if l.Connect {
				continue
			}
			n++
			if l.Ending != Closed && l.Ending != GaveUp || l.AnswerUnseen != c.want {
				t.Errorf("%s: %s, answer unseen %v, want %v", name, l.Ending, l.AnswerUnseen, c.want)
			}
		}
		if n < 2 {
			t.Errorf("%s: %d lookups told, want 2", name, n)
		}
	}
}

// What waits for an answer while bytes of its connection's answers never come, or begins before a message is found
// again, may have been answered.
func TestAnswersThatWentByUnseenAreNotCalledNone(t *testing.T) {
	b, ends := queries(t, 3)
	w := start(t, Options{})
	syn := w.segmentOf(b, 0, 0)
	syn.Seq, syn.TCPFlags = 999, tcpSYN
	w.add(syn)
	w.add(w.segmentOf(b, 0, ends[0]))
	back := func(seq uint32, data []byte, flags uint8) {
		p := w.segmentOf(data, 0, len(data))
		p.Src, p.Dst, p.Seq, p.TCPFlags = vip, client, seq, flags
		w.add(p)
	}
	back(4999, nil, tcpSYN|tcpACK)
	back(5100, []byte{0, 30, 1, 2, 3}, tcpACK) // what lies before it never comes
	w.wait(2 * time.Second)
	w.add(w.segmentOf(b, ends[0], ends[1]))
	w.wait(30 * time.Second)
	unseen := 0
	for _, l := range w.emitted {
		if !l.Connect && l.AnswerUnseen {
			unseen++
		}
	}
	if unseen < 2 {
		t.Errorf("%d of 2 lookups whose answers went by unseen say so", unseen)
	}
}
