package dnstrail

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/names"
)

// records are some that stand in answers.
var records = []string{
	"www.example. 60 IN A 192.0.2.7", "www.example. 60 IN AAAA 2001:db8::7", "www.example. 60 IN AAAA ::ffff:192.0.2.7",
	"www.example. 60 IN CNAME other.example.", "other.example. 60 IN A 192.0.2.8", "WWW.example. 60 IN A 192.0.2.9",
	"www.example. 60 IN PTR a\\.b.example.", "www.example. 60 IN SRV 1 2 53 other.example.", "www.example. 60 IN MX 1 " +
		"mx.example.", "www.example. 60 IN NS ns.example.", "www.example. 60 IN TXT \"text\"",
}

// message makes an answer with n of those.
func message(t *testing.T, r *rand.Rand, n int) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion([]string{"www.example.", "www.example.", "."}[r.IntN(3)], dns.TypeA)
	m.Response, m.Compress = true, r.IntN(4) > 0
	kinds := records[:1+r.IntN(len(records))]
	for range n {
		rr, err := dns.NewRR(kinds[r.IntN(len(kinds))])
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	if r.IntN(8) == 0 {
		soa, err := dns.NewRR("example. 60 IN SOA ns.example. host.example. 1 2 3 4 5")
		if err != nil {
			t.Fatal(err)
		}
		m.Ns = append(m.Ns, soa)
	}
	if r.IntN(2) == 0 {
		m.SetEdns0(1232, false)
		if opt := m.IsEdns0(); r.IntN(2) == 0 {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer, ExtraText: "old"},
				&dns.EDNS0_COOKIE{Cookie: "0102030405060708"}, &dns.EDNS0_EDE{InfoCode: 4711})
		}
	}
	return m
}

// What is remembered of an answer without its message is what its message tells: its size, what it lists, and its
// extended errors.
func TestWhatIsRememberedOfAnAnswer(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		m := message(t, r, r.IntN(20))
		if got, want := sizeOf(m), m.Len(); got != want {
			t.Fatalf("%d bytes, want %d:\n%s", got, want, m)
		}
		policy := names.New()
		if i%3 > 0 {
			if err := policy.Add("redact", "0", []string{"", "example.", "other.example."}[i%3]); err != nil {
				t.Fatal(err)
			}
		}
		q := &query{d: &Dnstrail{names: policy}, name: "www.example."}
		q.message = m
		if got, want := q.listed(appendLists(nil, m)), q.look().lists; !reflect.DeepEqual(got, want) {
			t.Fatalf("listed\n%q, want\n%q, of\n%s", got, want, m)
		}
	}
}

// What an answer lists is bounded, however long it is.
func TestListsAreBounded(t *testing.T) {
	m := new(dns.Msg).SetQuestion("www.example.", dns.TypeCNAME)
	long := strings.Repeat(strings.Repeat("a", 60)+".", 4)
	for range maxAnswers {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: "www.example."}, Target: long})
	}
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{ExtraText: strings.Repeat("x", 1000)})
	if n := len(appendLists(nil, m)); n > maxLists || n < len(long) {
		t.Errorf("%d bytes, want some, and %d at most", n, maxLists)
	}
	m.Answer = nil
	if got := appendLists(nil, m); len(got) != 1+2+1+255 {
		t.Errorf("of a long text %d bytes are remembered", len(got))
	}
}

// A ring gives what was put into it last, and nothing that others have taken the place of.
func TestRing(t *testing.T) {
	r := ring{bytes: make([]byte, 1000)}
	type piece struct {
		at   uint64
		text []byte
	}
	var pieces []piece
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 5000 {
		text := bytes.Repeat([]byte{byte(i)}, rnd.IntN(120))
		pieces = append(pieces, piece{r.put(text), text})
		held := 0
		for _, p := range slices.Backward(pieces[max(0, len(pieces)-200):]) {
			got := r.get(p.at, len(p.text))
			if got == nil {
				if len(p.text) > 0 {
					break
				}
				continue
			}
			if held += len(got); !bytes.Equal(got, p.text) {
				t.Fatalf("%v, want %v", got, p.text)
			}
		}
		if i > 100 && held < 1000-2*120 {
			t.Fatalf("%d bytes of 1000 are held", held)
		}
	}
}

func TestEnteredTimes(t *testing.T) {
	var e enteredTimes
	for i := range 2 * maxEntered {
		if got := e.at(i); i < maxEntered && got != 0 {
			t.Errorf("%d before it was entered", got)
		}
		e.set(i, int64(i)*1000)
		if got := e.at(i); got > max(enteredUnit, int64(i)*1000) || got < int64(i)*1000-enteredUnit || got == 0 {
			t.Errorf("entered at %d, want %d", got, i*1000)
		}
	}
	e.set(0, 1<<62)
	if got := fmt.Sprint(e.at(0)); got != "137438953440" {
		t.Errorf("%s ns, want the most that there is room for", got)
	}
}
