package attack

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// storeLimit is the memory that the manifests give a store, in bytes.
const storeLimit = 1 << 30

// service is a store in a memory cgroup, and who attacks it: from another address than those who send to it.
type service struct {
	grpc, http, api string
	process         *lab.Process
	cgroup          *lab.MemoryCgroup
	attacker        *http.Client

	requests, refused atomic.Int64
}

func newService(t *testing.T) *service {
	t.Helper()
	var ports []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().String())
		defer func() { _ = l.Close() }() // all of them are free at once
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}, Timeout: 5 * time.Second}
	return &service{
		grpc: ports[0], http: ports[1], api: ports[2],
		attacker: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: dialer.DialContext}},
	}
}

func (v *service) start(t *testing.T, s *scene) {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(os.Getenv("DNSTRAIL_BIN"), "dnstrail"))
	if err != nil {
		t.Fatal(err)
	}
	if v.cgroup, err = s.AddMemoryCgroup(storeLimit); err != nil {
		t.Fatal(err)
	}
	v.process, err = s.Start(v.cgroup.Command(lab.Command{
		Path: bin, Args: []string{"store", "--grpc", v.grpc, "--http", v.http, "--api", v.api},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", v.api)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the store does not start: %v\n%s", err, cluster.Tail(v.process))
		}
	}
}

// post sends an export request in the attacker's name. What becomes of it is the store's affair, but for an answer.
func (v *service) post(ctx context.Context, body []byte) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write(body) // into memory
	_ = w.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.http+"/v1/traces", &zipped)
	if err != nil {
		panic(err) // never: the URL is ours
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "gzip")
	resp, err := v.attacker.Do(r)
	v.requests.Add(1)
	if err != nil {
		v.refused.Add(1)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		v.refused.Add(1)
	}
}

func request(spans ...*trace.Span) []byte {
	b, err := ptraceotlp.NewExportRequestFromTraces(trace.ToOTLP(spans)).MarshalProto()
	if err != nil {
		panic(err) // never: the spans are ours
	}
	return b
}

func newSpan(id link.TraceID, n int) *trace.Span {
	now := time.Now()
	return &trace.Span{
		TraceID: id, SpanID: link.SpanID{1, byte(n >> 16), byte(n >> 8), byte(n)}, Kind: trace.KindInternal, Name: "x",
		Start: now, End: now.Add(time.Millisecond), Scope: &trace.Scope{Name: semconv.ScopeTracer},
		Resource: &trace.Resource{Attributes: trace.Attributes{
			{Key: semconv.ServiceName, Value: "victim"}, {Key: semconv.K8SNodeName, Value: fmt.Sprint("node-", n)},
		}},
	}
}

func randomID() (id link.TraceID) {
	for i := range id {
		id[i] = byte(rand.N(256))
	}
	return id
}

