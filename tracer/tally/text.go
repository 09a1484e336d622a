package tally

import (
	"fmt"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/printable"
)

// column is one column of a table.
type column struct {
	head  string
	width int
	from  int // the width of the table from which on it is there
	value func(*Line) string
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func took(d time.Duration) string { return explain.Duration(d) }

func percent(part, whole int) string {
	if part == 0 || whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

var columns = []column{
	{"RATE/S", 8, 0, func(l *Line) string { return fmt.Sprintf("%.1f", l.Rate) }},
	{"LOOKUPS", 8, 100, func(l *Line) string { return fmt.Sprint(l.Lookups) }},
	{"FAILED", 7, 0, func(l *Line) string { return number(l.Failed) }},
	{"OF ALL", 8, 0, func(l *Line) string { return percent(l.Failed, l.Lookups) }},
	{"LOST", 7, 120, func(l *Line) string { return number(l.Lost) }},
	{"NXDOMAIN", 8, 120, func(l *Line) string { return number(l.NXDomain) }},
	{"AGAIN", 7, 140, func(l *Line) string { return number(l.Again) }},
	{"SEARCHES", 8, 140, func(l *Line) string { return number(l.Searches) }},
	{"P50", 8, 0, func(l *Line) string { return took(l.P50) }},
	{"P99", 8, 0, func(l *Line) string { return took(l.P99) }},
	{"WAITED", 8, 100, func(l *Line) string { return took(l.Waited) }},
}

const (
	gap        = "  "
	sparkFrom  = 160 // the width of a table from which on it has small pictures
	leastWidth = 72
)

var sparks = []rune("▁▂▃▄▅▆▇█")

// spark draws counts as a row of bars.
func spark(counts []int) string {
	most := 1
	for _, n := range counts {
		most = max(most, n)
	}
	var b strings.Builder
	for _, n := range counts {
		if n == 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(sparks[(n*len(sparks)-1)/most])
	}
	return b.String()
}

// Table writes lines as a table that fits into width cells, no more than max of them, and how many more there are.
func Table(lines []Line, by By, width, most int) string {
	width = max(width, leastWidth)
	room := width
	var shown []column
	for _, c := range columns {
		if width >= c.from {
			shown = append(shown, c)
			room -= len(gap) + c.width
		}
	}
	pictures := width >= sparkFrom
	if pictures {
		room -= len(gap) + Slices
	}
	var b strings.Builder
	row := func(key string, value func(*column) string, picture string) {
		key = printable.CutMiddle(printable.Text(key), room, "…")
		var l strings.Builder
		l.WriteString(key + strings.Repeat(" ", max(0, room-printable.Width(key))))
		for i := range shown {
			text := value(&shown[i])
			l.WriteString(gap + strings.Repeat(" ", max(0, shown[i].width-printable.Width(text))) + text)
		}
		if pictures {
			l.WriteString(gap + picture)
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	row(strings.ToUpper(string(by)), func(c *column) string { return c.head }, "OVER THE TIME")
	for i := range lines {
		if i == most {
			fmt.Fprintf(&b, "and %d more\n", len(lines)-i)
			break
		}
		l := &lines[i]
		row(l.Key, func(c *column) string { return c.value(l) }, spark(l.Spark))
	}
	return b.String()
}
