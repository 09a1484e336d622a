// Package docs holds the documents against the code: what they say of packages, commands, targets and kernels.
package docs

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dnstrail/dnstrail/tracer/verdict"
)

const module = "github.com/dnstrail/dnstrail"

// read gives the text of a file of the tree, by its path from the tree's root.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documents gives the paths of all Markdown files of the tree, but for a part of one that stands elsewhere.
func documents(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "--full-name", ":/*.md", ":(top,exclude)test/kernels/preface.md").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	paths := strings.Fields(string(out))
	if len(paths) == 0 {
		t.Fatal("git knows no Markdown file")
	}
	return paths
}

// imports gives every package of the module, without the module's path, with those of the module that it imports.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	const format = `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`
	out, err := exec.Command("go", "list", "-f", format, module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		var ours []string
		for path := range strings.FieldsSeq(line) {
			if short, ok := strings.CutPrefix(path, module+"/"); ok {
				ours = append(ours, short)
			}
		}
		if len(ours) > 0 {
			all[ours[0]] = ours[1:]
		}
	}
	return all
}

// TestArchitecture: a package imports only what stands above it in the tables of architecture.md, and all stand there
// but what is for tests alone, which nothing else imports.
func TestArchitecture(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")
	place := map[string]int{}
	for i, m := range row.FindAllStringSubmatch(read(t, "docs/architecture.md"), -1) {
		if _, twice := place[m[1]]; twice {
			t.Errorf("%s stands there twice", m[1])
		}
		place[m[1]] = i + 1
	}
	all := imports(t)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(p, "test/") {
			continue
		}
		if place[p] == 0 {
			t.Errorf("package %s does not stand in the tables", p)
		}
		for _, imported := range all[p] {
			if place[imported] >= place[p] || strings.HasPrefix(imported, "test/") {
				t.Errorf("%s imports %s, which does not stand above it", p, imported)
			}
		}
	}
	for p := range place {
		if _, ok := all[p]; !ok {
			t.Errorf("%s stands in the tables and is no package", p)
		}
	}
}

// TestLinkIsIndependent: who uses the link or the tracer compiles nothing of CoreDNS.
func TestLinkIsIndependent(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"/link/...", module+"/tracer/cmd/dnstrail").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module+"/link") {
		t.Fatal("go list does not name package link")
	}
	for _, p := range deps {
		if strings.HasPrefix(p, "github.com/coredns/") || p == module+"/plugin" {
			t.Errorf("%s is among the dependencies", p)
		}
	}
}

// maxColumns is how wide prose is at most.
const maxColumns = 120

// written are documents that a program writes, or parts of them, by what stands before such a part.
var written = map[string]string{
	"docs/attributes.md":    "",
	"docs/kernels.md":       "## What was booted",
	"test/faults/README.md": "<!-- table:",
}

// TestProseIsNarrow: lines of documents are short but for tables and what a program wrote.
func TestProseIsNarrow(t *testing.T) {
	for _, path := range documents(t) {
		text := read(t, path)
		if from, ok := written[path]; ok {
			if i := strings.Index(text, from); i >= 0 {
				text = text[:i]
			}
		}
		n := 0
		for line := range strings.Lines(text) {
			n++
			line = strings.TrimSuffix(line, "\n")
			if width := utf8.RuneCountInString(line); width > maxColumns && !strings.HasPrefix(line, "|") {
				t.Errorf("%s:%d has %d columns", path, n, width)
			}
		}
	}
}

var (
	fence  = regexp.MustCompile("(?ms)^(```|~~~).*?^(```|~~~)$")
	target = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	header = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// anchors gives the fragments by which the headings of a document are reached.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range header.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > utf8.RuneSelf:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		all[anchor] = true
	}
	return all
}

// TestLinksLead: a link to a place in this tree leads there.
func TestLinksLead(t *testing.T) {
	n := 0
	for _, path := range documents(t) {
		for _, m := range target.FindAllStringSubmatch(fence.ReplaceAllString(read(t, path), ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			n++
			file, fragment, _ := strings.Cut(m[1], "#")
			to := path
			if file != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(path), file))
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			} else if fragment != "" && !anchors(read(t, to))[fragment] {
				t.Errorf("%s links to %s: no such heading", path, m[1])
			}
		}
	}
	if n == 0 {
		t.Error("no links were found")
	}
}

