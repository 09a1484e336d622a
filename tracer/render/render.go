// Package render draws one lookup's trace on a terminal, for somebody who was woken by it.
//
// What is wanted first comes first: the name and how it ended, then, of a lost lookup, where and why; of an answered
// one, what took the time. Then who asked whom. Then every span as one line of a tree: what, how long, and a bar drawn
// to scale.
package render

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// DefaultWidth is the width drawn for when the terminal does not say, in cells.
const DefaultWidth = 100

// MinWidth is the smallest width drawn for.
const MinWidth = 72

// Options say how to draw. The zero value draws 100 cells wide, without colour, in Unicode, with times in UTC.
type Options struct {
	// Width is the number of cells; 0 means [DefaultWidth], less than [MinWidth] means MinWidth.
	Width int
	// Colour says whether to use ANSI colours.
	Colour bool
	// ASCII avoids all other characters in what is drawn (names are shown as they are).
	ASCII bool
	// Hops shows every hop; else what is uneventful is folded, and what took the time or lost the packet is not.
	Hops bool
	// Location is the time zone of times of day; nil means UTC.
	Location *time.Location
}

// For gives the options for f: colour, and its own width up to [DefaultWidth], only if it is a terminal; no colour
// where NO_COLOR is set and not empty (no-color.org) or TERM is "dumb"; no Unicode where the locale has none; times in
// the local zone.
func For(f *os.File) Options {
	o := Options{Location: time.Local, ASCII: !unicodeLocale()}
	if fd := int(f.Fd()); term.IsTerminal(fd) {
		o.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if w, _, err := term.GetSize(fd); err == nil {
			o.Width = min(w, DefaultWidth)
		}
	}
	return o
}

// unicodeLocale tells by the variables of POSIX, the first that is set; none set, as in most containers, means yes.
func unicodeLocale() bool {
	locale := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))
	l := strings.ToUpper(locale)
	return l == "" || strings.Contains(l, "UTF-8") || strings.Contains(l, "UTF8") || l == "C" || l == "POSIX"
}

// Trace draws t to w and ends with a newline. The error is w's.
func Trace(w io.Writer, t *trace.Trace, o Options) error {
	d := newDrawing(t, t.Verdict(), o)
	d.header()
	d.out.WriteByte('\n')
	d.tree()
	_, err := io.WriteString(w, d.out.String())
	return err
}

// Story draws what [Trace] draws and tells the lookup in words below it. The error is w's.
func Story(w io.Writer, s explain.Story, o Options) error {
	d := newDrawing(s.Trace, s.Verdict, o)
	d.header()
	d.out.WriteByte('\n')
	d.tree()
	d.words(s)
	_, err := io.WriteString(w, d.out.String())
	return err
}

// newDrawing prepares a drawing; t may be nil where no trace is drawn.
func newDrawing(t *trace.Trace, v trace.Verdict, o Options) *drawing {
	if o.Width == 0 {
		o.Width = DefaultWidth
	}
	o.Width = max(o.Width, MinWidth)
	if o.Location == nil {
		o.Location = time.UTC
	}
	d := &drawing{Options: o, t: t, verdict: v, g: &unicodeGlyphs}
	if t != nil {
		d.roots = t.Nested()
	}
	if o.ASCII {
		d.g = &asciiGlyphs
	}
	return d
}

// words tells what happened, step by step, and what to look at next.
func (d *drawing) words(s explain.Story) {
	d.out.WriteByte('\n')
	d.put(d.line().add(strong, "What happened"))
	const at = 11
	steps := s.Steps
	if !d.Hops {
		steps = d.foldedSteps(steps)
	}
	for _, step := range steps {
		indent, style := at+2, plain
		if step.Inside {
			indent += 2
		}
		if step.Failed {
			style = bad
		}
		text := step.Text
		if step.Took >= step.At/20 && step.Took > 0 { // how long it took matters where it took a while
			text += " (" + Duration(step.Took) + ")"
		}
		for i, part := range wrap(text, d.Width-indent) {
			l := d.line()
			if i == 0 {
				l.add(faint, fmt.Sprintf("%*s", at, since(step.At)))
			}
			d.put(l.pad(indent).add(style, part))
		}
	}
	d.advice(s)
}

// Advice writes what to look at next, nothing if there is nothing. The error is w's.
func Advice(w io.Writer, s explain.Story, o Options) error {
	d := newDrawing(s.Trace, s.Verdict, o)
	d.advice(s)
	_, err := io.WriteString(w, d.out.String())
	return err
}

func (d *drawing) advice(s explain.Story) {
	if len(s.Advice) == 0 {
		return
	}
	d.out.WriteByte('\n')
	d.put(d.line().add(strong, "What to look at next"))
	for _, text := range s.Advice {
		for i, part := range wrap(text, d.Width-4) {
			l := d.line()
			if i == 0 {
				l.add(plain, "  "+d.g.dot)
			}
			d.put(l.pad(4).add(plain, part))
		}
	}
}

