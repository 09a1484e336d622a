// Package page holds the page that `dnstrail explain -o html` writes against a real browser.
package page

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// needChromium skips a test where there is no Chromium.
func needChromium(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("chromium"); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatal("chromium is not installed")
		}
		t.Skip("chromium is not installed (Debian's package chromium)")
	}
}

// buildBrowser builds the checker of pages, and gives its path. As root under CI it is to ask axe-core, too.
func buildBrowser(t *testing.T) string {
	t.Helper()
	if os.Getenv("DNSTRAIL_AXE") == "" && os.Getenv("CI") == "true" && os.Geteuid() == 0 {
		t.Fatal("DNSTRAIL_AXE does not say where axe-core is: run make test-system, which fetches it")
	}
	checker := filepath.Join(t.TempDir(), "browser")
	build := exec.Command("go", "build", "-o", checker, ".")
	build.Dir = "browser"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the checker: %v\n%s", err, out)
	}
	return checker
}

// TestPageInChromium: nothing on the console, no request, every bar where the scale wants it, at the width of a desk
// and of a telephone.
func TestPageInChromium(t *testing.T) {
	needChromium(t)
	checker := buildBrowser(t)
	inputs, err := filepath.Glob("../../tracer/render/testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			js, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file, err := os.Create(filepath.Join(dir, "page.html"))
			if err != nil {
				t.Fatal(err)
			}
			if err := render.Page(file, explain.Tell(trace.New(trace.FromOTLP(td)), nil), render.Options{}); err != nil {
				t.Fatal(err)
			}
			if err := file.Close(); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(checker, file.Name(), dir).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			for _, shot := range []string{"desk", "desk-dark", "telephone"} {
				if info, err := os.Stat(filepath.Join(dir, shot+".png")); err != nil || info.Size() < 10_000 {
					t.Errorf("screenshot %s: %v, %v", shot, info, err)
				}
			}
		})
	}
}

// TestCheckerFindsWhatIsWrong: a checker that finds nothing anywhere would pass every page.
func TestCheckerFindsWhatIsWrong(t *testing.T) {
	needChromium(t)
	const head = `<!doctype html><html lang="en"><title>x</title><link rel="icon" href="data:,">`
	const line = `<details><summary>x</summary><div class="attributes">y</div></details>` +
		`<div style="position: relative; width: 90%">` +
		`<i class="bar" style="position: absolute; left: 10%; width: 20%; height: 1em"></i></div>`
	for want, html := range map[string]string{
		"console.error": head + `<body>` + line +
			`<script>console.error("x")</script>`,
		"request for file:///nowhere.png": head + `<body>` + line +
			`<img src="file:///nowhere.png">`,
		"wider than the window": head + `<body>` + line +
			`<div style="width: 3000px">x</div>`,
		"stages in an order": head + `<body><ol class="stages"><li class="passed">a</li>` +
			`<li class="lost">b</li><li class="passed">c</li></ol>` + line,
		"bar 0 from": head + `<style>.bar { margin-left: 30px }</style><body>` + line,
	} {
		t.Run(want, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "page.html")
			if err := os.WriteFile(file, []byte(html), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "run", ".", file, filepath.Dir(file))
			cmd.Dir = "browser"
			if out, err := cmd.CombinedOutput(); err == nil || !strings.HasPrefix(string(out), "desk: "+want) &&
				!strings.HasPrefix(string(out), want) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
