package rowapi

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// answering is a transport that gives rows without a network.
type answering func() string

// RoundTrip implements [http.RoundTripper].
func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(a())), Request: r,
		Header: http.Header{"Content-Type": {contentType}},
	}, nil
}

// FuzzRows: whatever an agent or a store gives as rows, they are shown or refused, and what is shown is text.
func FuzzRows(f *testing.F) {
	text := ""
	c, err := NewStoreClient("http://store", &http.Client{Transport: answering(func() string { return text })})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`{"schema":1,"time":"2026-11-21T12:00:00Z","name":"a.","result":"LOST","hops":[{}]}`)
	f.Add(`{"schema":1,"traceID":"1","related":[{"kind":"retry"}],"flood":{},"verdict":{"where":"\u001b[2J"}}`)
	f.Add(`{"schema":2}{"schema":1}`)
	f.Fuzz(func(t *testing.T, in string) {
		text = in
		for _, width := range []int{0, 60, 200} {
			var shown strings.Builder
			out := output.Text{W: &shown, Width: width, Now: time.Now}
			corrections := output.Corrections{Filter: &output.Filter{Names: []string{"*"}, Clients: []string{"!x*"}}}
			_ = c.Lookups(t.Context(), &output.Filter{}, 0, false, func(r *output.Row) error { // rows, then perhaps an error
				corrections.Takes(r)
				return out.Write(r)
			})
			if i := strings.IndexFunc(shown.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }); i >= 0 {
				t.Errorf("%q is shown as %q", in, shown.String())
			}
		}
	})
}
