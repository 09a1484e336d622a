// Package page serves a page of the cluster's DNS: where it hurts now, who asks, and the lookups themselves, live. All
// that it needs comes with it: nothing is asked of any other host, and what others chose is shown as text alone.
package page

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

//go:embed static
var static embed.FS

// The paths that are answered.
const (
	// PathView gives a [View] as JSON, once; PathLive gives one after another, as server-sent events.
	PathView = "/page/view"
	PathLive = "/page/live"
	// PathWalk and a trace ID give a lookup, drawn.
	PathWalk = "/page/walk/"
)

// Bounds.
const (
	maxReaders = 8 // who look on live at a time
	maxViews   = 2 // views that are made at a time beside
	// every is how often a live view comes; it comes the more seldom the longer it takes to make:
	// busy times as long.
	every = time.Second
	busy  = 10

	defaultSince = 5 * time.Minute
	maxSince     = time.Hour
	aroundWalk   = 30 * time.Second // how far around a lost lookup others are looked at
)

const (
	// policy lets the page load what comes with it, and nothing else.
	policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-src " +
		"'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	// policyWalk lets the drawing of a lookup have its own style, and stand in the page.
	policyWalk = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; " +
		"frame-ancestors 'self'"
)

// Traces gives the traces of lookups; a store does.
type Traces interface {
	Trace(id link.TraceID) *trace.Trace
	Traces(f trace.Filter) []*trace.Trace
}

// Handler answers with the page at /, and with what it asks for; all else is otherwise's. Rows are those of the whole
// cluster, followed while somebody looks on, and then the last of them are kept, in so many bytes; 0 means
// [DefaultBytes]. It is to be guarded as what otherwise answers is.
func Handler(rows rowapi.Source, traces Traces, bytes int, otherwise http.Handler) http.Handler {
	f := &feed{source: rows, bytes: cmp.Or(bytes, DefaultBytes)}
	mux := http.NewServeMux()
	for path, file := range map[string]struct{ name, kind string }{
		"/{$}": {"page.html", "text/html; charset=utf-8"}, "/page/page.js": {"page.js", "text/javascript; charset=utf-8"},
		"/page/page.css": {"page.css", "text/css; charset=utf-8"},
	} {
		body, err := static.ReadFile("static/" + file.name)
		if err != nil {
			panic(err) // it was not embedded
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { answer(w, file.kind, policy, body) })
	}
	mux.Handle("GET "+PathView, access.AtOnce(maxViews, http.HandlerFunc(f.once)))
	mux.Handle("GET "+PathLive, access.AtOnce(maxReaders, http.HandlerFunc(f.live)))
	mux.Handle("GET "+PathWalk+"{id}", access.AtOnce(maxViews, walk(traces)))
	mux.Handle("/", otherwise)
	return mux
}

// answer sends a whole body.
func answer(w http.ResponseWriter, kind, policy string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // the reader went away
}

// query is what a view is asked for.
type query struct {
	filter output.Filter
	since  time.Duration
	// These are no patterns.
	upstream, instance, serverNode string
}

// lists are the filters of observe that take patterns, under their flags' names.
func (q *query) lists() map[string]*[]string {
	f := &q.filter
	return map[string]*[]string{
		"rcode": &f.Rcodes, "type": &f.Types, "name": &f.Names, "client": &f.Clients, "namespace": &f.Namespaces,
		"process": &f.Processes,
		"where":   &f.Wheres, "cause": &f.Causes,
	}
}

// maxQuery bounds how many patterns there are, and how long one is.
const (
	maxPatterns = 32
	maxPattern  = 512
)