// since writes a time after the lookup began.
func since(at time.Duration) string {
	switch {
	case at == 0:
		return "0"
	case at < 0:
		return Duration(at)
	}
	return "+" + Duration(at)
}

// drawing is one trace on its way to the terminal.
type drawing struct {
	Options
	t       *trace.Trace
	roots   []*trace.Node
	verdict trace.Verdict
	g       *glyphs
	out     strings.Builder
}

func (d *drawing) line() *line { return &line{limit: d.Width, colour: d.Colour, g: d.g} }

func (d *drawing) put(l *line) {
	d.out.WriteString(strings.TrimRight(l.out.String(), " "))
	d.out.WriteByte('\n')
}

// labelWidth is the width of the words that the lines of the header begin with.
const labelWidth = 9

// paragraph writes a field of the header.
func (d *drawing) paragraph(f field) {
	for i, part := range wrap(f.text, d.Width-2-labelWidth) {
		l := d.line().add(plain, "  ")
		if i == 0 {
			l.add(faint, f.label)
		}
		d.put(l.pad(2+labelWidth).add(f.style, part))
	}
}

// field is a labelled paragraph of the header.
type field struct {
	label string
	style style
	text  string
}

func (d *drawing) header() {
	word, s := outcome(d.t, d.verdict)
	took := "  " + d.took()
	name := printable.Text(cmp.Or(d.t.Name(), "?"))
	room := d.Width - len(word) - 2 - 1 - printable.Width(printable.Text(d.t.Type())) - printable.Width(took)
	short := printable.Cut(name, max(10, room), d.g.ellipsis)
	d.put(d.line().add(s, word).add(plain, "  ").add(strong, short).add(plain, " ").add(strong, d.t.Type()).add(
		plain, took))
	if short != name {
		d.paragraph(field{"name", plain, name})
	}
	if d.verdict.Lost() {
		d.stageLine()
	}
	for _, f := range d.fields() {
		d.paragraph(f)
	}
}

// took tells how long it took, and in how many attempts.
func (d *drawing) took() string {
	took := "in " + Duration(d.t.Duration())
	if d.verdict.Lost() {
		took = "no answer in " + Duration(d.t.Duration())
		c := d.t.Client()
		switch verdict.Cause(d.verdict.Cause) {
		case verdict.CauseTooLate, verdict.CauseClientGone, verdict.CauseWrongSource:
			took = "an answer after " + Duration(d.t.Duration()) + ", not taken"
		default:
			if c != nil && c.Attributes.String(semconv.DropReason) != "" && d.verdict.Where != string(verdict.Upstream) {
				took = "dropped after " + Duration(d.t.Duration()) // the client may be waiting still
			}
		}
	}
	if c := d.t.Client(); c != nil && c.Int(semconv.Attempts) > 1 {
		took += fmt.Sprintf(", %d attempts", c.Int(semconv.Attempts))
	}
	return took
}

// fields gives the header's paragraphs, in the order in which they are wanted.
func (d *drawing) fields() []field {
	t, v := d.t, d.verdict
	var fields []field
	add := func(label string, s style, text string) {
		if text != "" {
			fields = append(fields, field{label, s, text})
		}
	}
	if v.Where != "" && v.Where != trace.Answered {
		where := "at " + v.Where
		if v.Cause != "" {
			where += ": " + v.Cause
		}
		if v.Node != "" {
			where += " on " + v.Node
		}
		if v.Certainty != "" {
			where += " (" + v.Certainty + ")"
		}
		label := "lost"
		if v.Replied {
			label = "failed"
		}
		add(label, bad, where)
		add("why", plain, v.Text)
		label = "seen"
		for _, e := range v.Evidence {
			add(label, plain, e)
			label = ""
		}
	} else if !v.Joined {
		add("note", plain, v.Text)
	}
	if !v.Lost() || v.Where == string(verdict.Client) { // of one that came too late, too
		add("mostly", warning, d.mostly())
	}
	add("client", plain, d.asker())
	add("path", plain, d.path())
	joined := "both sides joined"
	switch {
	case t.Linked():
	case t.Client() == nil && t.Server() == nil:
		joined = "neither the tracer's nor CoreDNS's own span is here"
	case t.Client() == nil:
		joined = "CoreDNS's side alone"
	default:
		joined = "the tracer's side alone"
	}
	add("trace", faint, strings.Join([]string{
		t.ID.String(), joined, t.Start().In(d.Location).Format("2006-01-02 15:04:05.000 MST"),
	}, " "+d.g.dot+" "))
	for _, note := range d.notes() {
		add("note", warning, note)
	}
	return fields
}

