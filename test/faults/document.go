package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// The markers between which a document holds the table.
const (
	tableBegin = "<!-- table: go run ./test/faults -write writes what stands from here on -->"
	tableEnd   = "<!-- end of the table -->"
)

// writeTable puts the table of rows between the markers of a file.
func writeTable(file string, rows []job.Row) error {
	text, err := os.ReadFile(file) // #nosec G304 -- of the command line
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(text), tableBegin)
	_, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		return fmt.Errorf("%s has no lines %q and %q", file, tableBegin, tableEnd)
	}
	text = []byte(before + tableBegin + "\n\n```\n" + document(rows) + "```\n\n" + tableEnd + after)
	return os.WriteFile(file, text, 0o644) // #nosec G306 -- a document
}

// line is one of the table: the same was said of a fault in these settings and families.
type line struct {
	fault            string
	where            []string // settings, with families
	expected, judged string
	seconds          float64 // the longest
}

// document gives rows as a table for readers: those of a fault that are alike in one line. Of rows made twice the later
// counts.
func document(rows []job.Row) string {
	type made struct{ fault, setting, family string }
	newest := map[made]*job.Row{}
	for i := range rows {
		r := &rows[i]
		newest[made{r.Fault, r.Setting, r.Family}] = r
	}
	var lines []*line
	right := 0
	for i := range matrix {
		var of []*line
		for _, set := range settings {
			for _, fam := range families {
				r := newest[made{matrix[i].name, set.String(), fam.String()}]
				if r == nil {
					continue
				}
				judged := cmp.Or(r.Judged, "-")
				if r.Right {
					right++
				} else {
					judged = "WRONG: " + cmp.Or(r.Problem, judged)
				}
				of = add(of, r, judged)
			}
		}
		lines = append(lines, of...)
	}
	cells := [][]string{{"FAULT", "AGENTS", "EXPECTED", "JUDGED", "SECONDS"}}
	for i, l := range lines {
		name, seconds := l.fault, "-"
		if i > 0 && lines[i-1].fault == l.fault {
			name = ""
		}
		if l.seconds > 0 {
			seconds = fmt.Sprintf("%.1f", l.seconds)
		}
		cells = append(cells, []string{name, strings.Join(l.where, ", "), l.expected, l.judged, seconds})
	}
	return columnsOf(cells) + fmt.Sprintf("\n%d of %d judged right\n", right, len(newest))
}

// add puts a row to the lines of its fault.
func add(lines []*line, r *job.Row, judged string) []*line {
	i := slices.IndexFunc(lines, func(l *line) bool { return l.expected == r.Expected && l.judged == judged })
	if i < 0 {
		i = len(lines)
		lines = append(lines, &line{fault: r.Fault, expected: r.Expected, judged: judged})
	}
	l := lines[i]
	l.seconds = max(l.seconds, r.Seconds)
	if n := len(l.where); n > 0 && strings.HasPrefix(l.where[n-1], r.Setting+" ") {
		l.where[n-1] = r.Setting // both families
	} else {
		l.where = append(l.where, r.Setting+" "+r.Family)
	}
	return lines
}

// widths are those of the columns of the table, the last one's excepted.
var widths = [...]int{32, 10, 27, 34}

// columnsOf writes cells in columns, with those that are too long in several lines.
func columnsOf(rows [][]string) string {
	var b strings.Builder
	for _, cells := range rows {
		var wrapped [][]string
		height := 1
		for c, cell := range cells {
			w := []string{cell}
			if c < len(widths) {
				w = wrap(cell, widths[c])
			}
			wrapped = append(wrapped, w)
			height = max(height, len(w))
		}
		for i := range height {
			var text strings.Builder
			for c, w := range wrapped {
				cell := ""
				if i < len(w) {
					cell = w[i]
				}
				if c < len(widths) {
					cell = fmt.Sprintf("%-*s  ", widths[c], cell)
				}
				text.WriteString(cell)
			}
			b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
		}
	}
	return b.String()
}

// wrap parts a text into lines of a width, at its spaces, slashes and bars where there are such.
func wrap(text string, width int) []string {
	var lines []string
	for len(text) > width {
		at := width
		if i := strings.LastIndexAny(text[:width+1], " "); i > 0 {
			at = i
		} else if i := strings.LastIndexAny(text[:width], "/|"); i > 0 {
			at = i + 1
		}
		lines = append(lines, strings.TrimRight(text[:at], " "))
		text = strings.TrimLeft(text[at:], " ")
	}
	return append(lines, text)
}
