package render

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

const (
	timeWidth = 8
	barShare  = 30 // of 100 cells
)

// isUpstream tells a plugin's upstream attempt.
func isUpstream(s *trace.Span) bool { return s.Kind == trace.KindClient && s.From(semconv.ScopePlugin) }

// piece is text with what it means.
type piece struct {
	style style
	text  string
}

type label []piece

func (l label) text() string {
	var b strings.Builder
	for _, p := range l {
		b.WriteString(p.text)
	}
	return b.String()
}

// label gives what stands before the time and the bar.
func (d *drawing) label(n *trace.Node) label {
	s := n.Span
	switch {
	case s == d.t.Client():
		return label{{strong, "client"}, {plain, "  " + d.t.Asker().String()}}
	case isUpstream(s):
		return d.upstream(s)
	case s.Kind == trace.KindServer && s.From(semconv.ScopePlugin):
		l := label{{strong, "CoreDNS"}}
		// else it stands in the header
		if pod := s.String(semconv.K8SPodName); pod != "" && (d.t.Client() == nil || len(d.t.Servers()) > 1) {
			l = append(l, piece{plain, "  " + pod})
		}
		if written, known := s.Attributes.Bool(semconv.ResponseWritten); known && !written {
			return append(l, piece{bad, "  no answer written"})
		}
		if rcode := s.String(semconv.ResponseCode); rcode != "" {
			l = append(l, piece{faint, "  " + rcode})
		}
		if by := s.Attributes.String(semconv.AnsweredBy); by != "" {
			l = append(l, piece{faint, " by " + by})
		}
		return l
	case s.From(semconv.ScopePlugin):
		l := label{{plain, cmp.Or(s.Attributes.String(semconv.PluginName), s.Name)}}
		if l[0].text == "cache" {
			if status := d.cacheStatus(); status != "" {
				l = append(l, piece{faint, "  " + status})
			}
		}
		if s.Status == trace.StatusError {
			l = append(l, piece{bad, "  " + cmp.Or(s.Attributes.String(semconv.ErrorType), s.Message, "error")})
		}
		return l
	}
	l := label{{plain, s.Name}}
	from, to := device(s.Begin()), device(s.Finish())
	if s.IsTurn() && s.Parent != d.t.ID.ClientSpanID() {
		l[0].text = "the upstream" // of a query of CoreDNS's own
	}
	if s.IsDrop() {
		what := "query"
		if s.IsAnswer() {
			what = "answer"
		}
		l[0] = piece{bad, what + " dropped"}
	}
	// what hangs below it is of the same node
	if at := s.String(semconv.K8SNodeName); at != "" && d.elsewhere(s) && s.Parent == d.t.ID.ClientSpanID() {
		l[0].text = at + ": " + l[0].text
	}
	switch {
	case from != "" && to != "" && from != to:
		l = append(l, piece{faint, "  " + from + " " + d.g.to + " " + to})
	case to != "" && from == to:
		l = append(l, piece{faint, "  at " + to})
	case to != "":
		l = append(l, piece{faint, "  " + d.g.to + " " + to})
	case from != "":
		l = append(l, piece{faint, "  " + from})
	}
	if reason := s.Attributes.String(semconv.DropReason); reason != "" {
		l = append(l, piece{bad, "  " + reason})
	}
	return l
}

// elsewhere tells whether an agent on another node than the client's made the span.
func (d *drawing) elsewhere(s *trace.Span) bool {
	c := d.t.Client()
	return c != nil && s.From(semconv.ScopeTracer) && !s.SameSender(c) &&
		s.String(semconv.K8SNodeName) != c.String(semconv.K8SNodeName)
}

// device gives the device of a place. The way tells the rest; the whole stands in the span.
func device(p trace.Place) string {
	if p.Device == "" && p.Event != "" {
		return "no device"
	}
	return p.Device
}

