package output

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// column is one column of text: its head, its least width, and what stands in it.
type column struct {
	head  string
	width int
	right bool
	value func(*Row) string
}

var columns = []column{
	{"TIME", 12, false, func(r *Row) string { return r.Time.Local().Format("15:04:05.000") }},
	{"CLIENT", 28, false, func(r *Row) string { return r.Client.Name() }},
	{"NAME", 36, false, func(r *Row) string { return r.Name }},
	{"TYPE", 5, false, func(r *Row) string { return r.Type }},
	{"RESULT", 8, false, func(r *Row) string { return r.Result }},
	{"TOTAL", 7, true, func(r *Row) string { return duration(&r.Total) }},
	{"TO-DNS", 7, true, func(r *Row) string { return duration(r.ToServer) }},
	{"COREDNS", 8, true, func(r *Row) string {
		if r.AtServer != nil && !r.ServerSeen {
			return "(" + duration(r.AtServer) + ")" // the network beyond this node is in it
		}
		return duration(r.AtServer)
	}},
	{"RETURN", 7, true, func(r *Row) string { return duration(r.Return) }},
	{"TRIES", 5, true, func(r *Row) string { return fmt.Sprint(r.Attempts) }},
	{"TRACE", 32, false, func(r *Row) string { return r.TraceID }},
	{"WHERE / WHY", 0, false, func(r *Row) string { return r.why() }},
}

// Name gives who asked as a row shows it: the pod, node or address, and the process.
func (c *Client) Name() string {
	name := c.host()
	switch {
	case c.Pod != "":
		name = c.Namespace + "/" + c.Pod
	case c.Node != "":
		name = c.Node
	}
	if c.Process != "" {
		name += "(" + c.Process + ")"
	}
	return name
}

// host gives the client's address without its port.
func (c *Client) host() string {
	if i := strings.LastIndexByte(c.Address, ':'); i > 0 {
		return strings.Trim(c.Address[:i], "[]")
	}
	return c.Address
}

func (r *Row) why() string {
	var parts []string
	if r.Revision > 0 {
		parts = append(parts, "corrected:")
	}
	if r.Verdict.Where != "answered" {
		parts = append(parts, r.Verdict.Where+":")
	}
	if r.Verdict.Text != "" {
		parts = append(parts, r.Verdict.Text)
	}
	if r.Verdict.Text != "" && r.Verdict.Certainty == "inferred" {
		parts = append(parts, "(inferred)")
	}
	if r.Serves != "" {
		parts = append(parts, "asked for another lookup (inferred)")
	}
	if r.Truncated {
		parts = append(parts, "truncated")
	}
	for _, rel := range r.Related {
		switch rel.Kind {
		case "truncated":
			parts = append(parts, "TCP after a truncated answer")
		case "retry":
			parts = append(parts, fmt.Sprintf("try %d of the same", r.Try))
		case "search":
			parts = append(parts, fmt.Sprintf("search path, name %d", r.SearchStep+1))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, " ")
}

// duration gives a time in three digits or so.
func duration(ns *int64) string {
	if ns == nil {
		return "-"
	}
	d := time.Duration(*ns)
	switch {
	case d < 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}

// Text writes rows as lines of text under a head.
type Text struct {
	W io.Writer
	// Wide does not cut long names.
	Wide bool

	headed bool
	line   strings.Builder
}

// Write writes one row, and the head before the first.
func (t *Text) Write(r *Row) error {
	if !t.headed {
		t.headed = true
		t.start()
		for i := range columns {
			t.cell(&columns[i], columns[i].head)
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	t.start()
	for i := range columns {
		t.cell(&columns[i], columns[i].value(r))
	}
	return t.end()
}

func (t *Text) start() { t.line.Reset() }

func (t *Text) cell(c *column, s string) {
	s = printable(s)
	n := utf8.RuneCountInString(s)
	if c.width > 0 && n > c.width && !t.Wide {
		s, n = shorten(s, c.width), c.width
	}
	pad := strings.Repeat(" ", max(c.width-n, 0))
	if c.right {
		t.line.WriteString(pad)
		pad = ""
	}
	t.line.WriteString(s)
	if c.width > 0 {
		t.line.WriteString(pad)
		t.line.WriteString("  ")
	}
}

func (t *Text) end() error {
	_, err := fmt.Fprintln(t.W, strings.TrimRight(t.line.String(), " "))
	return err
}

// shorten cuts the middle out of s, which has more runes than n: both ends of a name tell something.
func shorten(s string, n int) string {
	r := []rune(s)
	head := (n - 1) * 2 / 3
	return string(r[:head]) + "…" + string(r[len(r)-(n-1-head):])
}

// printable replaces what a terminal would act on: names and process names are whatever somebody chose.
func printable(s string) string {
	for _, c := range s {
		if c < ' ' || c == 0x7f || c == utf8.RuneError || (c >= 0x80 && c < 0xa0) {
			return strings.Map(func(c rune) rune {
				if c < ' ' || c == 0x7f || c == utf8.RuneError || (c >= 0x80 && c < 0xa0) {
					return '?'
				}
				return c
			}, s)
		}
	}
	return s
}
