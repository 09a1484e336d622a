package e2e

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
)

// collector receives OTLP over gRPC and HTTP.
type collector struct {
	ptraceotlp.UnimplementedGRPCServer
	grpc, http string // addresses

	mu      sync.Mutex
	got     []*gotSpan
	headers []string
	behave  func(ctx context.Context) error // before it takes a batch; nil: takes it
	look    func(*gotSpan) bool             // whether it keeps a span; nil: it keeps all
}

// gotSpan is a span that arrived.
type gotSpan struct {
	ptrace.Span
	resource map[string]any
	scope    string
	traceID  string
	id       string
	parent   string
	attrs    map[string]any
}

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{}
	c.serve(t, "127.0.0.1:0")
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		req := ptraceotlp.NewExportRequest()
		if err := req.UnmarshalProto(body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		c.headers = append(c.headers, r.Header.Get("X-Test"))
		c.mu.Unlock()
		if _, err := c.Export(r.Context(), req); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		b, _ := ptraceotlp.NewExportResponse().MarshalProto()
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(b)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.http = l.Addr().String()
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return c
}

// serve serves gRPC; the function ends it.
func (c *collector) serve(t testing.TB, addr string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.grpc = l.Addr().String()
	s := grpc.NewServer()
	ptraceotlp.RegisterGRPCServer(s, c)
	go func() { _ = s.Serve(l) }()
	stop = sync.OnceFunc(s.Stop)
	t.Cleanup(stop)
	return stop
}

// Export implements ptraceotlp.GRPCServer.
func (c *collector) Export(ctx context.Context, req ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	c.mu.Lock()
	behave := c.behave
	c.mu.Unlock()
	if behave != nil {
		if err := behave(ctx); err != nil {
			return ptraceotlp.NewExportResponse(), err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.Traces().ResourceSpans().All() {
		for _, ss := range rs.ScopeSpans().All() {
			for _, s := range ss.Spans().All() {
				tid, sid, pid := s.TraceID(), s.SpanID(), s.ParentSpanID()
				g := &gotSpan{
					Span: s, resource: rs.Resource().Attributes().AsRaw(), scope: ss.Scope().Name(),
					traceID: hex.EncodeToString(tid[:]), id: hex.EncodeToString(sid[:]), attrs: s.Attributes().AsRaw(),
				}
				if !pid.IsEmpty() {
					g.parent = hex.EncodeToString(pid[:])
				}
				if c.look == nil || c.look(g) {
					c.got = append(c.got, g)
				}
			}
		}
	}
	return ptraceotlp.NewExportResponse(), nil
}

func (c *collector) set(f func(ctx context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behave = f
}

func (c *collector) spans() []*gotSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*gotSpan(nil), c.got...)
}

// trail is the spans of one query.
type trail struct {
	t    testing.TB
	root *gotSpan
	all  []*gotSpan
}

// wait waits for the trace of the nth (from 0) query for name, of any type. Traces may come out of order: who asks for
// one that is not the last waits for the last first.
func (c *collector) wait(t testing.TB, name string, nth int) *trail {
	t.Helper()
	return c.waitRoot(t, fmt.Sprintf("query %d for %s", nth, name), nth, func(s *gotSpan) bool {
		return s.Kind() == ptrace.SpanKindServer && s.attrs["dns.question.name"] == name
	})
}

// waitRoot waits for the trace of the nth span (from 0) for which is is true.
func (c *collector) waitRoot(t testing.TB, what string, nth int, is func(*gotSpan) bool) *trail {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		all := c.spans()
		slices.SortStableFunc(all, func(a, b *gotSpan) int { return cmp.Compare(a.StartTimestamp(), b.StartTimestamp()) })
		n := nth
		for _, s := range all {
			if !is(s) {
				continue
			}
			if n--; n >= 0 {
				continue
			}
			tr := &trail{t: t, root: s}
			for _, o := range all {
				if o.traceID == s.traceID && o.under(s, all) {
					tr.all = append(tr.all, o)
				}
			}
			return tr
		}
		if time.Now().After(deadline) {
			var b strings.Builder
			for _, s := range all {
				fmt.Fprintf(&b, "  %s %s %v\n", s.Name(), s.Kind(), s.attrs)
			}
			t.Fatalf("no span of %s; there are:\n%s", what, b.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// under says whether s is root or below it.
func (s *gotSpan) under(root *gotSpan, all []*gotSpan) bool {
	for s != nil && s != root {
		var up *gotSpan
		for _, o := range all {
			if o.id == s.parent && o.traceID == s.traceID {
				up = o
			}
		}
		s = up
	}
	return s != nil
}

// tree draws the trace as a tree: name, then the attributes that are asked for.
func (tr *trail) tree(attrs ...string) string {
	var b strings.Builder
	var draw func(s *gotSpan, depth int)
	draw = func(s *gotSpan, depth int) {
		b.WriteString(strings.Repeat("  ", depth) + s.Name())
		for _, a := range attrs {
			if v, ok := s.attrs[a]; ok {
				fmt.Fprintf(&b, " %v", v)
			}
		}
		b.WriteString("\n")
		for _, o := range tr.all {
			if o.parent == s.id {
				draw(o, depth+1)
			}
		}
	}
	draw(tr.root, 0)
	return b.String()
}

// attempts gives the upstream attempts, in order.
func (tr *trail) attempts() []*gotSpan {
	var l []*gotSpan
	for _, s := range tr.all {
		if s.Kind() == ptrace.SpanKindClient {
			l = append(l, s)
		}
	}
	return l
}

// forward gives the span of plugin forward; the test fails if there is none.
func (tr *trail) forward() *gotSpan {
	tr.t.Helper()
	for _, s := range tr.all {
		if s.Name() == "forward" && s.resource["service.name"] == tr.root.resource["service.name"] {
			return s
		}
	}
	tr.t.Fatalf("no span of forward in\n%s", tr.tree())
	return nil
}

// want checks attributes of a span: name, value, ...; a nil value says that the attribute is absent.
func (s *gotSpan) want(t testing.TB, pairs ...any) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		name, want := pairs[i].(string), pairs[i+1]
		got, ok := s.attrs[name]
		switch {
		case want == nil && ok:
			t.Errorf("span %s: %s = %v, want it absent", s.Name(), name, got)
		case want != nil && !ok:
			t.Errorf("span %s: %s is absent, want %v; there is %v", s.Name(), name, want, s.attrs)
		case want != nil && fmt.Sprint(got) != fmt.Sprint(want):
			t.Errorf("span %s: %s = %v, want %v", s.Name(), name, got, want)
		}
	}
}

// seconds gives an attribute in seconds as a duration.
func (s *gotSpan) seconds(name string) time.Duration {
	f, _ := s.attrs[name].(float64)
	return time.Duration(f * float64(time.Second))
}

func (s *gotSpan) duration() time.Duration {
	return s.EndTimestamp().AsTime().Sub(s.StartTimestamp().AsTime())
}

func (s *gotSpan) failed() bool { return s.Status().Code() == ptrace.StatusCodeError }
