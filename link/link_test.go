package link

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vector is one row of testdata/vectors.json.
type vector struct {
	Name         string `json:"name"`
	Transport    uint8  `json:"transport"`
	Address      string `json:"client_address"`
	Port         uint16 `json:"client_port"`
	ID           uint16 `json:"dns_id"`
	QName        string `json:"qname_presentation"`
	QNameWire    string `json:"qname_wire_hex"`
	QType        uint16 `json:"qtype"`
	QClass       uint16 `json:"qclass"`
	UnixNanos    int64  `json:"unix_nanos"`
	Epoch        int64  `json:"epoch"`
	Input        string `json:"hash_input_hex"`
	TraceID      string `json:"trace_id"`
	ClientSpanID string `json:"client_span_id"`
}

func (v *vector) derive(t *testing.T) {
	t.Helper()
	qname, err := AppendQName(nil, v.QName)
	if err != nil {
		t.Fatal(err)
	}
	k := Key{Transport(v.Transport), netip.AddrPortFrom(netip.MustParseAddr(v.Address), v.Port), v.ID, qname, v.QType,
		v.QClass}
	e := EpochOfNanos(v.UnixNanos)
	id := k.TraceID(e)
	v.QNameWire, v.Epoch, v.Input = hex.EncodeToString(qname), int64(e), hex.EncodeToString(k.Append(nil, e))
	v.TraceID, v.ClientSpanID = id.String(), id.ClientSpanID().String()
}

var questions = []vector{
	{Name: "IPv4, UDP", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b, QName: "example.org.",
		QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_000_000_000_000},
	{Name: "the same, mapped into IPv6", Transport: 17, Address: "::ffff:10.244.1.10", Port: 53660, ID: 0x1a2b,
		QName: "example.org.", QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_000_000_000_000},
	{Name: "the same over TCP", Transport: 6, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b, QName: "example.org.",
		QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_000_000_000_000},
	{Name: "one nanosecond before the next epoch", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b,
		QName: "example.org.", QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_007_999_999_999},
	{Name: "the next epoch", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b, QName: "example.org.",
		QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_008_000_000_000},
	{Name: "IPv6, AAAA", Transport: 17, Address: "fd00:10:244:1::10", Port: 1024, ID: 0,
		QName: "kubernetes.default.svc.cluster.local.", QType: dns.TypeAAAA, QClass: dns.ClassINET,
		UnixNanos: 1_790_000_001_234_567_890},
	{Name: "0x20: mixed case", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b, QName: "eXaMpLe.OrG.",
		QType: dns.TypeA, QClass: dns.ClassINET, UnixNanos: 1_790_000_000_000_000_000},
	{Name: "escaped bytes", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0x1a2b,
		QName: `a\.b.\000\255\\.example.org.`, QType: dns.TypeTXT, QClass: dns.ClassINET,
		UnixNanos: 1_790_000_000_000_000_000},
	{Name: "the root", Transport: 17, Address: "10.244.1.10", Port: 53660, ID: 0xffff, QName: ".", QType: dns.TypeNS,
		QClass: dns.ClassINET, UnixNanos: 1_790_000_000_000_000_000},
	{Name: "the longest name, class CH", Transport: 6, Address: "2001:db8::1", Port: 65535, ID: 1,
		QName: strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("y", 61) +
			".", QType: 65535, QClass: dns.ClassCHAOS, UnixNanos: 0},
}

// The derivation is a contract: a change of any vector is a change of the specification's version.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	got := make([]vector, len(questions))
	for i, v := range questions {
		v.derive(t)
		got[i] = v
	}
	if *update {
		b, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Errorf("%s:\n got %+v\nwant %+v", got[i].Name, got[i], want[i])
			}
		}
		t.Fatalf("%d vectors derived, %d in %s", len(got), len(want), file)
	}
	byName := map[string]string{}
	for _, v := range got {
		byName[v.Name] = v.TraceID
	}
	if byName["IPv4, UDP"] != byName["the same, mapped into IPv6"] {
		t.Error("an IPv4 client and its v4-mapped form have different trace IDs")
	}
	for _, other := range []string{"the same over TCP", "the next epoch", "0x20: mixed case"} {
		if byName["IPv4, UDP"] == byName[other] {
			t.Errorf("%q has the trace ID of the plain query", other)
		}
	}
	if byName["IPv4, UDP"] != byName["one nanosecond before the next epoch"] {
		t.Error("the trace ID changed within an epoch")
	}
}

