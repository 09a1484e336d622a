package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// reorderWindow is how long a row waits for those that began before it.
const reorderWindow = 200 * time.Millisecond

type observeFlags struct {
	watch  watchFlags
	output string
}

func newObserveCommand() *cobra.Command {
	var f observeFlags
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show DNS lookups as they happen, one row each",
		Long: `observe shows every DNS lookup on this host, in every network namespace, one row each: who asked, what, how it ended, where the
time went, and, where no answer came, where it was lost and why. It runs on any Linux host as root, with or without Kubernetes.

A lookup whose packet the kernel drops is reported within a second; one that is answered after all gets a corrected row. Times are the client's:
TO-DNS until the DNS server has the query, COREDNS in the server (in brackets where the server is out of sight: the network between is in it), RETURN back to the client.`,
		Example: `  dnstrail observe
  dnstrail observe -o jsonl | jq 'select(.result == "LOST")'
  dnstrail observe --port 53,5353 --identity-file clients.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.watch.register(cmd.Flags())
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text, wide or jsonl")
	return cmd
}

func (f *observeFlags) run(cmd *cobra.Command) error {
	write, err := rowWriter(f.output, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	o, closeAll, err := f.watch.options()
	if err != nil {
		return err
	}
	defer closeAll()
	var failed error
	order := output.Order{Window: reorderWindow, Give: write}
	o.Result = func(r pipeline.Result) {
		if r.Lookup.Confirms {
			return
		}
		order.Add(output.NewRow(r.Lookup, r.Verdict, r.Origin, f.watch.node, f.watch.guard), time.Now())
	}
	o.Tick = func(now time.Time) {
		if err := order.Tick(now); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	p, err := pipeline.Open(o)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, m := range p.Missing() {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: without", m)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: watching; end with Ctrl-C")
	err = errors.Join(p.Run(cmd.Context()), order.Flush(), failed)
	footer(cmd.ErrOrStderr(), p.Stats())
	return err
}

func rowWriter(format string, w io.Writer) (func(*output.Row) error, error) {
	switch format {
	case "text":
		return (&output.Text{W: w}).Write, nil
	case "wide":
		return (&output.Text{W: w, Wide: true}).Write, nil
	case "json", "jsonl":
		return output.NewJSONL(w).Write, nil
	}
	return nil, fmt.Errorf("--output %q: want text, wide or jsonl", format)
}

// footer says what was seen and what was lost on the way.
func footer(w io.Writer, s pipeline.Stats) {
	fmt.Fprintf(w, "dnstrail: %d lookups, %d kernel events; lost: %d events (ring full %d, re-entered %d), %d packets out of reach, %d lookups evicted, %d hops beyond a lookup's bound\n",
		s.Lookup.Lookups, s.Events, s.Lost(), s.Kernel.RingFull, s.Kernel.Missed, s.Kernel.Paged, s.Lookup.Evicted, s.Lookup.HopsCut)
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	return h
}
