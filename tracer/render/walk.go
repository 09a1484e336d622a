package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/trace"
)

// Seen is a packet at one place, as a walk shows it.
type Seen struct {
	At        time.Duration // since the query was sent
	Namespace string        // whose network namespace it is
	Place     string        // device and direction, or socket
	Flow      string        // from whom to whom
	Note      string
	Answer    bool // it is on its way back
	Failed    bool // it was dropped
	Other     bool // it is of a query that a server made, as it seems for this one
}

// Walk writes what is seen of a lookup, a line at a time.
type Walk struct {
	w io.Writer
	d *drawing
}

// NewWalk gives a walk that writes to w.
func NewWalk(w io.Writer, o Options) *Walk {
	return &Walk{w, newDrawing(nil, trace.Verdict{}, o)}
}

// The columns of a walk, by their right ends.
const (
	walkTime      = 11
	walkNamespace = walkTime + 2 + 24
	walkPlace     = walkNamespace + 17
)

// Line writes a line that is about the walk as a whole.
func (k *Walk) Line(text string) error {
	k.d.put(k.d.line().add(strong, text))
	return k.flush()
}

// Seen writes one line.
func (k *Walk) Seen(s Seen) error {
	l := k.d.line().add(faint, fmt.Sprintf("%*s  ", walkTime, since(s.At)))
	column := func(st style, text string, end int) {
		l.limit = end - 1
		l.add(st, text)
		l.limit, l.full = k.d.Width, false
		l.pad(end)
	}
	place, flow := plain, faint
	switch {
	case s.Failed:
		place, flow = bad, bad
	case s.Answer:
		place = good
	}
	namespace := s.Namespace
	if s.Other {
		namespace = "  " + namespace
	}
	column(plain, namespace, walkNamespace)
	column(place, s.Place, walkPlace)
	text := strings.TrimSpace(s.Flow + "  " + s.Note)
	for i, part := range wrap(text, k.d.Width-walkPlace) {
		if i > 0 {
			k.d.put(l)
			l = k.d.line().pad(walkPlace)
		}
		l.add(flow, part)
	}
	k.d.put(l)
	return k.flush()
}

func (k *Walk) flush() error {
	_, err := io.WriteString(k.w, k.d.out.String())
	k.d.out.Reset()
	return err
}
