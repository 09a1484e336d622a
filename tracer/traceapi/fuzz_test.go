package traceapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// FuzzQuery: whatever is asked of the API, it answers with JSON: what was found, or why not, by its status.
func FuzzQuery(f *testing.F) {
	s := store.New(store.Limits{})
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s.Add(&trace.Span{TraceID: link.TraceID{1}, SpanID: link.SpanID{1}, Name: "DNS A", Start: at,
		End: at.Add(time.Millisecond)})
	h := Handler(s)
	for _, target := range []string{
		tracesPath + "?query.service_name=x&query.num_traces=1", tracesPath +
			"/01000000000000000000000000000000", servicesPath,
		tracesPath +
			"?query.start_time_min=2026-11-21T12:00:00Z&query.start_time_max=9999-12-31T23:59:59Z&query.duration_min=1us",
	} {
		path, query, _ := strings.Cut(target, "?")
		f.Add(path, query)
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path, r.URL.RawQuery = "/"+strings.TrimPrefix(path, "/"), query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch known := strings.HasPrefix(path, tracesPath) || path == servicesPath; {
		case w.Code == http.StatusOK && (w.Body.Len() == 0 || !json.Valid(w.Body.Bytes())):
			t.Errorf("%q?%q: answers %q", path, query, w.Body)
		case w.Code >= http.StatusInternalServerError:
			t.Errorf("%q?%q: %d %s", path, query, w.Code, w.Body)
		case known && w.Code == http.StatusBadRequest && !json.Valid(w.Body.Bytes()):
			t.Errorf("%q?%q: refuses with %q", path, query, w.Body)
		}
	})
}

// FuzzAnswer: whatever a store or Jaeger answers, it is traces or an error.
func FuzzAnswer(f *testing.F) {
	var answer []byte
	server := http.Client{Transport: answering(func() []byte { return answer })}
	c, err := NewClient("http://store", &server)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(
		[]byte(`{"result":{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01000000000000000000000000000000"}]}]}]}}`))
	f.Add([]byte(`{"result":{}}{"result":null}`))
	f.Add([]byte(`{"services":["a"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		answer = body
		traces, err := c.Newest(t.Context(), "x", time.Time{}, time.Now(), 10)
		if err != nil && len(traces) > 0 {
			t.Errorf("traces and an error: %v", err)
		}
		for _, tr := range traces {
			tr.Verdict()
			tr.Nested()
		}
		_, _ = c.Services(t.Context()) // names or an error
	})
}

// answering is a transport that gives an answer without a network.
type answering func() []byte

// RoundTrip implements [http.RoundTripper].
func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(a()))), Header: http.Header{}, Request: r,
	}, nil
}