// outcome gives the word that comes first, and how it looks.
func outcome(t *trace.Trace, v trace.Verdict) (string, style) {
	rcode := t.Rcode()
	switch {
	case v.Lost():
		return "LOST", bad
	case rcode == "NOERROR":
		return rcode, good
	case rcode == "NXDOMAIN":
		return rcode, warning
	case rcode != "":
		return rcode, bad
	case v.Where == trace.Answered:
		return "ANSWERED", good
	}
	return "UNKNOWN", warning
}

func (d *drawing) stageLine() {
	l := d.line().add(plain, " ")
	for _, s := range d.stages() {
		if l.width+2+len(s.name) > d.Width {
			d.put(l)
			l = d.line().add(plain, " ")
		}
		switch {
		case s.lost:
			l.add(plain, " ").add(bad, d.g.lost+s.name)
		case s.passed:
			l.add(plain, " ").add(good, d.g.passed).add(plain, s.name)
		default:
			l.add(plain, " ").add(faint, d.g.unseen+s.name)
		}
	}
	d.put(l)
}

func (d *drawing) asker() string {
	who := d.t.Asker()
	parts := []string{who.String()}
	if who.Workload != "" {
		parts[0] += " (" + who.Workload + ")"
	}
	if who.Node != "" && who.Pod != "" {
		parts[0] += " on " + who.Node
	}
	if who.Process != "" {
		process := who.Process
		if who.PID != 0 {
			process += fmt.Sprintf("[%d]", who.PID)
		}
		parts = append(parts, process)
	}
	return strings.Join(parts, " "+d.g.dot+" ")
}

func (d *drawing) path() string {
	from, to := d.t.Asker(), d.t.Asked()
	var parts []string
	if from.Address.IsValid() {
		parts = append(parts, from.Address.String())
	}
	if to.Address.IsValid() {
		parts = append(parts, to.Address.String())
	}
	path := strings.Join(parts, " "+d.g.to+" ")
	if tr := d.t.Transport(); tr != "" {
		path += " " + tr
	}
	if to.Pod != "" {
		path += " " + d.g.to + " " + to.String()
		if to.Node != "" {
			path += " on " + to.Node
		}
	}
	return path
}

// mostly names the one step that took most of the time, if there is one.
func (d *drawing) mostly() string {
	total := d.t.Duration()
	var most *trace.Node
	var own time.Duration
	walk(d.roots, func(n *trace.Node) bool {
		self, descend := n.Self(), true
		if isUpstream(n.Span) { // an attempt is one thing, whatever was seen of it on the network
			self, descend = n.Span.Duration(), false
		}
		if self > own {
			most, own = n, self
		}
		return descend
	})
	if most == nil || total <= 0 || own < total/2 || most.Span == d.t.Client() {
		return ""
	}
	return fmt.Sprintf("%s, %s of %s (%.0f %%)", strings.Join(strings.Fields(d.label(most).text()), " "), Duration(own),
		Duration(total), 100*float64(own)/float64(total))
}

// maxContradicted is how many senders that contradict are told of.
const maxContradicted = 3

func (d *drawing) notes() []string {
	var notes []string
	if c := d.t.Client(); c != nil {
		if lost := c.Int(semconv.HopsLost); lost > 0 {
			notes = append(notes, fmt.Sprintf("%d kernel events were lost while this lookup was in flight: hops may be missing",
				lost))
		}
		if d.t.Server() == nil && !d.verdict.Lost() {
			notes = append(notes, "CoreDNS sent no span: it has no dnstrail plugin, did not keep this lookup, or its spans "+
				"are still on their way")
		}
	}
	for i, s := range d.t.Contradicted() {
		if i == maxContradicted {
			notes = append(notes, "others contradict, too")
			break
		}
		notes = append(notes, fmt.Sprintf("said by %s, and not heeded, since %s spoke for this client first: %s",
			s.Sender(), d.t.Client().Sender(), cmp.Or(s.Attributes.String(semconv.VerdictText),
				s.Attributes.String(semconv.VerdictWhere))))
	}
	missing := 0
	for _, s := range d.t.Missing() {
		if s.Parent != d.t.ID.ClientSpanID() { // the client's span is told of above
			missing++
		}
	}
	if missing > 0 {
		notes = append(notes, fmt.Sprintf("the parents of %d spans have not come", missing))
	}
	if d.t.Copy() {
		notes = append(notes, "a copy: the lookup lies at the boundary of two epochs of the trace link and was sent "+
			"under both trace IDs")
	}
	return notes
}

// walk visits nodes, and those below where visit says so.
func walk(nodes []*trace.Node, visit func(*trace.Node) bool) {
	for _, n := range nodes {
		if visit(n) {
			walk(n.Children, visit)
		}
	}
}

// Duration writes d as everywhere in the output: see [explain.Duration].
func Duration(d time.Duration) string { return explain.Duration(d) }
