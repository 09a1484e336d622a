package report

import (
	_ "embed"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/printable"
)

//go:embed report.html
var pageHTML string

var pageTemplate = template.Must(template.New("report").Parse(pageHTML))

type pageNumber struct{ Name, Value string }

type pageFinding struct {
	Kind, Who, Text, Waited, Change, Patch string
	Queries                                int
	// Share of the costliest's waiting, in per cent, for a bar.
	Share    int
	Numbers  []pageNumber
	Evidence []string
}

type pageReport struct {
	Title, From, Long string
	Lookups, Untold   int
	EventsLost        uint64
	Findings          []pageFinding
	Well              []Kind
	NotEnough         []Gap
}

// WriteHTML writes the report as one HTML page that needs nothing else: no script, no font, no other file. What others
// chose is text alone. The error is w's.
func (r *Report) WriteHTML(w io.Writer) error {
	p := pageReport{
		Title: plural(len(r.Findings), "finding", "findings"), Lookups: r.Lookups, Untold: r.Untold,
		EventsLost: r.EventsLost, Well: r.Well,
	}
	if r.Lookups > 0 {
		p.From, p.Long = r.From.UTC().Format("2006-01-02 15:04:05 MST"), duration(r.To.Sub(r.From))
	}
	for _, g := range r.NotEnough {
		p.NotEnough = append(p.NotEnough, Gap{g.Kind, printable.Text(g.Why)})
	}
	most := 0.0
	for i := range r.Findings {
		most = max(most, r.Findings[i].Waited)
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		out := pageFinding{
			Kind: string(f.Kind), Who: printable.Text(f.Who), Text: printable.Text(f.Text), Queries: f.Queries,
			Change: printable.Text(f.Change), Evidence: f.Evidence, Patch: lines(f.Patch),
		}
		if f.Waited > 0 {
			out.Waited = duration(time.Duration(f.Waited * float64(time.Second)))
			out.Share = max(1, int(100*f.Waited/most+0.5))
		}
		for _, n := range f.Numbers {
			out.Numbers = append(out.Numbers, pageNumber{n.Name, n.String()})
		}
		p.Findings = append(p.Findings, out)
	}
	return pageTemplate.Execute(w, p)
}

// lines makes each line of a patch printable.
func lines(text string) string {
	list := strings.Split(text, "\n")
	for i, l := range list {
		list[i] = printable.Text(l)
	}
	return strings.Join(list, "\n")
}
