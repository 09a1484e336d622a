package page

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/tally"
)

// source gives rows, and then those that come.
type source struct {
	past []*output.Row
	come chan *output.Row

	mu       sync.Mutex
	followed int
}

func (s *source) Lookups(ctx context.Context, f *output.Filter, _ int, follow bool, give func(*output.Row) error,
	idle func()) error {
	s.mu.Lock()
	s.followed++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.followed--
		s.mu.Unlock()
	}()
	for _, r := range s.past {
		if !f.Takes(r) {
			continue
		}
		if err := give(r); err != nil {
			return err
		}
	}
	idle()
	for follow {
		select {
		case r := <-s.come:
			if err := give(r); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (s *source) following() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.followed
}

// rows gives 90 lookups of the last minute: 60 of cart, of which 20 go to a slow upstream; 30 of web, all lost on their
// way to the other node.
func rows() []*output.Row {
	var list []*output.Row
	for i := range 90 {
		r := &output.Row{
			Schema: output.SchemaVersion, Time: time.Now().Add(-time.Duration(60-i/2) * time.Second),
			TraceID: fmt.Sprintf("%032x", i+1),
			Client: output.Client{Namespace: "shop", Workload: "cart", Pod: "cart-1", Node: "node-1",
				Address: "10.0.0.1:1"}, Server: "10.96.0.10:53",
			Name: "web.shop.", Type: "A", Result: "NOERROR",
			Total: int64(time.Millisecond), Verdict: output.Verdict{Where: "answered", Cause: "answered"},
			Instance: &output.Instance{Namespace: "kube-system", Pod: "coredns-1", Node: "node-2", Address: "10.0.2.2:53"},
			Stages:   []output.Stage{{Stage: "node", Nanos: 20_000}, {Stage: "coredns", Nanos: 800_000}},
		}
		switch {
		case i%3 == 1:
			r.Client.Workload, r.Client.Pod, r.Result, r.Total = "web", "web-1", output.Lost, int64(5*time.Second)
			r.Verdict = output.Verdict{Where: "between-nodes", Cause: "not-seen-further"}
			r.Instance, r.Stages = &output.Instance{Address: "10.0.2.2:53"}, []output.Stage{{Stage: "node", Nanos: 30_000}}
		case i < 60 && i%3 == 0:
			r.Upstreams = []output.Upstream{{Address: "192.0.2.1:53", Nanos: int64(200 * time.Millisecond), Result: "NOERROR"}}
			r.Total = int64(201 * time.Millisecond)
			r.Stages = append(r.Stages, output.Stage{Stage: "upstream", Nanos: int64(200 * time.Millisecond)})
		}
		list = append(list, r)
	}
	return list
}

// answered is what came back.
type answered struct {
	status int
	header http.Header
}

func serve(t *testing.T, s *source) (get func(path string) (answered, string)) {
	t.Helper()
	otherwise := http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "otherwise", http.StatusTeapot) })
	srv := httptest.NewServer(access.Local(nil, Handler(s, store.New(store.Limits{}), 0, otherwise)))
	t.Cleanup(srv.Close)
	return func(path string) (answered, string) {
		t.Helper()
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answered{resp.StatusCode, resp.Header}, string(b)
	}
}

