package e2e

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// block is a Corefile of one server block that records everything, with more directives below dnstrail.
func block(directives string) string {
	return `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity none
		}
		` + directives + `
	}`
}

// TestHowItEnded has a row for each way in which CoreDNS hides how a query ended or who ended it.
func TestHowItEnded(t *testing.T) {
	c := newCollector(t)
	for _, row := range []struct {
		name, directives string
		qtype            uint16
		ask              int // queries; the last one is looked at
		silent           bool
		root             []any
		errorStatus      bool
	}{
		{
			name: "the plugin that answered, not the one behind prometheus",
			directives: "prometheus 127.0.0.1:0\nerrors\nlog\ntemplate IN A {\nanswer \"{{ .Name }} 60 IN A 192.0.2.7\"\n}\n" +
				"whoami",
			root: []any{"dnstrail.answered_by", "template", "dns.response_code", "NOERROR", "dns.answers", "[192.0.2.7]"},
		},
		{
			name: "acl drops without a word", directives: "errors\nacl {\ndrop net 127.0.0.0/8\n}\nwhoami", silent: true,
			root: []any{
				"dnstrail.answered_by", "acl", "dnstrail.response.written", false, "dns.response_code", nil, "error.type",
				"no_answer",
				"dnstrail.response.size", nil,
			},
			errorStatus: true,
		},
		{
			name: "erratic drops without a word", directives: "erratic {\ndrop 1\n}", silent: true,
			root: []any{
				"dnstrail.answered_by", "erratic", "dnstrail.response.written", false, "dns.response_code", nil, "error.type",
				"no_answer",
			},
			errorStatus: true,
		},
		{
			name: "acl blocks", directives: "acl {\nblock net 127.0.0.0/8\n}\nwhoami",
			root: []any{"dnstrail.answered_by", "acl", "dns.response_code", "REFUSED", "error.type", "REFUSED",
				"dnstrail.response.written", true},
			errorStatus: true,
		},
		{
			name: "a plugin returns SERVFAIL and the server writes it", directives: "template IN A {\nrcode SERVFAIL\n" +
				"fallthrough\n}\nhosts {\n192.0.2.1 other.example\n}",
			root:        []any{"dns.response_code", "SERVFAIL", "error.type", "SERVFAIL", "dnstrail.response.written", true},
			errorStatus: true,
		},
		{
			name: "a cached NXDOMAIN returns success", directives: "cache\nforward . $NX", ask: 2,
			root: []any{"dns.response_code", "NXDOMAIN", "dnstrail.cache.status", "hit", "dnstrail.answered_by", "cache",
				"error.type", nil},
		},
		{
			name: "a cached SERVFAIL returns success", directives: "cache\nforward . $FAIL", ask: 2,
			root: []any{"dns.response_code", "SERVFAIL", "dnstrail.cache.status", "hit", "dnstrail.answered_by", "cache",
				"error.type", "SERVFAIL",
				"dnstrail.failure.cause", "cached"},
			errorStatus: true,
		},
		{
			name: "a zone that cache does not cache", directives: "cache other.example\nforward . $NX", ask: 2,
			root: []any{"dns.response_code", "NXDOMAIN", "dnstrail.cache.status", nil, "dnstrail.answered_by", "forward"},
		},
		{
			name: "rewrite changes the rcode above forward", directives: "rewrite rcode exact $NAME SERVFAIL NOERROR\n" +
				"forward . $FAIL",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.answered_by", "forward", "error.type", nil},
		},
		{
			name: "an extended DNS error", directives: "acl {\nfilter net 127.0.0.0/8\n}\nwhoami",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.answered_by", "acl"},
		},
		{
			name: "ANY is answered by any", directives: "any\nwhoami", qtype: dns.TypeANY,
			root: []any{"dnstrail.answered_by", "any", "dns.question.type", "ANY"},
		},
		{
			name: "a type without a name", directives: "whoami", qtype: 61234,
			root: []any{"dns.question.type", "TYPE61234"},
		},
		{
			name: "truncated below us", directives: "forward . $BIG",
			root: []any{"dnstrail.response.truncated", true, "dns.response_code", "NOERROR", "dnstrail.response.flags",
				"qr tc rd ra"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			nx := newUpstream(t, failing(dns.RcodeNameError))
			fail := newUpstream(t, failing(dns.RcodeServerFailure))
			big := newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
				m := new(dns.Msg)
				m.SetReply(r)
				m.RecursionAvailable = true
				for i := range 200 {
					m.Answer = append(m.Answer, &dns.A{
						Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
						A:   net.IPv4(192, 0, 2, byte(i)),
					})
				}
				if w.RemoteAddr().Network() == "udp" {
					m.Truncate(512)
				}
				_ = w.WriteMsg(m)
			})
			nxSOA(nx)
			name := strings.ReplaceAll(strings.ReplaceAll(row.name, " ", "-"), ",", "") + ".example."
			if len(name) > 60 {
				name = name[:50] + ".example."
			}
			s := start(t, block(row.directives), "COLLECTOR", c.grpc, "NX", nx.addr, "FAIL", fail.addr, "BIG", big.addr, "NAME",
				name)
			qtype := row.qtype
			if qtype == 0 {
				qtype = dns.TypeA
			}
			for range max(1, row.ask) {
				if row.silent {
					if r, err := exchange("udp", s.udp, query(name, qtype), 300*time.Millisecond); err == nil {
						t.Fatalf("an answer came: %v", r)
					}
				} else {
					s.ask(t, query(name, qtype))
				}
			}
			tr := c.wait(t, name, max(1, row.ask)-1)
			tr.root.want(t, row.root...)
			if tr.root.failed() != row.errorStatus {
				t.Errorf("status is %s %q, want an error: %t", tr.root.Status().Code(), tr.root.Status().Message(), row.errorStatus)
			}
		})
	}
}

