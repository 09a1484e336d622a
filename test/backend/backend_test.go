package backend

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// absent skips the test, except where everything must be there.
func absent(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
		t.Fatal(what)
	}
	t.Skip(what)
}

func jaegerBinary(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DNSTRAIL_BIN")
	if dir == "" {
		dir = "../../bin"
	}
	bin := filepath.Join(dir, "jaeger")
	if _, err := os.Stat(bin); err != nil {
		absent(t, "jaeger is not built (make jaeger)")
	}
	return bin
}

func send(t *testing.T, addr string, spans []*trace.Span) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := ptraceotlp.NewGRPCClient(conn).Export(context.Background(),
		ptraceotlp.NewExportRequestFromTraces(trace.ToOTLP(spans))); err != nil {
		t.Fatal(err)
	}
}

// TestJaegerGivesBackEveryTrace: more traces than a page holds, some of them at the same instant, asked for by time;
// and the store answers the same questions with the same traces.
func TestJaegerGivesBackEveryTrace(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	j, err := StartJaeger(ctx, jaegerBinary(t), "../jaeger/config.yaml", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Stop()
	mine := store.New(store.Limits{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() { _ = http.Serve(l, traceapi.Handler(mine)) }()

	const n = 3*traceapi.Page + 17
	begin := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	tracer := &trace.Scope{Name: semconv.ScopeTracer, SchemaURL: semconv.SchemaURL}
	cart := &trace.Resource{Attributes: trace.Attributes{{Key: semconv.ServiceName, Value: "cart"},
		{Key: semconv.K8SPodName, Value: "cart-1"}}}
	coredns := &trace.Resource{Attributes: trace.Attributes{{Key: semconv.ServiceName, Value: "coredns"}}}
	plugin := &trace.Scope{Name: semconv.ScopePlugin}
	var spans []*trace.Span
	want := map[link.TraceID]string{}
	for i := range n {
		var id link.TraceID
		_, _ = rand.Read(id[:])
		at := begin.Add(time.Duration(i/5) * 10 * time.Millisecond) // five at a time
		name := fmt.Sprintf("name-%d.example.", i)
		want[id] = name
		spans = append(spans,
			&trace.Span{
				TraceID: id, SpanID: id.ClientSpanID(), Name: "DNS A", Kind: trace.KindClient, Start: at,
				End:      at.Add(time.Millisecond),
				Resource: cart, Scope: tracer,
				Attributes: trace.Attributes{{Key: semconv.QuestionName, Value: name}, {Key: semconv.DNSID, Value: int64(i)},
					{Key: semconv.Hops, Value: []any{"eth0 out", "eth0 in"}}},
			},
			&trace.Span{
				TraceID: id, SpanID: link.SpanID{7: 1}, Parent: id.ClientSpanID(), Name: "DNS A", Kind: trace.KindServer,
				Start: at.Add(100 * time.Microsecond), End: at.Add(900 * time.Microsecond), Resource: coredns, Scope: plugin,
				Attributes: trace.Attributes{{Key: semconv.ResponseWritten, Value: true},
					{Key: semconv.ForwardDuration, Value: 0.25}},
			})
	}
	send(t, j.OTLP, spans)
	mine.Add(spans...)

	for name, base := range map[string]string{"Jaeger": j.Query, "store": "http://" + l.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			c, err := traceapi.NewClient(base, nil)
			if err != nil {
				t.Fatal(err)
			}
			from, to := begin.Add(-time.Second), begin.Add(time.Minute)
			var traces []*trace.Trace
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				if traces, err = c.All(ctx, "cart", from, to); err != nil {
					t.Fatal(err)
				}
				if len(traces) == n || time.Now().After(end) {
					break
				}
			}
			if len(traces) != n {
				t.Fatalf("%d traces of %d", len(traces), n)
			}
			for i, tr := range traces {
				if tr.Name() != want[tr.ID] || !tr.Linked() || len(tr.Missing()) != 0 || len(tr.Spans) != 2 {
					t.Fatalf("trace %v: %s, want %s; linked %v, %d spans", tr.ID, tr.Name(), want[tr.ID], tr.Linked(), len(tr.Spans))
				}
				if hops := tr.Client().Attributes.Strings(semconv.Hops); len(hops) != 2 {
					t.Fatalf("hops %v", hops)
				}
				if tr.Server().Attributes.Float(semconv.ForwardDuration) != 0.25 || tr.Asker().Pod != "cart-1" {
					t.Fatalf("attributes changed on the way: %+v, %+v", tr.Server().Attributes, tr.Asker())
				}
				if i > 0 && tr.Start().Before(traces[i-1].Start()) {
					t.Fatal("not in order of time")
				}
			}
			one, err := c.Trace(ctx, traces[7].ID)
			if err != nil || len(one.Spans) != 2 {
				t.Errorf("one trace: %v, %v", one, err)
			}
			if _, err := c.Trace(ctx, link.TraceID{15: 1}); err == nil {
				t.Error("a trace that nobody sent was found")
			}
			services, err := c.Services(ctx)
			if err != nil || fmt.Sprint(services) != "[cart coredns]" {
				t.Errorf("services %v, %v", services, err)
			}
		})
	}
}

func TestPrometheusKeepsExemplars(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		absent(t, "prometheus is not installed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0")
			_, _ = fmt.Fprintf(w, "# TYPE lookups counter\nlookups_total{pod=\"cart\"} 5 # "+
				"{trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 0.5 %d\n# EOF\n", time.Now().Unix())
		}))
	}()
	p, err := StartPrometheus(ctx, t.TempDir(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	for {
		samples, err := p.Instant(ctx, "lookups_total")
		if err != nil {
			t.Fatal(err)
		}
		exemplars, err := p.Exemplars(ctx, "lookups_total")
		if err != nil {
			t.Fatal(err)
		}
		if len(samples) == 1 && len(exemplars) > 0 {
			if samples[0].Value != 5 || samples[0].Labels["pod"] != "cart" ||
				exemplars[0].Labels["trace_id"] != "4bf92f3577b34da6a3ce929d0e0e4736" {
				t.Errorf("%+v, %+v", samples, exemplars)
			}
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%+v, %+v", samples, exemplars)
		case <-time.After(200 * time.Millisecond):
		}
	}
	if _, err := p.Instant(ctx, "this is no expression"); err == nil {
		t.Error("a broken expression was taken")
	}
}
