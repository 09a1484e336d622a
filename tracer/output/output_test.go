package output

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

var update = flag.Bool("update", false, "write testdata anew")

// rows are lookups as a user meets them.
func rows() []*Row {
	at := time.Date(2026, 11, 21, 12, 1, 7, 113e6, time.UTC)
	cart := Client{
		Address: "10.244.1.10:41000", Namespace: "shop", Pod: "cart-7f9c5d4b8-x2x7k",
		PodUID:       "5e2a0000-0000-4000-8000-000000000001",
		WorkloadKind: "Deployment", Workload: "cart", Node: "node-1", Process: "curl", PID: 4711,
	}
	return []*Row{
		{
			Schema: SchemaVersion, Time: at, Client: cart, Server: "10.96.0.10:53", Transport: "udp", ID: 1,
			Name: "api.example.com.", Type: "A",
			Result: "NOERROR", Answers: []string{"192.0.2.1"}, AnsweredBy: "10.244.2.10:53", ResponseLen: 49,
			Total: 12_400_000, ToServer: new(int64(110_000)), AtServer: new(int64(12_120_000)),
			Return: new(int64(170_000)), ServerSeen: true, Attempts: 1,
			Verdict: Verdict{Where: "answered", Cause: "answered", Certainty: "certain"},
			TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Group: "4bf92f3577b34da6a3ce929d0e0e4736",
			Hops: []Hop{{Kind: "out", Attempt: 1, Device: "eth0", NetNS: 4026532201, Src: "10.244.1.10:41000",
				Dst: "10.96.0.10:53", Process: "curl", PID: 4711}},
		},
		{
			Schema: SchemaVersion, Time: at.Add(900 * time.Millisecond), Client: cart,
			Server: "10.96.0.10:53", Transport: "udp", ID: 2,
			Name: "db.shop.svc.cluster.local.", Type: "AAAA", Result: Lost, Total: 51_000, Attempts: 2,
			Verdict: Verdict{
				Where: "node", Cause: "policy-drop", Certainty: "certain", Drop: "NETFILTER_DROP",
				Text:     "the query was lost at cbr0: dropped by a firewall rule or network policy (NETFILTER_DROP)",
				Evidence: []string{"dropped at cbr0 on node node-1: NETFILTER_DROP"},
			},
			TraceID: "91aa0000000000000000000000000001", Hops: []Hop{},
		},
		{
			Schema: SchemaVersion, Time: at.Add(time.Second),
			Client: Client{Address: "[fd00:10:244:1::10]:41000", Process: "node\x1b[31m"}, Server: "[fd00:10:96::a]:53",
			Transport: "tcp", ID: 3, Name: strings.Repeat("long-label.", 8), Type: "HTTPS", Result: "SERVFAIL",
			Total:    4_000_300_000,
			ToServer: new(int64(150_000)), AtServer: new(int64(4_000_000_000)), Return: new(int64(150_000)), Attempts: 1,
			Verdict: Verdict{Where: "upstream", Cause: "timeout", Certainty: "inferred",
				Text: "the server answered SERVFAIL: upstream 192.0.2.53:53 did not answer"},
			TraceID: "91aa0000000000000000000000000002", Truncated: true, Revision: 1, Hops: []Hop{},
		},
		{
			Schema: SchemaVersion, Time: at.Add(2 * time.Second), Client: Client{Address: "192.168.100.11:5000",
				Node: "node-1"}, Server: "10.96.0.10:53",
			Transport: "udp", ID: 4, Name: "www.example.org.cluster.local.", Type: "A", Result: "NXDOMAIN", Total: 900,
			ToServer: new(int64(400)), AtServer: new(int64(300)), Return: new(int64(200)),
			ServerSeen: true, Attempts: 1, Verdict: Verdict{Where: "answered", Cause: "answered", Certainty: "certain"},
			TraceID: "91aa0000000000000000000000000003", Serves: "", SearchStep: 2, Related: []Related{{"search",
				"91aa0000000000000000000000000009"}}, Hops: []Hop{},
		},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (write it anew with -update):\n%s", path, got)
	}
}

