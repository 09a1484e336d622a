package e2e

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// linkSpan is what the link rate is counted from: small, because there are hundreds of thousands of them.
type linkSpan struct {
	trace      link.TraceID
	id, parent link.SpanID
	copied     bool
	answered   bool // CLIENT: the verdict is `answered`
	start      int64
}

// collector is an OTLP/gRPC receiver that keeps CLIENT spans of the tracer and SERVER spans of the plugin, and counts
// the rest.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	Addr string

	mu      sync.Mutex
	clients []linkSpan
	servers []linkSpan
	others  int
	last    time.Time // when the last export came
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{Addr: l.Addr().String()}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	collectorpb.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (
	*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.add(ss.GetScope().GetName(), s)
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (c *collector) add(scope string, s *tracepb.Span) {
	ls := linkSpan{trace: link.TraceID(s.GetTraceId()), id: link.SpanID(s.GetSpanId()),
		start: int64(s.GetStartTimeUnixNano())}
	if len(s.GetParentSpanId()) == 8 {
		ls.parent = link.SpanID(s.GetParentSpanId())
	}
	for _, a := range s.GetAttributes() {
		switch a.GetKey() {
		case semconv.LinkCopy:
			ls.copied = a.GetValue().GetBoolValue()
		case semconv.VerdictWhere:
			ls.answered = a.GetValue().GetStringValue() == "answered"
		}
	}
	switch {
	case scope == semconv.ScopeTracer && s.GetKind() == tracepb.Span_SPAN_KIND_CLIENT && ls.parent == (link.SpanID{}):
		c.clients = append(c.clients, ls)
	case scope == semconv.ScopePlugin && s.GetKind() == tracepb.Span_SPAN_KIND_SERVER:
		c.servers = append(c.servers, ls)
	default:
		c.others++
	}
}

// settle waits until no export has come for quiet, and fails after limit.
func (c *collector) settle(t *testing.T, quiet, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		c.mu.Lock()
		last := c.last
		c.mu.Unlock()
		if !last.IsZero() && time.Since(last) > quiet {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("spans still coming (or none came) after %v", limit)
		}
	}
}
