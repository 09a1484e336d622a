// Command clients runs the programs that people resolve names with, each in a pod of the lab, and compares what
// dnstrail says of their lookups with a capture in the pod.
//
//	go run ./test/clients [-bin bin] [-run REGEXP] [-core]
//
// Exit status 0: every row and trace says what the capture shows. `go test ./test/clients` runs the core.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/dnstrail/dnstrail/test/lab"
)

func main() {
	lab.Reexec()
	if names, ok := os.LookupEnv(goClientEnv); ok {
		goClient(names)
		return
	}
	if err := mainErr(); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
}

func mainErr() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "the directory of coredns, dnstrail, and extracted (make need-clients)")
	only := flag.String("run", "", "only the clients whose name matches")
	flag.BoolVar(&o.core, "core", false, "only the clients that make test runs")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.extracted, err = filepath.Abs(filepath.Join(o.bin, "extracted")); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dnstrail-clients-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	results, err := run(ctx, o, dir)
	fmt.Print(table(results))
	if err != nil {
		return err
	}
	return allWrong(results)
}