func TestText(t *testing.T) {
	t.Setenv("TZ", "UTC")
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	for name, w := range map[string]*Text{
		"rows.txt": {}, "rows.wide.txt": {Wide: true,
			Width: 80}, "rows.80.txt": {Width: 80}, "rows.120.txt": {Width: 120}, "rows.160.txt": {Width: 160},
		"rows.300.txt":       {Width: 300},
		"rows.colour.txt":    {Width: 100, Colour: true},
		"rows.yesterday.txt": {Width: 100, Now: func() time.Time { return rows()[0].Time.Add(24 * time.Hour) }},
		"rows.today.txt":     {Width: 100, Now: func() time.Time { return rows()[0].Time.Add(time.Hour) }},
	} {
		var b bytes.Buffer
		w.W = &b
		for _, r := range rows() {
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if strings.ContainsRune(b.String(), 0x1b) != w.Colour || strings.Contains(b.String(), "node\x1b") {
			t.Errorf("%s: an escape sequence of a process's name reaches the terminal", name)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); w.Width > 0 && w.Width < 170 && !w.Wide &&
				!w.Colour && w.Now == nil && n > w.Width {
				t.Errorf("%s: %d cells wide: %s", name, n, line)
			}
		}
		golden(t, name, b.Bytes())
	}
}

func TestJSONL(t *testing.T) {
	var b bytes.Buffer
	w := NewJSONL(&b)
	for _, r := range rows() {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "rows.jsonl", b.Bytes())
	d := json.NewDecoder(&b)
	for _, want := range rows() {
		var got Row
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Errorf("read back as %+v, want %+v", &got, want)
		}
	}
}

// TestEveryFieldIsDocumented holds docs/jsonl.md against the fields of Row.
func TestEveryFieldIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/jsonl.md")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !bytes.Contains(doc, []byte("| `"+prefix+name+"` |")) {
				t.Errorf("docs/jsonl.md does not say what %s%s is", prefix, name)
			}
			ft := f.Type
			if ft.Kind() == reflect.Slice {
				ft, name = ft.Elem(), name+"[]"
			}
			if ft.Kind() == reflect.Struct && ft != reflect.TypeFor[time.Time]() {
				walk(prefix+name+".", ft)
			}
		}
	}
	walk("", reflect.TypeFor[Row]())
}

