// Command faults is the fault matrix: it makes every fault that a lookup can meet, for real, in the lab, runs a lookup into it, and prints where and why
// dnstrail says that it was lost, beside what is true.
//
//	go run ./test/faults [-bin bin] [-run REGEXP] [-4 | -6]
//
// Exit status 0: all judged right. `go test ./test/faults` runs the same.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"

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
	v4 := flag.Bool("4", false, "only over IPv4")
	v6 := flag.Bool("6", false, "only over IPv6")
	flag.Parse()
	o.v4, o.v6 = !*v6, !*v4
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	rows, err := run(ctx, o, func(r *row) { fmt.Fprintln(os.Stderr, r.progress()) })
	fmt.Print(table(rows))
	if err != nil {
		return err
	}
	return wrong(rows)
}
