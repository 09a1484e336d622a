package render

import (
	"strings"

	"github.com/fatih/color"

	"github.com/dnstrail/dnstrail/tracer/printable"
)

// glyphs are the signs that a terminal may or may not have.
type glyphs struct {
	passed, lost, unseen         string // of a stage
	branch, last, through, blank string // of the tree, all as wide as one another
	to, dot, ellipsis            string
	// bar gives full cells, then eighths of a cell from the left, thin to thick; span is a cell of time that is told in
	// parts below; wait is one in which nothing came.
	bar               []string
	span, wait        string
	edge, rule, edge2 string
	// micro writes µ.
	micro string
}

var unicodeGlyphs = glyphs{
	passed: "✓", lost: "✗", unseen: "·",
	branch: "├ ", last: "└ ", through: "│ ", blank: "  ",
	to: "→", dot: "·", ellipsis: "…",
	bar:  []string{"█", "▏", "▎", "▍", "▌", "▋", "▊", "▉"},
	span: "─", wait: "░",
	edge: "├", rule: "─", edge2: "┤", micro: "µ",
}

var asciiGlyphs = glyphs{
	passed: "+", lost: "X", unseen: ".",
	branch: "|-", last: "`-", through: "| ", blank: "  ",
	to: ">", dot: "-", ellipsis: "~",
	bar:  []string{"#", "|", "|", "|", "#", "#", "#", "#"},
	span: "-", wait: ".",
	edge: "|", rule: "-", edge2: "|", micro: "u",
}

// plain writes text of our own making without the one character that it has beyond ASCII.
func (g *glyphs) plain(text string) string { return strings.ReplaceAll(text, "µ", g.micro) }

// style is what a piece of text means; a colour follows from it.
type style int

const (
	plain   style = iota
	strong        // what is read first
	faint         // what is there to be looked up
	good          // an answer
	warning       // an answer one may not have wanted, something slow, something missing
	bad           // lost, failed
	network       // a bar of the packet's way
	server        // of CoreDNS
	remote        // of an upstream
)

var colours = map[style]*color.Color{
	strong: color.New(color.Bold), faint: color.New(color.Faint),
	good: color.New(color.FgGreen, color.Bold), warning: color.New(color.FgYellow, color.Bold),
	bad:     color.New(color.FgRed, color.Bold),
	network: color.New(color.FgCyan), server: color.New(color.FgBlue), remote: color.New(color.FgMagenta),
}

func init() {
	for _, c := range colours {
		c.EnableColor() // whether to colour is Options' to say, not that of the process's standard output
	}
}

// line is one line under construction; it knows how wide it is on the terminal.
type line struct {
	out    strings.Builder
	width  int
	limit  int  // text beyond is cut
	full   bool // it was
	colour bool
	g      *glyphs
}

// add appends text, cut at the limit.
func (l *line) add(s style, text string) *line {
	if l.full {
		return l
	}
	text = l.g.plain(printable.Text(text))
	w := printable.Width(text)
	if l.limit > 0 && l.width+w > l.limit {
		l.full = true
		text = printable.Cut(text, l.limit-l.width, l.g.ellipsis)
		w = printable.Width(text)
	}
	if c := colours[s]; c != nil && l.colour && strings.TrimSpace(text) != "" {
		text = c.Sprint(text)
	}
	l.out.WriteString(text)
	l.width += w
	return l
}

// pad appends spaces up to width.
func (l *line) pad(width int) *line {
	if n := width - l.width; n > 0 {
		l.out.WriteString(strings.Repeat(" ", n))
		l.width = width
	}
	return l
}

// wrap breaks text at spaces into lines of at most width cells; a word that is longer is cut.
func wrap(text string, width int) []string {
	var lines []string
	at := ""
	for word := range strings.FieldsSeq(printable.Text(text)) {
		for {
			head := printable.Cut(word, width, "")
			if head == word {
				break
			}
			if at != "" {
				lines, at = append(lines, at), ""
			}
			lines, word = append(lines, head), word[len(head):]
		}
		switch {
		case at == "":
			at = word
		case printable.Width(at)+1+printable.Width(word) <= width:
			at += " " + word
		default:
			lines, at = append(lines, at), word
		}
	}
	if at != "" {
		lines = append(lines, at)
	}
	return lines
}