// attacks are those against the store, by their names in the README; each is made again and again.
func (v *service) attacks(t *testing.T) map[string]func(ctx context.Context) {
	big := newSpan(randomID(), 1)
	big.Attributes = trace.Attributes{{Key: "x", Value: strings.Repeat("a", 15<<20)}}
	bomb := request(big)
	deep := func() []byte {
		// An attribute whose lists are nested 5,000 deep: AnyValue.array_value.values.
		var b []byte
		wrap := func(tag byte) {
			n := len(b)
			head := []byte{tag}
			for ; n >= 0x80; n >>= 7 {
				head = append(head, byte(n)|0x80)
			}
			b = append(append(head, byte(n)), b...)
		}
		for range 5000 {
			wrap(1<<3 | 2)
			wrap(5<<3 | 2)
		}
		wrap(2<<3 | 2) // value of the attribute
		wrap(9<<3 | 2) // attribute of the span
		id := randomID()
		b = append(append([]byte{1<<3 | 2, 16}, id[:]...), append([]byte{2<<3 | 2, 8, 1, 1, 1, 1, 1, 1, 1, 1}, b...)...)
		wrap(2<<3 | 2) // span
		wrap(2<<3 | 2) // of a scope
		wrap(1<<3 | 2) // of a resource
		return b
	}()
	api, err := traceapi.NewClient("http://"+v.api, v.attacker)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func(ctx context.Context){
		"S3": func(ctx context.Context) {
			traces, err := api.Newest(ctx, "victim", time.Now().Add(-time.Minute), time.Now(), 20)
			if err != nil {
				return // too many ask at once
			}
			for _, tr := range traces {
				lie := newSpan(tr.ID, 1)
				lie.SpanID, lie.Kind = tr.ID.ClientSpanID(), trace.KindClient
				lie.Attributes = trace.Attributes{
					{Key: semconv.VerdictWhere, Value: string(verdict.Node)}, {Key: semconv.VerdictCertainty, Value: trace.Certain},
					{Key: semconv.VerdictText, Value: "forged \u202e"}, {Key: semconv.ProcessPID, Value: int64(1)},
				}
				v.post(ctx, request(lie))
			}
		},
		"S4": func(ctx context.Context) { v.post(ctx, bomb) },
		"S5": func(ctx context.Context) { v.post(ctx, deep) },
		"S6": func(ctx context.Context) {
			odd := newSpan(randomID(), 1)
			odd.Start = time.Unix(0, -1<<63)
			back := newSpan(odd.TraceID, 2)
			back.End = back.Start.Add(-time.Hour)
			v.post(ctx, request(odd, back))
			_, _ = api.Trace(ctx, odd.TraceID)
		},
		"S7": func(ctx context.Context) {
			id := randomID()
			var spans []*trace.Span
			for n := range 9999 {
				s := newSpan(id, n+1)
				s.Parent = link.SpanID{1, byte(n >> 16), byte(n >> 8), byte(n)}
				spans = append(spans, s)
			}
			v.post(ctx, request(spans...))
			_, _ = api.Trace(ctx, id)
		},
		"S8": func(ctx context.Context) {
			var open []net.Conn
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}, Timeout: time.Second}
			for range 300 {
				c, err := dialer.DialContext(ctx, "tcp", v.http)
				if err != nil {
					break
				}
				// or refused already
				_, _ = io.WriteString(c, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
				open = append(open, c)
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
			for _, c := range open {
				_ = c.Close()
			}
		},
	}
}

// foreignPage asks the query API as the page of another site does, and as one does whose name was rebound.
func (v *service) foreignPage(t *testing.T) {
	t.Helper()
	for name, change := range map[string]func(r *http.Request){
		"another origin": func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		"a rebound name": func(r *http.Request) { r.Host = "evil.example" },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+v.api+"/api/v3/services", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("%s: status %d", name, resp.StatusCode)
		}
	}
}

