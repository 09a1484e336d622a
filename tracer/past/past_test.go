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
	p := New(Options{All: 3, Lost: 2, Bytes: DefaultBytes})
	c := serve(t, p)
	for n := range 10 {
		p.Add(result(n, n < 4), 0, false)
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
	p := New(Options{All: 64, Lost: 64, Bytes: most})
	for n := range 1000 {
		r := result(n%100, true)
		r.Lookup.Hops = slices.Repeat(r.Lookup.Hops[:1], 512)
		p.Add(r, 0, false)
	}
	used := 0
	for i := range p.lost.n {
		used += p.lost.at(i).room
	}
	if used != p.lost.bytes || used > most/4 && p.lost.n > 1 {
		t.Errorf("%d lookups take %d bytes, counted as %d, of %d", p.lost.n, used, p.lost.bytes, most/4)
	}
	if rows := p.Rows(&output.Filter{}, 0); len(rows) != p.lost.n || p.lost.n == 0 {
		t.Errorf("%d rows of %d lookups", len(rows), p.lost.n)
	}
}

func TestFollowersGetWhatComes(t *testing.T) {
	p := New(Options{All: 3, Lost: 2, Bytes: DefaultBytes})
	c := serve(t, p)
	p.Add(result(1, false), 0, false)
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
	p.Add(result(2, false), 0, false)
	if got := <-rows; got != "n02." {
		t.Fatalf("%q came", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// For those who ask back lookups are kept beyond the rows, bounded in time and in bytes, and each is found by its
// question as long as it is held.
func TestFind(t *testing.T) {
	const reach = time.Minute
	p := New(Options{All: 5, Lost: 3, Bytes: 200 << 10, Reach: reach})
	for i := range 5000 {
		hash := uint64(i%97 + 1)
		if i%10 == 0 {
			hash = 0 // a row alone
		}
		p.Add(result(i%60, i%7 == 0), hash, false)
		held, bytes, _ := p.Held()
		if bytes > 200<<10 || held == 0 {
			t.Fatalf("%d lookups of %d bytes", held, bytes)
		}
		named := 0
		for _, r := range []*ring{&p.all, &p.lost} {
			for j := range r.n {
				if r.at(j).hash != 0 {
					named++
				}
			}
		}
		found := 0
		for hash, k := range p.index {
			if k.newer != nil {
				t.Fatal("the index does not begin with the newest")
			}
			for at := k; at != nil; at = at.Older() {
				if at.hash != hash || at.older != nil && (at.older.newer != at || at.older.at > at.at) {
					t.Fatal("the index's chain is broken")
				}
				found++
			}
		}
		if found != named {
			t.Fatalf("%d are found, %d held", found, named)
		}
	}
	if _, _, early := p.Held(); early == 0 {
		t.Error("nothing was let go early: the test is too small")
	}
	if rows := p.Rows(&output.Filter{}, 0); len(rows) != 8 {
		t.Errorf("%d rows, want 5 and 3 lost ones", len(rows))
	}
	n, lost := 0, 0
	for k := range p.Newest() {
		if r := k.Result(); r.Verdict.Lost() {
			lost++
		} else if n++; lost > 0 {
			t.Fatal("one that is not lost comes after those that are")
		}
	}
	if n != p.all.n || lost != p.lost.n {
		t.Errorf("%d of %d are given, and %d of %d lost ones", n, p.all.n, lost, p.lost.n)
	}
	p.Expire(time.Now().Add(2 * reach))
	if held, _, _ := p.Held(); held != 8 {
		t.Errorf("%d are held after the reach, want those that there are rows of", held)
	}
	if rows := p.Rows(&output.Filter{}, 0); len(rows) != 8 {
		t.Errorf("%d rows after the reach, want 8", len(rows))
	}
}

// A server's own queries are found by the lookup that they serve, the newest first, as long as they are held; where
// nobody asks back, they are not.
func TestServing(t *testing.T) {
	p := New(Options{All: 5, Lost: 3, Bytes: 100 << 10, Reach: time.Minute})
	for i := range 3000 {
		r := result(i%60, i%7 == 0)
		r.Lookup.Connect = i%5 == 0 // what has no question of its own is found all the same
		hash := uint64(0)
		if i%3 > 0 {
			r.Lookup.Serves = &lookup.Served{TraceID: link.TraceID{1, byte(i % 31)}}
		} else {
			hash = uint64(i%13 + 1)
		}
		r.Lookup.Final = i%11 > 0
		p.Add(r, hash, false)
		serving, found := 0, 0
		for _, r := range []*ring{&p.all, &p.lost} {
			for j := range r.n {
				if r.at(j).serves {
					serving++
				}
			}
		}
		for id, k := range p.served {
			if k.after != nil || p.Serving(id) != k {
				t.Fatal("it does not begin with the newest")
			}
			for ; k != nil; k = k.Prior() {
				if l := k.Result().Lookup; l.Serves.TraceID != id || !l.Final || k.prior != nil && k.prior.after != k {
					t.Fatal("the chain is broken")
				}
				found++
			}
		}
		if found != serving {
			t.Fatalf("%d are found, %d held", found, serving)
		}
	}
	if _, _, early := p.Held(); early == 0 || len(p.served) == 0 {
		t.Errorf("%d were let go early, %d lookups are served: the test is too small", early, len(p.served))
	}
	p = New(Options{All: 5, Bytes: 100 << 10})
	r := result(1, false)
	r.Lookup.Serves = &lookup.Served{TraceID: link.TraceID{1}}
	if p.Add(r, 0, false); p.Serving(link.TraceID{1}) != nil {
		t.Error("it is found where nobody asks back")
	}
}

// A report that only confirms the last one is found, and is no row of its own.
func TestConfirmationsAreFound(t *testing.T) {
	p := New(Options{All: 5, Lost: 3, Bytes: DefaultBytes, Reach: time.Minute})
	r := result(1, false)
	r.Lookup.Confirms = true
	p.Add(r, 7, true)
	if k := p.Find(7); k == nil || !k.Sent {
		t.Errorf("%+v is found", k)
	}
	if rows := p.Rows(&output.Filter{}, 0); len(rows) != 0 {
		t.Errorf("%d rows", len(rows))
	}
}

// Without a reach nothing is kept but rows, and without rows nothing at all.
func TestNothingIsKeptForNobody(t *testing.T) {
	p := New(Options{Lost: 3, Bytes: DefaultBytes})
	follower := p.Subscribe(nil)
	defer follower.Close()
	p.Add(result(1, false), 7, false)
	p.Add(result(2, true), 7, false)
	if held, _, _ := p.Held(); held != 1 || p.Find(7) != nil {
		t.Errorf("%d are held", held)
	}
	if n := len(follower.Rows()); n != 2 {
		t.Errorf("a follower was told of %d lookups, want both", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	p := New(Options{All: DefaultAll, Lost: DefaultLost, Bytes: DefaultBytes})
	r := result(1, false)
	for range 15 {
		r.Lookup.Hops = append(r.Lookup.Hops, r.Lookup.Hops[0])
	}
	for range DefaultAll {
		p.Add(r, 0, false)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Add(r, 0, false)
	}
}
