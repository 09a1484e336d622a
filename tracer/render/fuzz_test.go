package render

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/mattn/go-runewidth"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/store"
)

// FuzzTrace: whatever somebody sends to the store or puts in a file, it can be joined, judged, told and drawn; nothing but text
// reaches the terminal, within its width.
func FuzzTrace(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		f.Fatalf("no traces: %v", err)
	}
	for _, in := range inputs {
		js, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(js)
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
		if err != nil {
			return
		}
		byID := map[link.TraceID][]*store.Span{}
		s := store.New(store.Limits{Spans: 1000})
		for _, sp := range store.FromOTLP(td) {
			if s.Add(sp) == 0 {
				byID[sp.TraceID] = append(byID[sp.TraceID], sp)
			}
		}
		all := s.Traces(store.Filter{})
		store.Shadows(all)
		for _, tr := range all {
			story := explain.Tell(tr, all)
			if _, err := story.MarshalJSON(); err != nil {
				t.Errorf("JSON: %v", err)
			}
			var out strings.Builder
			if err := Story(&out, story, Options{}); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				line = strings.TrimSuffix(line, "\n")
				if w := runewidth.StringWidth(line); w > DefaultWidth {
					t.Errorf("%d cells: %q", w, line)
				}
				if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
					t.Errorf("not text: %q", line)
				}
			}
			out.Reset()
			if err := Page(&out, story, Options{}); err != nil {
				t.Errorf("page: %v", err)
			}
			// Every span is in one place of the tree, and no more.
			n := 0
			walk(tr.Nested(), func(*store.Node) bool { n++; return true })
			if n > len(tr.Spans) || n == 0 {
				t.Errorf("%d nodes for %d spans", n, len(tr.Spans))
			}
		}
	})
}
