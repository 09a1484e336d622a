package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

func TestTableOfADocument(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	if err := writeTable(file, nil); err == nil {
		t.Fatal("a file that does not exist was written")
	}
	const before, after = "before\n" + tableBegin + "\n", "an old table\n" + tableEnd + "\nafter\n"
	if err := os.WriteFile(file, []byte(before+after), 0o600); err != nil {
		t.Fatal(err)
	}
	row := func(setting, family, judged, problem string, seconds float64) job.Row {
		return job.Row{
			Fault: "no fault", Setting: setting, Family: family, Expected: "answered/answered", Judged: judged,
			Right: problem == "", Problem: problem, Seconds: seconds,
		}
	}
	rows := []job.Row{
		row("host", "IPv4", "node/dropped, certain", "observe: node/dropped", 0), // made again below
		row("host", "IPv4", "answered/answered, certain", "", 0.5),
		row("host", "IPv6", "answered/answered, certain", "", 1.25),
		row("apart", "IPv4", "answered/answered, certain", "", 0.5),
		row("together", "IPv6", "node/dropped", "observe: nothing", 0),
	}
	for range 2 { // the second time it replaces what it wrote
		if err := writeTable(file, rows); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file) // #nosec G304 -- the test's own
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`(?m)^before\n<!-- table`, `(?m)^<!-- end of the table -->\nafter\n`,
		`(?m)^no fault +host, +answered/answered +answered/answered, certain +1\.[23]$`,
		`(?m)^ +apart IPv4$`,
		`(?m)^ +together +answered/answered +WRONG: observe: nothing +-$`, `(?m)^ +IPv6$`,
		`3 of 4 judged right`,
	} {
		if !regexp.MustCompile(want).Match(text) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old table") || strings.Count(string(text), "3 of 4") != 1 {
		t.Errorf("what stood between the markers was kept:\n%s", text)
	}
	for l := range strings.Lines(string(text)) {
		if len(l) > 121 {
			t.Errorf("longer than 120 columns: %s", l)
		}
	}
}

func TestUnknownRow(t *testing.T) {
	o := options{only: regexp.MustCompile(""), settings: inHost, names: []string{"no fault"}}
	if err := o.check(); err != nil {
		t.Error(err)
	}
	o.names = append(o.names, "no such fault")
	if o.check() == nil {
		t.Error("a row that does not exist was taken")
	}
	o = options{only: regexp.MustCompile("no such fault"), settings: inHost}
	if o.check() == nil {
		t.Error("a pattern that matches nothing was taken")
	}
}
