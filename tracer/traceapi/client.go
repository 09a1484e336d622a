package traceapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// ErrNotFound says that the trace asked for is not there.
var ErrNotFound = errors.New("trace not found")

// Client asks a Jaeger (v2, or v1 from 1.60) or a dnstrail store. Make one with [NewClient].
type Client struct {
	base *url.URL
	http *http.Client
}

// NewClient gives a client of the query API at base, "http://127.0.0.1:16686"; a path in it is kept, a lone host:port
// is taken for http. It does not connect. hc may be nil.
func NewClient(base string, hc *http.Client) (*Client, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL of a query API: want http://host:port", base)
	}
	return &Client{base: u, http: cmp.Or(hc, http.DefaultClient)}, nil
}

// Trace gives one trace, as it was received. The error wraps [ErrNotFound] if it is not there.
func (c *Client) Trace(ctx context.Context, id link.TraceID) (*trace.Trace, error) {
	traces, err := c.get(ctx, tracesPath+"/"+id.String(), url.Values{"raw_traces": {"true"}})
	if err != nil {
		return nil, fmt.Errorf("trace %v: %w", id, err)
	}
	for _, t := range traces {
		if t.ID == id {
			return t, nil
		}
	}
	return nil, fmt.Errorf("trace %v: %w", id, ErrNotFound)
}

// Services gives the names of the services that have sent spans.
func (c *Client) Services(ctx context.Context) ([]string, error) {
	body, err := c.do(ctx, servicesPath, nil)
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	var answer struct {
		Services []string `json:"services"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	slices.Sort(answer.Services) // Jaeger gives them in any order
	return answer.Services, nil
}

// Page is how many traces [Client.All] asks for at a time.
const Page = 200

// Newest gives up to limit traces of service with a span that started between from and to, by start time.
func (c *Client) Newest(ctx context.Context, service string, from, to time.Time, limit int) ([]*trace.Trace, error) {
	traces, err := c.get(ctx, tracesPath, url.Values{
		paramService: {service}, paramRaw: {"true"}, paramNumTraces: {strconv.Itoa(limit)},
		paramTimeMin: {from.UTC().Format(time.RFC3339Nano)}, paramTimeMax: {to.UTC().Format(time.RFC3339Nano)},
	})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("traces of %s: %w", service, err)
	}
	return traces, nil
}

// All gives every trace of service with a span that started between from and to, by start time. The API has no cursor:
// a time in which a page is full is halved and asked for again, until no page is full.
func (c *Client) All(ctx context.Context, service string, from, to time.Time) ([]*trace.Trace, error) {
	byID := map[link.TraceID]*trace.Trace{}
	if err := c.all(ctx, service, from, to, byID); err != nil {
		return nil, err
	}
	traces := make([]*trace.Trace, 0, len(byID))
	for _, t := range byID {
		traces = append(traces, t)
	}
	sortByStart(traces)
	return traces, nil
}

func (c *Client) all(ctx context.Context, service string, from, to time.Time,
	into map[link.TraceID]*trace.Trace) error {
	traces, err := c.Newest(ctx, service, from, to, Page)
	if err != nil {
		return err
	}
	if len(traces) < Page {
		for _, t := range traces {
			into[t.ID] = t
		}
		return nil
	}
	if to.Sub(from) <= time.Microsecond { // as fine as Jaeger keeps times
		return fmt.Errorf("traces of %s: more than %d within a microsecond at %v", service, Page, from)
	}
	middle := from.Add(to.Sub(from) / 2)
	if err := c.all(ctx, service, from, middle, into); err != nil {
		return err
	}
	return c.all(ctx, service, middle, to, into)
}

func sortByStart(traces []*trace.Trace) {
	slices.SortFunc(traces, func(a, b *trace.Trace) int { return a.Start().Compare(b.Start()) })
}

// get gives the traces of an answer. Jaeger may send it in several documents, one after another.
func (c *Client) get(ctx context.Context, path string, q url.Values) ([]*trace.Trace, error) {
	body, err := c.do(ctx, path, q)
	if err != nil {
		return nil, err
	}
	byID := map[link.TraceID][]*trace.Span{}
	for dec, n := json.NewDecoder(strings.NewReader(string(body))), 0; ; n++ {
		var part found
		if err := dec.Decode(&part); errors.Is(err, io.EOF) && n > 0 {
			break
		} else if errors.Is(err, io.EOF) {
			// What has nothing to tell says so, by a status: whoever sends nothing has failed.
			return nil, fmt.Errorf("answer of %s: %s, and nothing in it", c.base.Host, http.StatusText(http.StatusOK))
		} else if err != nil {
			return nil, fmt.Errorf("answer of %s: %w", c.base.Host, err)
		}
		if len(part.Result) == 0 {
			return nil, fmt.Errorf("answer of %s: no result in it", c.base.Host)
		}
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(part.Result)
		if err != nil {
			return nil, fmt.Errorf("answer of %s: %w", c.base.Host, err)
		}
		for _, s := range trace.FromOTLP(td) {
			byID[s.TraceID] = append(byID[s.TraceID], s)
		}
	}
	traces := make([]*trace.Trace, 0, len(byID))
	for _, spans := range byID {
		traces = append(traces, trace.New(spans))
	}
	sortByStart(traces)
	return traces, nil
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256 << 20

func (c *Client) do(ctx context.Context, path string, q url.Values) ([]byte, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if at, ok := errors.AsType[*url.Error](err); ok {
			err = at.Err // the URL says nothing that the host does not
		}
		return nil, fmt.Errorf("asking %s: %w", u.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", c.base.Host, err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("answer of %s: more than %d bytes", c.base.Host, maxAnswer)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	var f failure
	message := http.StatusText(resp.StatusCode)
	if json.Unmarshal(body, &f) == nil && f.Error.Message != "" {
		message = f.Error.Message
	}
	if resp.StatusCode == http.StatusNotFound && f.Error.Code == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, message)
	}
	return nil, fmt.Errorf("%s: %s: %s", u.Host, resp.Status, message)
}
