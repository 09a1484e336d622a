package past

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

var began = time.Now().Add(-time.Minute)

// result is a lookup for nN, a second after that before.
func result(n int, lost bool) pipeline.Result {
	name := dnswire.AppendLower(nil, []byte(fmt.Sprintf("\x03n%02d\x00", n)))
	l := &lookup.Lookup{
		Transport: link.UDP, Name: name, Type: 1, Class: 1, Attempts: 1, Ending: lookup.Answered, Final: true,
		Hops: []hop.Hop{{Time: began.Add(time.Duration(n) * time.Second).UnixNano(), Kind: hop.Out}},
	}
	v := &verdict.Verdict{Where: verdict.Answered, Cause: verdict.CauseAnswered}
	if lost {
		l.Ending, v.Where, v.Cause = lookup.Dropped, verdict.Node, verdict.CausePolicyDrop
	}
	return pipeline.Result{Lookup: l, Verdict: v, Origin: &origin.Origin{}}
}

func serve(t *testing.T, p *Past) *rowapi.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(l, p)
	t.Cleanup(s)
	if _, err := Listen(path); err == nil {
		t.Error("a second agent listens on the same socket")
	}
	return rowapi.NewSocketClient(path)
}

func TestThePastIsBoundedAndKeepsTheLost(t *testing.T) {
	p := New(3, 2, DefaultBytes, "", 0)
	c := serve(t, p)
	for n := range 10 {
		p.Add(result(n, n < 4))
	}
	for _, tt := range []struct {
		name string
		f    output.Filter
		last int
		want string
	}{
		{"all", output.Filter{}, 0, "n02. n03. n07. n08. n09. "},
		{"the last two", output.Filter{}, 2, "n08. n09. "},
		{"filtered", output.Filter{Rcodes: []string{"LOST"}}, 0, "n02. n03. "},
		{"since", output.Filter{Since: began.Add(8 * time.Second)}, 0, "n08. n09. "},
		{"none", output.Filter{}, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			err := c.Lookups(t.Context(), &tt.f, tt.last, false, func(r *output.Row) error { got += r.Name + " "; return nil })
			if err != nil || got != tt.want {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
	if err := c.Lookups(t.Context(), &output.Filter{Names: []string{"["}}, 0, false, nil); err == nil {
		t.Error("a broken filter passes")
	}
}

// TestThePastIsBoundedInBytes: lookups of many hops cost others of the same ring, and never more memory.
func TestThePastIsBoundedInBytes(t *testing.T) {
	const most = 256 << 10
	p := New(64, 64, most, "", 0)
	for n := range 1000 {
		r := result(n%100, true)
		r.Lookup.Hops = slices.Repeat(r.Lookup.Hops[:1], 512)
		p.Add(r)
	}
	used := 0
	for i := range p.lost.slots {
		used += p.lost.slots[i].room()
	}
	if used != p.lost.bytes || used > most/4 && p.lost.n > 1 {
		t.Errorf("%d lookups take %d bytes, counted as %d, of %d", p.lost.n, used, p.lost.bytes, most/4)
	}
	if rows := p.Rows(&output.Filter{}, 0); len(rows) != p.lost.n || p.lost.n == 0 {
		t.Errorf("%d rows of %d lookups", len(rows), p.lost.n)
	}
}

func TestFollowersGetWhatComes(t *testing.T) {
	p := New(3, 2, DefaultBytes, "", 0)
	c := serve(t, p)
	p.Add(result(1, false))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	rows := make(chan string, 4)
	done := make(chan error, 1)
	go func() {
		done <- c.Lookups(ctx, &output.Filter{}, 0, true, func(r *output.Row) error { rows <- r.Name; return nil })
	}()
	if got := <-rows; got != "n01." {
		t.Fatalf("the past starts with %q", got)
	}
	p.Add(result(2, false))
	if got := <-rows; got != "n02." {
		t.Fatalf("%q came", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkAdd(b *testing.B) {
	p := New(DefaultAll, DefaultLost, DefaultBytes, "", 0)
	r := result(1, false)
	for range 15 {
		r.Lookup.Hops = append(r.Lookup.Hops, r.Lookup.Hops[0])
	}
	for range DefaultAll {
		p.Add(r)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Add(r)
	}
}
