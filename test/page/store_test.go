package page

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/joined"
	look "github.com/dnstrail/dnstrail/tracer/page"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/tally"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// recent gives a store of the traces that the drawing is tested with, those of the lab and hostile ones, as of just
// now.
func recent(t *testing.T) *store.Store {
	t.Helper()
	s := store.New(store.Limits{})
	inputs, err := filepath.Glob("../../tracer/render/testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for i, input := range inputs {
		js, err := os.ReadFile(input)
		if err != nil {
			t.Fatal(err)
		}
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
		if err != nil {
			t.Fatal(err)
		}
		spans := trace.FromOTLP(td)
		later := time.Since(trace.New(spans).Start()) - time.Duration(60+i)*time.Second
		for _, sp := range spans {
			sp.Start, sp.End = sp.Start.Add(later), sp.End.Add(later)
			for k, a := range sp.Attributes {
				if a.Key == semconv.QuestionName && strings.HasPrefix(filepath.Base(input), "hostile") {
					sp.Attributes[k].Value = `<img src=x onerror=alert(1)>.` + a.Value.(string)
				}
			}
		}
		if base := filepath.Base(input); base == "nxdomain.json" || base == "cached.json" { // there is to be another client
			done := map[*trace.Resource]bool{}
			for _, sp := range spans {
				if sp.Resource == nil || done[sp.Resource] {
					continue
				}
				done[sp.Resource] = true
				for k, a := range sp.Resource.Attributes {
					if a.Value == "cart" {
						sp.Resource.Attributes[k].Value = "checkout"
					}
				}
			}
		}
		s.Add(spans...)
	}
	return s
}

// shown is what the browser read.
type shown struct {
	Totals map[string]string
	Stages map[string]map[string]string
	Pairs  map[string]string
	Tables map[string]map[string]map[string]string
	Rows   []string
	Images int
}

// TestStorePageInChromium: what the page draws is what the API says; what is clicked filters; hostile names are text;
// nothing is asked of anybody else; it can be used by keyboard, at 420 pixels, in the dark.
func TestStorePageInChromium(t *testing.T) {
	needChromium(t)
	s := recent(t)
	srv := serve(t, "127.0.0.1:0", access.Local(nil, look.Handler(&joined.Rows{Store: s}, s, 0, traceapi.Handler(s))))
	base := "http://" + srv.Addr
	view := func(query string) (v look.View) {
		t.Helper()
		resp, err := http.Get(base + look.PathView + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || json.Unmarshal(body, &v) != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return v
	}
	checker := buildBrowser(t)
	dir := os.Getenv("DNSTRAIL_SCREENSHOTS") // where they are looked at
	if dir == "" {
		dir = t.TempDir()
	}
	cmd := exec.Command(checker, "store", base, dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var seen struct {
		First, Chosen shown
		Command       string
		Wrong         []string
	}
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, w := range seen.Wrong {
		t.Error(w)
	}
	v := view("?since=5m")
	if v.Lookups < 8 || v.Lost < 3 || len(v.Clients) < 2 || len(v.Upstreams) == 0 || len(v.Nodes) == 0 {
		t.Fatalf("too little to look at: %d lookups, clients %+v", v.Lookups, v.Clients)
	}
	same(t, "the page", &seen.First, &v)
	chosen := v.Clients[0].Key
	w := view("?since=5m&client=" + url.QueryEscape(strings.NewReplacer(`\`, `\\`, `[`, `\[`).Replace(chosen)))
	same(t, "the page of "+chosen, &seen.Chosen, &w)
	if w.Lookups == v.Lookups {
		t.Error("choosing a client filters nothing")
	}
	if want := "dnstrail observe --store " + base + " --since 5m --client " + chosen; seen.Command != want {
		t.Errorf("the command is %q, want %q", seen.Command, want)
	}
	if !slices.ContainsFunc(v.Names,
		func(l tally.Line) bool { return strings.HasPrefix(l.Key, "<img src=x onerror=alert") }) {
		t.Error("no hostile name was tried")
	}
}

// same holds what was drawn against what the API says.
func same(t *testing.T, what string, s *shown, v *look.View) {
	t.Helper()
	is := func(where, got string, want int) {
		t.Helper()
		text := fmt.Sprint(want)
		if want == 0 && got == "-" {
			return
		}
		if got != text {
			t.Errorf("%s: %s is %q, want %s", what, where, got, text)
		}
	}
	is("lookups", s.Totals["lookups"], v.Lookups)
	is("failed", s.Totals["failed"], v.Failed)
	is("lost", s.Totals["lost"], v.Lost)
	if s.Images != 0 {
		t.Errorf("%s: %d elements that somebody else made", what, s.Images)
	}
	for _, st := range v.Stages {
		got := s.Stages[st.Stage]
		if st.Lost > 0 {
			is(st.Stage+" lost", got["lost"], st.Lost)
		}
		if (got["lossy"] != "") != (st.Lost > 0) {
			t.Errorf("%s: %s stands out: %q", what, st.Stage, got["lossy"])
		}
		if st.Lookups > 0 && (got["p50"] == "" || took(t, got["p50"], st.P50) || took(t, got["p99"], st.P99)) {
			t.Errorf("%s: %s takes %s and %s, want %v and %v", what, st.Stage, got["p50"], got["p99"], st.P50, st.P99)
		}
	}
	for id, lines := range map[string][]tally.Line{"clients": v.Clients, "names": v.Names, "upstreams": v.Upstreams,
		"instances": v.Instances} {
		if len(s.Tables[id]) != len(lines) {
			t.Errorf("%s: %d lines of %s, want %d", what, len(s.Tables[id]), id, len(lines))
		}
		for _, l := range lines {
			got := s.Tables[id][l.Key]
			is(l.Key+" lookups", got["lookups"], l.Lookups)
			is(l.Key+" failed", got["failed"], l.Failed)
			is(l.Key+" lost", got["lost"], l.Lost)
			if got["key"] != l.Key || took(t, got["p99Nanos"], l.P99) {
				t.Errorf("%s: %s: %q, p99 %s, want %v", what, id, got["key"], got["p99Nanos"], l.P99)
			}
		}
	}
	for _, p := range v.Nodes {
		if got, want := s.Pairs[p.From+" "+p.To], fmt.Sprintf("%d of %d", p.Failed, p.Lookups); got != want {
			t.Errorf("%s: %s to %s: %q, want %q", what, p.From, p.To, got, want)
		}
	}
	var rows []string
	for _, r := range v.Rows {
		rows = append(rows, r.TraceID)
	}
	if !slices.Equal(s.Rows, rows) {
		t.Errorf("%s: rows %v, want %v", what, s.Rows, rows)
	}
}

// took tells whether a time as drawn is another than that, within its three digits.
func took(t *testing.T, text string, want time.Duration) bool {
	t.Helper()
	got, err := time.ParseDuration(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Errorf("%q: %v", text, err)
		return true
	}
	return (got - want).Abs() > want/100
}
