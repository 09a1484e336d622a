package hindsight

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// world is what a memory watches with, and whom it asks.
type world struct {
	held    []*lookup.Lookup
	drained time.Time
	stats   pipeline.Stats

	asked   []netip.AddrPort
	answers map[netip.AddrPort]func(askback.Question) (askback.Result, askback.Answer)
	sent    []string // names of lookups whose spans went out because somebody asked
	judged  []verdict.Verdict
}

func (w *world) Held() iter.Seq[*lookup.Lookup] { return slices.Values(w.held) }
func (w *world) Drained() time.Time             { return w.drained }
func (w *world) Stats() pipeline.Stats          { return w.stats }

func (w *world) Ask(to netip.AddrPort, q askback.Question, got func(askback.Result, askback.Answer)) {
	w.asked = append(w.asked, to)
	if answer := w.answers[to]; answer != nil {
		got(answer(q))
	}
}

var (
	client    = netip.MustParseAddrPort("10.244.1.10:40000")
	vip       = netip.MustParseAddrPort("10.96.0.10:53")
	coredns   = netip.MustParseAddrPort("10.244.2.2:53")
	agentAt   = netip.MustParseAddrPort("192.0.2.2:4953")
	serverAt  = netip.MustParseAddrPort("10.244.2.2:4953")
	elsewhere = netip.MustParseAddrPort("192.0.2.9:4953")
)

// memory makes a memory of a node that has watched for ten seconds.
func (w *world) memory(t *testing.T, node string, change func(*Options)) *Memory {
	t.Helper()
	o := Options{
		Bytes: 256 << 10, Facts: past.New(past.Options{Bytes: 768 << 10, Reach: DefaultPast}),
		Node: node, Guard: 50 * time.Millisecond, ServerPort: askback.DefaultPort, Slow: time.Second,
		Peers: map[string]netip.AddrPort{"node-2": agentAt},
		Index: index(t),
		Send: func(r pipeline.Result, why askback.Reason) {
			text := "unasked"
			if why != 0 {
				text = why.String()
			}
			w.sent = append(w.sent, r.Lookup.Question()+" "+text)
		},
		Judged: func(r pipeline.Result) { w.judged = append(w.judged, *r.Verdict) },
	}
	if change != nil {
		change(&o)
	}
	m := New(o)
	m.Open(w, w)
	m.begun = time.Now().Add(-10 * time.Second).UnixNano()
	m.missed = []missed{{at: m.begun}}
	w.drained = time.Now().Add(time.Hour)
	return m
}

// index knows that CoreDNS is on node-2.
func index(t *testing.T) *identity.Index {
	t.Helper()
	return indexOf(t, "clients:\n- {addresses: [10.244.2.2], namespace: kube-system, pod: coredns-1, node: node-2}\n")
}

