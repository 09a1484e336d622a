// Package traceapi asks for traces over HTTP, in the words of Jaeger's api_v3: [Client] asks a Jaeger or a dnstrail
// store, [Handler] lets a store answer as a Jaeger does, as far as the client asks.
//
// Source: github.com/jaegertracing/jaeger-idl, proto/api_v3/query_service.proto, and Jaeger's own HTTP gateway for it.
// Traces are OTLP JSON.
package traceapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

const (
	tracesPath   = "/api/v3/traces"
	servicesPath = "/api/v3/services"
	// StatsPath gives [store.Stats] as JSON; Jaeger has no such thing.
	StatsPath = "/stats"

	paramService   = "query.service_name"
	paramTimeMin   = "query.start_time_min"
	paramTimeMax   = "query.start_time_max"
	paramNumTraces = "query.num_traces"
	paramRaw       = "query.raw_traces"
)

// DefaultTraces is how many traces a search gives when it does not say.
const DefaultTraces = 100

// found is the answer: OTLP's TracesData in a wrapper.
type found struct {
	Result json.RawMessage `json:"result"`
}

type failure struct {
	Error struct {
		Code    int    `json:"httpCode"`
		Message string `json:"message"`
	} `json:"error"`
}

// Handler answers from s: one trace, a search by service and time, the services, and [StatsPath]. Parameters of api_v3
// that it does not know are errors.
func Handler(s *store.Store) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+tracesPath+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := trace.ParseID(r.PathValue("id"))
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		t := s.Trace(id)
		if t == nil {
			fail(w, http.StatusNotFound, fmt.Sprintf("no trace %v", id))
			return
		}
		send(w, []*trace.Trace{t})
	})
	mux.HandleFunc("GET "+tracesPath, func(w http.ResponseWriter, r *http.Request) {
		match, limit, err := parse(r.URL.Query())
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		var traces []*trace.Trace
		for _, t := range s.Traces(trace.Filter{}) {
			if match(t) {
				if traces = append(traces, t); len(traces) == limit {
					break
				}
			}
		}
		if len(traces) == 0 {
			fail(w, http.StatusNotFound, "No traces found")
			return
		}
		send(w, traces)
	})
	mux.HandleFunc("GET "+servicesPath, func(w http.ResponseWriter, _ *http.Request) {
		services := map[string]bool{}
		for _, t := range s.Traces(trace.Filter{}) {
			for _, sp := range t.Spans {
				services[service(sp)] = true
			}
		}
		delete(services, "")
		names := make([]string, 0, len(services))
		for name := range services {
			names = append(names, name)
		}
		slices.Sort(names)
		sendJSON(w, http.StatusOK, map[string][]string{"services": names})
	})
	mux.HandleFunc("GET "+StatsPath,
		func(w http.ResponseWriter, _ *http.Request) { sendJSON(w, http.StatusOK, s.Stats()) })
	return mux
}

func service(s *trace.Span) string {
	if s.Resource == nil {
		return ""
	}
	return s.Resource.Attributes.String(semconv.ServiceName)
}

// parse reads the parameters of a search; the times are as in Jaeger: a trace matches by any of its spans of the
// service.
func parse(q url.Values) (match func(*trace.Trace) bool, limit int, err error) {
	limit = DefaultTraces
	var from, to time.Time
	var name string
	for key := range q {
		value := q.Get(key)
		switch key {
		case paramService:
			name = value
		case paramTimeMin:
			from, err = time.Parse(time.RFC3339Nano, value)
		case paramTimeMax:
			to, err = time.Parse(time.RFC3339Nano, value)
		case paramNumTraces:
			if limit, err = strconv.Atoi(value); err == nil && limit <= 0 {
				err = fmt.Errorf("%d: want more than 0", limit)
			}
		case paramRaw: // traces are always given as they came
		default:
			return nil, 0, fmt.Errorf("unknown parameter %s: want %s, %s, %s, %s or %s", key, paramService, paramTimeMin,
				paramTimeMax, paramNumTraces, paramRaw)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("malformed parameter %s: %w", key, err)
		}
	}
	return func(t *trace.Trace) bool {
		return slices.ContainsFunc(t.Spans, func(s *trace.Span) bool {
			return (name == "" || service(s) == name) && (from.IsZero() || !s.Start.Before(from)) &&
				(to.IsZero() || !s.Start.After(to))
		})
	}, limit, nil
}

func send(w http.ResponseWriter, traces []*trace.Trace) {
	var spans []*trace.Span
	for _, t := range traces {
		spans = append(spans, t.Spans...)
	}
	body, err := (&ptrace.JSONMarshaler{}).MarshalTraces(trace.ToOTLP(spans))
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	sendJSON(w, http.StatusOK, found{body})
}

func fail(w http.ResponseWriter, code int, message string) {
	var f failure
	f.Error.Code, f.Error.Message = code, message
	sendJSON(w, code, f)
}

// sendJSON writes v, or, if it cannot be written as JSON, that: an answer begins only when there is one.
func sendJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		var f failure
		f.Error.Code, f.Error.Message = http.StatusInternalServerError, "the answer cannot be written: "+err.Error()
		code = f.Error.Code
		body, _ = json.Marshal(f) // a number and a string
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client has gone: nothing to tell it
}