// nxSOA lets an upstream say NXDOMAIN with a SOA, so that it can be cached.
func nxSOA(u *upstream) {
	u.handle(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(r, dns.RcodeNameError)
		m.RecursionAvailable = true
		soa, _ := dns.NewRR("example. 60 IN SOA ns.example. host.example. 1 60 60 60 60")
		m.Ns = []dns.RR{soa}
		_ = w.WriteMsg(m)
	})
}

// TestPanic lets a plugin panic: the record is closed, and CoreDNS answers as it does without us.
func TestPanic(t *testing.T) {
	c := newCollector(t)
	s := start(t, block("errors\ne2e_panic"), "COLLECTOR", c.grpc)
	if r := s.ask(t, query("panic.example.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %d", r.Rcode)
	}
	tr := c.wait(t, "panic.example.", 0)
	tr.root.want(t, "dns.response_code", "SERVFAIL", "error.type", "panic", "dnstrail.answered_by", "e2e_panic")
	if tr.tree() != "DNS A\n  errors\n    e2e_panic\n" {
		t.Errorf("the trace is\n%s", tr.tree())
	}
}

// TestUpstreams has a row for each way in which forward hides what happened between it and its upstreams.
func TestUpstreams(t *testing.T) {
	c := newCollector(t)
	dead := net.JoinHostPort("127.0.0.1", freePort(t))
	for _, row := range []struct {
		name, directives string
		ask              int
		network          string
		root             []any
		attempts         [][]any
		shape            string
	}{
		{
			name: "a refused connection and then an answer", directives: "forward . $DEAD $OK {\npolicy sequential\n}",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 2, "dnstrail.answered_by", "forward"},
			attempts: [][]any{
				{"network.peer.port", port(dead), "dns.response_code", nil, "error.type", "_OTHER", "dnstrail.upstream.connection",
					"new"},
				{"network.peer.port", "$OK", "dns.response_code", "NOERROR", "error.type", nil},
			},
		},
		{
			name: "a refused TCP connection is told by the dial", directives: "forward . $DEAD $OK {\npolicy sequential\n" +
				"force_tcp\n}",
			root: []any{"dnstrail.upstream.attempts", 2},
			attempts: [][]any{
				{"network.peer.port", port(dead), "error.type", "connection_refused", "network.transport", "tcp"},
				{"network.peer.port", "$OK", "dns.response_code", "NOERROR", "network.transport", "tcp"},
			},
		},
		{
			name: "time-outs of all upstreams", directives: "forward . $MUTE {\nread_timeout 150ms\nmax_connect_attempts 2\n" +
				"max_fails 0\n}",
			root: []any{"dns.response_code", "SERVFAIL", "error.type", "SERVFAIL", "dnstrail.upstream.attempts", 2,
				"dnstrail.answered_by", "forward",
				"dnstrail.failure.cause", "upstream"},
			attempts: [][]any{
				{"error.type", "timeout", "dns.response_code", nil},
				{"error.type", "timeout", "dns.response_code", nil},
			},
		},
		{
			name: "failover to the next on an rcode", directives: "forward . $FAIL $OK {\npolicy sequential\nfailover " +
				"SERVFAIL\n}",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 2},
			attempts: [][]any{
				// an error or the rcode: forward does not tell
				{"network.peer.port", "$FAIL", "error.type", nil, "dns.response_code", nil},
				{"network.peer.port", "$OK", "dns.response_code", "NOERROR"},
			},
		},
		{
			name:       "failover with all failing gives the last answer",
			directives: "forward . $FAIL $FAIL2 {\nfailover SERVFAIL\n}",
			root:       []any{"dns.response_code", "SERVFAIL", "dnstrail.upstream.attempts", 2},
			attempts: [][]any{
				{"dns.response_code", nil},
				{"dns.response_code", "SERVFAIL", "error.type", "SERVFAIL"},
			},
		},
		{
			name: "next on an rcode", directives: "forward . $NX {\nnext NXDOMAIN\n}\nforward . $OK",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 2},
			attempts: [][]any{
				{"network.peer.port", "$NX", "dns.response_code", "NXDOMAIN", "error.type", nil},
				{"network.peer.port", "$OK", "dns.response_code", "NOERROR"},
			},
			shape: "DNS A\n  forward\n    DNS A\n      forward\n        DNS A\n",
		},
		{
			name: "a forward that does not match is passed", directives: "forward other.example $FAIL\nforward . $OK",
			root:     []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 1},
			attempts: [][]any{{"network.peer.port", "$OK", "dns.response_code", "NOERROR", "network.transport", "udp"}},
			shape:    "DNS A\n  forward\n    forward\n      DNS A\n",
		},
		{
			name: "truncated and again over TCP under one span", directives: "forward . $BIG {\nprefer_udp\n}", network: "tcp",
			root: []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 2, "dnstrail.response.truncated", false},
			attempts: [][]any{
				{"network.transport", "udp", "dnstrail.response.truncated", true, "error.type", nil},
				{"network.transport", "tcp", "dns.response_code", "NOERROR", "dnstrail.upstream.connection", "new"},
			},
		},
		{
			name: "truncated and again over a pooled TCP connection", directives: "forward . $BIG {\nprefer_udp\n}",
			network: "tcp", ask: 2,
			root: []any{"dns.response_code", "NOERROR", "dnstrail.upstream.attempts", 2},
			attempts: [][]any{
				{"network.transport", "udp", "dnstrail.response.truncated", true, "dnstrail.upstream.connection", "pooled"},
				{"network.transport", "tcp", "dns.response_code", "NOERROR", "dnstrail.upstream.connection", "pooled"},
			},
		},
		{
			name: "a pooled connection", directives: "forward . $OK", ask: 2,
			root: []any{"dnstrail.upstream.attempts", 1},
			attempts: [][]any{{"dnstrail.upstream.connection", "pooled", "network.transport", "udp", "dns.response_code",
				"NOERROR"}},
		},
		{
			name: "a pooled connection that the upstream had closed", directives: "forward . $CLOSING {\nforce_tcp\n}", ask: 2,
			root: []any{"dnstrail.upstream.attempts", 2, "dns.response_code", "NOERROR"},
			attempts: [][]any{
				{"dnstrail.upstream.connection", "pooled", "error.type", "connection_closed", "dns.response_code", nil},
				{"dnstrail.upstream.connection", "new", "dns.response_code", "NOERROR"},
			},
		},
		{
			name: "an answer to another question", directives: "forward . $WRONG",
			root:     []any{"dns.response_code", "FORMERR", "error.type", "FORMERR", "dnstrail.answered_by", "forward"},
			attempts: [][]any{{"dns.response_code", "FORMERR"}},
		},
		{
			name:       "another name after a rewrite",
			directives: "rewrite name exact another-name-after-a-rewrite.example. rewritten.example.\nforward . $OK",
			root:       []any{"dns.response_code", "NOERROR", "dnstrail.failure.cause", nil},
			attempts: [][]any{{"dns.question.name", "rewritten.example.", "dns.question.type", "A", "dns.response_code",
				"NOERROR"}},
		},
		{
			name: "too many at a time", directives: "forward . $SLOW {\nmax_concurrent 1\n}",
			root: []any{"dns.response_code", "REFUSED", "dnstrail.upstream.attempts", nil, "dnstrail.answered_by", "forward",
				"dnstrail.failure.cause", "concurrency_limit"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			ups := map[string]*upstream{
				"OK": newUpstream(t, answering(60)), "FAIL": newUpstream(t, failing(dns.RcodeServerFailure)),
				"FAIL2": newUpstream(t, failing(dns.RcodeServerFailure)), "NX": newUpstream(t, failing(dns.RcodeNameError)),
				"MUTE": newUpstream(t, silent),
				"BIG": newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
					m := new(dns.Msg)
					m.SetReply(r)
					m.Truncated = w.RemoteAddr().Network() == "udp"
					_ = w.WriteMsg(m)
				}),
				"CLOSING": newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
					answering(60)(w, r)
					_ = w.Close()
				}),
				"WRONG": newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
					m := new(dns.Msg)
					m.SetReply(r)
					m.Question[0].Name = "else.example."
					_ = w.WriteMsg(m)
				}),
				"SLOW": newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
					time.Sleep(500 * time.Millisecond)
					answering(60)(w, r)
				}),
			}
			values := []string{"COLLECTOR", c.grpc, "DEAD", dead}
			for _, k := range slices.Backward(slices.Sorted(maps.Keys(ups))) { // a longer name before its beginning
				values = append(values, k, ups[k].addr)
			}
			s := start(t, block(row.directives), values...)
			name := strings.ReplaceAll(row.name, " ", "-") + ".example."
			network, addr := "udp", s.udp
			if row.network == "tcp" {
				network, addr = "tcp", s.tcp
			}
			if strings.HasPrefix(row.name, "too many") {
				go func() { _, _ = exchange("udp", s.udp, query("first."+name, dns.TypeA), time.Second) }()
				time.Sleep(100 * time.Millisecond)
			}
			for i := range max(1, row.ask) {
				if i > 0 {
					time.Sleep(250 * time.Millisecond) // for the connection to be back in the pool, and its closing to be seen
				}
				if _, err := exchange(network, addr, query(name, dns.TypeA), 5*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			tr := c.wait(t, name, max(1, row.ask)-1)
			tr.root.want(t, row.root...)
			attempts := tr.attempts()
			if len(attempts) != len(row.attempts) {
				t.Fatalf("%d attempts, want %d:\n%s", len(attempts), len(row.attempts), tr.tree("network.peer.port", "error.type"))
			}
			for i, want := range row.attempts {
				for j, v := range want {
					if v, ok := v.(string); ok && strings.HasPrefix(v, "$") {
						want[j] = port(ups[v[1:]].addr)
					}
				}
				attempts[i].want(t, want...)
			}
			if row.shape != "" && tr.tree() != row.shape {
				t.Errorf("the trace is\n%swant\n%s", tr.tree(), row.shape)
			}
		})
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// TestRefresh looks at what cache does in the background: it outlives the query, and is a trace of its own.
func TestRefresh(t *testing.T) {
	c := newCollector(t)
	for _, row := range []struct {
		name, cache string
		wait        time.Duration // for the entry to expire, or nearly so
		upstream    dns.HandlerFunc
		status      string
		refreshes   int
	}{
		{"prefetch of a popular name", "cache {\nprefetch 1 10m 90%\n}", 1100 * time.Millisecond, answering(6), "hit", 1},
		{"stale and refreshed behind the answer", "cache {\nservfail 0\nserve_stale 1h immediate\n}", 6100 * time.Millisecond,
			answering(5), "stale", 1},
		{"stale and verified at once", "cache {\nserve_stale 1h verify\n}", 6100 * time.Millisecond, answering(5), "miss", 0},
		{"stale because verifying failed", "cache {\nserve_stale 1h verify\n}", 6100 * time.Millisecond,
			failing(dns.RcodeServerFailure), "stale", 0},
		{"stale because verifying took too long", "cache {\nserve_stale 1h verify 50ms\n}", 6100 * time.Millisecond,
			slow(400*time.Millisecond, answering(5)), "stale", 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, answering(5))
			if row.status == "hit" {
				up.handle(answering(6))
			}
			s := start(t, block("errors\n"+row.cache+"\nforward . $UP"), "COLLECTOR", c.grpc, "UP", up.addr)
			name := strings.ReplaceAll(row.name, " ", "-") + ".example."
			s.ask(t, query(name, dns.TypeA))
			time.Sleep(row.wait)
			up.handle(row.upstream)
			// By time, and not by number: on a busy machine a client may have asked the first time more than once.
			second := pcommon.NewTimestampFromTime(time.Now())
			after := func(nth int) *trail {
				return c.waitRoot(t, fmt.Sprintf("query %d for %s after the wait", nth, name), nth, func(s *gotSpan) bool {
					return s.Kind() == ptrace.SpanKindServer && s.attrs["dns.question.name"] == name && s.StartTimestamp() >= second
				})
			}
			s.ask(t, query(name, dns.TypeA))
			s.ask(t, query(name, dns.TypeA))
			third := after(1)
			tr := after(0)
			tr.root.want(t, "dnstrail.cache.status", row.status, "dns.response_code", "NOERROR")
			if row.status != "miss" {
				tr.root.want(t, "dnstrail.answered_by", "cache")
			}
			if row.refreshes == 0 {
				if len(tr.attempts()) == 0 {
					t.Errorf("the attempt to verify is not in the trace:\n%s", tr.tree())
				}
				return
			}
			re := c.waitRoot(t, "refresh", 0, func(s *gotSpan) bool {
				return s.attrs["dns.question.name"] == name && s.attrs["dnstrail.cache.status"] == "prefetch"
			})
			if n := len(tr.attempts()); n != 0 {
				t.Errorf("%d attempts in the trace of the query; want them in that of the refresh:\n%s", n, tr.tree())
			}
			if re.root.traceID == tr.root.traceID {
				t.Error("the refresh has the trace ID of the query")
			}
			l := re.root.Links()
			to := func(q *trail) bool {
				return l.Len() == 1 && l.At(0).TraceID().String() == q.root.traceID && l.At(0).SpanID().String() == q.root.id
			}
			// Which of the two sets a prefetch off is cache's to choose: one hit within ten minutes makes a name popular.
			if !to(tr) && (row.status != "hit" || !to(third)) {
				t.Errorf("the refresh has %d links, want one to the query %s", l.Len(), tr.root.traceID)
			}
			re.root.want(t, "client.address", nil, "dns.response_code", "NOERROR")
			if len(re.attempts()) != 1 {
				t.Errorf("the refresh is\n%s", re.tree())
			}
			for _, sp := range tr.all {
				if sp.EndTimestamp() > tr.root.EndTimestamp() {
					t.Errorf("span %s ends after the query", sp.Name())
				}
			}
		})
	}
}