func (d *drawing) upstream(s *trace.Span) label {
	l := label{{plain, "upstream"}}
	if peer := s.Peer(); peer.IsValid() {
		l = append(l, piece{plain, " " + peer.String()})
	}
	if transport := s.Attributes.String(semconv.NetworkTransport); transport != "" {
		l = append(l, piece{plain, " " + transport})
	}
	rcode, failed := s.Attributes.String(semconv.ResponseCode), s.Attributes.String(semconv.ErrorType)
	if truncated, _ := s.Attributes.Bool(semconv.ResponseTruncated); truncated {
		rcode = strings.TrimSpace(rcode + " truncated")
	}
	switch {
	case failed != "" || s.Status == trace.StatusError:
		l = append(l, piece{bad, "  " + cmp.Or(failed, rcode, s.Message, "failed")})
	case rcode != "":
		l = append(l, piece{plain, "  " + rcode})
	}
	if connection := s.Attributes.String(semconv.UpstreamConnection); connection != "" {
		l = append(l, piece{faint, " (" + connection + ")"})
	}
	return l
}

// cacheStatus gives what the cache had, where a span tells.
func (d *drawing) cacheStatus() string {
	for _, s := range d.t.Servers() {
		if status := s.Attributes.String(semconv.CacheStatus); status != "" {
			return status
		}
	}
	return ""
}

func barStyle(s *trace.Span, failed bool) style {
	switch {
	case failed:
		return bad
	case isUpstream(s):
		return remote
	case s.From(semconv.ScopePlugin):
		return server
	}
	return network
}

// flat is one line of the tree.
type flat struct {
	before, mark string // what is drawn before the label
	depth        int
	label        label
	from, to     time.Time
	style        style
	how          fill
	span         *trace.Span // nil of a time in which nothing was seen
	instant      bool        // it took no time: the lookup ended there
}

func (d *drawing) tree() {
	barWidth := d.Width * barShare / 100
	labels := d.Width - barWidth - timeWidth - 2
	scale := d.scale()

	head := d.line().pad(labels+timeWidth+2).add(faint, ruler(d.g, barWidth, Duration(scale.length)))
	d.put(head)
	for _, f := range d.flatten() {
		l := d.line()
		l.limit = labels
		l.add(faint, f.before+f.mark)
		for _, p := range f.label {
			l.add(p.style, p.text)
		}
		l.pad(labels)
		l.limit, l.full = 0, false
		if f.instant {
			d.put(l)
			continue
		}
		l.add(plain, fmt.Sprintf(" %*s ", timeWidth, Duration(max(0, f.to.Sub(f.from))))).add(
			f.style, d.bar(f.from, f.to, barWidth, scale, f.how))
		d.put(l)
	}
}

// flatten gives the lines of the tree from top to bottom.
func (d *drawing) flatten() []flat {
	var lines []flat
	for _, root := range d.roots {
		lines = d.node(lines, root, "", "", 0)
	}
	return lines
}

// ruler draws the scale: both ends, with the length at the right one.
func ruler(g *glyphs, width int, length string) string {
	left := "0 "
	fill := width - len(left) - 2 - printable.Width(length) - 1
	return left + g.edge + strings.Repeat(g.rule, max(0, fill)) + g.edge2 + " " + length
}

// scale is the time that the bars span.
type scale struct {
	start  time.Time
	length time.Duration
}

// share gives where t lies in the scale, from 0 to 1; what lies outside is at the nearer end.
func (s scale) share(t time.Time) float64 {
	if s.length <= 0 {
		return 0
	}
	return min(1, max(0, float64(t.Sub(s.start))/float64(s.length)))
}

// scale covers all spans: those that end after the client has its answer, too.
func (d *drawing) scale() scale {
	first, last := d.t.Spans[0].Start, d.t.Spans[0].End
	for _, s := range d.t.Spans {
		if s.Attributes.String(semconv.Segment) == string(verdict.Upstream) &&
			s.Attributes.String(semconv.ResponseCode) == "" {
			continue // it ends when the tracer gave up, which nobody waited for
		}
		if s.Start.Before(first) {
			first = s.Start
		}
		if s.End.After(last) {
			last = s.End
		}
	}
	return scale{first, last.Sub(first)}
}

