// Command paths asks a DNS server over data paths that the lab does not have, because most kernels have them as
// modules: IPVS, ipvlan, VLAN devices, tunnels, a link that loses packets. It holds what `dnstrail observe` says of
// each lookup against what the client saw.
//
//	paths [-bin DIR] [-run REGEXP] [-slow N]
//
// It prints a line for each path, as test/kernels reads it. Exit status 0: all are right.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

func run() error {
	bin := flag.String("bin", "bin", "the directory of the built dnstrail")
	only := flag.String("run", "", "only the paths whose name matches")
	slow := flag.Int("slow", 1, "how many times as long to wait, on a machine that is as much slower")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	var errs []error
	for i := range paths {
		p := &paths[i]
		if !match.MatchString(p.name) {
			continue
		}
		r := &job.Row{Fault: p.name, Setting: "host", Family: "IPv4", Expected: p.expected()}
		if problem := p.try(filepath.Join(*bin, "dnstrail"), time.Duration(*slow), r); problem != nil {
			r.Problem = problem.Error()
			errs = append(errs, fmt.Errorf("%s: %w", p.name, problem))
		}
		r.Right = r.Problem == ""
		fmt.Println((&job.Record{Row: r}).Line())
	}
	return errors.Join(errs...)
}
