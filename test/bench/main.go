// Command bench is behind `make bench`: it prints, as ratios measured side by side in one run, what it costs to be
// watched.
//
// Machines are shared and noisy, so nothing here is an absolute promise: what is compared runs in turns, round after
// round, and the median of the rounds is shown. CPU time a query is shown beside throughput, because it hardly feels
// the neighbors.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
)

// bench is what every section gets.
type bench struct {
	bin     string        // directory of the built coredns and dnstrail
	dir     string        // scratch directory
	rounds  int           // how often each alternative is measured
	length  time.Duration // of one measurement
	against string        // directory of an older build, or empty
	only    string        // compared with it: coredns or tracer; empty means both
}

// section is one part of the run.
type section struct {
	name, what string
	run        func(context.Context, *bench) error
}

var sections = []section{
	{"coredns", "CoreDNS throughput, cache hits: plain, with dnstrail, with CoreDNS's own trace plugin", benchCoreDNS},
	{"tracer", "The lab: iperf3 and DNS with and without the tracer; eBPF nanoseconds a run; CPU a lookup", benchTracer},
}

func main() {
	lab.Reexec()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "directory of the built coredns and dnstrail")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds; the median is shown")
	flag.DurationVar(&b.length, "length", 3*time.Second, "length of one measurement")
	only := flag.String("only", "", "measure this alone: coredns, tracer")
	against := flag.String("against", "", "directory of an older coredns and dnstrail: measure both in turns, and "+
		"nothing else")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if *only != "" && !slices.ContainsFunc(sections, func(s section) bool { return s.name == *only }) {
		return fmt.Errorf("-only %q: want coredns or tracer", *only)
	}
	dir, err := os.MkdirTemp("", "dnstrail-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var errs []error
	sections := sections
	if *against != "" {
		b.against, b.only = *against, *only
		*only = ""
		sections = []section{{"against", "This build against the older one, measured in turns", benchAgainst}}
	}
	for _, s := range sections {
		if *only != "" && s.name != *only {
			continue
		}
		fmt.Printf("\n%s\n%s\n", s.what, strings.Repeat("-", len(s.what)))
		if err := s.run(ctx, b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// median of the values, which are not empty; it sorts them.
func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// met is how a figure stands to its budget.
func met(ok bool) string {
	if ok {
		return "met"
	}
	return "NOT MET"
}