func TestView(t *testing.T) {
	get := serve(t, &source{past: rows()})
	view := func(query string) (v View) {
		t.Helper()
		resp, body := get(PathView + query)
		if err := json.Unmarshal([]byte(body), &v); err != nil || resp.status != http.StatusOK {
			t.Fatalf("%d: %v\n%s", resp.status, err, body)
		}
		return v
	}
	v := view("?since=5m")
	if v.Lookups != 90 || v.Lost != 30 || v.Failed != 30 || !v.Whole || math.Abs(v.Rate-90/300.) > 0.01 ||
		v.P50 != 201*time.Millisecond || v.P99 != 5*time.Second {
		t.Errorf("%d lookups, %d lost, %d failed, whole %t, %g a second, p50 %v, p99 %v", v.Lookups, v.Lost, v.Failed,
			v.Whole, v.Rate, v.P50, v.P99)
	}
	of := map[string]StageView{}
	for _, s := range v.Stages {
		of[s.Stage] = s
	}
	if s := of["between-nodes"]; len(v.Stages) != 9 || s.Lost != 30 ||
		!reflect.DeepEqual(s.Causes, []CauseCount{{"not-seen-further", 30}}) {
		t.Errorf("stages: %+v", v.Stages)
	}
	if s := of["upstream"]; s.Lookups != 20 || s.P50 != 200*time.Millisecond {
		t.Errorf("upstream: %+v", s)
	}
	if len(v.Clients) != 2 || v.Clients[0].Key != "shop/cart" || v.Clients[0].Lookups != 60 || v.Clients[1].Lost != 30 {
		t.Errorf("clients: %+v", v.Clients)
	}
	// The lost ones' server is known by its address.
	if want := []NodePair{{"node-1", "node-2", 90, 30, 30}}; !reflect.DeepEqual(v.Nodes, want) {
		t.Errorf("nodes: %+v, want %+v", v.Nodes, want)
	}
	if len(v.Rows) != 90 || v.Rows[0].TraceID != fmt.Sprintf("%032x", 90) {
		t.Errorf("%d rows, the first %+v", len(v.Rows), v.Rows[0])
	}
	for query, want := range map[string]int{
		"lost=true": 30, "lost=false": 60, "client=shop/web": 30, "client=!shop/web": 60, "upstream=192.0.2.1": 20,
		"slow=100ms": 50, "where=between-*": 30,
		"name=*.shop": 90, "name=none": 0, "instance=" +
			url.QueryEscape("kube-system/coredns-1"): 60, "server-node=node-2&lost=true": 30, "server-node=node-1": 0,
		"since=1s": 0, "type=A,AAAA&rcode=NOERROR": 60,
	} {
		if v := view("?" + query); v.Lookups != want {
			t.Errorf("%s: %d lookups, want %d", query, v.Lookups, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	get := serve(t, &source{})
	for path, want := range map[string]struct {
		status int
		says   string
	}{
		PathView + "?slow=fast":                        {http.StatusBadRequest, "slow: "},
		PathView + "?since=2h":                         {http.StatusBadRequest, "since: want 1s to 1h"},
		PathView + "?color=red":                        {http.StatusBadRequest, "color: no such filter"},
		PathView + "?name=[":                           {http.StatusBadRequest, `pattern "["`},
		PathView + "?lost=perhaps":                     {http.StatusBadRequest, "lost: "},
		PathLive + "?slow=-1s":                         {http.StatusBadRequest, "slow: want 0 or more"},
		PathView + "?name=" + strings.Repeat("a,", 40): {http.StatusBadRequest, "want at most 32"},
		PathWalk + "xyz":                               {http.StatusBadRequest, "no trace ID"},
		PathWalk + strings.Repeat("1", 32):             {http.StatusNotFound, "not kept"},
		"/api/v3/services":                             {http.StatusTeapot, "otherwise"},
		"/page/nothing":                                {http.StatusTeapot, "otherwise"},
	} {
		if resp, body := get(path); resp.status != want.status || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %s, want %d %s", path, resp.status, body, want.status, want.says)
		}
	}
}

// TestNothingFromElsewhere: the page may load what comes with it alone, and be framed by nobody; it has no script and
// no style of its own within it.
func TestNothingFromElsewhere(t *testing.T) {
	get := serve(t, &source{})
	for _, path := range []string{"/", "/page/page.js", "/page/page.css", PathView} {
		resp, body := get(path)
		csp := resp.header.Get("Content-Security-Policy")
		if resp.status != http.StatusOK || !strings.Contains(csp, "default-src 'none'") ||
			!strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %d, %q", path, resp.status, csp)
		}
		for _, h := range []string{"X-Content-Type-Options", "Cross-Origin-Resource-Policy", "Cache-Control"} {
			if resp.header.Get(h) == "" {
				t.Errorf("%s has no %s", path, h)
			}
		}
		for _, no := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=\"",
			"onclick=\"", "<script>", "<style>"} {
			if strings.Contains(body, no) {
				t.Errorf("%s has %q", path, no)
			}
		}
		if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), "://") {
			t.Errorf("%s names another host", path)
		}
	}
}