// node appends a span and those below it.
func (d *drawing) node(lines []flat, n *trace.Node, before, mark string, depth int) []flat {
	s := n.Span
	asks := s == d.t.Client()
	first, children := s, n.Children
	var l label
	if d.Hops {
		l = d.label(n)
	} else {
		n, l = d.chain(n)
		children = d.opened(n.Children)
		if isUpstream(s) && d.smooth(n) {
			children = nil
		}
		s = n.Span
	}
	how := solid
	switch {
	case len(children) > 0:
		how = hollow
	case asks && d.verdict.Lost():
		how = inVain
	}
	failed := s.Status == trace.StatusError && !asks
	lines = append(lines, flat{before, mark, depth, l, first.Start, first.End, barStyle(s, failed), how, s, false})

	if depth <= d.Width { // deeper ones have no room left
		switch mark {
		case d.g.branch:
			before += d.g.through
		case d.g.last:
			before += d.g.blank
		}
	}
	rows := rowsOf(children)
	if asks {
		rows = d.withGaps(s, rows)
	}
	if !d.Hops {
		rows = d.folded(rows)
	}
	for i, r := range rows {
		m := d.g.branch
		if i == len(rows)-1 {
			m = d.g.last
		}
		if r.node != nil {
			lines = d.node(lines, r.node, before, m, depth+1)
			continue
		}
		lines = append(lines, flat{before, m, depth + 1, r.label, r.from, r.to, r.style, r.how, nil, r.how == inVain &&
			!r.to.After(r.from)})
	}
	return lines
}

// row is a span below another; or, without a node, several of them, or a time in which nothing was seen.
type row struct {
	node     *trace.Node
	from, to time.Time
	label    label
	style    style
	how      fill
}

func rowsOf(nodes []*trace.Node) []row {
	rows := make([]row, len(nodes))
	for i, c := range nodes {
		rows[i] = row{node: c, from: c.Span.Start, to: c.Span.End}
	}
	return rows
}

// A gapShare'th of the client's time, if nothing was seen in it, is a line of its own: it is when a client waits before
// it asks again.
const gapShare = 5

// withGaps puts lines between a client's segments where nothing was seen, and at the end of a lost lookup.
func (d *drawing) withGaps(s *trace.Span, rows []row) []row {
	var out []row
	seen := s.Start
	for _, r := range rows {
		if len(out) > 0 && r.from.Sub(seen) >= s.Duration()/gapShare && s.Duration() > 0 {
			out = append(out, gap(seen, r.from, faint, "nothing seen"))
		}
		if r.to.After(seen) {
			seen = r.to
		}
		out = append(out, r)
	}
	if d.verdict.Lost() {
		if seen.After(s.End) {
			seen = s.End
		}
		out = append(out, gap(seen, s.End, bad, d.g.lost+" lost at "+d.verdict.Where))
	}
	return out
}

// gap gives the row of a time in which nothing came.
func gap(from, to time.Time, s style, text string) row {
	return row{from: from, to: to, label: label{{s, text}}, style: s, how: inVain}
}

// fill is how a bar is drawn.
type fill int

const (
	solid  fill = iota // time that this span itself tells of
	hollow             // time that the spans below it tell of
	inVain             // time spent waiting for what did not come
)

// bar draws from..to within the scale. Its left end is exact to a cell, the length of a solid one to an eighth; nothing
// is too short to be seen.
func (d *drawing) bar(from, to time.Time, width int, sc scale, how fill) string {
	if sc.length <= 0 {
		return d.g.bar[1]
	}
	eighths := func(t time.Time) int {
		return int(sc.share(t) * float64(width*8))
	}
	begin, end := eighths(from), eighths(to)
	left := min(begin/8, width-1)
	indent := strings.Repeat(" ", left)
	if how != solid {
		cell := d.g.span
		if how == inVain {
			cell = d.g.wait
		}
		return indent + strings.Repeat(cell, max(1, (end+4)/8-left))
	}
	length := end - left*8
	if end-begin < 8 {
		length = end - begin // within its first cell: how long it is, not where it ends
	}
	length = max(1, length)
	bar := indent + strings.Repeat(d.g.bar[0], length/8)
	if rest := length % 8; rest > 0 {
		bar += d.g.bar[rest]
	}
	return bar
}
