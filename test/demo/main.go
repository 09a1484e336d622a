// Command demo shows what dnstrail is for: it raises a lab of two nodes, runs real lookups in pods, and prints each as
// the one trace that tracer and plugin made of it. `make demo` builds what it needs and runs it, as root.
//
// With -page it runs traffic and faults in such a lab instead, and serves the page that a store serves.
//
// It exits with 0 only if every lookup came out as exactly one linked trace with the client's identity on both sides,
// and the lost one as lost where it was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dnstrail/dnstrail/test/lab"
)

type config struct {
	bin    string // directory with coredns, dnstrail and, if jaeger is "1", jaeger
	jaeger string // host:port, "1", or ""
	page   string // host:port, "1", or ""
	rounds int    // of traffic for the page; 0: until interrupted
}

func main() {
	lab.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var c config
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.StringVar(&c.bin, "bin", "bin", "the directory of the built programs")
	flags.StringVar(&c.jaeger, "jaeger", "", "send everything to the OTLP/gRPC receiver at this host:port too, and "+
		"run until Ctrl-C; 1 starts the Jaeger in -bin")
	flags.StringVar(&c.page, "page", "", "instead of the stories: keep running with traffic and faults, and serve the "+
		"store's page at this host:port of the loopback; 1 takes one that is free")
	flags.IntVar(&c.rounds, "rounds", 0, "with -page: stop the traffic after so many rounds, say what was made as one "+
		"line of JSON, and serve on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if c.page != "" {
		return look(ctx, c)
	}
	s, err := raise(ctx, c)
	if err == nil {
		err = s.show(ctx)
	}
	if err != nil && ctx.Err() == nil && s != nil {
		s.printLogs(os.Stderr)
	}
	if s != nil {
		err = errors.Join(err, s.down())
	}
	if ctx.Err() != nil && !s.finished() {
		return errors.Join(errors.New("interrupted"), err)
	}
	return err
}