func indexOf(t *testing.T, text string) *identity.Index {
	t.Helper()
	file := filepath.Join(t.TempDir(), "clients.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := identity.OpenFile(file, 0, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f.Index()
}

func wire(t *testing.T, name string) []byte {
	t.Helper()
	w, err := link.AppendQName(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// atServer is a lookup as the agent on the server's node sees it, one second long and over half a second ago.
func atServer(t *testing.T, name string, id uint16) pipeline.Result {
	t.Helper()
	at := time.Now().Add(-1500 * time.Millisecond).UnixNano()
	c, s := hop.EndpointOf(client), hop.EndpointOf(coredns)
	step := func(kind hop.Kind, answer bool, after time.Duration) hop.Hop {
		h := hop.Hop{Time: at + int64(after), Kind: kind, Answer: answer, Src: c, Dst: s, NetNS: 2, IfIndex: 3}
		if answer {
			h.Src, h.Dst = s, c
		}
		return h
	}
	return pipeline.Result{
		Lookup: &lookup.Lookup{
			Transport: link.UDP, ID: id,
			Name: wire(t, name), Type: 1, Class: 1, Client: c, Translated: c, Server: s, Attempts: 1,
			Ending: lookup.Answered, AnswerSeen: true, Final: true,
			Hops: []hop.Hop{
				step(hop.In, false, 0), step(hop.Read, false, time.Millisecond), step(hop.Out, true, time.Second),
			},
		},
		Verdict: &verdict.Verdict{Where: verdict.Answered, Cause: verdict.CauseAnswered},
		Judge:   &verdict.Judge{},
	}
}

// atClient is a lookup as the agent on the client's node sees it: it left for the other node, and nothing came back.
func atClient(t *testing.T, id uint16) pipeline.Result {
	t.Helper()
	r := atServer(t, "a.example.", id)
	l := r.Lookup
	l.Server, l.ClientNetNS, l.Ending, l.AnswerSeen = hop.EndpointOf(vip), 7, lookup.GaveUp, false
	l.Hops = l.Hops[:1]
	l.Hops[0].Kind = hop.Out
	r.Verdict = &verdict.Verdict{Where: verdict.BetweenNodes, Cause: verdict.CauseNoReply, Evidence: []string{"last seen"}}
	return r
}

// question is what the client's agent asks about a lookup.
func question(r pipeline.Result) askback.Question {
	key := r.Lookup.Key()
	return askback.Question{
		Reason: askback.Lost, ID: r.Lookup.ID, Hash: key.QuestionHash(), From: r.Lookup.Start(), To: time.Now().UnixNano(),
		Server: coredns,
		Traces: []link.TraceID{key.TraceID(link.EpochOfNanos(r.Lookup.Start()))},
	}
}

// answer asks a memory, and gives what it answers in its next tick; false if it does not yet.
func answer(m *Memory, q askback.Question) (a askback.Answer, ok bool) {
	m.Handle(q, func(x askback.Answer) { a, ok = x, true })
	m.Tick(time.Now())
	return a, ok
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name  string
		given func(*world, *Memory, pipeline.Result)
		ask   func(*askback.Question)
		want  askback.Outcome
		facts askback.Facts
		sent  bool
	}{
		{
			name: "seen", want: askback.Seen, sent: true, facts: askback.SawQuery | askback.TookQuery | askback.AnswerLeft,
			given: func(_ *world, m *Memory, r pipeline.Result) { m.Remember(r, false) },
		},
		{
			name: "seen and sent already", want: askback.Seen, facts: askback.SawQuery | askback.TookQuery | askback.AnswerLeft,
			given: func(_ *world, m *Memory, r pipeline.Result) { m.Remember(r, true) },
		},
		{
			name: "seen under another trace ID: the asker saw no translation", want: askback.Seen, sent: true,
			facts: askback.SawQuery | askback.TookQuery | askback.AnswerLeft | askback.ByQuestion,
			given: func(_ *world, m *Memory, r pipeline.Result) { m.Remember(r, false) },
			ask:   func(q *askback.Question) { q.Traces = []link.TraceID{{1}} },
		},
		{
			name: "another pod asked the same with the same ID", want: askback.NotSeen,
			given: func(_ *world, m *Memory, r pipeline.Result) { m.Remember(ofOther(r, otherPod), false) },
		},
		{
			name: "another pod asks the same with the same ID", want: askback.NotSeen,
			given: func(w *world, m *Memory, r pipeline.Result) {
				knowsServer(nil, m, r)
				other := ofOther(r, otherPod)
				other.Lookup.Final, other.Lookup.Hops = false, other.Lookup.Hops[:2]
				w.held = append(w.held, other.Lookup)
			},
		},
		{
			name: "another pod asked the same, and its spans have fallen out", want: askback.NotSeen,
			given: func(w *world, m *Memory, r pipeline.Result) {
				m.Remember(ofOther(r, otherPod), false)
				m.facts.Expire(time.Now().Add(time.Hour))
			},
		},
		{
			name: "who is no pod asked the same, and its spans have fallen out", want: askback.Seen,
			facts: askback.SawQuery | askback.TookQuery | askback.AnswerLeft | askback.SpansGone | askback.ByQuestion,
			given: func(w *world, m *Memory, r pipeline.Result) {
				m.Remember(ofOther(r, elsewhere), false)
				m.facts.Expire(time.Now().Add(time.Hour))
			},
		},
		{
			name: "it and another pod asked the same", want: askback.Seen, sent: true,
			facts: askback.SawQuery | askback.TookQuery,
			given: func(w *world, m *Memory, r pipeline.Result) {
				m.Remember(ofOther(r, otherPod), false)
				r.Lookup.Hops = r.Lookup.Hops[:2] // no answer left, where the other's did
				r.Verdict.Where = verdict.CoreDNS
				m.Remember(r, false)
			},
		},
		{
			name: "in flight", want: askback.Seen, facts: askback.SawQuery | askback.TookQuery | askback.InFlight,
			given: func(w *world, _ *Memory, r pipeline.Result) {
				r.Lookup.Final, r.Lookup.Hops = false, r.Lookup.Hops[:2]
				w.held = append(w.held, r.Lookup)
			},
		},
		{name: "not seen", want: askback.NotSeen, given: knowsServer},
		{
			name: "the same question at another time", want: askback.NotSeen,
			given: func(_ *world, m *Memory, r pipeline.Result) {
				knowsServer(nil, m, r)
				for i := range r.Lookup.Hops {
					r.Lookup.Hops[i].Time -= int64(4 * time.Second)
				}
				m.Remember(r, false)
			},
		},
		{name: "the server is not within sight", want: askback.Forgotten, given: func(*world, *Memory, pipeline.Result) {}},
		{
			name: "it began to watch too late", want: askback.Forgotten,
			given: func(w *world, m *Memory, r pipeline.Result) {
				knowsServer(w, m, r)
				m.begun = r.Lookup.Start() + 1
			},
		},
		{
			name: "its spans have fallen out", want: askback.Seen,
			facts: askback.SawQuery | askback.TookQuery | askback.AnswerLeft | askback.SpansGone,
			given: func(w *world, m *Memory, r pipeline.Result) {
				m.Remember(r, false)
				for i := range 3000 {
					m.Remember(atServer(t, "other.example.", uint16(i)), false)
				}
			},
		},
		{
			name: "it has fallen out", want: askback.Forgotten,
			given: func(w *world, m *Memory, r pipeline.Result) {
				m.Remember(r, false)
				for i := range 60000 {
					m.marks.add(uint64(i)*0x9e3779b97f4a7c15, r.Lookup.Start(), r.Lookup.End()+1, link.TraceID{}, true,
						askback.SawQuery)
				}
				m.facts.Expire(time.Now().Add(time.Hour))
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{}
			m := w.memory(t, "node-2", func(o *Options) { o.Index = otherPods(t) })
			r := atServer(t, "a.example.", 77)
			q := question(r)
			c.given(w, m, r)
			if c.ask != nil {
				c.ask(&q)
			}
			a, ok := answer(m, q)
			if !ok || a.Outcome != c.want || a.Facts != c.facts || a.Lost != 0 || a.Node != "node-2" || a.Since != m.begun {
				t.Errorf("answered %v: %+v, want %v with facts %b", ok, a, c.want, c.facts)
			}
			var want []string
			if c.sent {
				want = []string{"a.example. lost"}
			}
			if !slices.Equal(w.sent, want) {
				t.Errorf("sent %q, want %q", w.sent, want)
			}
			// Whoever asks again gets the same answer, and nothing is sent twice.
			if again, ok := answer(m, q); !ok || again.Outcome != c.want || len(w.sent) != len(want) {
				t.Errorf("asked again: %v, %+v, sent %q", ok, again, w.sent)
			}
		})
	}
}

// otherPod asks what the client asks.
var otherPod = netip.MustParseAddrPort("10.244.3.7:40000")

// ofOther is a lookup as another client has it: the same ID, question and time.
func ofOther(r pipeline.Result, from netip.AddrPort) pipeline.Result {
	l := *r.Lookup
	l.Client, l.Translated, l.Hops = hop.EndpointOf(from), hop.EndpointOf(from), slices.Clone(l.Hops)
	v := *r.Verdict
	r.Lookup, r.Verdict = &l, &v
	return r
}

// otherPods knows otherPod, and does not know where CoreDNS is.
func otherPods(t *testing.T) *identity.Index {
	t.Helper()
	return indexOf(t, "clients:\n- {addresses: [10.244.3.7], namespace: shop, pod: web-1, node: node-3}\n")
}

// knowsServer has the memory see some other lookup at the server.
func knowsServer(_ *world, m *Memory, r pipeline.Result) {
	other := r
	l := *r.Lookup
	l.ID, l.Hops = l.ID+1, slices.Clone(l.Hops)
	other.Lookup = &l
	m.Remember(other, false)
}

// What has not ended when it is asked for is sent when it ends.
func TestWhatWasInFlightIsSentLater(t *testing.T) {
	w := &world{}
	m := w.memory(t, "node-2", nil)
	r := atServer(t, "a.example.", 77)
	if a, ok := answer(m, question(r)); !ok || a.Outcome != askback.NotSeen {
		t.Fatalf("%v, %+v", ok, a)
	}
	m.Remember(atServer(t, "b.example.", 77), false)
	m.Remember(r, false)
	if want := []string{"a.example. lost"}; !slices.Equal(w.sent, want) {
		t.Errorf("sent %q, want %q", w.sent, want)
	}
	m.Tick(time.Now().Add(DefaultPast + time.Second))
	m.Remember(r, false)
	if len(w.sent) != 1 {
		t.Errorf("sent %q, long after it was asked for", w.sent)
	}
}

// serving is a query that the server makes to answer a lookup.
func serving(t *testing.T, r pipeline.Result, name string, id uint16) pipeline.Result {
	t.Helper()
	up := atServer(t, name, id)
	key := r.Lookup.Key()
	up.Lookup.Serves = &lookup.Served{TraceID: key.TraceID(link.EpochOfNanos(r.Lookup.Start()))}
	return up
}

// What a server asks to answer a lookup goes out with it: what had ended when the lookup was asked for, and what ends
// later; and it does so, too, where the lookup is sent because it ended badly here.
func TestTheServersOwnQueriesGoAlong(t *testing.T) {
	seen := func(name string, id uint16) pipeline.Result {
		r := atServer(t, name, id)
		r.Lookup.ServerNetNS = 2
		return r
	}
	for _, c := range []struct {
		name string
		do   func(*Memory)
		want []string
	}{
		{"asked for when all is over", func(m *Memory) {
			r := seen("a.example.", 77)
			m.Remember(serving(t, r, "first.example.", 1), false)
			m.Remember(serving(t, r, "second.example.", 2), false)
			m.Remember(serving(t, r, "sampled.example.", 3), true)
			m.Remember(serving(t, seen("other.example.", 78), "others.example.", 4), false)
			m.Remember(r, false)
			answer(m, question(r))
			answer(m, question(r))
		}, []string{"a.example. lost", "second.example. lost", "first.example. lost"}},
		{"asked for while it is under way", func(m *Memory) {
			r := seen("a.example.", 77)
			m.Remember(serving(t, r, "first.example.", 1), false)
			answer(m, question(r))
			m.Remember(r, false)
			m.Remember(serving(t, r, "second.example.", 2), false)
			connect := serving(t, r, "connect.example.", 3)
			connect.Lookup.Connect = true
			m.Remember(connect, false)
			m.Remember(serving(t, seen("other.example.", 78), "others.example.", 4), false)
		}, []string{"a.example. lost", "first.example. lost", "second.example. lost", "connect.example. lost"}},
		{"sent because it ended badly", func(m *Memory) {
			r := seen("a.example.", 77)
			m.Remember(serving(t, r, "first.example.", 1), false)
			m.Remember(r, true)
			m.Remember(serving(t, r, "second.example.", 2), false)
			m.Remember(serving(t, r, "third.example.", 3), true)
		}, []string{"first.example. unasked", "second.example. unasked"}},
		{"sent, and its server out of sight", func(m *Memory) {
			r := atServer(t, "a.example.", 77)
			m.Remember(serving(t, r, "first.example.", 1), false)
			m.Remember(r, true)
		}, nil},
		{"not sent", func(m *Memory) {
			r := seen("a.example.", 77)
			m.Remember(serving(t, r, "first.example.", 1), false)
			m.Remember(r, false)
			m.Remember(serving(t, r, "second.example.", 2), false)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{}
			m := w.memory(t, "node-2", nil)
			if c.do(m); !slices.Equal(w.sent, c.want) {
				t.Errorf("sent %q, want %q", w.sent, c.want)
			}
		})
	}
}

// Of lookups whose spans have gone out, so many are remembered.
func TestWholeIsBounded(t *testing.T) {
	var w whole
	for i := range 3 * maxWanted {
		w.add(link.TraceID{byte(i >> 16), byte(i >> 8), byte(i)}, askback.Lost)
		if len(w.why) > maxWanted || len(w.last) > maxWanted {
			t.Fatalf("%d are remembered", len(w.why))
		}
	}
	if _, ok := w.why[link.TraceID{0, 3*maxWanted>>8 - 1, 255}]; !ok {
		t.Error("the last one is not among them")
	}
}

// A negative answer says how much was missed since the lookup began, and waits until all is read.
func TestWhatMayHideIt(t *testing.T) {
	w := &world{}
	m := w.memory(t, "node-2", nil)
	w.stats.Kernel.RingFull = 5
	m.note(time.Now().Add(-5 * time.Second).UnixNano())
	w.stats.Kernel.RingFull, w.stats.Lookup.Untold = 7, 1
	m.note(time.Now().Add(-time.Second).UnixNano())
	q := question(atServer(t, "a.example.", 77))
	if a, _ := answer(m, q); a.Outcome != askback.NotSeen || a.Lost != 3 {
		t.Errorf("%+v, want not seen with 3 missed", a)
	}
	w.drained = time.Now().Add(-100 * time.Millisecond)
	q.To = time.Now().UnixNano()
	if a, ok := answer(m, q); ok {
		t.Errorf("%+v, before all was read", a)
	}
	var a askback.Answer
	m.waiting[0].reply = func(x askback.Answer) { a = x }
	w.drained = time.Now()
	if m.Tick(time.Now()); a.Outcome != askback.NotSeen {
		t.Errorf("%+v, when all was read", a)
	}
	w.drained = time.Now().Add(-time.Second)
	m.Handle(q, func(x askback.Answer) { a = x })
	m.Tick(time.Now())
	if m.Tick(time.Now().Add(patience)); a.Outcome != askback.Forgotten {
		t.Errorf("%+v, where there is no end of what is to be read", a)
	}
}

func says(o askback.Outcome, f askback.Facts, lost uint32) func(askback.Question) (askback.Result, askback.Answer) {
	return func(askback.Question) (askback.Result, askback.Answer) {
		return askback.Answered, askback.Answer{Outcome: o, Facts: f, Lost: lost, Node: "node-2", Since: 1}
	}
}

func unreachable(askback.Question) (askback.Result, askback.Answer) {
	return askback.Unreachable, askback.Answer{}
}

func TestAskedVerdicts(t *testing.T) {
	type answers = map[netip.AddrPort]func(askback.Question) (askback.Result, askback.Answer)
	const came = askback.SawQuery | askback.TookQuery
	for _, c := range []struct {
		name    string
		answers answers
		where   verdict.Where
		cause   verdict.Cause
		says    []string
	}{
		{
			"the agent there did not see it", answers{agentAt: says(askback.NotSeen, 0, 0),
				serverAt: says(askback.NotSeen, askback.ByServer, 0)},
			verdict.BetweenNodes, verdict.CauseVanished,
			[]string{"left node-1 for 10.244.2.2:53 on node-2 and never arrived", "the tracer on node-2 was asked: it has " +
				"been watching since"},
		},
		{
			"the agent there did not see it, and CoreDNS is away", answers{agentAt: says(askback.NotSeen, 0, 0),
				serverAt: unreachable},
			verdict.BetweenNodes, verdict.CauseVanished, []string{"the server at 10.244.2.2 could not be asked"},
		},
		{
			"the agent there missed events", answers{agentAt: says(askback.NotSeen, 0, 3), serverAt: unreachable},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"missed 3 events"},
		},
		{
			"CoreDNS alone did not see it", answers{agentAt: unreachable, serverAt: says(askback.NotSeen, askback.ByServer, 0)},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"node-2 could not be asked"},
		},
		{
			"an answer left there", answers{agentAt: says(askback.Seen, came|askback.AnswerLeft, 0), serverAt: unreachable},
			verdict.ReturnPath, verdict.CauseVanished, []string{"the answer left node-2 towards the client",
				"it saw the query, and an answer leave"},
		},
		{
			"CoreDNS wrote an answer", answers{agentAt: unreachable,
				serverAt: says(askback.Seen, came|askback.AnswerLeft|askback.ByServer, 0)},
			verdict.ReturnPath, verdict.CauseVanished, []string{"the answer left the server at 10.244.2.2"},
		},
		{
			"they contradict one another", answers{agentAt: says(askback.NotSeen, 0, 0), serverAt: says(askback.Seen, came, 0)},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"did not see it", "which the server read, and no answer leave"},
		},
		{
			"they know one by its question alone, and an answer left", answers{
				agentAt:  says(askback.Seen, came|askback.AnswerLeft|askback.ByQuestion, 0),
				serverAt: says(askback.Seen, came|askback.AnswerLeft|askback.ByServer|askback.ByQuestion, 0)},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"from another address: it may be another's"},
		},
		{
			"the agent there has forgotten", answers{agentAt: says(askback.Forgotten, 0, 0), serverAt: unreachable},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"does not know: it did not watch all the while"},
		},
		{
			"the agent there is asked too much", answers{agentAt: says(askback.Refused, 0, 0), serverAt: unreachable},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"refused: it is asked too much"},
		},
		{
			"both are away", answers{agentAt: unreachable, serverAt: unreachable},
			verdict.BetweenNodes, verdict.CauseNoReply, []string{"node-2 could not be asked",
				"the server at 10.244.2.2 could not be asked"},
		},
		{
			"nothing comes at all", nil, verdict.BetweenNodes, verdict.CauseNoReply, []string{"others were asked, and have " +
				"not answered"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{answers: c.answers}
			m := w.memory(t, "node-1", nil)
			r := atClient(t, 77)
			before := *r.Verdict
			if !m.Hold(r) {
				t.Fatal("the lookup does not wait")
			}
			*r.Lookup = lookup.Lookup{Hops: []hop.Hop{{}}} // its memory is another's now
			m.Tick(time.Now())
			if len(c.answers) == 0 {
				m.Tick(time.Now().Add(3 * askback.Timeout))
			}
			if len(w.judged) != 1 {
				t.Fatalf("%d lookups were judged, want one", len(w.judged))
			}
			v := w.judged[0]
			if v.Where != c.where || v.Cause != c.cause || v.Certain {
				t.Errorf("%s/%s, certain %v; want %s/%s, inferred: %s", v.Where, v.Cause, v.Certain, c.where, c.cause, v.Text)
			}
			text := strings.Join(append([]string{v.Text}, v.Evidence...), "\n")
			for _, words := range c.says {
				if !strings.Contains(text, words) {
					t.Errorf("%q is not said in\n%s", words, text)
				}
			}
			if len(before.Evidence) != 1 || v.Evidence[0] != "last seen" {
				t.Errorf("evidence %q became %q", before.Evidence, v.Evidence)
			}
			if want := []netip.AddrPort{serverAt, agentAt}; !slices.Equal(w.asked, want) {
				t.Errorf("asked %v, want %v", w.asked, want)
			}
		})
	}
}

