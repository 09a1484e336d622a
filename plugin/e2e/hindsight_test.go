package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
)

const sharedSecret = "the secret of the end-to-end tests"

func keyFile(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(sharedSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// agent is one who asks, and is asked.
type agent struct {
	*askback.Peer
	asked chan askback.Question
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	key, err := askback.NewKey(sharedSecret)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{asked: make(chan askback.Question, 16)}
	a.Peer, err = askback.Open(askback.Options{Listen: "127.0.0.1:0", Key: key,
		Handle: func(q askback.Question, reply func(askback.Answer)) {
			a.asked <- q
			reply(askback.Answer{Outcome: askback.Seen})
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(context.Background()) })
	return a
}

// about asks, and gives the answer.
func (a *agent) about(t *testing.T, to string, q askback.Question) askback.Answer {
	t.Helper()
	got := make(chan askback.Answer, 1)
	a.Ask(netip.MustParseAddrPort(to), q, func(r askback.Result, ans askback.Answer) {
		if r != askback.Answered {
			t.Errorf("the question came to nothing: %v", r)
		}
		got <- ans
	})
	select {
	case ans := <-got:
		return ans
	case <-time.After(10 * time.Second):
		t.Fatal("neither an answer nor the end of the wait for one")
	}
	panic("not reached")
}

// asking asks a name from a socket of its own, and gives the question that the agent on the client's node asks of it.
func asking(t *testing.T, addr, name string, answered bool) askback.Question {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := query(name, dns.TypeA)
	begin := time.Now()
	c := dns.Client{Timeout: 300 * time.Millisecond}
	if _, _, err := c.ExchangeWithConn(m, &dns.Conn{Conn: conn}); (err == nil) != answered {
		t.Fatalf("answered: %v", err)
	}
	wire, err := link.AppendQName(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	k := link.Key{
		Transport: link.UDP, Client: conn.LocalAddr().(*net.UDPAddr).AddrPort(), ID: m.Id, QName: wire, QType: dns.TypeA,
		QClass: dns.ClassINET,
	}
	return askback.Question{
		Reason: askback.Lost, ID: m.Id, Hash: k.QuestionHash(), From: begin.UnixNano(), To: time.Now().UnixNano(),
		Traces: []link.TraceID{k.TraceID(link.EpochOf(begin)), k.TraceID(link.EpochOf(time.Now()))},
	}
}

func hindsightCorefile(directives string) string {
	return unsampled("tracer\nkeep none\nhindsight listen 127.0.0.1:$PORT\nhindsight key $KEY\n"+
		"hindsight peer node-1 $AGENT\nhindsight beside 192.0.2.2:4953", directives)
}

// TestAskedFor asks for queries that were not kept: what comes is a trace, once.
func TestAskedFor(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	ok := newUpstream(t, answering(60))
	for _, row := range []struct {
		name, directives, shape string
		answered                bool
		facts                   askback.Facts
		root                    []any
	}{
		{
			"answered here", "errors\nwhoami", "DNS A\n  errors\n    whoami\n", true,
			askback.SawQuery | askback.TookQuery | askback.AnswerLeft | askback.ByServer,
			[]any{"dnstrail.answered_by", "whoami", "dns.response_code", "NOERROR", "dnstrail.client.pod.name",
				"cart-7f9c5d4b8-x2x7k"},
		},
		{
			"by an upstream", "errors\ncache\nforward . $OK", "DNS A\n  errors\n    cache\n      forward\n        DNS A\n", true,
			askback.SawQuery | askback.TookQuery | askback.AnswerLeft | askback.ByServer,
			[]any{"dnstrail.answered_by", "forward", "dnstrail.upstream.attempts", 1, "dnstrail.cache.status", "miss"},
		},
		{
			"dropped here", "errors\nacl {\ndrop net 127.0.0.0/8\n}\nwhoami", "DNS A\n  errors\n    acl\n", false,
			askback.SawQuery | askback.TookQuery | askback.ByServer,
			[]any{"dnstrail.answered_by", "acl", "error.type", "no_answer"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			port := freePort(t)
			s := start(t, hindsightCorefile(row.directives), "COLLECTOR", c.grpc, "FILE", identityFile(t), "OK", ok.addr,
				"PORT", port, "KEY", keyFile(t), "AGENT", a.Addr().String())
			at := "127.0.0.1:" + port
			name := strings.ReplaceAll(row.name, " ", "-") + ".asked.example."
			q := asking(t, s.udp, name, row.answered)
			asking(t, s.udp, "other."+name, row.answered)
			time.Sleep(50 * time.Millisecond) // its end is after its answer
			for _, sp := range c.spans() {
				if sp.attrs["dns.question.name"] == name {
					t.Fatal("spans came before anybody asked")
				}
			}
			for range 2 { // the second time nothing more comes of it
				ans := a.about(t, at, q)
				if ans.Outcome != askback.Seen || ans.Facts != row.facts ||
					ans.Beside != netip.MustParseAddrPort("192.0.2.2:4953") {
					t.Errorf("answered %+v", ans)
				}
			}
			tr := c.wait(t, name, 0)
			tr.root.want(t, append(row.root, "dnstrail.keep.reason", "asked", "dnstrail.asked.reason", "lost")...)
			if tr.tree() != row.shape {
				t.Errorf("the trace is\n%swant\n%s", tr.tree(), row.shape)
			}
			if id := link.TraceID(tr.root.TraceID()); id != q.Traces[0] && id != q.Traces[1] {
				t.Errorf("trace ID %v, want one of %v", id, q.Traces)
			}
			another := q
			another.Traces = []link.TraceID{{1}}
			if ans := a.about(t, at, another); ans.Outcome != askback.Forgotten || ans.Facts != askback.ByServer {
				t.Errorf("of what another client asked with the same ID: %+v", ans)
			}
			q.Hash++
			if ans := a.about(t, at, q); ans.Outcome != askback.Forgotten || ans.Facts != askback.ByServer {
				t.Errorf("of another question: %+v", ans)
			}
			time.Sleep(200 * time.Millisecond)
			roots := 0
			for _, sp := range c.spans() {
				if n := sp.attrs["dns.question.name"]; n == name && sp.attrs["dnstrail.keep.reason"] != nil {
					roots++
				} else if n == "other."+name {
					t.Error("a query that nobody asked for was sent")
				}
			}
			if roots != 1 {
				t.Errorf("%d SERVER spans came, want one", roots)
			}
		})
	}
}

// TestAskedForIsAsSampled asks for queries that were not kept: what comes is what comes of them where all are kept, but
// for what is of one query alone, and for why it is kept.
func TestAskedForIsAsSampled(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	ok := newUpstream(t, answering(60))
	for _, row := range []struct{ name, directives string }{
		{"answered", "errors\nwhoami"},
		{"a name that is not there, with its SOA", "log\nerrors\nloadbalance\ncache\ntemplate ANY ANY {\nrcode NXDOMAIN\n" +
			"authority \". 60 IN SOA ns.example. host.example. 1 60 60 60 60\"\n}"},
		{"many addresses", "errors\nloadbalance\ntemplate IN A . {\n" + strings.Repeat("answer \"{{ .Name }} 60 IN A "+
			"192.0.2.7\"\n", 20) + "}"},
		{"an alias, which CoreDNS follows itself", "errors\ntemplate IN A asked.example {\nanswer \"{{ .Name }} 60 IN " +
			"CNAME other.example.\"\n}\ntemplate IN A other.example {\nanswer \"{{ .Name }} 60 IN A 192.0.2.7\"\n}"},
		{"an upstream", "errors\nloadbalance\ncache\nforward . $OK"},
		{"an upstream behind a plugin that is not known", "errors\ncache\nrewrite name suffix .asked.example. .x.example. " +
			"answer auto\ntemplate IN TXT . {\n}\nforward . $OK"},
		{"an upstream without a cache", "errors\nforward . $OK"},
		{"many plugins", "local\nlog\nerrors\nacl {\nallow net 127.0.0.0/8\n}\nany\n" +
			"chaos\nloadbalance\ncache\nheader {\nresponse set ra\n}\nminimal\nhosts {\n192.0.2.1 x.example\nfallthrough\n}\n" +
			"whoami"},
		{"nobody answers", "errors\nacl {\ndrop net 127.0.0.0/8\n}\nwhoami"},
	} {
		t.Run(row.name, func(t *testing.T) {
			name := strings.ReplaceAll(strings.ReplaceAll(row.name, " ", "-"), ",", "") + ".asked.example."
			answered := row.name != "nobody answers"
			var got [2]string
			for i := range got {
				port := freePort(t)
				corefile := hindsightCorefile(row.directives)
				if i == 1 {
					corefile = strings.ReplaceAll(corefile, "sample 0", "sample 1")
				}
				s := start(t, corefile, "COLLECTOR", c.grpc, "FILE", identityFile(t), "OK", ok.addr,
					"PORT", port, "KEY", keyFile(t), "AGENT", a.Addr().String())
				for _, cached := range []bool{false, true} { // a second time what there is in a cache
					if cached && !strings.Contains(row.directives, "cache") {
						continue
					}
					q := asking(t, s.udp, name, answered)
					time.Sleep(50 * time.Millisecond) // its end is after its answer
					if ans := a.about(t, "127.0.0.1:"+port, q); ans.Outcome != askback.Seen {
						t.Fatalf("answered %+v", ans)
					}
					tr := c.waitRoot(t, name, 0, func(s *gotSpan) bool {
						return s.Kind() == ptrace.SpanKindServer && slices.ContainsFunc(q.Traces, func(id link.TraceID) bool {
							return id.String() == s.traceID
						})
					})
					got[i] += tr.shape()
				}
			}
			if got[0] != got[1] {
				t.Errorf("asked for:\n%s\nsampled:\n%s", got[0], got[1])
			}
			t.Logf("%s", got[0])
		})
	}
}

// shape draws the trace with the attributes that are the same of every such query, and checks that each span lies
// within the one above it.
func (tr *trail) shape() string {
	var b strings.Builder
	var draw func(s *gotSpan, depth int)
	draw = func(s *gotSpan, depth int) {
		fmt.Fprintf(&b, "%s%s %s %s\n", strings.Repeat("  ", depth), s.Name(), s.Kind(), s.Status().Message())
		for _, key := range slices.Sorted(maps.Keys(s.attrs)) {
			switch key {
			case "dns.id", "client.port", "dnstrail.link.epoch", "dnstrail.keep.reason", "dnstrail.asked.reason",
				"dnstrail.forward.duration", "dnstrail.upstream.duration", "dnstrail.upstream.connection":
				continue
			}
			fmt.Fprintf(&b, "%s  %s=%v\n", strings.Repeat("  ", depth), key, s.attrs[key])
		}
		for _, o := range tr.all {
			if o.parent == s.id {
				if o.StartTimestamp() < s.StartTimestamp() || o.EndTimestamp() > s.EndTimestamp() {
					tr.t.Errorf("%s, from %v to %v, is not within %s, from %v to %v", o.Name(), o.StartTimestamp(), o.EndTimestamp(),
						s.Name(), s.StartTimestamp(), s.EndTimestamp())
				}
				draw(o, depth+1)
			}
		}
	}
	draw(tr.root, 0)
	return b.String()
}

// TestAskedForWhileUnderWay asks for a query whose upstream has not answered yet: it is sent when it is over.
func TestAskedForWhileUnderWay(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	late := newUpstream(t, slow(500*time.Millisecond, answering(60)))
	port := freePort(t)
	s := start(t, hindsightCorefile("errors\nforward . $SLOW"), "COLLECTOR", c.grpc, "FILE", identityFile(t), "SLOW",
		late.addr,
		"PORT", port, "KEY", keyFile(t), "AGENT", a.Addr().String())
	q := asking(t, s.udp, "late.asked.example.", false)
	if ans := a.about(t, "127.0.0.1:"+port, q); ans.Outcome != askback.Forgotten {
		t.Errorf("of what is under way: %+v, want that it is not known", ans)
	}
	c.wait(t, "late.asked.example.", 0).root.want(t, "dnstrail.keep.reason", "asked", "dnstrail.asked.reason", "lost",
		"dnstrail.upstream.attempts", 1)
	// By now it is over.
	ans := a.about(t, "127.0.0.1:"+port, q)
	if want := askback.SawQuery | askback.TookQuery | askback.ByServer; ans.Outcome != askback.Seen || ans.Facts != want {
		t.Errorf("when it was over: %+v, want that no answer left in time", ans)
	}
}

// TestAsksTheClientsAgent fails a query: the agent of the client's node is asked.
func TestAsksTheClientsAgent(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	s := start(t, hindsightCorefile("errors\ntemplate ANY ANY fails.example {\nrcode SERVFAIL\n}\nwhoami"), "COLLECTOR",
		c.grpc, "FILE", identityFile(t),
		"PORT", freePort(t), "KEY", keyFile(t), "AGENT", a.Addr().String())
	asking(t, s.udp, "good.example.", true)
	want := asking(t, s.udp, "fails.example.", true)
	select {
	case q := <-a.asked:
		if q.Reason != askback.Failed || q.Hash != want.Hash || q.ID != want.ID || len(q.Traces) != 1 ||
			q.Traces[0] != want.Traces[0] && q.Traces[0] != want.Traces[1] {
			t.Errorf("asked %+v, want as %+v", q, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the agent is not asked")
	}
	before := s.metric(t, "coredns_dnstrail_asks_total", "result", "answered")
	reaches(t, "questions answered", before+1,
		func() float64 { return s.metric(t, "coredns_dnstrail_asks_total", "result", "answered") })
	select {
	case q := <-a.asked:
		t.Errorf("asked of a query that went well: %+v", q)
	default:
	}
}

// TestHindsightOutlivesReload reloads: what was remembered before is told after.
func TestHindsightOutlivesReload(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	port, key, file := freePort(t), keyFile(t), identityFile(t)
	values := []string{"COLLECTOR", c.grpc, "FILE", file, "PORT", port, "KEY", key, "AGENT", a.Addr().String()}
	s := start(t, hindsightCorefile("errors\nwhoami"), values...)
	q := asking(t, s.udp, "reload.asked.example.", true)
	time.Sleep(50 * time.Millisecond)
	next, err := s.Restart(input(hindsightCorefile("errors\nlog\nwhoami"), values...))
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = next
	if ans := a.about(t, "127.0.0.1:"+port, q); ans.Outcome != askback.Seen {
		t.Errorf("after a reload: %+v", ans)
	}
	c.wait(t, "reload.asked.example.", 0).root.want(t, "dnstrail.keep.reason", "asked")
}

// TestForgedQuestions floods CoreDNS with questions that no key sealed: every query is answered meanwhile.
func TestForgedQuestions(t *testing.T) {
	c, a := newCollector(t), newAgent(t)
	port := freePort(t)
	s := start(t, hindsightCorefile("errors\nwhoami"), "COLLECTOR", c.grpc, "FILE", identityFile(t),
		"PORT", port, "KEY", keyFile(t), "AGENT", a.Addr().String())
	forged := func() float64 { return s.metric(t, "coredns_dnstrail_asks_total", "result", "forged") }
	before := forged()
	flood, err := askback.NewKey("a secret that nobody else has got")
	if err != nil {
		t.Fatal(err)
	}
	attacker, err := askback.Open(askback.Options{Listen: "127.0.0.1:0", Key: flood})
	if err != nil {
		t.Fatal(err)
	}
	defer attacker.Close(context.Background())
	conn, err := net.Dial("udp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop := load(s.udp, 4, 5*time.Second)
	junk := make([]byte, askback.Size)
	junk[0], junk[1] = askback.Version, 1
	sent := 0
	for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(time.Millisecond) {
		for range 50 { // well over 10,000 a second on an idle machine
			_, _ = conn.Write(junk)
			sent++
		}
		attacker.Ask(netip.MustParseAddrPort("127.0.0.1:"+port), askback.Question{Reason: askback.Lost}, nil)
	}
	asked, lost := stop()
	if lost > 0 || asked == 0 {
		t.Errorf("%d of %d queries got no answer during %d forged questions", lost, asked, sent)
	}
	t.Logf("%d queries answered during %d forged questions", asked, sent)
	reaches(t, "forged questions", before+1, func() float64 { return min(forged(), before+1) })
	// Whoever has the key is heard again.
	q := asking(t, s.udp, "after-the-flood.asked.example.", true)
	time.Sleep(150 * time.Millisecond)
	if ans := a.about(t, "127.0.0.1:"+port, q); ans.Outcome != askback.Seen {
		t.Errorf("after the flood: %+v", ans)
	}
}
