package askback

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
)

const (
	someSecret  = "a secret that is thirty-two long!"
	otherSecret = "another secret, no shorter than it"
)

func key(t testing.TB, secrets ...string) *Key {
	t.Helper()
	k, err := NewKey(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func someQuestion() Question {
	return Question{
		Reason: Lost, ID: 0x1234, Hash: 0x0123456789abcdef, From: 1_700_000_000_000_000_000, To: 1_700_000_005_000_000_000,
		Server: netip.MustParseAddrPort("10.244.2.2:53"), Traces: []link.TraceID{{1, 2, 3}, {15: 9}},
	}
}

// open opens a peer on the loopback.
func open(t testing.TB, k *Key, handle func(Question, func(Answer))) *Peer {
	t.Helper()
	p, err := Open(Options{Listen: "127.0.0.1:0", Key: k, Handle: handle,
		Panicked: func(x any) { t.Errorf("panic: %v", x) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close(context.Background()) })
	return p
}

// ask asks and waits for what comes of it.
func ask(t testing.TB, p *Peer, to netip.AddrPort, q Question) (Result, Answer) {
	t.Helper()
	type end struct {
		r Result
		a Answer
	}
	got := make(chan end, 2)
	p.Ask(to, q, func(r Result, a Answer) { got <- end{r, a} })
	select {
	case e := <-got:
		return e.r, e.a
	case <-time.After(10 * time.Second):
		t.Fatal("neither an answer nor the end of the wait for one")
	}
	panic("not reached")
}

// within waits until something holds.
func within(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestAskAndAnswer(t *testing.T) {
	q := someQuestion()
	want := Answer{
		Outcome: NotSeen, Facts: SawQuery | ByServer, Since: 1_699_999_000_000_000_000, Lost: 7,
		Beside: netip.MustParseAddrPort("[fd00::2]:4953"), Node: "node-2",
	}
	var came atomic.Pointer[Question]
	answerer := open(t, key(t, someSecret), func(q Question, reply func(Answer)) {
		came.Store(&q)
		reply(want)
	})
	asker := open(t, key(t, someSecret), nil)
	r, a := ask(t, asker, answerer.Addr(), q)
	if r != Answered || a != want {
		t.Errorf("result %v, answer %+v, want %+v", r, a, want)
	}
	if got := came.Load(); got == nil || !reflect.DeepEqual(*got, q) {
		t.Errorf("the question came as %+v, want %+v", got, q)
	}
	if s := answerer.Stats(); s.Given != 1 || s.Refused+s.Replayed+s.Forged+s.Malformed+s.Forgotten != 0 {
		t.Errorf("the asked counts %+v", s)
	}
	if s := asker.Stats(); s.Asked != 1 || s.Answered != 1 || s.Unreachable != 0 {
		t.Errorf("the asker counts %+v", s)
	}
}

func TestWrongKey(t *testing.T) {
	answerer := open(t, key(t, someSecret),
		func(Question, func(Answer)) { t.Error("a question with a wrong key was taken") })
	asker := open(t, key(t, otherSecret), nil)
	if r, _ := ask(t, asker, answerer.Addr(), someQuestion()); r != Unreachable {
		t.Errorf("result %v, want unreachable", r)
	}
	if s := answerer.Stats(); s.Forged != 2 || s.Given != 0 { // it was sent twice
		t.Errorf("the asked counts %+v", s)
	}
	if s := asker.Stats(); s.Unreachable != 1 || s.Answered != 0 {
		t.Errorf("the asker counts %+v", s)
	}
}

// A secret is changed without a gap: both are taken, and the answer is sealed with the one of the question.
func TestTwoSecrets(t *testing.T) {
	answerer := open(t, key(t, someSecret, otherSecret),
		func(_ Question, reply func(Answer)) { reply(Answer{Outcome: Seen}) })
	asker := open(t, key(t, otherSecret), nil)
	if r, a := ask(t, asker, answerer.Addr(), someQuestion()); r != Answered || a.Outcome != Seen {
		t.Errorf("result %v, answer %+v", r, a)
	}
}

func TestNobodyThere(t *testing.T) {
	gone, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	to := gone.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = gone.Close()
	asker := open(t, key(t, someSecret), nil)
	begin := time.Now()
	if r, _ := ask(t, asker, to, someQuestion()); r != Unreachable {
		t.Errorf("result %v, want unreachable", r)
	}
	if took := time.Since(begin); took < Timeout {
		t.Errorf("given up after %v, want %v", took, Timeout)
	}
	// The socket still hears, whatever ICMP said of it.
	answerer := open(t, key(t, someSecret), func(_ Question, reply func(Answer)) { reply(Answer{Outcome: Seen}) })
	if r, _ := ask(t, asker, answerer.Addr(), someQuestion()); r != Answered {
		t.Errorf("result %v after one that was unreachable", r)
	}
}

// One who listens on the way sends again what was asked: nobody is asked twice.
func TestReplay(t *testing.T) {
	k := key(t, someSecret)
	var asked atomic.Int32
	answerer := open(t, k, func(_ Question, reply func(Answer)) {
		asked.Add(1)
		reply(Answer{Outcome: Seen})
	})
	conn, err := net.Dial("udp", answerer.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := someQuestion()
	var b [Size]byte
	k.putQuestion(&b, &q, nonce{1}, time.Now())
	for range 3 {
		_, _ = conn.Write(b[:])
	}
	within(t, "the replays are not counted", func() bool { return answerer.Stats().Replayed == 2 })
	for _, off := range []time.Duration{-Window - time.Second, Window + time.Second} {
		k.putQuestion(&b, &q, nonce{2}, time.Now().Add(off))
		_, _ = conn.Write(b[:])
	}
	within(t, "questions of another time are not counted", func() bool { return answerer.Stats().Replayed == 4 })
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestNoncesOutliveTheirTime(t *testing.T) {
	g, now := newGuard(), time.Unix(1_700_000_000, 0)
	from := netip.MustParseAddr("192.0.2.1")
	// As far ahead as is allowed, and sent again at every moment of its validity.
	d := &datagram{time: now.Add(Window).UnixNano(), nonce: nonce{9}}
	if !g.fresh(d, now) || !g.admit(d, from, now) {
		t.Fatal("the question is not taken")
	}
	for at := now; at.Before(now.Add(3 * Window)); at = at.Add(time.Second) {
		g.fresh(&datagram{time: at.UnixNano(), nonce: nonce{1}}, at) // others turn the generations
		if g.fresh(d, at) {
			t.Fatalf("taken again after %v", at.Sub(now))
		}
	}
}

func TestBounds(t *testing.T) {
	g, now := newGuard(), time.Unix(1_700_000_000, 0)
	count := func(peers, each int, at time.Time) (n int) {
		for i := range peers {
			from := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			for j := range each {
				d := &datagram{time: at.UnixNano(), nonce: nonce{byte(i), byte(i >> 8), byte(i >> 16), byte(j), byte(j >> 8),
					byte(at.Second())}}
				if g.fresh(d, at) && g.admit(d, from, at) {
					n++
				}
			}
		}
		return n
	}
	if n := count(1, 1000, now); n != perPeer {
		t.Errorf("%d questions of one address are answered at once, want %d", n, perPeer)
	}
	if n := count(1, 1000, now.Add(500*time.Millisecond)); n != perPeer/2 {
		t.Errorf("%d half a second later, want %d", n, perPeer/2)
	}
	if n := count(2*maxPeers, 2, now.Add(10*time.Second)); n != overall {
		t.Errorf("%d of many addresses, want %d", n, overall)
	}
	if len(g.peers) > maxPeers || len(g.now) > maxNonces {
		t.Errorf("%d addresses and %d nonces are held", len(g.peers), len(g.now))
	}
}

// Who asks too much is told so, and can say so.
func TestRefused(t *testing.T) {
	answerer := open(t, key(t, someSecret), func(_ Question, reply func(Answer)) { reply(Answer{Outcome: NotSeen}) })
	const askers, burst = 4, askedOfOne + 10 // on one host, each within its own bound
	var refused, limited, others atomic.Int32
	var peers []*Peer
	for range askers {
		peers = append(peers, open(t, key(t, someSecret), nil))
	}
	// On a machine that is slow enough the bounds, which are of a second, are not reached: it is tried again.
	for try := int32(1); refused.Load() == 0 || limited.Load() < 10; try++ {
		if try > 50 {
			t.Fatalf("of %d questions %d were refused, and %d not sent", (try-1)*askers*burst, refused.Load(), limited.Load())
		}
		for _, asker := range peers {
			for range burst {
				asker.Ask(answerer.Addr(), someQuestion(), func(r Result, a Answer) {
					switch {
					case a.Outcome == Refused:
						refused.Add(1)
					case r == Limited:
						limited.Add(1)
					default:
						others.Add(1)
					}
				})
			}
		}
		within(t, "not all questions ended", func() bool {
			return refused.Load()+limited.Load()+others.Load() == try*askers*burst
		})
		if n := limited.Load(); try == 1 && n > 10*askers {
			t.Errorf("%d of the first burst were not sent, want at most 10 of each asker", n)
		}
	}
	if s := answerer.Stats(); s.Refused < uint64(refused.Load()) {
		t.Errorf("the asked counts %d refused, want at least %d", s.Refused, refused.Load())
	}
}

// Nobody gets an answer that is not authentic; none is larger than its question.
func TestForgedGetNothing(t *testing.T) {
	k := key(t, someSecret)
	answerer := open(t, k, func(_ Question, reply func(Answer)) {
		reply(Answer{Outcome: Seen, Node: strings.Repeat("n", 300)})
	})
	conn, err := net.Dial("udp", answerer.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := someQuestion()
	var good [Size]byte
	k.putQuestion(&good, &q, nonce{1}, time.Now())
	bits := 0
	for i := range Size {
		b := good
		b[i] ^= 0x10
		_, _ = conn.Write(b[:])
		bits++
		if i%32 == 0 {
			time.Sleep(time.Millisecond) // within the socket's buffer
		}
	}
	for _, n := range []int{0, 1, Size - 1} {
		_, _ = conn.Write(good[:n])
		bits++
	}
	_, _ = conn.Write(append(good[:], 0))
	bits++
	within(t, "not all are counted", func() bool {
		s := answerer.Stats()
		return s.Forged+s.Malformed == uint64(bits)
	})
	_, _ = conn.Write(good[:])
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b [4 * Size]byte
	n, err := conn.Read(b[:])
	if err != nil || n > Size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(b[:]); err == nil {
		t.Errorf("%d bytes more than one answer", n)
	}
	var d datagram
	if err := k.open(b[:Size], &d); err != nil || d.kind != answer || d.nonce != (nonce{1}) ||
		len(d.answer.Node) != maxNode {
		t.Errorf("the answer: %+v, %v", d, err)
	}
}

// A flood of forged datagrams costs a bounded share of a CPU, and the peer hears again when it is over.
func TestForgedFlood(t *testing.T) {
	answerer := open(t, key(t, someSecret), func(_ Question, reply func(Answer)) { reply(Answer{Outcome: Seen}) })
	conn, err := net.Dial("udp", answerer.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := someQuestion()
	var b [Size]byte
	key(t, someSecret).putQuestion(&b, &q, nonce{1}, time.Now())
	b[Size-1] ^= 1 // the right key's ID, and a wrong seal: the dearest
	begin, sent := time.Now(), 0
	for time.Since(begin) < 500*time.Millisecond {
		_, _ = conn.Write(b[:])
		sent++
	}
	looked := answerer.Stats().Forged
	if most := uint64(forgedPerBeat * 7); looked == 0 || looked > most {
		t.Errorf("%d of %d were looked at in half a second, want at most %d", looked, sent, most)
	}
	asker := open(t, key(t, someSecret), nil)
	within(t, "it does not hear after the flood", func() bool {
		r, _ := ask(t, asker, answerer.Addr(), someQuestion())
		return r == Answered
	})
}

func TestHandlerPanics(t *testing.T) {
	var panics atomic.Int32
	p, err := Open(Options{
		Listen: "127.0.0.1:0", Key: key(t, someSecret), Panicked: func(any) { panics.Add(1) },
		Handle: func(q Question, reply func(Answer)) {
			if q.Reason == Slow {
				panic("no")
			}
			reply(Answer{Outcome: Seen})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(context.Background())
	asker := open(t, key(t, someSecret), nil)
	q := someQuestion()
	q.Reason = Slow
	if r, _ := ask(t, asker, p.Addr(), q); r != Unreachable || panics.Load() == 0 {
		t.Errorf("result %v, %d panics", r, panics.Load())
	}
	if r, _ := ask(t, asker, p.Addr(), someQuestion()); r != Answered {
		t.Errorf("result %v after a panic", r)
	}
}

func TestCloseTellsAll(t *testing.T) {
	mute := open(t, key(t, someSecret), func(Question, func(Answer)) {})
	asker, err := Open(Options{Listen: "127.0.0.1:0", Key: key(t, someSecret)})
	if err != nil {
		t.Fatal(err)
	}
	var told atomic.Int32
	for range 3 {
		asker.Ask(mute.Addr(), someQuestion(), func(r Result, _ Answer) {
			if r == Unreachable {
				told.Add(1)
			}
		})
	}
	if err := asker.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told.Load() != 3 {
		t.Errorf("%d were told, want 3", told.Load())
	}
	asker.Ask(mute.Addr(), someQuestion(), func(r Result, _ Answer) {
		if r == Limited {
			told.Add(1)
		}
	})
	within(t, "a closed peer does not tell that it asks no more", func() bool { return told.Load() == 4 })
}

func TestReadKey(t *testing.T) {
	for _, c := range []struct {
		text    string
		secrets int
	}{
		{someSecret, 1}, {someSecret + "\n", 1}, {"\n  " + someSecret + " \r\n\n" + otherSecret + "\n", 2},
		{"", 0}, {"short\n", 0}, {someSecret + "\nshort\n", 0},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := ReadKey(file)
		switch {
		case c.secrets == 0 && (!errors.Is(err, ErrKey) || !strings.Contains(err.Error(), file)):
			t.Errorf("%q: %v, want one that names the file", c.text, err)
		case c.secrets > 0 && (err != nil || len(k.secrets) != c.secrets):
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func TestParseListen(t *testing.T) {
	for s, ok := range map[string]bool{
		":4953": true, "127.0.0.1:4953": true, "[::1]:0": true, "": false, "4953": false, "name:4953": false, ":x": false,
		":70000": false,
	} {
		if err := ParseListen(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// What HINDSIGHT.md states, byte for byte: a program in another language can join.
func TestVector(t *testing.T) {
	k := key(t, someSecret)
	q := someQuestion()
	var b [Size]byte
	k.putQuestion(&b, &q, nonce{0xaa}, time.Unix(0, 1_700_000_005_100_000_000))
	want := "0101d45786dc17979cff6625d300aa000000000000000000000000000000" +
		"0112340123456789abcdef17979cfe362a000017979cff602ff20000000000000000000000ffff0af402020035" +
		"0201020300000000000000000000000000" + "00000000000000000000000000000009" + strings.Repeat("00", 52) +
		"23ed4a21b444f3e2a4d81bccb1b776610ed8fbcd5bf6c96540c5d4f1f8b62433"
	if got := hex.EncodeToString(b[:]); got != want {
		t.Errorf("the question is\n%s, want\n%s", got, want)
	}
	var d datagram
	if err := k.open(b[:], &d); err != nil || !reflect.DeepEqual(d.question, q) {
		t.Errorf("read as %+v, %v", d.question, err)
	}
}

func FuzzOpen(f *testing.F) {
	k := key(f, someSecret)
	q := someQuestion()
	var b [Size]byte
	k.putQuestion(&b, &q, nonce{1}, time.Unix(1_700_000_000, 0))
	f.Add(b[:], false)
	f.Add(b[bodyOffset:macOffset], true)
	k.secrets[0].putAnswer(&b, &Answer{Outcome: Seen, Node: "node-2"}, nonce{1}, time.Unix(1_700_000_000, 0))
	f.Add(b[:], false)
	f.Fuzz(func(t *testing.T, raw []byte, sealed bool) {
		var d datagram
		if !sealed {
			if err := k.open(raw, &d); err == nil && len(raw) != Size {
				t.Error("taken at a length of ", len(raw))
			}
			return
		}
		// What one with the key sends: whatever is read is written alike.
		for _, what := range []kind{question, answer} {
			var b [Size]byte
			body := head(&b, what, &k.secrets[0], nonce{2}, time.Unix(1_700_000_000, 0))
			_ = append(body, raw[:min(len(raw), macOffset-bodyOffset)]...)
			k.secrets[0].seal(&b)
			if k.open(b[:], &d) != nil {
				continue
			}
			var again, twice datagram
			var c [Size]byte
			if what == question {
				k.putQuestion(&c, &d.question, d.nonce, time.Unix(1_700_000_000, 0))
			} else {
				d.secret.putAnswer(&c, &d.answer, d.nonce, time.Unix(1_700_000_000, 0))
			}
			if err := k.open(c[:], &again); err != nil {
				t.Fatalf("what was read is not taken when it is written: %v", err)
			}
			twice = again
			if what == question && !reflect.DeepEqual(twice.question, d.question) ||
				what == answer && len(twice.answer.Node) > maxNode {
				t.Errorf("%+v was written as %+v", d, twice)
			}
		}
	})
}

// BenchmarkForged is what a datagram costs that is not authentic, after the kernel has handed it over.
func BenchmarkForged(b *testing.B) {
	k := key(b, someSecret)
	q := someQuestion()
	var good [Size]byte
	k.putQuestion(&good, &q, nonce{1}, time.Now())
	for _, c := range []struct {
		name string
		at   int
	}{{"seal", Size - 1}, {"key", 3}} {
		bad := good
		bad[c.at] ^= 1
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var d datagram
			for b.Loop() {
				if k.open(bad[:], &d) == nil {
					b.Fatal("taken")
				}
			}
		})
	}
}