// CoreDNS names the agent of its node, where nobody else does.
func TestBeside(t *testing.T) {
	w := &world{answers: map[netip.AddrPort]func(askback.Question) (askback.Result, askback.Answer){
		serverAt: func(askback.Question) (askback.Result, askback.Answer) {
			return askback.Answered, askback.Answer{Outcome: askback.NotSeen, Facts: askback.ByServer, Beside: elsewhere,
				Node: "node-2"}
		},
		elsewhere: says(askback.NotSeen, 0, 0),
	}}
	m := w.memory(t, "node-1", func(o *Options) { o.Peers, o.Index = nil, nil })
	if !m.Hold(atClient(t, 77)) {
		t.Fatal("the lookup does not wait")
	}
	m.Tick(time.Now())
	m.Tick(time.Now())
	if want := []netip.AddrPort{serverAt, elsewhere}; !slices.Equal(w.asked, want) {
		t.Fatalf("asked %v, want %v", w.asked, want)
	}
	if len(w.judged) != 1 || w.judged[0].Cause != verdict.CauseVanished {
		t.Errorf("judged %+v", w.judged)
	}
}

func TestWhoIsAskedAbout(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*pipeline.Result)
		asked  bool
		held   bool
	}{
		{"lost between the nodes", func(*pipeline.Result) {}, true, true},
		{"the drop is known", func(r *pipeline.Result) { r.Verdict.Certain = true }, true, false},
		{"it never left", func(r *pipeline.Result) { r.Verdict.Where = verdict.Node }, false, false},
		{"failed", func(r *pipeline.Result) {
			*r.Verdict = verdict.Verdict{Where: verdict.CoreDNS, Cause: verdict.CauseServerError, Replied: true}
		}, true, false},
		{"answered", func(r *pipeline.Result) { *r.Verdict = verdict.Verdict{Where: verdict.Answered} }, false, false},
		{"slow", func(r *pipeline.Result) {
			*r.Verdict = verdict.Verdict{Where: verdict.Answered}
			r.Lookup.Hops = append(r.Lookup.Hops, hop.Hop{Time: r.Lookup.Start() + int64(time.Second), Answer: true,
				Kind: hop.In})
		}, true, false},
		{"it may come yet", func(r *pipeline.Result) { r.Lookup.Final = false }, false, false},
		{"told before", func(r *pipeline.Result) { r.Lookup.FinalBefore = true }, false, false},
		{"the client is out of sight", func(r *pipeline.Result) { r.Lookup.ClientNetNS = 0 }, false, false},
		{"a server's own", func(r *pipeline.Result) { r.Lookup.Own = true }, false, false},
		{"a connection without a question", func(r *pipeline.Result) { r.Lookup.Connect = true }, false, false},
		{"a server that nobody knows", func(r *pipeline.Result) {
			r.Lookup.Server = hop.EndpointOf(netip.MustParseAddrPort("192.0.2.53:53"))
			r.Lookup.Hops[0].Dst = r.Lookup.Server
		}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{}
			m := w.memory(t, "node-1", nil)
			r := atClient(t, 77)
			c.change(&r)
			if held := m.Hold(r); held != c.held || len(w.asked) > 0 != c.asked {
				t.Errorf("waits: %v, asked: %v", held, w.asked)
			}
			m.Flush()
			if len(w.judged) > 0 != c.held {
				t.Errorf("%d judged at the end", len(w.judged))
			}
		})
	}
}