// parse reads the words of observe's flags; each may be there several times, or with commas.
func parse(values url.Values) (*query, error) {
	q := &query{since: defaultSince}
	lists := q.lists()
	patterns := 0
	for key, vs := range values {
		for _, v := range vs {
			if v == "" {
				continue
			}
			var err error
			switch list := lists[key]; {
			case list != nil:
				for one := range strings.SplitSeq(v, ",") {
					if one = strings.TrimSpace(one); one != "" {
						*list = append(*list, one)
						patterns++
					}
					if len(one) > maxPattern {
						err = errors.New("too long a pattern")
					}
				}
			case key == "lost":
				var lost bool
				lost, err = strconv.ParseBool(v)
				q.filter.Lost = &lost
			case key == "slow":
				if q.filter.Slow, err = time.ParseDuration(v); err == nil && q.filter.Slow < 0 {
					err = errors.New("want 0 or more")
				}
			case key == "since":
				if q.since, err = time.ParseDuration(v); err == nil && (q.since < time.Second || q.since > maxSince) {
					err = fmt.Errorf("want 1s to %v", maxSince)
				}
			case key == "upstream":
				q.upstream = v
			case key == "instance":
				q.instance = v
			case key == "server-node":
				q.serverNode = v
			default:
				err = errors.New("no such filter")
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", printable.Text(key), err)
			}
		}
	}
	if patterns > maxPatterns {
		return nil, fmt.Errorf("%d patterns: want at most %d", patterns, maxPatterns)
	}
	return q, q.filter.Check()
}

// once answers with one view.
func (f *feed) once(w http.ResponseWriter, r *http.Request) {
	q, err := parse(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := f.view(r.Context(), q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, "application/json", policy, body)
}

// view makes a view as JSON, when the past is read.
func (f *feed) view(ctx context.Context, q *query) ([]byte, error) {
	defer f.enter()()
	select {
	case <-f.past():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return f.json(q, time.Now())
}

func (f *feed) json(q *query, now time.Time) ([]byte, error) {
	f.making.Lock()
	defer f.making.Unlock()
	body, err := json.Marshal(f.make(q, now))
	return printable.JSON(body), err
}

// live sends views as server-sent events (HTML, 9.2) for as long as the reader reads.
func (f *feed) live(w http.ResponseWriter, r *http.Request) {
	q, err := parse(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer f.enter()()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	writing := access.Streaming(w)
	past := f.past()
	for {
		select {
		case <-past:
		case <-r.Context().Done():
			return
		}
		begin := time.Now()
		body, err := f.json(q, begin)
		if err != nil {
			return
		}
		took := time.Since(begin)
		writing()
		if _, err := fmt.Fprintf(w, "event: view\ndata: %s\n\n", bytes.TrimRight(body, "\n")); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-time.After(max(every, busy*took)):
		case <-r.Context().Done():
			return
		}
	}
}

// walk answers with a lookup's walk, drawn as explain -o html draws it.
func walk(traces Traces) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := trace.ParseID(r.PathValue("id"))
		if err != nil {
			http.Error(w, "no trace ID", http.StatusBadRequest)
			return
		}
		t := traces.Trace(id)
		if t == nil {
			http.Error(w, "that trace is not kept any more", http.StatusNotFound)
			return
		}
		t = t.Whole(traces.Trace)
		lookups := trace.AllLookups([]*trace.Trace{t})
		if len(lookups) == 0 {
			lookups = []*trace.Trace{t}
		}
		// Where one socket asked several servers the same, the one that the row is of.
		server := r.URL.Query().Get("server")
		t = lookups[max(0, slices.IndexFunc(
			lookups, func(t *trace.Trace) bool { return t.Asked().Address.String() == server }))]
		var others []*trace.Trace
		if t.Verdict().Lost() {
			others = traces.Traces(trace.Filter{Since: t.Start().Add(-aroundWalk)})
		}
		var body bytes.Buffer
		if err := render.Page(&body, explain.Tell(t, others), render.Options{}); err != nil {
			http.Error(w, cmp.Or(err.Error(), "cannot be drawn"), http.StatusInternalServerError)
			return
		}
		answer(w, "text/html; charset=utf-8", policyWalk, body.Bytes())
	})
}
