package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/output"
	pastclient "github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// reorderWindow is how long a row waits for those that began before it.
const reorderWindow = 200 * time.Millisecond

type observeFlags struct {
	watch  watchFlags
	filter filterFlags
	output string
	socket string
	since  time.Duration
	last   int
	follow bool
}

func newObserveCommand() *cobra.Command {
	var f observeFlags
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show DNS lookups as they happen, one row each",
		Long: `observe shows every DNS lookup on this host, in every network namespace, one row each: who asked, what, how it ended, where the
time went, and, where no answer came, where it was lost and why. It runs on any Linux host as root, with or without Kubernetes;
with --socket it asks a running agent instead, which also knows the past.

A lookup whose packet the kernel drops is reported within a second; one that is answered after all gets a corrected row. Times are the
client's: TO-DNS until the DNS server has the query, COREDNS in the server (in brackets where the server is out of sight: the network
between is in it), RETURN back to the client.

Filters hold together; one that is given several times takes any of its values. Values are shell patterns; one that starts with ! must not match.`,
		Example: `  dnstrail observe
  dnstrail observe --lost --namespace shop
  dnstrail observe --slow 100ms --name '*.example.com' --type '!AAAA' --process '!coredns'
  dnstrail observe -o jsonl | jq 'select(.result == "LOST")'
  dnstrail observe --socket /run/dnstrail/agent.sock --lost --since 10m
  dnstrail observe --socket /run/dnstrail/agent.sock --last 50 --follow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.watch.register(fs)
	f.filter.register(fs)
	fs.StringVarP(&f.output, "output", "o", "text", "text, wide or jsonl")
	fs.StringVar(&f.socket, "socket", "", "ask the agent that listens on this Unix socket, instead of watching the kernel")
	fs.DurationVar(&f.since, "since", 0, "with --socket: the past from this long ago on")
	fs.IntVar(&f.last, "last", 0, "with --socket: the last so many of the past")
	fs.BoolVar(&f.follow, "follow", false, "with --socket: go on with what comes (default unless --since or --last is given)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "wide", "jsonl"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (f *observeFlags) run(cmd *cobra.Command) error {
	write, err := rowWriter(f.output, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	filter, err := f.filter.filter(cmd)
	if err != nil {
		return err
	}
	if f.since < 0 || f.last < 0 {
		return fmt.Errorf("--since %s, --last %d: want 0 or more", f.since, f.last)
	}
	if f.socket != "" {
		return f.attach(cmd, filter, write)
	}
	for _, flag := range []string{"since", "last", "follow"} {
		if cmd.Flags().Changed(flag) {
			return fmt.Errorf("--%s needs --socket: only a running agent knows the past", flag)
		}
	}
	return f.watchKernel(cmd, filter, write)
}

// attach shows what an agent has seen and sees.
func (f *observeFlags) attach(cmd *cobra.Command, filter *output.Filter, write func(*output.Row) error) error {
	past := f.since > 0 || f.last > 0
	if f.since > 0 {
		filter.Since = time.Now().Add(-f.since)
	}
	n := -1
	if past {
		n = f.last
	}
	client := pastclient.NewClient(f.socket)
	if err := client.Lookups(cmd.Context(), filter, n, f.follow || !past, write); err != nil {
		return err
	}
	s, err := client.Stats(context.WithoutCancel(cmd.Context()))
	if err != nil {
		return err
	}
	footer(cmd.ErrOrStderr(), s)
	return nil
}

func (f *observeFlags) watchKernel(cmd *cobra.Command, filter *output.Filter, write func(*output.Row) error) error {
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
		if row := output.NewRow(r.Lookup, r.Verdict, r.Origin, f.watch.node, f.watch.guard); filter.Takes(row) {
			order.Add(row, time.Now())
		}
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	o.Tick = func(now time.Time) {
		if failed == nil {
			failed = order.Tick(now)
		}
		if failed != nil {
			stop() // nobody reads any more
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
	err = p.Run(ctx)
	if failed == nil {
		failed = order.Flush()
	}
	if errors.Is(failed, syscall.EPIPE) {
		failed = nil
	}
	footer(cmd.ErrOrStderr(), p.Stats())
	return errors.Join(err, failed)
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