// A truncated answer is a good one; where the TCP that follows comes to nothing, it is where that stands.
func TestTruncatedAndThenNothing(t *testing.T) {
	w := &world{}
	m := w.memory(t, "node-1", nil)
	udp := atServer(t, "a.example.", 77)
	udp.Lookup.ClientNetNS, udp.Lookup.Flags = 7, 0x8200 // QR, TC
	other := atServer(t, "b.example.", 78)
	m.Remember(udp, false)
	m.Remember(other, false)
	key := udp.Lookup.Key()
	id := key.TraceID(udp.Lookup.Epochs(nil, 0)[0])
	tcp := atClient(t, 0)
	tcp.Lookup.Connect, tcp.Lookup.Transport = true, link.TCP
	tcp.Lookup.Related = []lookup.Relation{{TraceID: id, SpanID: id.ClientSpanID()}}
	for range 2 {
		if m.Hold(tcp) {
			t.Error("the connection waits")
		}
	}
	if want := []string{"a.example. lost"}; !slices.Equal(w.sent, want) {
		t.Errorf("sent %q, want %q", w.sent, want)
	}
	if len(w.asked) == 0 || w.asked[0] != serverAt {
		t.Errorf("asked %v, want the server", w.asked)
	}
}

// A mark is found as long as none that ended later has made room: else the reach says so.
func TestMarks(t *testing.T) {
	m := newMarks(64<<10, time.Minute)
	at := time.Now().UnixNano()
	type one struct {
		hash     uint64
		from, to int64
	}
	var all []one
	for i := range 20000 {
		o := one{hash: rand.Uint64(), from: at + int64(i)*1e6}
		o.to = o.from + rand.Int64N(2e9)
		all = append(all, o)
		m.add(o.hash, o.from, o.to, link.TraceID{15: 1}, false, askback.SawQuery)
		for range 4 {
			o := all[rand.IntN(len(all))]
			own, others := m.find(o.hash, o.from, o.to, []link.TraceID{{15: 1}})
			if own == 0 && o.to > m.reach || own&^askback.SawQuery != 0 || others != 0 {
				t.Fatalf("seen: %b, %b, its end %v after the reach", own, others, time.Duration(o.to-m.reach))
			}
		}
	}
	last := all[19999]
	if own, others := m.find(last.hash, last.to+1e6, last.to+2e6, []link.TraceID{{15: 1}}); own != 0 || others != 0 {
		t.Error("seen at a time at which it was not under way")
	}
	if own, others := m.find(last.hash, last.from, last.to, []link.TraceID{{15: 2}}); own != 0 || others == 0 {
		t.Errorf("under another trace: %b, %b", own, others)
	}
	if m.early == 0 {
		t.Error("none made room early: the test is too small")
	}
	if size := unsafe.Sizeof(mark{}); size != 24 {
		t.Errorf("a mark takes %d bytes", size)
	}
}

func BenchmarkRemember(b *testing.B) {
	for _, hops := range []int{8, 21} {
		b.Run(fmt.Sprint(hops), func(b *testing.B) {
			b.ReportAllocs()
			m := New(Options{Bytes: 4 << 20, Facts: past.New(past.Options{
				All: past.DefaultAll, Lost: past.DefaultLost, Bytes: 16 << 20, Reach: DefaultPast,
			})})
			m.Open(nil, &world{})
			name, _ := link.AppendQName(nil, "payments.shop.svc.cluster.local.")
			r := pipeline.Result{
				Lookup: &lookup.Lookup{
					Transport: link.UDP, Name: name, Type: 1, Class: 1, Final: true, Hops: make([]hop.Hop, hops),
				},
				Verdict: &verdict.Verdict{Where: verdict.Answered},
			}
			for b.Loop() {
				r.Lookup.ID++
				m.Remember(r, false)
			}
			lookups, bytes, _ := m.facts.Held()
			b.ReportMetric(float64(bytes)/float64(max(1, lookups)), "bytes/lookup")
		})
	}
}
