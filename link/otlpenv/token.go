package otlpenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// TokenFile is the environment variable that names a file with a token, which is sent as "Authorization: Bearer TOKEN"
// where neither headers nor OTEL_EXPORTER_OTLP_HEADERS say another. Kubernetes writes such a file, and another token
// into it from time to time: a projected volume with a serviceAccountToken.
const TokenFile = "DNSTRAIL_OTLP_TOKEN_FILE" // #nosec G101 -- the name of a variable

const (
	// tokenFor is how long a token counts that was read: a new one is written long before the old one ends.
	tokenFor = 10 * time.Second
	// maxToken bounds a token, in bytes.
	maxToken = 16 << 10
)

// token is a token in a file. It is safe for concurrent use.
type token struct {
	path string

	mu    sync.Mutex
	value string
	read  time.Time
}

// tokenOf gives the token that the environment names; nil if it names none, or a header that goes before it.
func tokenOf(headers map[string]string) *token {
	path, _ := first(TokenFile)
	if path == "" {
		return nil
	}
	if headers == nil { // else they go before those of the environment
		headers = headersOfEnvironment()
	}
	for name := range headers {
		if strings.EqualFold(name, "authorization") {
			return nil
		}
	}
	return &token{path: path}
}

// get gives the token, which it reads again from time to time. One that could be read before stays while none can be.
func (t *token) get() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.value != "" && now.Sub(t.read) < tokenFor {
		return t.value, nil
	}
	value, err := readToken(t.path)
	if err != nil && t.value == "" {
		return "", fmt.Errorf("%s: %w", TokenFile, err)
	}
	if err == nil {
		t.value = value
	}
	t.read = now
	return t.value, nil
}

func readToken(path string) (string, error) {
	f, err := os.Open(path) // #nosec G304 G703 -- whoever configures the program names it
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	value := strings.TrimSpace(string(b))
	switch {
	case value == "":
		return "", fmt.Errorf("%s is empty", path)
	case len(b) > maxToken || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s holds no token", path)
	}
	return value, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t *token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	value, err := t.get()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + value}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: a token for this one audience is of no use
// elsewhere.
func (t *token) RequireTransportSecurity() bool { return false }

// renewed is a client over HTTP, which has its headers once and for all: with another token it is made anew.
type renewed struct {
	token *token
	open  func(authorization string) otlptrace.Client

	mu     sync.Mutex
	client otlptrace.Client
	with   string
	closed bool
}

// withAuthorization gives headers with that of a token beside them; without any, those of the environment are among
// them.
func withAuthorization(headers map[string]string, authorization string) map[string]string {
	all := map[string]string{}
	if headers == nil {
		headers = headersOfEnvironment()
	}
	maps.Copy(all, headers)
	all["Authorization"] = authorization
	return all
}

// headersOfEnvironment reads OpenTelemetry's variable, as its exporters do: name=value pairs, percent-encoded.
func headersOfEnvironment() map[string]string {
	list, _ := first("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
	all := map[string]string{}
	for kv := range strings.SplitSeq(list, ",") {
		name, value, ok := strings.Cut(kv, "=")
		if value, err := url.PathUnescape(strings.TrimSpace(value)); ok && err == nil {
			all[strings.TrimSpace(name)] = value
		}
	}
	return all
}

var errClosed = errors.New("the OTLP client is stopped")

// Start implements [otlptrace.Client].
func (r *renewed) Start(context.Context) error { return nil }

// Stop implements [otlptrace.Client].
func (r *renewed) Stop(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.client == nil {
		return nil
	}
	return r.client.Stop(ctx)
}

// UploadTraces implements [otlptrace.Client].
func (r *renewed) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	c, err := r.current(ctx)
	if err != nil {
		return err
	}
	return c.UploadTraces(ctx, spans)
}

func (r *renewed) current(ctx context.Context) (otlptrace.Client, error) {
	value, err := r.token.get()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed
	}
	if r.client != nil && r.with == value {
		return r.client, nil
	}
	c := r.open("Bearer " + value)
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	if r.client != nil {
		_ = r.client.Stop(ctx) // it has sent what it had: each upload ends before it returns
	}
	r.client, r.with = c, value
	return c, nil
}
