package dnstrail

import (
	"math/rand/v2"
	"net"
	"testing"

	"github.com/miekg/dns"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/dnstrail/dnstrail/link"
)

// TestRatioIsTheSDKs holds our choice against that of OpenTelemetry's sampler.
func TestRatioIsTheSDKs(t *testing.T) {
	for _, share := range []float64{0, 1e-9, 0.01, 0.1, 0.5, 0.999, 1} {
		ours, theirs := newRatio(share), sdktrace.TraceIDRatioBased(share)
		kept := 0
		for range 20000 {
			id := newTraceID()
			want := theirs.ShouldSample(sdktrace.SamplingParameters{TraceID: trace.TraceID(id)}).Decision == sdktrace.RecordAndSample
			if got := ours.holds(id); got != want {
				t.Fatalf("ratio %v, trace %s: %t, want %t", share, id, got, want)
			}
			if want {
				kept++
			}
		}
		if d := float64(kept)/20000 - share; d > 0.02 || d < -0.02 {
			t.Errorf("ratio %v keeps %d of 20000", share, kept)
		}
	}
}

func TestNames(t *testing.T) {
	p := namePolicy{key: []byte("k"), rules: []nameRule{
		{zones: []string{"."}, labels: 2},
		{zones: []string{"people.example.org."}, labels: 0, hash: true},
		{zones: []string{"cluster.local."}, labels: 127},
	}}
	for _, row := range []struct {
		name, want string
		hidden     bool
	}{
		{"a.b.example.com.", "*.example.com.", true},
		{"example.com.", "example.com.", false},
		{"com.", "com.", false},
		{".", ".", false},
		{"a.b.svc.cluster.local.", "a.b.svc.cluster.local.", false},
		{"A.B.Example.Com.", "*.Example.Com.", true},
		{"people.example.org.", "people.example.org.", false},
		{`a\.b.example.com.`, "*.example.com.", true},
	} {
		if got, hidden := p.show(row.name); got != row.want || hidden != row.hidden {
			t.Errorf("%s: %s, %t, want %s, %t", row.name, got, hidden, row.want, row.hidden)
		}
	}
	one, _ := p.show("jane.people.example.org.")
	two, _ := p.show("JANE.People.example.org.")
	other, _ := p.show("john.people.example.org.")
	if len(one) != len("h-0123456789abcdef.people.example.org.") || !dns.IsSubDomain("people.example.org.", one) || one[:18] != two[:18] || one == other {
		t.Errorf("hashed as %s, %s and %s", one, two, other)
	}
}

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
		"5577006791947779410.8674665223082153551.": true, "1.2.": false, "www.example.org.": false, "5577006791947779410.8674665223082153551.example.": true,
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
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: code, Data: data}, &dns.EDNS0_COOKIE{Cookie: "0102030405060708"})
		if wire, err := m.Pack(); err == nil { // as it would come
			in := new(dns.Msg)
			if in.Unpack(wire) != nil || in.IsEdns0() == nil {
				return
			}
			m = in
		}
		p := propagation{accept: true, send: send, code: link.OptionTraceparent}
		q := &query{traceID: newTraceID()}
		if got, ok := p.incoming(t.Context(), q, m); ok && (code != link.OptionTraceparent || got.TraceID == (link.TraceID{})) {
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

// FuzzNames shows less of any name: what is shown is never longer than a name may be, and never has what is hidden in clear.
func FuzzNames(f *testing.F) {
	f.Add("www.example.org.", 1, true)
	f.Add(`a\.b\255.example.`, 0, false)
	f.Fuzz(func(t *testing.T, name string, labels int, hash bool) {
		if _, ok := dns.IsDomainName(name); !ok || labels < 0 || labels > 127 {
			return
		}
		name = dns.Fqdn(name)
		p := namePolicy{key: newHashKey(), rules: []nameRule{{zones: []string{"."}, labels: labels, hash: hash}}}
		got, hidden := p.show(name)
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
