package rowapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// rows is a source that gives itself and has nothing more.
type rows []*output.Row

func (r rows) Lookups(_ context.Context, f *output.Filter, _ int, _ bool, give func(*output.Row) error,
	idle func()) error {
	for _, row := range r {
		if !f.Takes(row) {
			continue
		}
		if err := give(row); err != nil {
			return err
		}
	}
	idle()
	return nil
}

func TestRowsAndCountsComeThrough(t *testing.T) {
	s := httptest.NewServer(Handler(rows{{Schema: output.SchemaVersion, Name: "a."},
		{Schema: output.SchemaVersion, Name: "b."}}, func() any { return map[string]int{"x": 7} }))
	defer s.Close()
	c, err := NewStoreClient(strings.TrimPrefix(s.URL, "http://"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	if err := c.Lookups(t.Context(), &output.Filter{Names: []string{"b"}}, 0, false,
		func(r *output.Row) error { got += r.Name; return nil }); err != nil || got != "b." {
		t.Errorf("%q, %v", got, err)
	}
	var counts map[string]int
	if err := c.Stats(t.Context(), &counts); err != nil || counts["x"] != 7 {
		t.Errorf("%v, %v", counts, err)
	}
	full := errors.New("full")
	if err := c.Lookups(t.Context(), &output.Filter{}, 0, false, func(*output.Row) error { return full }); !errors.Is(
		err, full) {
		t.Errorf("error %v, want the reader's own", err)
	}
	if err := c.Lookups(t.Context(), &output.Filter{}, 0, true, func(*output.Row) error { return nil }); err == nil ||
		!strings.Contains(err.Error(), "has gone") {
		t.Errorf("error %v of a source that ends while it is followed", err)
	}
	if err := c.Lookups(t.Context(), &output.Filter{Names: []string{"["}}, 0, false, nil); err == nil ||
		!strings.Contains(err.Error(), "pattern") {
		t.Errorf("error %v of a broken filter", err)
	}
	resp, err := http.Post(s.URL+PathLookups+"?last=0&follow=false", "application/json",
		strings.NewReader(`{"Nome":["x"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest ||
		!strings.Contains(string(body), `unknown field "Nome"`) {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

// TestClientNamesWhatIsWrong: what may answer in the place of a store.
func TestClientNamesWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		name, contentType string
		status            int
		body, want        string
	}{
		{"a Jaeger", "text/plain", 404, "404 page not found", "no dnstrail store"},
		{"a web page for everything", "text/html", 200, "<html>", "no dnstrail store"},
		{"a proxy's error", "text/html", 502, "bad gateway", "502 Bad Gateway: bad gateway"},
		{"another schema", contentType, 200, `{"schema": 99}`, "speaks schema 99"},
		{"cut off", contentType, 200, `{"schema": 1, "na`, "has gone"},
		{"no JSON", contentType, 200, `hello`, "invalid character"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tc.contentType)
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			}))
			defer s.Close()
			c, err := NewStoreClient(s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Lookups(t.Context(), &output.Filter{}, 0, false, func(*output.Row) error { return nil })
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "store at 127.0.0.1") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	for _, base := range []string{"", "ftp://x", "http://", "http://a b"} {
		if _, err := NewStoreClient(base, nil); err == nil {
			t.Errorf("%q was taken for a URL", base)
		}
	}
	err := NewSocketClient(filepath.Join(t.TempDir(), "none.sock")).Lookups(t.Context(), &output.Filter{}, 0, false, nil)
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v of a socket that is not there", err)
	}
}
