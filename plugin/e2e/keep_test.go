package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// unsampled is a Corefile of one server block that keeps nothing but what its rules say.
func unsampled(properties, directives string) string {
	return `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 0
			identity file $FILE
			` + properties + `
		}
		` + directives + `
	}`
}

// TestKeptAfterwards looks at queries that were not recorded from the start: what they leave is less, and true.
func TestKeptAfterwards(t *testing.T) {
	c := newCollector(t)
	for _, row := range []struct {
		name, properties, directives string
		qtype                        uint16
		silent                       bool
		root                         []any
		shape                        string
	}{
		{
			"a drop by a plugin that is passed once", "keep errors", "errors\nacl {\ndrop net 127.0.0.0/8\n}\nwhoami", 0, true,
			[]any{"dnstrail.answered_by", "acl", "error.type", "no_answer", "dnstrail.keep.reason", "error"}, "DNS A\n",
		},
		{
			"a drop behind the cache", "keep errors", "errors\ncache\nerratic {\ndrop 1\n}", 0, true,
			[]any{"dnstrail.answered_by", "erratic", "error.type", "no_answer", "dnstrail.cache.status", "miss"}, "DNS A\n",
		},
		{
			"a drop behind a plugin that may ask twice", "keep errors", "errors\ntemplate IN AAAA {\nrcode NXDOMAIN\n}\n" +
				"erratic {\ndrop 1\n}", 0, true,
			[]any{"dnstrail.answered_by", "erratic", "error.type", "no_answer"}, "DNS A\n  template\n    erratic\n",
		},
		{
			"an error of an upstream", "keep errors", "errors\nloadbalance\ncache\nforward . $FAIL", 0, false,
			[]any{
				"dnstrail.answered_by", "forward", "error.type", "SERVFAIL", "dnstrail.cache.status", "miss",
				"dnstrail.upstream.attempts", 1,
				"dnstrail.client.pod.name", "cart-7f9c5d4b8-x2x7k",
			},
			"DNS A\n  forward\n    DNS A\n",
		},
		{
			"a slow upstream", "keep slow 100ms", "errors\ncache\nforward . $SLOW", 0, false,
			[]any{"dnstrail.answered_by", "forward", "dnstrail.keep.reason", "slow", "error.type", nil,
				"dnstrail.upstream.attempts", 1},
			"DNS A\n  forward\n    DNS A\n",
		},
		{
			"a panic", "keep errors", "errors\ncache\ne2e_panic", 0, false,
			[]any{"error.type", "panic", "dns.response_code", "SERVFAIL"}, "",
		},
		{
			"a client on the list", "keep client shop/cart", "errors\ncache\nforward . $OK", 0, false,
			[]any{"dnstrail.keep.reason", "client"}, "DNS A\n  errors\n    cache\n      forward\n        DNS A\n",
		},
		{
			"a namespace on the list", "keep client shop", "whoami", 0, false, []any{"dnstrail.keep.reason",
				"client"}, "DNS A\n  whoami\n",
		},
		{
			"a prefix on the list", "keep client 127.0.0.0/8", "whoami", 0, false, []any{"dnstrail.keep.reason",
				"client"}, "DNS A\n  whoami\n",
		},
		{
			"a name on the list", "keep name ExAmple", "whoami", 0, false, []any{"dnstrail.keep.reason",
				"name"}, "DNS A\n  whoami\n",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			ok, fail := newUpstream(t, answering(60)), newUpstream(t, failing(dns.RcodeServerFailure))
			late := newUpstream(t, slow(150*time.Millisecond, answering(60)))
			s := start(t, unsampled(row.properties, row.directives), "COLLECTOR", c.grpc, "FILE", identityFile(t),
				"OK", ok.addr, "FAIL", fail.addr, "SLOW", late.addr)
			name := strings.ReplaceAll(row.name, " ", "-") + ".example."
			if row.silent {
				if r, err := exchange("udp", s.udp, query(name, dns.TypeA), 300*time.Millisecond); err == nil {
					t.Fatalf("an answer came: %v", r)
				}
			} else {
				s.ask(t, query(name, dns.TypeA))
			}
			tr := c.wait(t, name, 0)
			tr.root.want(t, row.root...)
			if row.shape != "" && tr.tree() != row.shape {
				t.Errorf("the trace is\n%swant\n%s", tr.tree(), row.shape)
			}
		})
	}
}

