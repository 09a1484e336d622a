package rowapi

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// contentType is what rows are sent as; an answer of another type is not ours.
const contentType = "application/jsonl"

// Client asks a [Handler].
type Client struct {
	base *url.URL
	what string // for messages
	http http.Client
}

// NewSocketClient makes a client of the agent that listens at a Unix socket. It does not connect.
func NewSocketClient(path string) *Client {
	return &Client{
		base: &url.URL{Scheme: "http", Host: "agent"}, what: "the agent at " + path,
		http: http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}},
	}
}

// NewStoreClient makes a client of the dnstrail store whose API is at base, "http://127.0.0.1:16686"; a path in it is
// kept, a lone host:port is taken for http. It does not connect. hc may be nil.
func NewStoreClient(base string, hc *http.Client) (*Client, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL of a dnstrail store: want http://host:port", base)
	}
	return &Client{base: u, what: "the store at " + u.Host, http: *cmp.Or(hc, &http.Client{})}, nil
}

// String says whom the client asks.
func (c *Client) String() string { return c.what }

// Lookups gives each row that the filter takes: the last n of the past (0: all, negative: none), and with follow those
// that come, until ctx ends. An error names who was asked.
func (c *Client) Lookups(ctx context.Context, f *output.Filter, n int, follow bool,
	give func(*output.Row) error) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	q := url.Values{"last": {strconv.Itoa(n)}, "follow": {strconv.FormatBool(follow)}}
	resp, err := c.do(ctx, http.MethodPost, PathLookups, q, bytes.NewReader(body))
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t != contentType {
		return c.stranger(resp)
	}
	for d := json.NewDecoder(bufio.NewReader(resp.Body)); ; {
		var row output.Row
		if err := d.Decode(&row); err != nil {
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, io.EOF) && !follow:
				return nil
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
				return fmt.Errorf("%s has gone", c.what)
			}
			return fmt.Errorf("reading from %s: %w", c.what, err)
		}
		if row.Schema != output.SchemaVersion {
			return fmt.Errorf("%s speaks schema %d, this program %d: use the same version of both", c.what, row.Schema,
				output.SchemaVersion)
		}
		if err := give(&row); err != nil {
			return err
		}
	}
}

// Stats reads the source's own counts into v, a pointer.
func (c *Client) Stats(ctx context.Context, v any) error {
	resp, err := c.do(ctx, http.MethodGet, PathStats, nil, http.NoBody)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("reading the counts of %s: %w", c.what, err)
	}
	return nil
}

// do gives an answer of status 200, whose body the caller closes.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if at, ok := errors.AsType[*url.Error](err); ok {
			err = at.Err // the URL is ours, and says nothing that what does not
		}
		return nil, fmt.Errorf("asking %s: %w", c.what, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
		return nil, c.stranger(resp)
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // what can be read of an explanation
	return nil, fmt.Errorf("asking %s: %s: %s", c.what, resp.Status, strings.TrimSpace(string(b)))
}

// stranger says that what answered is none of ours.
func (c *Client) stranger(resp *http.Response) error {
	return fmt.Errorf("%s answers (%s), but gives no rows: it is no dnstrail store or agent of this version; of a "+
		"Jaeger, ask single traces: dnstrail explain --jaeger URL", c.what, resp.Status)
}
