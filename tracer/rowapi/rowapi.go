// Package rowapi asks for rows over HTTP and answers with them: how observe gets the lookups of an agent (its Unix
// socket), or those of a whole cluster (a dnstrail store).
//
// POST /v1/lookups?last=N&follow=true with an [output.Filter] as JSON gives rows as JSON lines; GET /v1/stats gives the
// source's own counts as JSON.
package rowapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/output"
)

const (
	// PathLookups gives rows.
	PathLookups = "/v1/lookups"
	// PathStats gives the counts.
	PathStats = "/v1/stats"
)

// maxReaders is how many readers are served at a time: each is remembered what it was told.
const maxReaders = 16

// Source has rows to give.
type Source interface {
	// Lookups calls give with each row that f takes: the last n of the past in order of time (0: all, negative: none), and
	// with follow those that come, until ctx ends. It calls idle when it has nothing more at hand. A row that it gave is
	// corrected by a later one whatever f says of that. The error is give's.
	Lookups(ctx context.Context, f *output.Filter, n int, follow bool, give func(*output.Row) error, idle func()) error
}

// Handler answers from s, and with what stats gives.
func Handler(s Source, stats func() any) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+PathLookups,
		access.AtOnce(maxReaders, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			serveLookups(s, w, r)
		})))
	mux.HandleFunc("GET "+PathStats, func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(stats())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // the reader went away
	})
	return mux
}

func serveLookups(s Source, w http.ResponseWriter, r *http.Request) {
	var f output.Filter
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		http.Error(w, "filter: "+err.Error()+" (is observe of another version than what it asks?)", http.StatusBadRequest)
		return
	}
	if err := f.Check(); err != nil {
		http.Error(w, "filter: "+err.Error(), http.StatusBadRequest)
		return
	}
	q := r.URL.Query()
	last, err := strconv.Atoi(q.Get("last"))
	if err != nil {
		http.Error(w, "last: want a number", http.StatusBadRequest)
		return
	}
	follow, err := strconv.ParseBool(q.Get("follow"))
	if err != nil {
		http.Error(w, "follow: want true or false", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", contentType)
	writing := access.Streaming(w)
	rows := output.NewJSONL(w)
	give := func(row *output.Row) error {
		writing()
		return rows.Write(row)
	}
	flush := func() {
		writing()
		_ = http.NewResponseController(w).Flush() // the next write tells
	}
	flush() // the asker shall know that it is served, before the first row
	_ = s.Lookups(r.Context(), &f, last, follow, give, flush)
}
