package otlpenv

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// server notes the Authorization headers that come, over gRPC and HTTP.
type server struct {
	collector.UnimplementedTraceServiceServer
	got []string
}

func (s *server) Export(
	ctx context.Context, _ *collector.ExportTraceServiceRequest,
) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.got = append(s.got, md.Get("authorization")...)
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *server) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	s.got = append(s.got, r.Header.Values("Authorization")...)
}

// TestATokenOfAFileIsShown, the new one when there is a new one, over gRPC and HTTP; a header that somebody gave goes
// before it.
func TestATokenOfAFileIsShown(t *testing.T) {
	for _, protocol := range []Protocol{GRPC, HTTP} {
		t.Run(protocol.String(), func(t *testing.T) {
			s := &server{}
			var target Target
			if protocol == HTTP {
				h := httptest.NewServer(s)
				defer h.Close()
				target = Target{Protocol: HTTP, Host: h.Listener.Addr().String(), Path: pathTraces}
			} else {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				g := grpc.NewServer()
				collector.RegisterTraceServiceServer(g, s)
				go func() { _ = g.Serve(l) }()
				defer g.Stop()
				target = Target{Host: l.Addr().String()}
			}
			path := filepath.Join(t.TempDir(), "token")
			write := func(text string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			clean(t)
			t.Setenv(TokenFile, path)
			token := tokenOf(nil)
			open := func(headers map[string]string) func() error {
				t.Helper()
				c, err := target.NewClient(headers)
				if err == nil {
					err = c.Start(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Stop(context.Background()) })
				if r, ok := c.(*renewed); ok {
					token = r.token
				}
				return func() error {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					return c.UploadTraces(ctx, nil)
				}
			}
			upload := open(nil)
			if err := upload(); err == nil {
				t.Error("spans were sent without the token that was asked for")
			}
			write("first\n")
			if err := upload(); err != nil {
				t.Error(err)
			}
			write("second\n")
			if protocol == HTTP { // that of gRPC is inside the connection
				token.mu.Lock()
				token.read = time.Now().Add(-tokenFor)
				token.mu.Unlock()
				if err := upload(); err != nil {
					t.Error(err)
				}
			} else if err := open(nil)(); err != nil {
				t.Error(err)
			}
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20environment")
			if err := open(nil)(); err != nil {
				t.Error(err)
			}
			if err := open(map[string]string{"authorization": "Bearer corefile"})(); err != nil {
				t.Error(err)
			}
			want := []string{"Bearer first", "Bearer second", "Bearer environment", "Bearer corefile"}
			if !slices.Equal(s.got, want) {
				t.Errorf("shown %q, want %q", s.got, want)
			}
		})
	}
}

// TestTokens: what a file may hold; and a token that was read stays while the file is away.
func TestTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{"a.b-c\n": "a.b-c", "": "", "\n": "", "two words": "", "a\x00b": "",
		string(make([]byte, maxToken+1)): ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := (&token{path: path}).get(); got != want || (err != nil) != (want == "") {
			t.Errorf("%.10q: %q, %v", text, got, err)
		}
	}
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := &token{path: path}
	for i, change := range []func() error{
		func() error { return nil }, func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path, []byte("new"), 0o600) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		k.read = time.Time{}
		want := "old"
		if i == 2 {
			want = "new"
		}
		if got, err := k.get(); got != want || err != nil {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
}
