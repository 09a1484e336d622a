package render

import (
	"io"

	"github.com/dnstrail/dnstrail/tracer/doctor"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

var findingStyle = map[doctor.State]style{doctor.Pass: good, doctor.Warn: warning, doctor.Fail: bad, doctor.Skip: faint}

// Finding writes what a check found: its state, what it looked at, what it is, and below it the log that belongs to it
// and what to do. What is too long for its column, as with a node's name before it, has a line of its own: findings are
// written as they come, and no column suits all nodes' names. The error is w's.
func Finding(w io.Writer, f doctor.Finding, o Options) error {
	d := newDrawing(nil, trace.Verdict{}, o)
	const indent = 6 + 14
	l := d.line().add(findingStyle[f.State], f.State.String()).pad(6).add(strong, f.What)
	if l.width >= indent {
		d.put(l)
		l = d.line()
	}
	for _, part := range wrap(f.Is, d.Width-indent) {
		d.put(l.pad(indent).add(plain, part))
		l = d.line()
	}
	for _, text := range f.Log {
		for _, part := range wrap(text, d.Width-indent-2) {
			d.put(d.line().pad(indent+2).add(faint, part))
		}
	}
	for i, part := range wrap(f.Do, d.Width-indent-2) {
		l := d.line().pad(indent)
		if i == 0 {
			l.add(plain, d.g.to)
		}
		d.put(l.pad(indent+2).add(plain, part))
	}
	_, err := io.WriteString(w, d.out.String())
	return err
}
