package dnswire

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func query(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

func answerTo(q *dns.Msg, rrs ...dns.RR) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = rrs
	m.Compress = true
	return m
}

func TestParseHead(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61) + "."
	for _, c := range []struct {
		name string
		in   []byte
		want string
		err  error
	}{
		{"a query", pack(t, query("example.org.", dns.TypeA)), "example.org.", nil},
		{"case is kept", pack(t, query("ExAmPlE.oRg.", dns.TypeA)), "ExAmPlE.oRg.", nil},
		{"the root", pack(t, query(".", dns.TypeNS)), ".", nil},
		{"escapes", pack(t, query(`a\.b\000c.example.`, dns.TypeA)), `a\.b\000c.example.`, nil},
		{"the longest name", pack(t, query(long, dns.TypeA)), long, nil},
		{"empty", nil, "", ErrShort},
		{"header alone", make([]byte, 12), "", ErrMessage},
		{"cut in the name", pack(t, query("example.org.", dns.TypeA))[:20], "", ErrShort},
		{"cut in the type", pack(t, query("example.org.", dns.TypeA))[:26], "", ErrShort},
		{"a pointer in the question", append(make([]byte, 5), 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1), "", ErrMessage},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := ParseHead(c.in)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && NameString(h.Name) != c.want {
				t.Errorf("name %q, want %q", NameString(h.Name), c.want)
			}
		})
	}
}

func TestNameTooLongByOneByteIsRefused(t *testing.T) {
	b := make([]byte, HeaderSize)
	b[5] = 1
	for range 4 {
		b = append(b, 63)
		b = append(b, bytes.Repeat([]byte{'a'}, 63)...)
	}
	b = append(b, 0, 0, 1, 0, 1)
	if _, err := ParseHead(b); !errors.Is(err, errName) {
		t.Fatalf("error %v, want %v", err, errName)
	}
}

func TestParseBodyReadsAnswersAndEDNS(t *testing.T) {
	q := query("www.example.org.", dns.TypeA)
	m := answerTo(q,
		&dns.CNAME{Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: dns.TypeCNAME, Class: 1}, Target: "web.example.org."},
		&dns.A{Hdr: dns.RR_Header{Name: "web.example.org.", Rrtype: dns.TypeA, Class: 1}, A: net.IPv4(192, 0, 2, 1)},
		&dns.AAAA{Hdr: dns.RR_Header{Name: "web.example.org.", Rrtype: dns.TypeAAAA, Class: 1},
			AAAA: net.ParseIP("2001:db8::1")})
	m.SetEdns0(1232, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: 15, ExtraText: "blocked"})
	m.Rcode = dns.RcodeBadVers // needs OPT's bits
	b := pack(t, m)
	h, err := ParseHead(b)
	if err != nil {
		t.Fatal(err)
	}
	body := ParseBody(b, h)
	want := []string{"web.example.org.", "192.0.2.1", "2001:db8::1"}
	if !slices.Equal(body.Answers, want) {
		t.Errorf("answers %q, want %q", body.Answers, want)
	}
	if !body.HasEDNS || body.UDPSize != 1232 || !body.DO || body.Rcode != dns.RcodeBadVers || body.EDE != 15 ||
		body.EDEText != "blocked" || !body.Complete {
		t.Errorf("%+v", body)
	}
	for n := range b {
		if h, err := ParseHead(b[:n]); err == nil && ParseBody(b[:n], h).Complete {
			t.Fatalf("complete at %d of %d bytes", n, len(b))
		}
	}
}

func TestCompressionLoopEnds(t *testing.T) {
	q := query("a.", dns.TypeCNAME)
	b := pack(t, q)
	b[2] |= 0x80
	b[7] = 1
	self := len(b) + 12
	b = append(b, 0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 0, 0, 2, 0xc0, byte(self))
	h, err := ParseHead(b)
	if err != nil {
		t.Fatal(err)
	}
	if body := ParseBody(b, h); len(body.Answers) != 0 {
		t.Errorf("answers %q from a loop", body.Answers)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(pack(f, query("example.org.", dns.TypeA)))
	f.Add(pack(f, answerTo(query("example.org.", dns.TypeA),
		&dns.CNAME{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeCNAME, Class: 1}, Target: "b.example.org."})))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHead(b)
		if err != nil {
			return
		}
		ParseBody(b, h)
		if h.Questions == 0 {
			return
		}
		// What CoreDNS reads from the same bytes must be the same name, or the two sides derive different trace IDs.
		name, _, err := dns.UnpackDomainName(b, HeaderSize)
		if err == nil && name != NameString(h.Name) {
			t.Errorf("%q, miekg/dns has %q", NameString(h.Name), name)
		}
		if err != nil {
			t.Errorf("%q read where miekg/dns says %v", NameString(h.Name), err)
		}
	})
}

func BenchmarkParseHead(b *testing.B) {
	m := pack(b, query("kubernetes.default.svc.cluster.local.", dns.TypeA))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseHead(m); err != nil {
			b.Fatal(err)
		}
	}
}

// Every byte at every place of eight and behind them is as [lower] has it.
func TestAppendLower(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				name := bytes.Repeat([]byte{'Q'}, n)
				name[at] = byte(c)
				want := bytes.Repeat([]byte{'q'}, n)
				want[at] = lower(byte(c))
				if got := AppendLower([]byte{'X'}, name); string(got) != "X"+string(want) {
					t.Fatalf("%q in lower case: %q", name, got)
				}
			}
		}
	}
}

func BenchmarkAppendLower(b *testing.B) {
	name := []byte("\x0akubernetes\x07Default\x03svc\x07cluster\x05local\x00")
	var buf [maxName]byte
	b.ReportAllocs()
	for b.Loop() {
		AppendLower(buf[:0], name)
	}
}