// TestTargetsExist: `make X` in a document is a target.
func TestTargetsExist(t *testing.T) {
	makefile := read(t, "Makefile")
	named := regexp.MustCompile("(?m)(?:`|^ *(?:\\$ )?)make ([a-z][a-z-]*)")
	n := 0
	for _, path := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, path), -1) {
			n++
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).MatchString(makefile) {
				t.Errorf("%s names make %s, which is no target", path, m[1])
			}
		}
	}
	if n == 0 {
		t.Error("no targets were found")
	}
}

// TestFlagsExist: a flag that a document gives to a command of dnstrail stands in that command's man page.
func TestFlagsExist(t *testing.T) {
	command := regexp.MustCompile(
		"dnstrail (agent|doctor|explain|install|observe|status|store|uninstall|upgrade|version|walk)([^`\n|#]*)")
	flag := regexp.MustCompile(` (--[a-z][a-z-]*)`)
	n := 0
	for _, path := range documents(t) {
		for _, m := range command.FindAllStringSubmatch(read(t, path), -1) {
			page := strings.ReplaceAll(read(t, "docs/man/dnstrail-"+m[1]+".1"), `\-`, "-")
			for _, f := range flag.FindAllStringSubmatch(m[2], -1) {
				n++
				if !regexp.MustCompile(regexp.QuoteMeta(f[1]) + `\b`).MatchString(page) {
					t.Errorf("%s gives %s to dnstrail %s, which does not know it", path, f[1], m[1])
				}
			}
		}
	}
	if n == 0 {
		t.Error("no flags were found")
	}
}

// TestKernelFloor: the oldest kernel that the README promises is the oldest one that was booted.
func TestKernelFloor(t *testing.T) {
	booted := regexp.MustCompile(`(?m)^\| (\d+)\.(\d+)\.\S+ \(amd64\) \|`).FindAllStringSubmatch(
		read(t, "docs/kernels.md"), -1)
	if len(booted) == 0 {
		t.Fatal("docs/kernels.md names no kernel that was booted")
	}
	oldest := slices.MinFunc(booted, func(a, b []string) int { return number(t, a) - number(t, b) })
	want := fmt.Sprintf("Linux %s.%s or later", oldest[1], oldest[2])
	if !strings.Contains(strings.Join(strings.Fields(read(t, "README.md")), " "), want) {
		t.Errorf("README.md does not say %q", want)
	}
}

// number makes major and minor version comparable.
func number(t *testing.T, m []string) int {
	t.Helper()
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err1 != nil || err2 != nil {
		t.Fatalf("%s.%s is no version", m[1], m[2])
	}
	return major*1000 + minor
}

// TestVerdictsAreTold: docs/verdicts.md has a row for each stage, and names each cause.
func TestVerdictsAreTold(t *testing.T) {
	text := read(t, "docs/verdicts.md")
	stages := []verdict.Where{
		verdict.Client, verdict.PodLink, verdict.Service, verdict.Node, verdict.BetweenNodes, verdict.CoreDNSSocket,
		verdict.CoreDNS, verdict.Upstream, verdict.ReturnPath, verdict.Answered,
	}
	for _, w := range stages {
		if !strings.Contains(text, "| `"+string(w)+"` |") {
			t.Errorf("stage %s has no row", w)
		}
	}
	for _, c := range verdict.Causes {
		if !strings.Contains(text, "| `"+string(c)+"` |") {
			t.Errorf("cause %s has no row", c)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(text, -1) {
		if !slices.Contains(verdict.Causes, verdict.Cause(m[1])) && !slices.Contains(stages, verdict.Where(m[1])) {
			t.Errorf("%s is neither a stage nor a cause", m[1])
		}
	}
}

// TestMetricsAreTold: metrics.md has a row for each metric of the agent, and for no other.
func TestMetricsAreTold(t *testing.T) {
	made := map[string]bool{}
	for _, m := range regexp.MustCompile(`Name:\s*"([a-z_]+)"`).FindAllStringSubmatch(read(t, "tracer/metrics/metrics.go"),
		-1) {
		made[m[1]] = true
	}
	if len(made) == 0 {
		t.Fatal("tracer/metrics names no metric")
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(read(t, "docs/metrics.md"),
		-1) {
		if !made[m[1]] {
			t.Errorf("there is no metric %s", m[1])
		}
		delete(made, m[1])
	}
	for name := range made {
		t.Errorf("metric %s has no row", name)
	}
}