// TestNotKept asks what no rule keeps: nothing is sent, and that is counted.
func TestNotKept(t *testing.T) {
	c := newCollector(t)
	s := start(t, unsampled("keep none", "errors\nwhoami"), "COLLECTOR", c.grpc, "FILE", identityFile(t))
	before := s.metric(t, "coredns_dnstrail_traces_total", "result", "unsampled")
	for range 20 {
		s.ask(t, query("nothing.example.", dns.TypeA))
	}
	reaches(t, "queries counted as unsampled", 20, func() float64 {
		return s.metric(t, "coredns_dnstrail_traces_total", "result", "unsampled") - before
	})
	time.Sleep(100 * time.Millisecond)
	if l := c.spans(); len(l) != 0 {
		t.Errorf("%d spans came", len(l))
	}
}

// TestLimit asks more than may be kept in a second.
func TestLimit(t *testing.T) {
	c := newCollector(t)
	const corefile = `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity none
			limit 200
		}
		whoami
	}`
	s := start(t, corefile, "COLLECTOR", c.grpc)
	dropped := func() float64 { return s.metric(t, "coredns_dnstrail_traces_total", "result", "limited") }
	kept := func() float64 { return s.metric(t, "coredns_dnstrail_traces_total", "result", "kept") }
	d, k := dropped(), kept()
	begin := time.Now()
	const asked = 300 // each makes two spans
	for range asked {
		s.ask(t, query("limit.example.", dns.TypeA))
	}
	most := 100 * (1 + time.Since(begin).Seconds())
	reaches(t, "queries", asked, func() float64 { return dropped() - d + kept() - k })
	d, k = dropped()-d, kept()-k
	if d+k != asked || k > most+1 || k < 100 {
		t.Errorf("of %d queries %v were kept and %v left out in %v; want at most %.0f kept", asked, k, d, time.Since(begin),
			most)
	}
}

// TestWhoAnswered asks unsampled queries, of which only counters are kept, and looks at the plugin and the cache status
// that they name.
func TestWhoAnswered(t *testing.T) {
	c := newCollector(t)
	for _, row := range []struct {
		name, directives string
		ask              int
		plugin           string
	}{
		{"whoami", "whoami", 1, "whoami"},
		{"behind many", "errors\nlog\nloadbalance\ncache\nwhoami", 1, "whoami"},
		{"cache", "errors\ncache\nforward . $OK", 2, "cache"},
		{"forward", "errors\ncache\nforward . $OK", 1, "forward"},
		{"forward without a cache", "errors\nforward . $OK", 1, "forward"},
		{"hosts", "hosts {\n192.0.2.1 hosts.example\n}\nforward . $OK", 1, "hosts"},
		{"template, which may look names up", "errors\ncache\ntemplate IN A {\nanswer \"{{ .Name }} 60 IN A 192.0.2.7\"\n" +
			"}\nforward . $OK", 1, "template"},
		{"past a template", "errors\ntemplate IN AAAA {\nrcode NXDOMAIN\n}\nforward . $OK", 1, "forward"},
		{"past a template to whoami", "errors\ntemplate IN AAAA {\nrcode NXDOMAIN\n}\nwhoami", 1, "whoami"},
		{"any", "any\nforward . $OK", 1, "forward"},
	} {
		t.Run(row.name, func(t *testing.T) {
			ok := newUpstream(t, answering(60))
			s := start(t, unsampled("keep none", row.directives), "COLLECTOR", c.grpc, "FILE", identityFile(t), "OK", ok.addr)
			count := func() float64 {
				return s.metric(t, "coredns_dnstrail_client_requests_total", "client_workload", "cart", "plugin", row.plugin,
					"rcode", "NOERROR")
			}
			name := "hosts.example."
			for i := range row.ask {
				if i == row.ask-1 {
					before := count()
					defer func() {
						reaches(t, "queries counted as answered by "+row.plugin, 1, func() float64 { return count() - before })
					}()
				}
				s.ask(t, query(name, dns.TypeA))
			}
		})
	}
	for _, sp := range c.spans() {
		if sp.Kind() == ptrace.SpanKindServer {
			t.Errorf("a span came: %v", sp.attrs)
		}
	}
}
