package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// TestNothingGrowsMoreThanLinearly: whatever a sender has as much of as it likes, twice as much is filed in twice the
// time.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 2000
	number := func(i int) (id link.SpanID) {
		binary.BigEndian.PutUint64(id[:], uint64(i)+1)
		return id
	}
	traceOf := func(i int) (id link.TraceID) {
		binary.BigEndian.PutUint64(id[:], uint64(i)+1)
		return id
	}
	one := func(of, i int) *trace.Span {
		s := span(1, 1, 0)
		s.TraceID, s.SpanID = traceOf(of), number(i)
		s.Resource = &trace.Resource{Attributes: trace.Attributes{{Key: semconv.K8SNodeName, Value: fmt.Sprint("node-", i)}}}
		return s
	}
	from := func(i int) access.Caller {
		return access.Caller{Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
	}
	all := Limits{Bytes: 1 << 40, Spans: 1 << 30, SpansPerTrace: 1 << 30}
	for name, c := range map[string]struct {
		limits Limits
		send   func(s *Store, i int)
	}{
		"traces":             {all, func(s *Store, i int) { s.Receive(otlp(one(i, i)), from(1)) }},
		"spans of one trace": {all, func(s *Store, i int) { s.Receive(otlp(one(1, i)), from(1)) }},
		"the same span":      {all, func(s *Store, i int) { s.Receive(otlp(one(1, 1)), from(1)) }},
		"one span ID": {all, func(s *Store, i int) {
			sp := one(1, 1)
			sp.Name = fmt.Sprint(i)
			s.Receive(otlp(sp), from(1))
		}},
		"senders":              {all, func(s *Store, i int) { s.Receive(otlp(one(i, i)), from(i)) }},
		"senders of one trace": {all, func(s *Store, i int) { s.Receive(otlp(one(1, i)), from(i)) }},
		"traces beyond what is kept": {Limits{Bytes: 1 << 40, Spans: n / 4, SpansPerTrace: n / 4}, func(s *Store, i int) {
			s.Receive(otlp(one(i, i)), from(i))
		}},
		"bytes beyond what is kept": {Limits{Bytes: 256 << 10, Spans: 1 << 30}, func(s *Store, i int) {
			s.Receive(otlp(one(i%100, i)), from(i))
		}},
		"traces that tell, beyond what is kept": {Limits{Bytes: 1 << 40, Spans: n / 4}, func(s *Store, i int) {
			sp := one(i, i)
			sp.Status = trace.StatusError
			s.Receive(otlp(sp), from(i))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				s := New(c.limits)
				w := s.Watch()
				return func() {
					for i := range n {
						c.send(s, i)
					}
					w.Close()
				}
			})
		})
	}
	for name, request := range map[string]func(n int) []byte{
		"attributes of one span": func(n int) []byte {
			sp := one(1, 1)
			for i := range n {
				sp.Attributes = append(sp.Attributes, trace.Attribute{Key: fmt.Sprint(i), Value: "x"})
			}
			return wire(t, sp)
		},
		"elements of a list": func(n int) []byte {
			sp := one(1, 1)
			list := make([]any, n)
			for i := range list {
				list[i] = map[string]any{"k": int64(i)}
			}
			sp.Attributes = trace.Attributes{{Key: "k", Value: list}}
			return wire(t, sp)
		},
		"links and events": func(n int) []byte {
			sp := one(1, 1)
			for range n {
				sp.Links = append(sp.Links, trace.Link{TraceID: traceOf(2), SpanID: number(2)})
				sp.Events = append(sp.Events, trace.Event{Name: "x", Time: at})
			}
			return wire(t, sp)
		},
		"resources": func(n int) []byte {
			var spans []*trace.Span
			for i := range n {
				spans = append(spans, one(1, i))
			}
			return wire(t, spans...)
		},
	} {
		t.Run("a request of "+name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				b := request(n)
				return func() { post(t, New(all), b) }
			})
		})
	}
}

// wire gives an export request of spans.
func wire(t *testing.T, spans ...*trace.Span) []byte {
	t.Helper()
	b, err := ptraceotlp.NewExportRequestFromTraces(otlp(spans...)).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// post gives a request to the store's handler, on this goroutine.
func post(t *testing.T, s *Store, body []byte) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, HTTPPath, bytes.NewReader(body))
	r.Header.Set("Content-Type", typeProtobuf)
	w := httptest.NewRecorder()
	(&Receiver{Store: s}).HTTPHandler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
}
