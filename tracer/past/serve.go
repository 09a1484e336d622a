package past

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// The protocol is HTTP: POST /v1/lookups?last=N&follow=true with a filter as JSON gives rows as JSON lines, GET /v1/stats the agent's own counts.
const (
	pathLookups = "/v1/lookups"
	pathStats   = "/v1/stats"
)

// Handler serves a past. stats gives the agent's counts.
func (p *Past) Handler(stats func() pipeline.Stats) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathLookups, p.serveLookups)
	mux.HandleFunc("GET "+pathStats, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(stats()) // the reader went away
	})
	return mux
}

func (p *Past) serveLookups(w http.ResponseWriter, r *http.Request) {
	var f output.Filter
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		http.Error(w, "filter: "+err.Error()+" (is observe of another version than the agent?)", http.StatusBadRequest)
		return
	}
	if err := f.Check(); err != nil {
		http.Error(w, "filter: "+err.Error(), http.StatusBadRequest)
		return
	}
	last, err := strconv.Atoi(r.URL.Query().Get("last"))
	if err != nil {
		http.Error(w, "last: want a number", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	out := output.NewJSONL(w)
	follow := r.URL.Query().Get("follow") == "true"
	var s *Subscription
	if follow {
		s = p.Subscribe() // before the past is read, so that nothing falls between
		defer s.Close()
	}
	var until time.Time
	if last >= 0 {
		for _, row := range p.Rows(&f, last) {
			until = row.Time
			if out.Write(row) != nil {
				return
			}
		}
	}
	_ = http.NewResponseController(w).Flush() // the next write tells
	if !follow {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case row := <-s.Rows():
			if !f.Takes(row) || (row.Time.Before(until) && row.Revision == 0) {
				continue
			}
			if out.Write(row) != nil {
				return
			}
			if len(s.Rows()) == 0 {
				_ = http.NewResponseController(w).Flush() // the next write tells
			}
		}
	}
}

// Listen listens on a Unix socket that only its owner may use; what a dead agent left at the path is removed.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: another agent listens there", path)
	} else if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Client asks an agent over its socket.
type Client struct{ http http.Client }

// NewClient makes a client of the agent that listens at path.
func NewClient(path string) *Client {
	return &Client{http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}}
}

// Lookups gives each row that the filter takes: the last n of the past (0: all, negative: none), and with follow those that come, until ctx ends.
func (c *Client) Lookups(ctx context.Context, f *output.Filter, n int, follow bool, give func(*output.Row) error) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	q := url.Values{"last": {strconv.Itoa(n)}, "follow": {strconv.FormatBool(follow)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+pathLookups+"?"+q.Encode(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("asking the agent: %s: %s", resp.Status, b)
	}
	d := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		var row output.Row
		if err := d.Decode(&row); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("reading from the agent: %w", err)
		}
		if row.Schema != output.SchemaVersion {
			return fmt.Errorf("the agent speaks schema %d, this program %d: use the same version of both", row.Schema, output.SchemaVersion)
		}
		if err := give(&row); err != nil {
			return err
		}
	}
}

// Stats gives the agent's own counts.
func (c *Client) Stats(ctx context.Context) (pipeline.Stats, error) {
	var s pipeline.Stats
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+pathStats, http.NoBody)
	if err != nil {
		return s, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return s, fmt.Errorf("asking the agent: %w", err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("reading the agent's counts: %w", err)
	}
	return s, nil
}
