package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dnstrail/dnstrail/tracer/render"
)

// summarize prints a line a lookup, and fails if one is not as it has to be.
func summarize(out io.Writer, results []*result) error {
	fmt.Fprint(out, "Summary\n=======\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NAME\tCLIENT\tSPANS\tTOOK\tCAME OUT AS\t\n")
	lookups, wrong := 0, 0
	for _, r := range results {
		for i, t := range r.traces {
			lookups++
			if t == nil {
				wrong++
				fmt.Fprintf(w, "%s\t%s\t0\t\tnothing\tWRONG\n", r.story.want[i].name, r.story.pod)
				continue
			}
			verdict := t.Verdict()
			var came string
			switch {
			case verdict.Lost():
				came = fmt.Sprintf("lost: %s, %s", verdict.Where, verdict.Cause)
			case t.Linked():
				came = t.Rcode() + ", one linked trace"
			default:
				came = t.Rcode() + ", not linked"
			}
			state := "ok"
			if len(r.problems) > 0 {
				state = "WRONG"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", strings.TrimSuffix(t.Name(), "."), r.story.pod, len(t.Spans),
				render.Duration(t.Duration()), came, state)
		}
		wrong += min(1, len(r.problems))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		var all []string
		for _, r := range results {
			all = append(all, r.problems...)
		}
		return fmt.Errorf("not as it has to be:\n  %s", strings.Join(all, "\n  "))
	}
	fmt.Fprintf(out, "\n%d lookups, each one trace: answered ones linked from pod to CoreDNS, the lost one with its "+
		"place.\n", lookups)
	return nil
}
