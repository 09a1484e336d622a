package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcgzip "google.golang.org/grpc/encoding/gzip"

	"github.com/dnstrail/dnstrail/tracer/trace"
)

func serve(t *testing.T) (s *Store, grpcAddr, httpAddr string) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	g, h := listen(), listen()
	s = New(Limits{Spans: 100, SpansPerTrace: 2})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, g, h) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the servers did not stop")
		}
	})
	return s, g.Addr().String(), h.Addr().String()
}

func TestGRPC(t *testing.T) {
	s, addr, _ := serve(t)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for name, option := range map[string][]grpc.CallOption{"plain": nil, "gzip": {grpc.UseCompressor(grpcgzip.Name)}} {
		t.Run(name, func(t *testing.T) {
			s.Clear()
			req := ptraceotlp.NewExportRequestFromTraces(
				trace.ToOTLP([]*trace.Span{span(1, 1, 0), span(1, 2, 1), span(1, 3, 1)}))
			resp, err := ptraceotlp.NewGRPCClient(conn).Export(context.Background(), req, option...)
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.PartialSuccess().RejectedSpans(); got != 1 {
				t.Errorf("rejected %d, want 1: the trace's bound is 2", got)
			}
			if tr := s.Trace(traceID(1)); tr == nil || len(tr.Spans) != 2 {
				t.Errorf("trace %v", tr)
			}
		})
	}
}

func TestHTTP(t *testing.T) {
	s, _, addr := serve(t)
	req := ptraceotlp.NewExportRequestFromTraces(trace.ToOTLP([]*trace.Span{span(1, 1, 0)}))
	pb, err := req.MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	js, err := req.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	zip := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		_ = w.Close()
		return out.Bytes()
	}
	for _, tc := range []struct {
		name, contentType, encoding string
		body                        []byte
		status                      int
	}{
		{"protobuf", typeProtobuf, "", pb, 200},
		{"protobuf, gzip", typeProtobuf, "gzip", zip(pb), 200},
		{"JSON", typeJSON, "", js, 200},
		{"JSON with a charset, gzip", "application/json; charset=utf-8", "gzip", zip(js), 200},
		{"text", "text/plain", "", js, 415},
		{"brotli", typeJSON, "br", js, 415},
		{"not gzip", typeJSON, "gzip", js, 400},
		{"not protobuf", typeProtobuf, "", js, 400},
		{"not JSON", typeJSON, "", pb, 400},
		{"too large", typeProtobuf, "", make([]byte, maxBody+1), 413},
		{"too large when unzipped", typeProtobuf, "gzip", zip(make([]byte, maxBody+1)), 413},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.Clear()
			post, err := http.NewRequest(http.MethodPost, "http://"+addr+HTTPPath, bytes.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			post.Header.Set("Content-Type", tc.contentType)
			if tc.encoding != "" {
				post.Header.Set("Content-Encoding", tc.encoding)
			}
			resp, err := http.DefaultClient.Do(post)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != tc.status {
				t.Errorf("%s: %s", resp.Status, body)
			}
			if kept := s.Stats().Spans == 1; kept != (tc.status == 200) {
				t.Errorf("status %d, and kept: %v", tc.status, kept)
			}
		})
	}
}
