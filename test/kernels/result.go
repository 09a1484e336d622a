package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// result is what was found out about one kernel.
type result struct {
	kernel
	records []job.Record
	took    time.Duration
}

// wrong gives what makes the run fail.
func (r *result) wrong() (errs []error) {
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(r.name+": "+format, args...))
	}
	loaded := false
	for _, rec := range r.records {
		switch {
		case rec.Problem != "":
			fail("%s", rec.Problem)
		case rec.Load != nil && rec.Load.Error != "":
			fail("loading: %s", rec.Load.Error)
		case rec.Load != nil:
			loaded = true
		case rec.Demo != nil && !rec.Demo.OK:
			fail("demo: %s", rec.Demo.Last)
		case rec.Row != nil && !rec.Row.Right && rec.Row.Absent == "":
			w := rec.Row
			fail("%s, %s: expected %s, observed %s, traced %s, explained %s: %s%s", w.Fault, w.Family, w.Expected, w.Observed,
				w.Traced, w.Explained, w.Text, w.Problem)
		case rec.Kernel != nil:
			fail("the kernel complains: %s", strings.Join(rec.Kernel.Lines, "; "))
		}
	}
	if !loaded {
		fail("the program was not loaded")
	}
	return errs
}

// summary is a few lines for the terminal.
func (r *result) summary() string {
	var b strings.Builder
	right, rows := 0, 0
	for _, rec := range r.records {
		switch {
		case rec.Boot != nil:
			fmt.Fprintf(&b, "%s: Linux %s (%s), up in %.0f s\n", r.name, rec.Boot.Release, r.arch, rec.Boot.Seconds)
		case rec.Load != nil && rec.Load.Error == "":
			fmt.Fprintf(&b, "  loaded and attached in %d ms\n", rec.Load.Milliseconds)
			for _, m := range rec.Load.Missing {
				fmt.Fprintf(&b, "  without %s\n", m)
			}
			for _, m := range rec.Load.Refused {
				fmt.Fprintf(&b, "  refused %s\n", m)
			}
		case rec.Demo != nil:
			fmt.Fprintf(&b, "  demo: %v: %s\n", rec.Demo.OK, rec.Demo.Last)
		case rec.Row != nil && rec.Row.Absent == "":
			rows++
			if rec.Row.Right {
				right++
			}
		}
	}
	fmt.Fprintf(&b, "  %d of %d rows right, %v in all\n", right, rows, r.took.Round(time.Second))
	for _, err := range r.wrong() {
		fmt.Fprintf(&b, "  WRONG %v\n", err)
	}
	return b.String()
}
