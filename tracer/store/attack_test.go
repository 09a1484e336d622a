package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/memory"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// nested gives an export request of one span with one attribute whose lists are nested n deep, on the wire.
func nested(n int) []byte {
	var back []byte // from the end
	put := func(b ...byte) {
		for _, c := range slices.Backward(b) {
			back = append(back, c)
		}
	}
	wrap := func(number protowire.Number) {
		put(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.BytesType), uint64(len(back)))...)
	}
	for range n {
		wrap(1) // an element of the list
		wrap(5) // a list
	}
	wrap(2) // the value of the attribute
	wrap(9) // the attribute
	put(append([]byte{1<<3 | 2, 16}, bytes.Repeat([]byte{1}, 16)...)...)
	put(append([]byte{2<<3 | 2, 8}, bytes.Repeat([]byte{1}, 8)...)...)
	wrap(2) // the span
	wrap(2) // those of a scope
	wrap(1) // those of a resource
	slices.Reverse(back)
	return back
}

// TestNestedTooDeep: the decoder recurses, and a stack that is used up ends the whole program.
func TestNestedTooDeep(t *testing.T) {
	s, grpcAddr, httpAddr := serve(t)
	deep := nested(1_650_000)
	if len(deep) > maxBody {
		t.Fatalf("%d bytes are refused for their length", len(deep))
	}
	post := func(contentType string, body []byte) int {
		t.Helper()
		resp, err := http.Post("http://"+httpAddr+HTTPPath, contentType, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := post(typeProtobuf, deep); got != http.StatusBadRequest {
		t.Errorf("protobuf: status %d", got)
	}
	js := strings.Repeat(`{"arrayValue":{"values":[`, 50_000)
	js = `{"resourceSpans":[{"resource":{"attributes":[{"key":"k","value":` + js + strings.Repeat("]}}", 50_000) + `}]}}]}`
	if got := post(typeJSON, []byte(js)); got != http.StatusBadRequest {
		t.Errorf("JSON: status %d", got)
	}
	if got := post(typeProtobuf, nested(20)); got != http.StatusOK {
		t.Errorf("nested 20 deep: status %d", got)
	}
	conn, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, n := range []int{400_000, 65} {
		raw := nested(n)
		if err := conn.Invoke(t.Context(), grpcPath, &raw, new([]byte), grpc.ForceCodecV2(rawCodec{})); err == nil {
			t.Errorf("gRPC took what is nested %d deep", n)
		}
	}
	// What was let in is cut to what a span may have.
	tr := s.Trace(link.TraceID(bytes.Repeat([]byte{1}, 16)))
	if tr == nil || s.Stats().ValuesCut != 1 {
		t.Fatalf("%v, %+v", tr, s.Stats())
	}
	depth := 0
	for v := tr.Spans[0].Attributes[0].Value; v != nil; depth++ {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			break
		}
		v = list[0]
	}
	if depth > trace.MaxDepth {
		t.Errorf("kept %d deep", depth)
	}
}

// TestTextBeyondReason: requests of a few kilobytes that are one attribute of megabytes.
func TestTextBeyondReason(t *testing.T) {
	const limit = 8 << 20
	s := New(Limits{Bytes: limit})
	ctx, stop := context.WithCancel(t.Context())
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.ServeHTTP(ctx, l) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for i := range 44 {
		big := span(i+1, 1, 0)
		big.Attributes = trace.Attributes{{Key: "x", Value: strings.Repeat("a", 15<<20)}}
		body, err := ptraceotlp.NewExportRequestFromTraces(trace.ToOTLP([]*trace.Span{big})).MarshalProto()
		if err != nil {
			t.Fatal(err)
		}
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.Addr().String()+HTTPPath, &zipped)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", typeProtobuf)
		r.Header.Set("Content-Encoding", "gzip")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	got := s.Stats()
	if got.Traces != 44 || got.ValuesCut != 44 || m.HeapAlloc > 64<<20 {
		t.Errorf("%+v, heap %d bytes", got, m.HeapAlloc)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestBytesAreWhatTheyAre: what the store says that it keeps is about what it takes, and within the bound, whatever the
// spans are made of.
func TestBytesAreWhatTheyAre(t *testing.T) {
	for name, make := range map[string]func(i int) []*trace.Span{
		"small":  func(i int) []*trace.Span { return []*trace.Span{span(i, i, 0)} },
		"traces": func(i int) []*trace.Span { return []*trace.Span{span(i/50, i, 0)} },
		"text": func(i int) []*trace.Span {
			s := span(i, i, 0)
			s.Attributes = trace.Attributes{{Key: "k", Value: strings.Repeat(string(rune('a'+i%26)), trace.MaxText)}}
			return []*trace.Span{s}
		},
		"many attributes": func(i int) []*trace.Span {
			s := span(i, i, 0)
			for n := range trace.MaxAttributes {
				s.Attributes = append(s.Attributes, trace.Attribute{Key: fmt.Sprint("key", n, i), Value: int64(n)})
			}
			return []*trace.Span{s}
		},
		"lists": func(i int) []*trace.Span {
			s := span(i, i, 0)
			for n := range 8 {
				list := []any{}
				for m := range 100 {
					list = append(list, fmt.Sprint(i, n, m), map[string]any{fmt.Sprint(i, n, m): true})
				}
				s.Attributes = append(s.Attributes, trace.Attribute{Key: "k", Value: list})
			}
			return []*trace.Span{s}
		},
		"links and events": func(i int) []*trace.Span {
			s := span(i, i, 0)
			for n := range trace.MaxLinks {
				a := trace.Attributes{{Key: "k", Value: fmt.Sprint(i, n)}}
				s.Links = append(s.Links, trace.Link{Attributes: a})
				s.Events = append(s.Events, trace.Event{Name: fmt.Sprint(i, n), Attributes: a})
			}
			return []*trace.Span{s}
		},
		"large resources that one span keeps": func(i int) []*trace.Span {
			r := &trace.Resource{Attributes: trace.Attributes{{Key: "k", Value: strings.Repeat(string(rune('a'+i%26)), 1<<16)}}}
			var list []*trace.Span
			for n := range 20 {
				s := span(i*20+n, i*20+n, 0)
				s.Resource = r
				if n == 0 {
					s.Status = trace.StatusError // it stays longest
				}
				list = append(list, s)
			}
			return list
		},
	} {
		t.Run(name, func(t *testing.T) {
			const limit = 16 << 20
			heap := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := heap()
			s := New(Limits{Bytes: limit, Spans: 1_000_000})
			for i := 1; s.Stats().TracesEvicted < 200; i++ {
				s.Add(make(i)...)
				if got := s.Stats().Bytes; got > limit {
					t.Fatalf("%d bytes kept of %d", got, limit)
				}
				if i > 200_000 {
					t.Fatal("nothing had to go")
				}
			}
			took := heap() - before
			if took > limit*14/10 || took < limit/3 {
				t.Errorf("takes %d bytes, says %d", took, s.Stats().Bytes)
			}
			runtime.KeepAlive(s)
			for s.stats.Traces > 0 {
				s.evict(s.leastTelling())
			}
			if s.stats.Bytes != 0 || s.stats.Spans != 0 || len(s.shared) != 0 || len(s.senders) != 0 {
				t.Errorf("%+v, %d shared, %d senders when nothing is kept", s.stats, len(s.shared), len(s.senders))
			}
		})
	}
}

func caller(address string) access.Caller {
	return access.Caller{Address: netip.MustParseAddr(address)}
}

func otlp(spans ...*trace.Span) ptrace.Traces { return trace.ToOTLP(spans) }

// TestFloodGivesUpItsOwn: one sender floods, with what looks as if it told something; what others sent stays.
func TestFloodGivesUpItsOwn(t *testing.T) {
	s := New(Limits{Bytes: 4 << 20})
	for n := range 200 {
		s.Receive(otlp(span(n+1, 1, 0)), caller("192.168.100.11"))
	}
	for n := range 20_000 {
		lie := span(1000+n, 1, 0)
		lie.TraceID[2] = 1
		lie.Status = trace.StatusError
		s.Receive(otlp(lie), caller(fmt.Sprintf("fd00::1:%x", n+1))) // from addresses of one /64
	}
	for n := range 200 {
		if s.Trace(traceID(n+1)) == nil {
			t.Fatalf("trace %d of another sender had to go", n+1)
		}
	}
	if got := s.Stats(); got.TracesEvicted == 0 || got.Bytes > 4<<20 {
		t.Errorf("%+v", got)
	}
}

// TestLeastTellingGoesFirst: of one sender, lookups that went well go before those that did not, up to a share.
func TestLeastTellingGoesFirst(t *testing.T) {
	s := New(Limits{Spans: 100})
	for n := range 50 {
		lost := span(n+1, 1, 0)
		lost.Attributes = trace.Attributes{{Key: semconv.VerdictWhere, Value: "node"}}
		s.Add(lost)
	}
	for n := range 1000 {
		well := span(n+1000, 1, 0)
		well.Attributes = trace.Attributes{{Key: semconv.VerdictWhere, Value: trace.Answered}}
		s.Add(well)
	}
	for n := range 50 {
		if s.Trace(traceID(n+1)) == nil {
			t.Fatalf("lost lookup %d had to go for lookups that went well", n+1)
		}
	}
	for n := range 1000 {
		lost := span(n+3000, 1, 0)
		lost.Status = trace.StatusError
		s.Add(lost)
	}
	well := 0
	for _, tr := range s.Traces(trace.Filter{}) {
		if tr.Spans[0].Attributes.String(semconv.VerdictWhere) == trace.Answered {
			well++
		}
	}
	if well < 20 || s.Trace(traceID(3999)) == nil {
		t.Errorf("%d lookups that went well are left of 100", well)
	}
}

// TestFullTraceHasRoomForOthers: who fills another's trace does not keep the others' spans out of it.
func TestFullTraceHasRoomForOthers(t *testing.T) {
	s := New(Limits{Spans: 10_000, SpansPerTrace: 400})
	for id := range 1000 {
		s.Receive(otlp(span(1, id+1, 0)), caller("10.244.1.66"))
	}
	for id := range 10 {
		if refused := s.Receive(otlp(span(1, 5000+id, 0)), caller("192.168.100.11")); refused != 0 {
			t.Fatalf("span %d of another sender was refused: %+v", id, s.Stats())
		}
	}
	if got := s.Stats(); got.SpansRefused != 1000-250 {
		t.Errorf("%+v", got)
	}
}

// TestWhoSpeaksForWhom: with credentials, spans of another node are refused; who sent a span is what the store says,
// not what the span says.
func TestWhoSpeaksForWhom(t *testing.T) {
	s := New(Limits{})
	of := func(node string) ptrace.Traces {
		sp := span(1, len(node)+1, 0)
		sp.Resource = &trace.Resource{Attributes: trace.Attributes{
			{Key: semconv.K8SNodeName, Value: node}, {Key: semconv.SenderAddress,
				Value: "192.168.100.11"}, {Key: semconv.SenderName, Value: "node/node-1"},
		}}
		return otlp(sp)
	}
	node2, err := access.ParseSubject("node/node-2")
	if err != nil {
		t.Fatal(err)
	}
	node2.Address = netip.MustParseAddr("10.244.1.66")
	if refused := s.Receive(of("node-1"), node2); refused != 1 || s.Stats().SpansForeign != 1 ||
		s.Trace(traceID(1)) != nil {
		t.Errorf("refused %d: %+v", refused, s.Stats())
	}
	if refused := s.Receive(of("node-2"), node2); refused != 0 {
		t.Errorf("refused %d of its own", refused)
	}
	s.Receive(of(""), caller("10.244.1.67"))
	for _, sp := range s.Trace(traceID(1)).Spans {
		address, name := sp.String(semconv.SenderAddress), sp.String(semconv.SenderName)
		if node := sp.String(semconv.K8SNodeName); node == "node-2" && (address != "10.244.1.66" || name != "node/node-2") ||
			node == "" && (address != "10.244.1.67" || name != "") {
			t.Errorf("node %q: said to be sent by %q, %q", node, address, name)
		}
	}
}

// rawCodec sends and takes messages as they are on the wire.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// TestCredentials: over gRPC and HTTP alike nothing is taken without one, and what is taken is the holder's own.
func TestCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("0123456789abcdef node/node-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Limits{})
	r := &Receiver{Store: s, Checker: tokens, Gauge: &memory.Gauge{Budget: 1 << 50}}
	g, h := listen(t), listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, g, h) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(g.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	of := func(node string, id int) *trace.Span {
		sp := span(1, id, 0)
		sp.Resource = &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: node}}}
		return sp
	}
	for i, tc := range []struct {
		token, node string
		code        codes.Code
		status      int
		rejected    int64
	}{
		{"", "node-1", codes.Unauthenticated, 401, 0},
		{"0123456789abcdeX", "node-1", codes.Unauthenticated, 401, 0},
		{"0123456789abcdef", "node-1", codes.OK, 200, 0},
		{"0123456789abcdef", "node-2", codes.OK, 200, 1},
		{"0123456789abcdef", "", codes.OK, 200, 1},
	} {
		name := fmt.Sprintf("token %q, node %q", tc.token, tc.node)
		ctx := t.Context()
		if tc.token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tc.token)
		}
		req := ptraceotlp.NewExportRequestFromTraces(otlp(of(tc.node, 2*i+1)))
		resp, err := ptraceotlp.NewGRPCClient(conn).Export(ctx, req)
		if status.Code(err) != tc.code || err == nil && resp.PartialSuccess().RejectedSpans() != tc.rejected {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
		body, err := ptraceotlp.NewExportRequestFromTraces(otlp(of(tc.node, 2*i+2))).MarshalProto()
		if err != nil {
			t.Fatal(err)
		}
		post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.Addr().String()+HTTPPath,
			bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		post.Header.Set("Content-Type", typeProtobuf)
		if tc.token != "" {
			post.Header.Set("Authorization", "Bearer "+tc.token)
		}
		answer, err := http.DefaultClient.Do(post)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != tc.status {
			t.Errorf("%s: status %d, want %d", name, answer.StatusCode, tc.status)
		}
	}
	if got := s.Stats(); got.Spans != 2 || got.SpansForeign != 4 {
		t.Errorf("%+v", got)
	}
	// Where there is no memory for more, senders are asked to try again, by a status that exporters do try again after.
	r.Gauge.Budget = 8
	time.Sleep(100 * time.Millisecond) // a reading counts for half of that
	req := ptraceotlp.NewExportRequestFromTraces(otlp(of("node-1", 100)))
	withToken := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer 0123456789abcdef")
	if _, err := ptraceotlp.NewGRPCClient(conn).Export(withToken, req); status.Code(err) != codes.Unavailable {
		t.Errorf("%v where there is no memory", err)
	}
}

// TestHalfRequestsEnd: requests of gRPC of which half comes are ended, and do not keep others out.
func TestHalfRequestsEnd(t *testing.T) {
	s := New(Limits{})
	l := listen(t)
	p := newPatience(access.Listener(l))
	p.time = 300 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Receiver{Store: s}).serveGRPC(ctx, p) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	half := func() grpc.ClientStream {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, grpcPath)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	var streams []grpc.ClientStream
	for range 3 * maxUnderWayOfOne {
		streams = append(streams, half())
	}
	for i, stream := range streams {
		if err := stream.RecvMsg(new(emptypb.Empty)); status.Code(err) != codes.Unavailable {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := ptraceotlp.NewGRPCClient(conn).Export(t.Context(),
		ptraceotlp.NewExportRequestFromTraces(otlp(span(1, 1, 0)))); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	// The server hears of a connection's end after its client did.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		p.mu.Lock()
		all := p.all
		p.mu.Unlock()
		if all == 0 {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all != 0 || len(p.of) != 0 {
		t.Errorf("%d requests are said to be under way, of %d senders", p.all, len(p.of))
	}
}
