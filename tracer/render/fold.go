package render

import (
	"fmt"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// eventfulShare: what took at least this part of a lookup's time is a line of its own.
const eventfulShare = 5

// long tells whether a time is long enough, in this lookup, to be told of.
func (d *drawing) long(took time.Duration) bool { return took >= d.t.Duration()/eventfulShare }

// failed tells whether a span is of a drop or a failure.
func failed(s *trace.Span) bool {
	return s.Status == trace.StatusError || s.IsDrop() || s.Attributes.String(semconv.DropReason) != ""
}

// isSegment tells a stretch of a packet's way, as a tracer saw it.
func isSegment(s *trace.Span) bool {
	return s.Kind == trace.KindInternal && s.From(semconv.ScopeTracer)
}

// isPlugin tells the time in one of CoreDNS's plugins.
func isPlugin(s *trace.Span) bool { return s.Kind == trace.KindInternal && s.From(semconv.ScopePlugin) }

// uneventful tells whether a span is a stretch of the network on which the packet got on well and fast.
func (d *drawing) uneventful(n *trace.Node) bool {
	return n != nil && isSegment(n.Span) && len(n.Children) == 0 && !n.Span.IsTurn() && !failed(n.Span) &&
		!d.long(n.Span.Duration())
}

// opened gives the spans to draw below one, with those in the place of a segment that is but a frame around them: one
// from a query's departure to its answer's coming back, whose time is told by what lies within.
func (d *drawing) opened(children []*trace.Node) []*trace.Node {
	var out []*trace.Node
	for _, c := range children {
		if len(c.Children) > 0 && isSegment(c.Span) && !failed(c.Span) && !d.long(c.Self()) {
			out = append(out, d.opened(c.Children)...)
			continue
		}
		out = append(out, c)
	}
	return out
}

// smooth tells whether nothing below an upstream's attempt is worth a line: it was answered, no packet of it was
// dropped, and the network took no time of note.
func (d *drawing) smooth(n *trace.Node) bool {
	if n.Span.Attributes.String(semconv.ResponseCode) == "" {
		return false
	}
	well := true
	walk(n.Children, func(c *trace.Node) bool {
		if !isSegment(c.Span) || failed(c.Span) || !c.Span.IsTurn() && d.long(c.Self()) {
			well = well && len(c.Children) > 0 && isSegment(c.Span) && !failed(c.Span)
		}
		return well
	})
	return well
}

// folded gives the rows below a span with those put together that are not worth a line each.
func (d *drawing) folded(rows []row) []row {
	var out []row
	for i := 0; i < len(rows); {
		end := i
		for end < len(rows) && d.uneventful(rows[end].node) &&
			rows[end].node.Span.IsAnswer() == rows[i].node.Span.IsAnswer() {
			end++
		}
		fold := end
		if end > i && end < len(rows) && (rows[end].node == nil || failed(rows[end].node.Span)) {
			fold-- // the last place before it was lost
		}
		if fold-i < 2 {
			fold = i
		} else {
			out = append(out, d.fold(rows[i:fold]))
		}
		out = append(out, rows[fold:max(end, i+1)]...)
		i = max(end, i+1)
	}
	return out
}

// fold makes one row of several that follow one another.
func (d *drawing) fold(rows []row) row {
	first, last := rows[0].node.Span, rows[len(rows)-1].node.Span
	way := "there"
	if first.IsAnswer() {
		way = "back"
	}
	l := label{{plain, fmt.Sprintf("network %s: %d hops", way, len(rows))}}
	if from, to := first.Node(), last.Node(); from != "" && to != "" && from != to {
		l = append(l, piece{faint, "  " + from + " " + d.g.to + " " + to})
	}
	r := row{from: first.Start, to: first.End, label: l, how: solid, style: network}
	for _, one := range rows {
		if one.to.After(r.to) {
			r.to = one.to
		}
	}
	return r
}

// chain gives, of plugins that passed a query on to one another, the last, and the label for all of them: those that
// say something by name, the others by number.
func (d *drawing) chain(n *trace.Node) (*trace.Node, label) {
	var said label
	silent := 0
	for isPlugin(n.Span) && len(n.Children) == 1 && isPlugin(n.Children[0].Span) && !failed(n.Span) && !d.long(n.Self()) {
		if l := d.label(n); len(l) > 1 {
			said = append(append(said, l...), piece{faint, " " + d.g.to + " "})
		} else {
			silent++
		}
		n = n.Children[0]
	}
	said = append(said, d.label(n)...)
	if silent > 0 {
		said = append(said, piece{faint, fmt.Sprintf("  after %d more", silent)})
	}
	return n, said
}

// foldedSteps gives the steps of a story with those left out that the folded tree leaves out.
func (d *drawing) foldedSteps(steps []explain.Step) []explain.Step {
	var out []explain.Step
	run := 0
	for i, s := range steps {
		if s.Failed {
			out, run = append(out, s), 0
			continue
		}
		if s.Passing && !d.verdict.Lost() {
			continue
		}
		if !s.Hop || d.long(s.Took) || s.Translated && d.verdict.Lost() {
			out, run = append(out, s), 0
			continue
		}
		if next := d.nextStep(steps[i+1:]); next != nil && next.Hop && !next.Failed && next.Back == s.Back &&
			!d.long(next.Took) && !d.long(next.At-s.At) {
			run++
			continue
		}
		if run > 0 {
			s.Text += fmt.Sprintf(", past %d other places", run)
			if run == 1 {
				s.Text = s.Text[:len(s.Text)-1]
			}
		}
		out, run = append(out, s), 0
	}
	return out
}

// nextStep gives the first step that is shown.
func (d *drawing) nextStep(steps []explain.Step) *explain.Step {
	for i := range steps {
		if !steps[i].Passing || d.verdict.Lost() || steps[i].Failed {
			return &steps[i]
		}
	}
	return nil
}
