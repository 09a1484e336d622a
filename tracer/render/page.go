package render

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// class is what a style is called in the page's style sheet.
var class = map[style]string{
	plain: "plain", strong: "strong", faint: "faint", good: "good", warning: "warning", bad: "bad", network: "network",
	server: "server", remote: "remote",
}

var fillClass = map[fill]string{solid: "solid", hollow: "hollow", inVain: "vain"}

type pagePiece struct{ Class, Text string }

// pageBar is a bar's place in a scale, in per cent.
type pageBar struct{ Left, Width string }

type pageRow struct {
	Depth       int
	Label       []pagePiece
	Took        string
	Class, Fill string
	Whole, Near pageBar
	Outside     bool // it begins after the near scale ends
	Attributes  []pageAttribute
}

type pageAttribute struct{ Key, Value string }

type pageField struct{ Label, Class, Text string }

type pageStage struct{ Name, State, Mark string }

type pageStep struct {
	At, Took, Text string
	Failed, Inside bool
}

type page struct {
	Title, Outcome, Class, Name, Type, Took string
	Lost                                    bool
	Fields                                  []pageField
	Stages                                  []pageStage
	Rows                                    []pageRow
	WholeTicks, NearTicks                   []string
	Near                                    bool
	Steps                                   []pageStep
	Advice                                  []string
	Written                                 string
}

// Page writes a lookup as one HTML page that needs nothing else: no script, no font, no other file. What stands in the
// spans is escaped by html/template. The error is w's. Width, Colour, ASCII and Hops of o do not count.
func Page(w io.Writer, s explain.Story, o Options) error {
	d := newDrawing(s.Trace, s.Verdict, Options{Location: o.Location, Hops: true})
	word, st := outcome(d.t, d.verdict)
	p := page{
		Outcome: printable.Text(word), Class: class[st],
		Name: printable.Text(cmp.Or(d.t.Name(), "?")), Type: printable.Text(d.t.Type()),
		Took: d.took(), Lost: d.verdict.Lost(),
	}
	for _, text := range s.Advice {
		p.Advice = append(p.Advice, printable.Text(text))
	}
	p.Title = fmt.Sprintf("%s %s %s", p.Outcome, p.Name, p.Type)
	for _, f := range d.fields() {
		p.Fields = append(p.Fields, pageField{f.label, class[f.style], printable.Text(f.text)})
	}
	for _, st := range d.stages() {
		state, mark := "unseen", d.g.unseen
		switch {
		case st.lost:
			state, mark = "lost", d.g.lost
		case st.passed:
			state, mark = "passed", d.g.passed
		}
		p.Stages = append(p.Stages, pageStage{st.name, state, mark})
	}
	d.pageRows(&p)
	for _, step := range s.Steps {
		took := ""
		if step.Took > 0 {
			took = Duration(step.Took)
		}
		p.Steps = append(p.Steps, pageStep{since(step.At), took, printable.Text(step.Text), step.Failed, step.Inside})
	}
	return pageTemplate.Execute(w, p)
}

// nearShare: a packet's way that takes less than this part of the whole is drawn a second time to a scale of its own.
const nearShare = 10

func (d *drawing) pageRows(p *page) {
	whole := d.scale()
	lines := d.flatten()
	near := scale{start: whole.start}
	for _, f := range lines { // to the first time in which nothing was seen, or the longest solid bar
		if (f.how == inVain || f.how == solid && f.to.Sub(f.from) > whole.length/2) && f.from.After(near.start) {
			near.length = f.from.Sub(near.start)
			break
		}
	}
	near.length += min(near.length/10, math.MaxInt64-near.length)
	p.Near = near.length > 0 && near.length < whole.length/nearShare
	p.WholeTicks, p.NearTicks = ticks(whole.length), ticks(near.length)
	for _, f := range lines {
		r := pageRow{
			Depth: min(f.depth, maxIndent), Took: took(f), Class: class[f.style], Fill: fillClass[f.how],
			Whole: place(f, whole), Near: place(f, near), Outside: near.length > 0 && f.from.Sub(near.start) > near.length,
		}
		for _, piece := range f.label {
			r.Label = append(r.Label, pagePiece{class[piece.style], printable.Text(piece.text)})
		}
		if f.span != nil {
			r.Attributes = spanAttributes(f.span)
		}
		p.Rows = append(p.Rows, r)
	}
}

// maxIndent is how deep a line is set in at most, in ems.
const maxIndent = 20

func took(f flat) string {
	if f.instant {
		return ""
	}
	return Duration(max(0, f.to.Sub(f.from)))
}

func ticks(length time.Duration) []string {
	var t []string
	for i := range 5 {
		if i == 0 {
			t = append(t, "0")
			continue
		}
		t = append(t, Duration(length/4*time.Duration(i)))
	}
	return t
}

// place gives a bar's place within sc.
func place(f flat, sc scale) pageBar {
	if sc.length <= 0 {
		return pageBar{"0", "100"}
	}
	left, right := sc.share(f.from), sc.share(f.to)
	return pageBar{percent(left), percent(max(0, right-left))}
}

// percent writes a share of 1.
func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 4, 64) }

// spanAttributes gives all of a span, for who wants to see it.
func spanAttributes(s *trace.Span) []pageAttribute {
	list := []pageAttribute{
		{"span", s.Kind.String() + " " + printable.Text(s.Name)},
		{"span ID", s.SpanID.String()},
		{"start", s.Start.UTC().Format("15:04:05.000000000 UTC")},
		{"end", s.End.UTC().Format("15:04:05.000000000 UTC")},
	}
	add := func(prefix string, a trace.Attributes) {
		for _, kv := range a {
			text, ok := kv.Value.(string)
			if !ok {
				js, err := json.Marshal(kv.Value)
				if err != nil {
					js = []byte(err.Error())
				}
				text = string(js)
			}
			list = append(list, pageAttribute{prefix + printable.Text(kv.Key), printable.Text(text)})
		}
	}
	add("", s.Attributes)
	if s.Resource != nil {
		for _, key := range []string{semconv.ServiceName, semconv.K8SNamespaceName, semconv.K8SPodName, semconv.K8SNodeName} {
			if v := s.Resource.Attributes.String(key); v != "" {
				add("resource ", trace.Attributes{{Key: key, Value: v}})
			}
		}
	}
	return list
}