func TestFilter(t *testing.T) {
	yes, no := true, false
	at := rows()[0].Time
	for _, c := range []struct {
		name string
		f    Filter
		want []int // of rows
	}{
		{"everything", Filter{}, []int{0, 1, 2, 3}},
		{"lost", Filter{Lost: &yes}, []int{1}},
		{"not lost", Filter{Lost: &no}, []int{0, 2, 3}},
		{"slow", Filter{Slow: 10 * time.Millisecond}, []int{0, 2}},
		{"rcode, any case", Filter{Rcodes: []string{"servfail", "nxdomain"}}, []int{2, 3}},
		{"not this rcode", Filter{Rcodes: []string{"!noerror"}}, []int{1, 2, 3}},
		{"type", Filter{Types: []string{"AAAA"}}, []int{1}},
		{"name without its final dot", Filter{Names: []string{"api.example.com"}}, []int{0}},
		{"name with it", Filter{Names: []string{"API.example.com."}}, []int{0}},
		{"a star matches dots", Filter{Names: []string{"*.cluster.local"}}, []int{1, 3}},
		{"some, but not others", Filter{Names: []string{"*.cluster.local", "!db.*"}}, []int{3}},
		{"pod", Filter{Clients: []string{"shop/cart-*"}}, []int{0, 1}},
		{"workload", Filter{Clients: []string{"cart"}}, []int{0, 1}},
		{"address", Filter{Clients: []string{"fd00:10:244:1::10"}}, []int{2}},
		{"node", Filter{Clients: []string{"node-1"}}, []int{0, 1, 3}},
		{"namespace", Filter{Namespaces: []string{"!shop"}}, []int{2, 3}},
		{"process", Filter{Processes: []string{"cur?"}}, []int{0, 1}},
		{"since", Filter{Since: at.Add(time.Second)}, []int{2, 3}},
		{"all together", Filter{Lost: &yes, Namespaces: []string{"shop"}, Types: []string{"A"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.f.Check(); err != nil {
				t.Fatal(err)
			}
			var got []int
			for i, r := range rows() {
				if c.f.Takes(r) {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
	for _, bad := range []string{"[", "", "!"} {
		if err := (&Filter{Names: []string{bad}}).Check(); err == nil {
			t.Errorf("pattern %q passes", bad)
		}
	}
}

func TestRowsComeInOrderOfTime(t *testing.T) {
	var got []int
	o := Order{Window: 100 * time.Millisecond, Give: func(r *Row) error { got = append(got, int(r.ID)); return nil }}
	r := rows()
	now := time.Unix(1000, 0)
	o.Add(r[2], now)
	o.Add(r[0], now.Add(50*time.Millisecond))
	o.Add(r[3], now.Add(90*time.Millisecond))
	if err := o.Tick(now.Add(99 * time.Millisecond)); err != nil || got != nil {
		t.Fatalf("%v given early (%v)", got, err)
	}
	if err := o.Tick(now.Add(100 * time.Millisecond)); err != nil || !slices.Equal(got, []int{1, 3}) {
		t.Fatalf("%v, want those up to the one that waited long enough (%v)", got, err)
	}
	o.Add(r[1], now.Add(200*time.Millisecond))
	if err := o.Flush(); err != nil || !slices.Equal(got, []int{1, 3, 2, 4}) {
		t.Errorf("%v (%v)", got, err)
	}
}

// TestColumnsStand: whatever a process is called, what stands to its right is where it is in every row, in cells.
func TestColumnsStand(t *testing.T) {
	for _, process := range []string{
		"dig", "東京東京東京", "a\u202eb", "\u200b\u200b\u200b\u200b", "z\u0301\u0302\u0303\u0304", "\u3164", "\x1b[8m", "\xff\xfe",
		"👩\u200d👩",
		"가\u1161", "e\u0301", "\u0301\u0301",
	} {
		row := &Row{
			Schema: SchemaVersion, Time: time.Unix(0, 0).UTC(), Name: "a.example.",
			Client: Client{Address: "10.0.0.1:1", Process: process}, Type: "A", Result: "NOERROR",
			TraceID: strings.Repeat("0", 32), Verdict: Verdict{Where: "answered"},
		}
		for _, width := range []int{80, 100, 160, 300} {
			var b strings.Builder
			if err := (&Text{W: &b, Width: width}).Write(row); err != nil {
				t.Fatal(err)
			}
			head, line, _ := strings.Cut(b.String(), "\n")
			want := strings.Index(head, "NAME")
			before, _, ok := strings.Cut(line, "a.example.")
			if got := printable.Width(before); !ok || got != want {
				t.Errorf("process %+q: the name stands at cell %d, want %d: %+q", process, got, want, line)
			}
			if bad := strings.IndexFunc(before, func(r rune) bool { return !unicode.IsPrint(r) }); bad >= 0 {
				t.Errorf("process %+q: not text: %+q", process, line)
			}
		}
	}
}

// TestWhatWasNotAskedIsNotShown: of what never was a packet neither the question nor the socket's own address is known.
func TestWhatWasNotAskedIsNotShown(t *testing.T) {
	client := hop.EndpointOf(netip.MustParseAddrPort("0.0.0.0:40000"))
	server := hop.EndpointOf(netip.MustParseAddrPort("10.96.0.10:53"))
	l := &lookup.Lookup{
		Client: client, Translated: client, Server: server, Attempts: 1, Unsent: &lookup.Unsent{},
		Hops: []hop.Hop{{Time: 1, Kind: hop.Unsent, Src: client, Dst: server}},
	}
	v := &verdict.Verdict{Where: verdict.Client, Cause: verdict.CauseNoRoute}
	for want, o := range map[string]*origin.Origin{
		"": {}, "10.244.1.10:40000": {OwnAddr: netip.MustParseAddr("10.244.1.10")},
	} {
		if r := NewRow(l, v, o, "", 0); r.Type != "" || r.Class != "" || r.Client.Address != want {
			t.Errorf("type %q, class %q, client %q, want %q", r.Type, r.Class, r.Client.Address, want)
		}
	}
}