// TestSoakUnderAttack: all attacks at once, for as long as DNSTRAIL_ATTACK_SOAK says, while a victim looks up names. No
// program ends, the victim's lookups are answered and told, the store says of them what their agent saw, and no series
// comes of what attackers choose.
func TestSoakUnderAttack(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("DNSTRAIL_ATTACK_SOAK"))
	if err != nil {
		t.Skip("DNSTRAIL_ATTACK_SOAK gives no duration: make soak-attack does")
	}
	v := newService(t)
	s := raiseFor(t, v.grpc, func(s *scene) { v.start(t, s) })
	rcodes := netip.AddrPortFrom(s.Clients[2].V6, 53) // its IPv4 address has the server that says nothing
	if _, err := (spec{Do: "rcodes", Server: rcodes}).start(s.Clients[2]); err != nil {
		t.Fatal(err)
	}
	told := s.follow(t, "victim*")
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var wg sync.WaitGroup
	rounds := map[string]*atomic.Int64{}
	again := func(name string, do func(ctx context.Context)) {
		n := &atomic.Int64{}
		rounds[name] = n
		wg.Go(func() {
			for ctx.Err() == nil {
				do(ctx)
				n.Add(1)
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	flood := func(name string, f spec) {
		again(name, func(ctx context.Context) {
			f.Prefix = fmt.Sprint(name, "-", rand.Uint32(), "-")
			p, err := f.start(s.attacker)
			if err != nil {
				t.Error(err)
				cancel()
				return
			}
			select {
			case <-p.Done():
			case <-ctx.Done():
				p.Kill()
			}
		})
	}
	flood("S1", spec{Do: "names", Server: s.silent, Count: 4000, Rate: 400})
	flood("S1s", spec{Do: "spoofed", Server: s.silent, Count: 3000, Rate: 300})
	flood("S2", spec{Do: "one-id", Server: s.silent, Count: 3000, Rate: 300})
	flood("S10", spec{Do: "names", Server: rcodes, Count: 4096, Rate: 200})
	flood("S11", spec{Do: "names", Server: s.silent, Count: 200, Rate: 50, Title: "\u202egnp.\u200bexe\u2066"})
	for name, do := range v.attacks(t) {
		again(name, do)
	}

	api, err := traceapi.NewClient("http://"+v.api, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen, looks, failed := map[link.TraceID]bool{}, 0, 0
	again("reader", func(ctx context.Context) {
		v.foreignPage(t)
		traces, err := api.Newest(ctx, "victim", time.Now().Add(-20*time.Second), time.Now().Add(-3*time.Second), 50)
		if looks++; err != nil && ctx.Err() == nil {
			failed++ // four may ask at a time, and attackers do
		}
		for _, tr := range traces {
			c := tr.Client()
			if c == nil || !strings.HasPrefix(c.String(semconv.QuestionName), "victim-") {
				continue
			}
			seen[tr.ID] = true
			if verdict := tr.Verdict(); verdict.Lost() {
				t.Errorf("%s was answered, and is told as %+v", c.String(semconv.QuestionName), verdict)
			}
		}
		time.Sleep(time.Second)
	})
	const rate = 20
	outcomes := s.asked(t, int(duration.Seconds())*rate, rate, "victim-")
	cancel()
	wg.Wait()

	lost := 0
	for _, o := range outcomes {
		if !o.Answered {
			lost++
		}
	}
	j := told.judge(t, outcomes, 15*time.Second)
	s.survives(t)
	killed, err := v.cgroup.Killed()
	if err != nil {
		t.Error(err)
	}
	peak, err := v.cgroup.Peak()
	if err != nil {
		t.Error(err)
	}
	select {
	case <-v.process.Done():
		t.Errorf("the store ended, %d processes were killed for their memory: %v\n%s", killed, v.process.Err(),
			cluster.Tail(v.process))
	default:
	}
	m := scrape(t, s.AgentMetrics[0])
	series := len(m["dns_lookup_duration_seconds"].GetMetric())
	plugin := len(scrape(t, s.Metrics)["coredns_dnstrail_client_requests_total"].GetMetric())
	if series > 200 || plugin > 200 {
		t.Errorf("%d series of the agent, %d of CoreDNS", series, plugin)
	}
	made := ""
	for name, n := range rounds {
		made += fmt.Sprintf(" %s %d", name, n.Load())
		if n.Load() == 0 && name != "reader" && duration > time.Minute {
			t.Errorf("%s was never made in full", name)
		}
	}
	f := s.stop(t)
	// Where events were lost a lookup may go untold, or be told wrong; then the row says that they were, and is not sure.
	if f.lost == 0 && (j.untold > 0 || j.wrong > 0) || j.certain > 0 || j.unaware > 0 {
		t.Errorf("of the victim's %d lookups %d were not told, %d told wrong, %d of these for certain, %d without a word "+
			"of lost events",
			len(outcomes), j.untold, j.wrong, j.certain, j.unaware)
	}
	t.Logf("%v; rounds:%s; %d requests to the store, %d of them refused; its memory: %d MiB of %d at most",
		f, made, v.requests.Load(), v.refused.Load(), peak>>20, storeLimit>>20)
	t.Logf("the victim's %d lookups: %d lost; %+v; in the store %d were looked at, of %d looks %d were turned away; "+
		"series: %d, %d",
		len(outcomes), lost, j, len(seen), looks, failed, series, plugin)
	if lost > 0 {
		t.Errorf("%d of the victim's %d lookups were lost", lost, len(outcomes))
	}
	if killed > 0 {
		t.Errorf("%d processes of the store were killed for their memory", killed)
	}
	if len(seen) == 0 {
		t.Error("the store had none of the victim's lookups")
	}
}