// TestHostileRows: what somebody chose has no control characters in what is sent.
func TestHostileRows(t *testing.T) {
	r := rows()[0]
	r.Name, r.Client.Pod = "x\x1b[2J\u202e<img src=x>.example.", "</script><script>alert(1)</script>\n\ndata: x"
	get := serve(t, &source{past: []*output.Row{r}})
	_, body := get(PathView)
	if strings.ContainsAny(body, "\x1b\u202e") || strings.Contains(strings.TrimRight(body, "\n"), "\n") {
		t.Errorf("%q", body)
	}
}

// TestLive: a view comes again with what has come since; following ends when nobody looks on.
func TestLive(t *testing.T) {
	s := &source{past: rows(), come: make(chan *output.Row)}
	f := &feed{source: s}
	srv := httptest.NewServer(http.HandlerFunc(f.live))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"?client=shop/cart", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	next := func() (v View) {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if err := json.Unmarshal([]byte(data), &v); err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
		t.Fatal(lines.Err())
		return v
	}
	if v := next(); v.Lookups != 60 {
		t.Errorf("%d lookups, want 60", v.Lookups)
	}
	more := rows()[0]
	more.TraceID, more.Time = "ff", time.Now()
	s.come <- more
	if v := next(); v.Lookups != 61 {
		t.Errorf("%d lookups, want 61", v.Lookups)
	}
	if s.following() != 1 {
		t.Errorf("%d follow, want 1", s.following())
	}
	cancel()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		gone := f.readers == 0
		f.mu.Unlock()
		if gone {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the reader has not gone")
		}
	}
	f.end() // what comes when it has lingered
	for end := time.Now().Add(5 * time.Second); s.following() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("rows are followed, and nobody looks on")
		}
	}
}

// TestTooMany: of more lookups than are kept the last count, and the view says of which time they are.
func TestTooMany(t *testing.T) {
	f := &feed{window: &tally.Window{Keep: maxSince, Max: 100}}
	now := time.Now()
	for i := range 300 {
		r := rows()[0]
		r.TraceID, r.Time = fmt.Sprint(i), now.Add(-time.Duration(300-i)*time.Second)
		f.window.Add(r)
	}
	v := f.make(&query{since: 5 * time.Minute}, now)
	if v.Whole || v.Lookups != 100 || math.Abs(v.Seconds-100) > 0.01 || math.Abs(v.Rate-1) > 0.01 {
		t.Errorf("whole %t, %d lookups in %g s, %g a second", v.Whole, v.Lookups, v.Seconds, v.Rate)
	}
	if v := f.make(&query{since: 50 * time.Second}, now); !v.Whole || v.Lookups != 50 {
		t.Errorf("of the last 50 s: whole %t, %d lookups", v.Whole, v.Lookups)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("since=5m&name=*.example.com&lost=true")
	f.Add("client=%5B&slow=-1s")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := parse(values)
		if err != nil {
			return
		}
		if q.since < time.Second || q.since > maxSince || q.filter.Slow < 0 {
			t.Errorf("%q: since %v, slow %v", text, q.since, q.filter.Slow)
		}
		q.takes(&output.Row{}, nil)
	})
}

func BenchmarkView(b *testing.B) {
	f := &feed{window: &tally.Window{Keep: maxSince, Max: maxKept}}
	list := rows()
	for i := range maxKept {
		r := *list[i%len(list)]
		r.TraceID, r.Name = fmt.Sprint(i), fmt.Sprint("host-", i%2000, ".example.")
		f.window.Add(&r)
	}
	q := &query{since: maxSince}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.json(q, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

var _ Traces = (*store.Store)(nil)
