package output

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/printable"
)

// column is one column of text: its head, its least width, and what stands in it.
type column struct {
	head  string
	width int
	right bool
	value func(*Row) string
	whole bool // never cut
}

var columns = []column{
	{"TIME", 12, false, func(r *Row) string { return r.Time.Local().Format("15:04:05.000") }, true},
	{"CLIENT", 28, false, func(r *Row) string { return r.Client.Name() }, false},
	{"NAME", 36, false, func(r *Row) string { return r.Name }, false},
	{"TYPE", 5, false, func(r *Row) string { return r.Type }, false},
	{"RESULT", 8, false, func(r *Row) string { return r.Result }, false},
	{"TOTAL", 7, true, func(r *Row) string { return duration(&r.Total) }, false},
	{"TO-DNS", 7, true, func(r *Row) string { return duration(r.ToServer) }, false},
	{"COREDNS", 8, true, func(r *Row) string {
		if r.AtServer != nil && !r.ServerSeen {
			return "(" + duration(r.AtServer) + ")" // the network beyond this node is in it
		}
		return duration(r.AtServer)
	}, false},
	{"RETURN", 7, true, func(r *Row) string { return duration(r.Return) }, false},
	{"TRIES", 5, true, func(r *Row) string { return fmt.Sprint(r.Attempts) }, false},
	{"TRACE", 32, false, func(r *Row) string { return r.TraceID }, false},
	{"WHERE / WHY", 0, false, func(r *Row) string { return r.why() }, false},
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
	if f := r.Flood; f != nil {
		parts = append(parts, fmt.Sprintf("(%s floods: %d/s unanswered, %d of them without a row)",
			r.Client.host(), f.PerSecond, f.Untold))
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
	// Width, where it is not 0 and not enough for all columns, is the width of a terminal in cells: the most important
	// columns are kept, and what ended a lookup gets lines of its own below it. Wide goes before it.
	Width int
	// Colour marks results that are no answer.
	Colour bool
	// Now, if not nil, tells which day it is: rows of other days have their date.
	Now func() time.Time

	columns []column // nil before the first row
	below   bool     // why is told on lines of its own
	line    strings.Builder
}

// Write writes one row, and the head before the first.
func (t *Text) Write(r *Row) error {
	if t.columns == nil {
		t.layout()
		t.line.Reset()
		for i := range t.columns {
			t.cell(&t.columns[i], t.columns[i].head, "")
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	t.line.Reset()
	for i := range t.columns {
		c := &t.columns[i]
		colour := ""
		if t.Colour && c.head == "RESULT" {
			colour = resultColour(r.Result)
		}
		value := c.value(r)
		if c.head == "TIME" && t.Now != nil && r.Time.Local().Format(time.DateOnly) != t.Now().Local().Format(time.DateOnly) {
			value = r.Time.Local().Format("01-02 ") + value
		}
		t.cell(c, value, colour)
	}
	if err := t.end(); err != nil {
		return err
	}
	if why := r.why(); t.below && why != "-" {
		return t.tell(printable.Text(why))
	}
	return nil
}

// tell writes words on lines of their own.
func (t *Text) tell(text string) error {
	t.line.Reset()
	width := 0
	for word := range strings.FieldsSeq(text) {
		n := printable.Width(word)
		if width > 0 && len(indent)+width+1+n > t.Width {
			if err := t.end(); err != nil {
				return err
			}
			t.line.Reset()
			width = 0
		}
		if width == 0 {
			t.line.WriteString(indent)
		} else {
			t.line.WriteByte(' ')
			width++
		}
		t.line.WriteString(word)
		width += n
	}
	return t.end()
}

const indent = "    "

// resultColour gives the SGR parameters of a result (ECMA-48), "" for an answer as it should be.
func resultColour(result string) string {
	switch result {
	case "NOERROR":
		return ""
	case "NXDOMAIN":
		return "33"
	}
	return "31;1"
}

// shortTrace is how many digits of a trace ID a narrow terminal shows: explain takes them.
const shortTrace = 8

// layout chooses the columns for the width.
func (t *Text) layout() {
	t.columns = columns
	need := 0
	for _, c := range columns {
		need += c.width + len(gap)
	}
	if t.Wide || t.Width == 0 || t.Width >= need+len("WHERE / WHY")+40 {
		return
	}
	t.below, t.columns = true, nil
	parts := t.Width >= 150 // there is room to tell where the time went
	room := t.Width
	for _, c := range columns {
		switch c.head {
		case "WHERE / WHY", "TRIES":
			continue
		case "TO-DNS", "COREDNS", "RETURN":
			if !parts {
				continue
			}
		case "TIME":
			if t.Width < 100 {
				c.width = len("15:04:05")
				c.value = func(r *Row) string { return r.Time.Local().Format("15:04:05") }
			}
		case "TRACE":
			value := c.value
			c.width, c.value = shortTrace, func(r *Row) string { id := value(r); return id[:min(shortTrace, len(id))] }
		}
		t.columns = append(t.columns, c)
		if c.head != "CLIENT" && c.head != "NAME" {
			room -= c.width
		}
	}
	room = max(room-len(gap)*(len(t.columns)-1), 24)
	for i := range t.columns {
		switch t.columns[i].head {
		case "CLIENT":
			t.columns[i].width = room * 4 / 9
		case "NAME":
			t.columns[i].width = room - room*4/9
		}
	}
}

const gap = "  "

func (t *Text) cell(c *column, s, colour string) {
	s = printable.Text(s)
	if c.width > 0 && !t.Wide && !c.whole {
		s = printable.CutMiddle(s, c.width, "…")
	}
	n := printable.Width(s)
	pad := strings.Repeat(" ", max(c.width-n, 0))
	if c.right {
		t.line.WriteString(pad)
		pad = ""
	}
	if colour != "" {
		s = "\x1b[" + colour + "m" + s + "\x1b[0m"
	}
	t.line.WriteString(s)
	if c.width > 0 {
		t.line.WriteString(pad)
		t.line.WriteString(gap)
	}
}

func (t *Text) end() error {
	_, err := fmt.Fprintln(t.W, strings.TrimRight(t.line.String(), " "))
	return err
}
