package dnstrail

import (
	golog "log"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/names"
)

func TestHeader(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, row := range []struct {
		header string
		ok     bool
	}{
		{good, true},
		{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true},
		{"01" + good[2:] + "-what-will-be", true},
		{"", false},
		{"ff" + good[2:], false},
		{good + "-x", false},
		{"01" + good[2:] + "x", false},
		{"00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
		{"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false},
		{"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
		{"00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01", false},
		{"00-0xf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
	} {
		got, ok := parseHeader(row.header)
		if ok != row.ok {
			t.Errorf("%q: %t", row.header, ok)
		}
		if ok && got.TraceID.String() != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("%q: trace ID %s", row.header, got.TraceID)
		}
	}
}

func TestLoopProbe(t *testing.T) {
	for name, want := range map[string]bool{
		"5577006791947779410.8674665223082153551.": true, "1.2.": false, "www.example.org.": false,
		"5577006791947779410.8674665223082153551.example.": true,
	} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeHINFO)
		if got := isLoopProbe(m); got != want {
			t.Errorf("%s: %t", name, got)
		}
		m.Question[0].Qtype = dns.TypeA
		if isLoopProbe(m) {
			t.Errorf("%s A", name)
		}
	}
}

// FuzzTraceparentOption brings the EDNS option in any form through the way in, the way out, and the stripping.
func FuzzTraceparentOption(f *testing.F) {
	good := link.Traceparent{TraceID: newTraceID(), SpanID: newSpanID(), Flags: 1}
	f.Add(uint16(link.OptionTraceparent), good.Append(nil), true)
	f.Add(uint16(link.OptionTraceparent), good.Append(nil)[:18], false)
	f.Add(uint16(3), []byte("nsid"), true)
	f.Fuzz(func(t *testing.T, code uint16, data []byte, send bool) {
		m := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
		m.SetEdns0(1232, true)
		opt := m.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: code, Data: data},
			&dns.EDNS0_COOKIE{Cookie: "0102030405060708"})
		if wire, err := m.Pack(); err == nil { // as it would come
			in := new(dns.Msg)
			if in.Unpack(wire) != nil || in.IsEdns0() == nil {
				return
			}
			m = in
		}
		p := propagation{accept: true, send: send, code: link.OptionTraceparent}
		q := &query{traceID: newTraceID()}
		if got, ok := p.incoming(t.Context(), q, m); ok && (code != link.OptionTraceparent ||
			got.TraceID == (link.TraceID{})) {
			t.Errorf("option %d of %d bytes gives %v", code, len(data), got)
		}
		before := len(m.IsEdns0().Option)
		p.stripTraceparent(m)
		for _, o := range m.IsEdns0().Option {
			if o.Option() == link.OptionTraceparent {
				t.Error("the option is still there")
			}
		}
		if code != link.OptionTraceparent && len(m.IsEdns0().Option) != before {
			t.Error("another option is gone")
		}
		rest := len(m.IsEdns0().Option)
		out, added := p.addTraceparent(m, q, &node{id: newSpanID()})
		if added || len(m.IsEdns0().Option) != rest || len(out.IsEdns0().Option) != rest+1 {
			t.Errorf("added %t; %d options, then %d, sent %d", added, rest, len(m.IsEdns0().Option), len(out.IsEdns0().Option))
		}
	})
}

// FuzzNames shows less of any name: what is shown is never longer than a name may be, and never has what is hidden in
// clear.
func FuzzNames(f *testing.F) {
	f.Add("www.example.org.", 1, true)
	f.Add(`a\.b\255.example.`, 0, false)
	f.Fuzz(func(t *testing.T, name string, labels int, hash bool) {
		if _, ok := dns.IsDomainName(name); !ok || labels < 0 || labels > 127 {
			return
		}
		name = dns.Fqdn(name)
		p := names.New()
		p.Rules = []names.Rule{{Zones: []string{"."}, Labels: labels, Hash: hash}}
		got, hidden := p.Show(name)
		if hidden == (dns.CountLabel(name) <= labels) || hidden && dns.CountLabel(got) != labels+1 {
			t.Errorf("%q, %d labels: %q, %t", name, labels, got, hidden)
		}
	})
}

func BenchmarkDerive(b *testing.B) {
	q := &query{d: new(Dnstrail), name: "www.shop.svc.cluster.local.", qtype: dns.TypeA, qclass: dns.ClassINET, udp: true}
	q.addr, _ = addrPort(udpAddr)
	b.ReportAllocs()
	for b.Loop() {
		q.id = uint16(rand.Uint32())
		q.derive()
	}
}

var udpAddr = &net.UDPAddr{IP: net.IPv4(10, 244, 1, 10), Port: 40212}

// TestAcceptOfAllWarns: who accepts trace IDs from anybody is told so.
func TestAcceptOfAllWarns(t *testing.T) {
	for block, want := range map[string]bool{
		"traceparent accept": true, "traceparent accept 192.168.0.0/16": false, "": false,
	} {
		var out strings.Builder
		golog.SetOutput(&out)
		err := setup(caddy.NewTestController("dns", "dnstrail {\n"+block+"\nendpoint none\n}"))
		golog.SetOutput(os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "names no networks"); got != want {
			t.Errorf("%q: warns: %t, want %t", block, got, want)
		}
	}
}

// A failure out of the cache names the query by which it came there.
func TestACachedFailureNamesTheFirst(t *testing.T) {
	begun := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	known := failures{}
	for _, c := range []struct {
		name, cache string
		rcode       int
		after       time.Duration
		first       byte // the trace that is to be named; 0 for none
	}{
		{"www.example.org.", "hit", dns.RcodeServerFailure, 0, 0}, // its first was before our time
		{"www.example.org.", "miss", dns.RcodeServerFailure, time.Second, 0},
		{"WWW.example.org.", "hit", dns.RcodeServerFailure, 2 * time.Second, 2},
		{"www.example.org.", "hit", dns.RcodeSuccess, 3 * time.Second, 0},
		{"other.example.org.", "hit", dns.RcodeServerFailure, 3 * time.Second, 0},
		{"www.example.org.", "miss", dns.RcodeServerFailure, 6 * time.Second, 0},
		{"www.example.org.", "hit", dns.RcodeServerFailure, 7 * time.Second, 7},
		{"www.example.org.", "", dns.RcodeServerFailure, 8 * time.Second, 0}, // no cache in its server block
		{"www.example.org.", "hit", dns.RcodeServerFailure, 10 * time.Minute, 0},
	} {
		q := &query{name: c.name, qtype: dns.TypeA, qclass: dns.ClassINET, begun: begun.Add(c.after)}
		q.traceID = link.TraceID{15: byte(c.after/time.Second) + 1}
		q.result = result{rcode: c.rcode, cache: c.cache}
		first, ok := known.note(q)
		if ok != (c.first != 0) || first.traceID[15] != c.first && ok {
			t.Errorf("%s %s after %s: %v, %v, want trace %d", c.name, c.cache, c.after, ok, first.traceID, c.first)
		}
	}
	for i := range 3 * maxFailures {
		q := &query{name: strconv.Itoa(i) + ".", begun: begun}
		q.result = result{rcode: dns.RcodeServerFailure, cache: "miss"}
		known.note(q)
	}
	if len(known) > maxFailures {
		t.Errorf("%d failures remembered, want %d at most", len(known), maxFailures)
	}
}
