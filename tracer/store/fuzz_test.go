package store

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"

	"github.com/dnstrail/dnstrail/tracer/trace"
)

// FuzzOTLP: whatever comes over HTTP is taken within the bounds or refused by a status, and what was taken can be
// joined and given away again.
func FuzzOTLP(f *testing.F) {
	whole := span(1, 1, 0)
	whole.Attributes = trace.Attributes{{Key: "k", Value: []any{"a", int64(1), map[string]any{"b": true}}}}
	request := ptraceotlp.NewExportRequestFromTraces(otlp(whole, span(1, 2, 1), span(2, 1, 0)))
	for _, marshal := range []func() ([]byte, error){request.MarshalProto, request.MarshalJSON} {
		body, err := marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, body[0] == '{')
	}
	f.Add(nested(100), false)
	f.Fuzz(func(t *testing.T, body []byte, js bool) {
		const limit = 1 << 20
		s := New(Limits{Bytes: limit})
		r := httptest.NewRequest(http.MethodPost, HTTPPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", typeProtobuf)
		if js {
			r.Header.Set("Content-Type", typeJSON)
		}
		w := httptest.NewRecorder()
		(&Receiver{Store: s}).HTTPHandler().ServeHTTP(w, r)
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Errorf("status %d", w.Code)
		}
		if s.Stats().Bytes > limit {
			t.Errorf("%+v", s.Stats())
		}
		for _, tr := range s.Traces(trace.Filter{}) {
			tr.Verdict()
			tr.Nested()
			if again := trace.FromOTLP(trace.ToOTLP(tr.Spans)); len(again) != len(tr.Spans) {
				t.Errorf("%d spans of %d come back", len(again), len(tr.Spans))
			}
		}
	})
}
