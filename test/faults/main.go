// Command faults is the fault matrix: it makes every fault that a lookup can meet, for real, in the lab, runs a lookup
// into it, and prints where and why dnstrail says that it was lost, beside what is true.
//
//	go run ./test/faults [-bin bin] [-agents host,apart,together] [-run REGEXP] [-row NAME]... [-4 | -6] [-labs N]
//	                     [-sample R [-alone]] [-core] [-list] [-jsonl FILE] [-write README.md [-with FILE]...]
//
// Exit status 0: all judged right. `go test ./test/faults` runs a part, the core.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"

	"github.com/dnstrail/dnstrail/test/kernels/job"
	"github.com/dnstrail/dnstrail/test/lab"
)

func main() {
	lab.Reexec()
	if err := mainErr(); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func mainErr() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "the directory of the built coredns and dnstrail")
	only := flag.String("run", "", "only the faults whose name matches")
	flag.Func("row", "only the fault of this name; may be given several times", func(name string) error {
		o.names = append(o.names, name)
		return nil
	})
	list := flag.Bool("list", false, "print the names of the faults, make none")
	write := flag.String("write", "", "write the table into this file, between its markers")
	var with []string
	flag.Func("with", "with -write: the rows in this file, of an earlier -jsonl, too; may be several",
		func(name string) error {
			with = append(with, name)
			return nil
		})
	file := flag.String("jsonl", "", "write the rows to this file, too, a JSON object each")
	agents := flag.String("agents", "host", "where agents look from: host, apart, together, several with commas "+
		"between them, or all")
	flag.StringVar(&o.sample, "sample", "1", "the share of lookups that agents and CoreDNS keep")
	flag.BoolVar(&o.alone, "alone", false, "with -sample below 1: agents and CoreDNS do not ask one another")
	flag.IntVar(&o.slow, "slow", 1, "how many times as long to wait for what comes late, on a machine that is as much "+
		"slower")
	flag.IntVar(&o.labs, "labs", 1, "how many labs run at a time")
	flag.BoolVar(&o.core, "core", false, "only what go test runs")
	flag.BoolVar(&mayInfer, "infer", false, "let what must be certain be inferred: on kernels without reasons of drops")
	v4 := flag.Bool("4", false, "only over IPv4")
	v6 := flag.Bool("6", false, "only over IPv6")
	flag.Parse()
	o.v4, o.v6 = !*v6, !*v4
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.settings, err = parseSettings(*agents); err != nil {
		return fmt.Errorf("-agents: %w", err)
	}
	if *list {
		for _, j := range tasks(o) {
			for _, f := range j.faults {
				fmt.Println(j.setting, f.name)
			}
		}
		return o.check()
	}
	var all []job.Row
	for _, name := range with {
		rows, err := readRows(name)
		if err != nil {
			return fmt.Errorf("-with: %w", err)
		}
		all = append(all, rows...)
	}
	if err := o.check(); err != nil {
		return err
	}
	rows, err := run(ctx, o, func(r *row) { fmt.Fprintln(os.Stderr, r.progress()) })
	fmt.Print(table(rows))
	made := records(rows)
	if *file != "" {
		err = errors.Join(err, writeRows(*file, made))
	}
	if *write != "" {
		err = errors.Join(err, writeTable(*write, slices.Concat(all, made)))
	}
	if err != nil {
		return err
	}
	return wrong(rows)
}
