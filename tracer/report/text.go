package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/printable"
)

// duration writes a time as everywhere.
func duration(d time.Duration) string { return explain.Duration(d) }

// percent writes a share of 1.
func percent(share float64) string {
	p := 100 * share
	if p != 0 && p < 9.95 {
		return strconv.FormatFloat(p, 'f', 1, 64) + " %"
	}
	return strconv.FormatFloat(p, 'f', 0, 64) + " %"
}

// plural writes a number of things.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}

// maxCounted is how many of the things that are counted are named.
const maxCounted = 3

// counts writes what was counted, the most first.
func counts(of map[string]int) string {
	names := make([]string, 0, len(of))
	for n := range of {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(of[b], of[a]), cmp.Compare(a, b)) })
	var parts []string
	for i, n := range names {
		if i == maxCounted {
			parts = append(parts, plural(len(names)-i, "other", "others"))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %d", n, of[n]))
	}
	return strings.Join(parts, ", ")
}

// WriteJSON writes the report as one JSON document. The error is w's.
func (r *Report) WriteJSON(w io.Writer) error {
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return err
	}
	_, err := w.Write(printable.JSON(doc.Bytes()))
	return err
}

// leastWidth is the smallest width that text is written for.
const leastWidth = 60

// WriteText writes the report for somebody to read, in lines of at most width cells. The error is w's.
func (r *Report) WriteText(w io.Writer, width int) error {
	t := &text{width: max(width, leastWidth)}
	head := plural(r.Lookups, "lookup", "lookups")
	if r.Lookups > 0 {
		head += fmt.Sprintf(" in %s, from %s", duration(r.To.Sub(r.From)), r.From.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	head += ": " + plural(len(r.Findings), "finding", "findings")
	t.say("", "", head)
	if r.Untold > 0 {
		t.say("", "", plural(r.Untold, "further lookup was", "further lookups were")+" not looked at: too many")
	}
	if r.EventsLost > 0 {
		t.say("", "", fmt.Sprintf("%d kernel events were lost meanwhile: some lookups are missing or look lost",
			r.EventsLost))
	}
	for i := range r.Findings {
		t.finding(i+1, &r.Findings[i])
	}
	if len(r.Well) > 0 {
		t.out.WriteByte('\n')
		words := make([]string, len(r.Well))
		for i, k := range r.Well {
			words[i] = string(k)
		}
		t.say("well       ", "           ", strings.Join(words, ", "))
	}
	if len(r.NotEnough) > 0 {
		t.out.WriteByte('\n')
		t.say("", "", "not enough seen:")
		for _, g := range r.NotEnough {
			t.say(fmt.Sprintf("  %-12s ", g.Kind), strings.Repeat(" ", 15), g.Why)
		}
	}
	_, err := io.WriteString(w, t.out.String())
	return err
}

type text struct {
	out   strings.Builder
	width int
}

func (t *text) finding(n int, f *Finding) {
	t.out.WriteByte('\n')
	lead := fmt.Sprintf("%2d. ", n)
	t.say(lead, "    ", string(f.Kind)+": "+f.Text)
	const label = "    %-8s "
	indent := strings.Repeat(" ", 13)
	var costs []string
	if f.Waited > 0 {
		costs = append(costs, duration(time.Duration(f.Waited*float64(time.Second)))+" of waiting")
	}
	if f.Queries > 0 {
		costs = append(costs, plural(f.Queries, "query", "queries"))
	}
	if len(costs) > 0 {
		t.say(fmt.Sprintf(label, "costs"), indent, strings.Join(costs, ", "))
	}
	numbers := make([]string, len(f.Numbers))
	for i, n := range f.Numbers {
		numbers[i] = n.Name + " " + n.String()
	}
	t.say(fmt.Sprintf(label, "numbers"), indent, strings.Join(numbers, ", "))
	if len(f.Evidence) > 0 {
		see := usualEvidence + f.Evidence[0]
		if more := f.Evidence[1:]; len(more) > 0 {
			see += " (and of " + strings.Join(more, ", ") + ")"
		}
		t.say(fmt.Sprintf(label, "see"), indent, see)
	}
	t.say(fmt.Sprintf(label, "change"), indent, f.Change)
	for line := range strings.Lines(f.Patch) {
		t.out.WriteString(indent + "  " + line)
	}
}

// String writes the figure with its unit.
func (n Number) String() string {
	switch n.Unit {
	case "s":
		return duration(time.Duration(n.Value * float64(time.Second)))
	case "share":
		return percent(n.Value)
	}
	return strconv.FormatFloat(n.Value, 'f', -1, 64)
}

// say writes a paragraph: lead before its first line, indent before the others.
func (t *text) say(lead, indent, words string) {
	line := lead
	used := printable.Width(lead)
	empty := true
	for word := range strings.FieldsSeq(printable.Text(words)) {
		n := printable.Width(word)
		if !empty && used+1+n > t.width {
			t.out.WriteString(line + "\n")
			line, used, empty = indent, printable.Width(indent), true
		}
		if !empty {
			line += " "
			used++
		}
		line += word
		used += n
		empty = false
	}
	t.out.WriteString(strings.TrimRight(line, " ") + "\n")
}
