package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// table gives the rows as a table.
func table(rows []*row) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "FAULT\tAGENTS\t\tEXPECTED\t%s\tROWS\tSECONDS\n", strings.Join(columnNames[:], "\t"))
	right := 0
	for _, r := range rows {
		if r.right() {
			right++
		}
		cells := []string{r.fault.name, r.setting.String(), r.family.String(), r.expected()}
		for c, wrong := range r.wrong {
			switch {
			case r.err != nil:
				wrong = "-"
			case c == observed && r.setting != inHost:
				wrong = "-"
			case wrong == "":
				wrong = "right"
			}
			cells = append(cells, wrong)
		}
		counted, seconds := "right", "-"
		if r.counted != "" {
			counted = r.counted
		}
		if r.err != nil {
			counted = "not made: " + strings.ReplaceAll(r.err.Error(), "\n", " ")
		}
		if r.after > 0 {
			seconds = fmt.Sprintf("%.2f", r.after.Seconds())
		}
		fmt.Fprintln(w, strings.Join(append(cells, counted, seconds), "\t"))
	}
	_ = w.Flush() // strings.Builder does not fail
	fmt.Fprintf(&b, "%d of %d judged right\n", right, len(rows))
	return b.String()
}
