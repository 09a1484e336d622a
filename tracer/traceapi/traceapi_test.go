package traceapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// TestClientNamesWhatIsWrong: answers that a Jaeger behind a proxy, or something that is no Jaeger, may give.
func TestClientNamesWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"a proxy's page", 502, "<html>", "502 Bad Gateway"},
		{"Jaeger's own error", 500, `{"error":{"httpCode":500,"message":"storage is away"}}`, "storage is away"},
		{"a page that is not Jaeger's", 404, "404 page not found", "404 Not Found"},
		{"not JSON", 200, "hello", "invalid character"},
		{"not OTLP", 200, `{"result":{"resourceSpans":7}}`, "answer of"},
		{"cut off", 200, `{"result":{"resourceSpans":[`, "unexpected EOF"},
		{"no such trace", 404, `{"error":{"httpCode":404,"message":"No traces found"}}`, ErrNotFound.Error()},
		{"an empty answer", 200, "", "nothing in it"},
		{"an answer without a result", 200, "{}", "no result in it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			}))
			defer s.Close()
			c, err := NewClient(s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Trace(context.Background(), link.TraceID{1})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if is := errors.Is(err, ErrNotFound); is != (tc.want == ErrNotFound.Error()) {
				t.Errorf("error %v is ErrNotFound: %v", err, is)
			}
		})
	}
}

func TestNewClientRefuses(t *testing.T) {
	for _, base := range []string{"", "ftp://x", "http://", "://", "http://a b"} {
		if _, err := NewClient(base, nil); err == nil {
			t.Errorf("%q was taken", base)
		}
	}
	c, err := NewClient("jaeger:16686/base/", nil)
	if err != nil || c.base.JoinPath(tracesPath).String() != "http://jaeger:16686/base/api/v3/traces" {
		t.Errorf("%v, %v", c, err)
	}
}

// TestMoreThanAPageAtOneInstant: the API has no cursor, so this cannot be had whole, and says so instead of leaving
// some out.
func TestMoreThanAPageAtOneInstant(t *testing.T) {
	mine := store.New(store.Limits{})
	at := time.Now().Add(-time.Minute)
	resource := &trace.Resource{Attributes: trace.Attributes{{Key: semconv.ServiceName, Value: "cart"}}}
	for i := range Page + 1 {
		mine.Add(&trace.Span{TraceID: link.TraceID{0: byte(i >> 8), 1: byte(i), 15: 1}, SpanID: link.SpanID{1}, Start: at,
			End: at, Resource: resource})
	}
	s := httptest.NewServer(Handler(mine))
	defer s.Close()
	c, err := NewClient(s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.All(context.Background(), "cart", at.Add(-time.Second), at.Add(time.Second)); err == nil ||
		!strings.Contains(err.Error(), "within a microsecond") {
		t.Errorf("error %v", err)
	}
}

func TestHandlerRefuses(t *testing.T) {
	s := httptest.NewServer(Handler(store.New(store.Limits{})))
	defer s.Close()
	for path, status := range map[string]int{
		tracesPath + "/xyz": 400,
		tracesPath + "/4bf92f3577b34da6a3ce929d0e0e4736": 404,
		tracesPath + "?query.num_traces=0":               400,
		tracesPath + "?query.num_traces=many":            400,
		tracesPath + "?query.start_time_min=yesterday":   400,
		tracesPath + "?query.tags=x":                     400,
		tracesPath:                                       404,
		servicesPath:                                     200,
		StatsPath:                                        200,
		"/api/v3/operations":                             404,
	} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: %s, want %d", path, resp.Status, status)
		}
	}
}

// TestAnswerThatCannotBeWritten is an error, by its status: never an answer with nothing in it.
func TestAnswerThatCannotBeWritten(t *testing.T) {
	for name, v := range map[string]any{
		"not JSON":        found{json.RawMessage(`{"a":`)},
		"nested too deep": found{json.RawMessage(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000))},
	} {
		w := httptest.NewRecorder()
		sendJSON(w, http.StatusOK, v)
		if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "cannot be written") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
