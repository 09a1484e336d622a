// Command paths asks a DNS server over data paths that the lab does not have, because most kernels have them as
// modules: IPVS, ipvlan, VLAN devices, tunnels, a link that loses packets. It holds what `dnstrail observe` says of
// each lookup against what the client saw.
//
//	paths [-bin DIR] [-run REGEXP] [-slow N]
//
// It prints a line for each path, as test/kernels reads it. Exit status 0: all are right.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
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
	infer := flag.Bool("infer", false, "let a drop be without a cause where its function drops for several: on kernels "+
		"without reasons of drops")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	observe := exec.Command(filepath.Join(*bin, "dnstrail"), "observe", "-o", "jsonl") // #nosec G204 -- ours
	observe.Stdout = &out
	if err := watch(observe); err != nil {
		return err
	}
	var trials []*trial
	var rows []*job.Row
	for i := range paths {
		p := &paths[i]
		if *infer && p.plain != "" {
			p.cause += "|" + p.plain
		}
		if !match.MatchString(p.name) {
			continue
		}
		fmt.Println(time.Now().Format(time.TimeOnly), p.name)
		t, problem := p.try(firstWorld + i)
		defer t.world.close()
		r := &job.Row{Fault: p.name, Setting: "host", Family: "IPv4", Expected: p.expected()}
		switch {
		case errors.Is(problem, errAbsent):
			r.Absent = problem.Error()
		case problem != nil:
			r.Problem = problem.Error()
		}
		trials, rows = append(trials, t), append(rows, r)
	}
	time.Sleep(settling + time.Duration(*slow)*time.Second)
	if err := errors.Join(observe.Process.Signal(os.Interrupt), observe.Wait()); err != nil {
		return fmt.Errorf("dnstrail observe: %w", err)
	}
	said, err := newest(&out)
	if err != nil {
		return err
	}
	var errs []error
	for i, r := range rows {
		if r.Absent == "" && r.Problem == "" {
			if problem := trials[i].judge(said, r); problem != nil {
				r.Problem = problem.Error()
			}
			r.Right = r.Problem == ""
		}
		if r.Problem != "" {
			errs = append(errs, fmt.Errorf("%s: %s", r.Fault, r.Problem))
		}
		fmt.Println((&job.Record{Row: r}).Line())
	}
	return errors.Join(errs...)
}

// firstWorld is the number of the first path's world.
const firstWorld = 101
