package render

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

var update = flag.Bool("update", false, "write the golden files anew")

func read(t *testing.T, name string) *trace.Trace {
	t.Helper()
	js, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return trace.New(trace.FromOTLP(td))
}

func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for _, input := range inputs {
		for suffix, o := range map[string]Options{".txt": {}, ".72.txt": {Width: 72, ASCII: true},
			".colour.txt": {Colour: true}, ".explain.txt": {}, ".hops.txt": {Hops: true}} {
			golden := strings.TrimSuffix(input, ".json") + suffix
			t.Run(filepath.Base(golden), func(t *testing.T) {
				var out strings.Builder
				draw := func() error { return Trace(&out, read(t, input), o) }
				if suffix == ".explain.txt" || suffix == ".hops.txt" {
					draw = func() error { return Story(&out, explain.Tell(read(t, input), nil), o) }
				}
				if err := draw(); err != nil {
					t.Fatal(err)
				}
				if *update {
					if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if out.String() != string(want) {
					t.Errorf("not as %s (-update writes it anew):\n%s", golden, out.String())
				}
				if !o.Colour {
					for l := range strings.Lines(out.String()) {
						if w := runewidth.StringWidth(strings.TrimSuffix(l, "\n")); w > max(o.Width, 72) &&
							(o.Width != 0 || w > DefaultWidth) {
							t.Errorf("%d cells wide: %s", w, l)
						}
						if strings.ContainsAny(strings.TrimSuffix(l, "\n"), "\x1b\x07\r\x00") {
							t.Errorf("a control character reaches the terminal: %q", l)
						}
					}
				}
			})
		}
	}
}

func TestWrap(t *testing.T) {
	got := strings.Join(wrap("a quick brown foxjumpedover it", 7), "|")
	if want := "a quick|brown|foxjump|edover|it"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestFitsTheScreen: what is told of a lookup that was answered well needs no more lines than a terminal has; with
// every hop one of them needs more, so that folding is what does it.
func TestFitsTheScreen(t *testing.T) {
	const screen = 24
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	longer := 0
	for _, input := range inputs {
		s := explain.Tell(read(t, input), nil)
		if s.Verdict.Lost() || s.Trace.Rcode() != "NOERROR" && s.Trace.Rcode() != "NXDOMAIN" {
			continue
		}
		for _, hops := range []bool{false, true} {
			var out strings.Builder
			if err := Story(&out, s, Options{Hops: hops}); err != nil {
				t.Fatal(err)
			}
			n := strings.Count(out.String(), "\n")
			switch {
			case !hops && n > screen:
				t.Errorf("%s: %d lines, want at most %d", input, n, screen)
			case hops && n > screen:
				longer++
			}
		}
	}
	if longer == 0 {
		t.Error("no trace needs more lines with every hop")
	}
}