// What a client puts on the wire is what the plugin restores from the unpacked message, byte for byte.
func TestAppendQNameRestoresTheWire(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var wire []byte
		for len(wire) < 200 && rng.IntN(5) > 0 {
			label := make([]byte, 1+rng.IntN(30))
			for i := range label {
				label[i] = byte(rng.Uint32())
			}
			wire = append(append(wire, byte(len(label))), label...)
		}
		wire = append(wire, 0)
		name, _, err := dns.UnpackDomainName(wire, 0)
		if err != nil {
			t.Fatalf("%x: %v", wire, err)
		}
		got, err := AppendQName(nil, name)
		if err != nil || string(got) != string(wire) {
			t.Fatalf("%x -> %q -> %x, %v", wire, name, got, err)
		}
	}
}

func TestAppendQNameRefuses(t *testing.T) {
	for _, name := range []string{
		strings.Repeat("x", 64) + ".org.",
		strings.Repeat(strings.Repeat("x", 63)+".", 4),
		"a..b.",
		".a.",
	} {
		dst := []byte("kept")
		got, err := AppendQName(dst, name)
		if !errors.Is(err, ErrName) || string(got) != "kept" {
			t.Errorf("AppendQName(%q) = %q, %v; want %q, ErrName", name, got, err, "kept")
		}
	}
	for name, want := range map[string]string{"": "\x00", ".": "\x00", "org": "\x03org\x00"} {
		if got, err := AppendQName(nil, name); err != nil || string(got) != want {
			t.Errorf("AppendQName(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

// The share of lookups that link is the product's promise (design, section 6): the server's clock is off by up to 10
// ms, the tracer sends under the candidates it computes from what it saw.
func TestLinkRateWithClocksApart(t *testing.T) {
	const lookups = 2_000_000
	rng := rand.New(rand.NewPCG(3, 4))
	var linked, copies, crossing int
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range lookups {
		arrival := base.Add(time.Duration(rng.Int64N(int64(time.Hour))))
		handled := time.Duration(rng.Int64N(int64(2 * time.Millisecond))) // socket queue and scheduling
		answer := arrival.Add(handled + time.Duration(rng.ExpFloat64()*float64(20*time.Millisecond)))
		skew := time.Duration(rng.Int64N(int64(20*time.Millisecond))) - 10*time.Millisecond
		server := EpochOf(arrival.Add(handled + skew))
		first, last := Epochs(arrival, answer, DefaultGuard)
		if server >= first && server <= last {
			linked++
		}
		copies += int(last - first)
		if EpochOf(arrival) != server {
			crossing++
		}
	}
	share := float64(linked) / lookups
	t.Logf("linked %d of %d (%.4f %%), %d of them across an epoch boundary; %.2f %% copies", linked, lookups, share*100,
		crossing, float64(copies)*100/lookups)
	if share < 0.9999 || crossing == 0 {
		t.Errorf("link rate %.6f with %d lookups across a boundary, want >= 0.9999 with some", share, crossing)
	}
}

func TestEpochs(t *testing.T) {
	start := Epoch(1000).Start()
	for _, tt := range []struct {
		name        string
		from, to    time.Duration // after the start of epoch 1000
		first, last Epoch
	}{
		{"in the middle", time.Second, 2 * time.Second, 1000, 1000},
		{"just after the start", 10 * time.Millisecond, 20 * time.Millisecond, 999, 1000},
		{"just before the end", 7 * time.Second, 7990 * time.Millisecond, 1000, 1001},
		{"over the boundary", 7 * time.Second, 9 * time.Second, 1000, 1001},
		{"longer than an epoch", time.Second, 17 * time.Second, 1000, 1002},
		{"to before from", 2 * time.Second, time.Second, 1000, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, last := Epochs(start.Add(tt.from), start.Add(tt.to), DefaultGuard)
			if first != tt.first || last != tt.last {
				t.Errorf("Epochs = %d, %d, want %d, %d", first, last, tt.first, tt.last)
			}
		})
	}
}

func TestTransportString(t *testing.T) {
	for tr, want := range map[Transport]string{UDP: "udp", TCP: "tcp", 132: "ip-132"} {
		if got := tr.String(); got != want {
			t.Errorf("Transport(%d) = %q, want %q", uint8(tr), got, want)
		}
	}
}

func FuzzAppendQName(f *testing.F) {
	for _, v := range questions {
		f.Add(v.QName)
	}
	f.Add(`\`)
	f.Add(`\25`)
	f.Add(`\999.`)
	f.Fuzz(func(t *testing.T, name string) {
		wire, err := AppendQName(nil, name)
		if err != nil {
			return
		}
		if len(wire) == 0 || len(wire) > MaxQName || wire[len(wire)-1] != 0 {
			t.Fatalf("%q: wire form %x", name, wire)
		}
		again, end, err := dns.UnpackDomainName(wire, 0)
		if err != nil || end != len(wire) {
			t.Fatalf("%q: wire form %x does not unpack: %v", name, wire, err)
		}
		if back, err := AppendQName(nil, again); err != nil || string(back) != string(wire) {
			t.Fatalf("%q -> %x -> %q -> %x, %v", name, wire, again, back, err)
		}
	})
}

func BenchmarkTraceID(b *testing.B) {
	k := Key{Transport: UDP, Client: netip.MustParseAddrPort("10.244.1.10:53660"), ID: 1, QType: 1, QClass: 1}
	k.QName, _ = AppendQName(nil, "kubernetes.default.svc.cluster.local.")
	b.ReportAllocs()
	for e := Epoch(0); b.Loop(); e++ {
		_ = k.TraceID(e).ClientSpanID()
	}
}

func BenchmarkAppendQName(b *testing.B) {
	var buf [MaxQName]byte
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AppendQName(buf[:0], "kubernetes.default.svc.cluster.local."); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzAppendPlain holds the short way for plain names against miekg/dns's packing.
func FuzzAppendPlain(f *testing.F) {
	for _, s := range []string{".", "a.", "a", "..", "www.Example.org.", `a\.b.`, "a..b.", strings.Repeat("a", 63) + ".",
		strings.Repeat("a", 64) + ".", strings.Repeat("abcdefg.", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := appendPlain([]byte("x"), name)
		if !ok {
			if string(got) != "x" {
				t.Errorf("%q: gives %q with what it was given", name, got)
			}
			return
		}
		var buf [300]byte
		end, err := dns.PackDomainName(name, buf[:], 0, nil, false)
		if err != nil || end > MaxQName || string(got[1:]) != string(buf[:end]) {
			t.Errorf("%q: %x, want %x (%v)", name, got[1:], buf[:end], err)
		}
	})
}

func TestQuestionHash(t *testing.T) {
	name, err := AppendQName(nil, "Payments.shop.svc.cluster.local.")
	if err != nil {
		t.Fatal(err)
	}
	k := Key{Transport: UDP, Client: netip.MustParseAddrPort("10.244.1.10:40000"), ID: 0x1234, QName: name, QType: 1,
		QClass: 1}
	const want = uint64(0xa3ec06c6ce35268e)
	if got := k.QuestionHash(); got != want {
		t.Errorf("%#016x, want %#016x, as HINDSIGHT.md states", got, want)
	}
	translated := k
	translated.Transport, translated.Client = TCP, netip.MustParseAddrPort("192.0.2.1:1")
	if translated.QuestionHash() != want {
		t.Error("it depends on what is translated on the way")
	}
	for what, change := range map[string]func(*Key){
		"ID": func(k *Key) { k.ID++ }, "name": func(k *Key) { k.QName = []byte("\x01a\x00") },
		"type": func(k *Key) { k.QType++ }, "class": func(k *Key) { k.QClass++ },
	} {
		other := k
		if change(&other); other.QuestionHash() == want {
			t.Errorf("another %s has the same hash", what)
		}
	}
	if n := testing.AllocsPerRun(100, func() { k.QuestionHash() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