func slow(d time.Duration, f dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		time.Sleep(d)
		f(w, r)
	}
}

// TestLookups follows a CNAME out of a zone: the look-up that the plugin makes through the server is a child, not a
// query of its own.
func TestLookups(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, `.:$PORT {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}
		cache
		forward . $UP
	}
	inner.example:$PORT {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}
		template IN A {
			answer "{{ .Name }} 60 IN CNAME outer.example."
			upstream
		}
	}`, "COLLECTOR", c.grpc, "UP", up.addr, "PORT", freePort(t), "FILE", identityFile(t))
	requests := func() float64 {
		return s.metric(t, "coredns_dnstrail_client_requests_total", "client_workload", "cart")
	}
	before := requests()
	s.ask(t, query("www.inner.example.", dns.TypeA))
	tr := c.wait(t, "www.inner.example.", 0)
	const shape = `DNS A www.inner.example. NOERROR
  template
    lookup outer.example. NOERROR
      cache
        forward NOERROR
          DNS A outer.example. NOERROR
`
	if got := tr.tree("dns.question.name", "dns.response_code"); got != shape {
		t.Errorf("the trace is\n%swant\n%s", got, shape)
	}
	tr.root.want(t, "dnstrail.answered_by", "template", "dnstrail.cache.status", nil, "dnstrail.upstream.attempts", 1)
	reaches(t, "queries counted", 1, func() float64 { return requests() - before })
	for _, s := range c.spans() {
		if s.Kind() == ptrace.SpanKindServer && s.attrs["dns.question.name"] == "outer.example." {
			t.Error("the look-up has a server span")
		}
	}
}
