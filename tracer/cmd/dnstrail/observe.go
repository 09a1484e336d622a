package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
)

const (
	// reorderWindow is how long a row waits for those that began before it.
	reorderWindow = 200 * time.Millisecond
	// patience is how long nothing is shown before observe says what it waits for.
	patience = 10 * time.Second
)

type observeFlags struct {
	watch     watchFlags
	filter    filterFlags
	output    string
	socket    string
	store     string
	tokenFile string
	since     time.Duration
	last      int
	follow    bool
	here      bool
	// context of the kubeconfig; see reach.
	context string
}

func newObserveCommand() *cobra.Command {
	var f observeFlags
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show DNS lookups as they happen, one row each: of this host, of an agent, or of the whole cluster",
		Long: `observe shows every DNS lookup on this host, in every network namespace, one row each: who asked, what, how it
ended, where the time went, and, where no answer came, where it was lost and why. It runs on any Linux host as
root, with or without Kubernetes.

With --socket it asks a running agent instead, which also knows the past. With --store it asks a "dnstrail
store", to which the agents of all nodes and CoreDNS send, for the lookups of the whole cluster: one row a
lookup, with the verdict that joins what every node saw. Neither needs root.

Where a kubeconfig names a cluster ($KUBECONFIG, ~/.kube/config), that cluster's store is asked, through its
API server, unless --here or a flag about watching is given.

A lookup whose packet the kernel drops is reported within a second; one that is answered after all gets a
corrected row. Of a store's lookups a seen drop is shown at once, another when nothing has come of it for 1.5
seconds, and one of which the agent on the client's node has not spoken after 12 seconds; what comes later and
changes where, why or the result gives a corrected row. Times are the client's: TO-DNS until the DNS server
has the query, COREDNS in the server (in brackets where the server is out of sight: the network between is in
it), RETURN back to the client.

On a terminal a row has the columns that fit, and what ended a lookup stands below it; $COLUMNS says how wide
it is, elsewhere than on a terminal too. In a pipe without it, and with -o wide, a row is one line with all
columns.

Filters hold together; one that is given several times takes any of its values. Values are shell patterns; one
that starts with ! must not match. A correction of a row that was shown is shown, whatever the filters say of
it.`,
		Example: `  dnstrail observe
  dnstrail observe --lost --namespace shop
  dnstrail observe --slow 100ms --name '*.example.com' --type '!AAAA' --process '!coredns'
  dnstrail observe -o jsonl | jq 'select(.result == "LOST")'
  dnstrail observe --socket /run/dnstrail/agent.sock --lost --since 10m
  dnstrail observe --socket /run/dnstrail/agent.sock --last 50 --follow
  dnstrail observe --last 20                                   # the cluster of your kubeconfig
  dnstrail observe --store http://127.0.0.1:16686              # the whole cluster, live
  dnstrail observe --store http://127.0.0.1:16686 --lost --since 1h --where between-nodes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.watch.register(fs)
	f.filter.register(fs)
	fs.StringVarP(&f.output, "output", "o", "text", "text (fits the terminal), wide (cuts nothing) or jsonl (json is "+
		"the same: one object a line)")
	fs.StringVar(&f.socket, "socket", "", "ask the agent that listens on this Unix socket, instead of watching the kernel")
	fs.StringVar(&f.tokenFile, "token-file", "", "file of the token to show to the store")
	fs.StringVar(&f.store, "store", "", "ask the dnstrail store at this URL for the lookups of the whole cluster, "+
		"instead of watching the kernel")
	fs.BoolVar(&f.here, "here", false, "watch this host, even where a kubeconfig names a cluster")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig whose cluster is asked")
	fs.DurationVar(&f.since, "since", 0, "of an agent or a store: the past from this long ago on")
	fs.IntVar(&f.last, "last", 0, "of an agent or a store: the last so many of the past")
	fs.BoolVarP(&f.follow, "follow", "f", false, "of an agent or a store: go on with what comes (default unless "+
		"--since or --last is given)")
	offer(cmd, "output", "text", "wide", "jsonl", "json")
	f.filter.complete(cmd)
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
	asks := ""
	for _, flag := range []string{"socket", "store"} {
		if !cmd.Flags().Changed(flag) {
			continue
		}
		if asks != "" {
			return errors.New("--socket and --store: want one of them")
		}
		if asks = flag; cmd.Flags().Lookup(flag).Value.String() == "" {
			return fmt.Errorf("--%s is empty", flag)
		}
	}
	if asks == "" && !f.here && f.watch.changed(cmd.Flags()) == "" {
		if f.store, err = reach(cmd, f.context); err != nil {
			return err
		}
		if f.store != "" {
			return f.ask(cmd, filter, write)
		}
	}
	if asks != "" {
		if other := f.watch.changed(cmd.Flags()); other != "" {
			return fmt.Errorf("--%s is for watching the kernel here, and does not go with --%s", other, asks)
		}
		return f.ask(cmd, filter, write)
	}
	for _, flag := range []string{"since", "last", "follow"} {
		if cmd.Flags().Changed(flag) {
			return fmt.Errorf("--%s needs --socket, --store or a cluster: only a running agent or a store knows the past", flag)
		}
	}
	return f.watchKernel(cmd, filter, write)
}

// ask shows what an agent, or a store, has and gets.
func (f *observeFlags) ask(cmd *cobra.Command, filter *output.Filter, write func(*output.Row) error) error {
	client := rowapi.NewSocketClient(f.socket)
	if f.store != "" {
		hc, err := access.Client(f.tokenFile)
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		if client, err = rowapi.NewStoreClient(f.store, hc); err != nil {
			return fmt.Errorf("--store: %w", err)
		}
	}
	n, back := -1, f.since > 0 || f.last > 0
	if f.since > 0 {
		filter.Since = time.Now().Add(-f.since)
	}
	if back {
		n = f.last
	}
	follow := f.follow || !back
	if back && cmd.Flags().Changed("follow") {
		follow = f.follow
	}
	var shown atomic.Uint64
	var eventsLost uint64
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if follow {
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: following %v; end with Ctrl-C\n", client)
		after := time.AfterFunc(patience, func() {
			if shown.Load() == 0 && ctx.Err() == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), f.waiting(ctx, client))
			}
		})
		defer after.Stop()
	}
	err := client.Lookups(ctx, filter, n, follow, func(r *output.Row) error {
		shown.Add(1)
		eventsLost += r.EventsLost
		return write(r)
	})
	if errors.Is(err, syscall.EPIPE) {
		return nil // nobody reads any more
	}
	if err != nil {
		return err
	}
	if f.store == "" {
		var s past.Stats
		if err := client.Stats(context.WithoutCancel(cmd.Context()), &s); err != nil {
			return err
		}
		footer(cmd.ErrOrStderr(), s.Stats)
		if s.RowsMissed > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: %d rows were not shown: they came faster than their readers took them\n",
				s.RowsMissed)
		}
		return nil
	}
	var s joined.Stats
	if err := client.Stats(context.WithoutCancel(cmd.Context()), &s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: rows: %d, of agents on %s; lost: %d kernel events while these were in "+
		"flight, %d rows that the store let go too early; the store: %d spans received, %d refused, %d traces evicted\n",
		shown.Load(), places(s.Nodes), eventsLost, s.RowsMissed, s.SpansReceived, s.SpansRefused, s.TracesEvicted)
	return nil
}

// waiting says what is waited for, when nothing has come for a while.
func (f *observeFlags) waiting(ctx context.Context, client *rowapi.Client) string {
	if f.store == "" {
		return fmt.Sprintf("dnstrail: nothing to show yet: %v has had no lookup since that the filters take", client)
	}
	var s joined.Stats
	if client.Stats(ctx, &s) != nil {
		return fmt.Sprintf("dnstrail: nothing to show yet, and %v does not tell why", client)
	}
	if s.SpansReceived == 0 {
		return fmt.Sprintf("dnstrail: nothing to show yet: %v has received no span: do the agents and CoreDNS send to it "+
			"(OTEL_EXPORTER_OTLP_ENDPOINT)?", client)
	}
	return fmt.Sprintf("dnstrail: nothing to show yet: %v has had no lookup since that the filters take; it keeps %d "+
		"traces, of agents on %s", client, s.Traces, places(s.Nodes))
}

func places(nodes []string) string {
	if len(nodes) == 0 {
		return "no node"
	}
	return strings.Join(nodes, ", ")
}

func (f *observeFlags) watchKernel(cmd *cobra.Command, filter *output.Filter, write func(*output.Row) error) error {
	o, closeAll, err := f.watch.options()
	if err != nil {
		return err
	}
	defer closeAll()
	var failed error
	var shown int
	order := output.Order{Window: reorderWindow, Give: func(r *output.Row) error { shown++; return write(r) }}
	corrections := output.Corrections{Filter: filter}
	o.Result = func(r pipeline.Result) {
		if r.Lookup.Confirms {
			return
		}
		if row := output.NewRow(r.Lookup, r.Verdict, r.Origin, f.watch.node, f.watch.guard); corrections.Takes(row) {
			order.Add(row, time.Now())
		}
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	var p *pipeline.Pipeline
	var remind time.Time
	o.Tick = func(now time.Time) {
		if failed == nil {
			failed = order.Tick(now)
		}
		if failed != nil {
			stop() // nobody reads any more
		}
		if shown == 0 && now.After(remind) {
			remind = now.Add(time.Hour)
			s := p.Stats()
			fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: nothing to show yet: %d kernel events and %d lookups so far, none "+
				"that the filters take and that has ended\n", s.Events, s.Lookup.Lookups)
		}
	}
	if p, err = pipeline.Open(o); err != nil {
		return err
	}
	defer p.Close()
	for _, m := range p.Missing() {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: without", m)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: watching; end with Ctrl-C")
	remind = time.Now().Add(patience)
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
		t := &output.Text{W: w, Now: time.Now}
		t.Width, _ = strconv.Atoi(os.Getenv("COLUMNS")) // of none, or no number, 0
		t.Width = max(t.Width, 0)
		if file, ok := w.(*os.File); ok {
			t.Colour = render.For(file).Colour
			if width, ok := terminal(file); ok && t.Width == 0 {
				t.Width = width
			}
		}
		return t.Write, nil
	case "wide":
		return (&output.Text{W: w, Wide: true, Now: time.Now}).Write, nil
	case "json", "jsonl":
		return output.NewJSONL(w).Write, nil
	}
	return nil, fmt.Errorf("--output %q: want text, wide or jsonl", format)
}

// footer says what was seen and what was lost on the way.
func footer(w io.Writer, s pipeline.Stats) {
	fmt.Fprintf(w, "dnstrail: %d lookups, %d kernel events; lost: %d events (ring full %d, of floods %d, re-entered %d), "+
		"%d events left unread, %d packets out of reach, %d later fragments, %d lookups evicted, "+
		"%d untold of clients that flood, %d hops beyond a lookup's bound\n",
		s.Lookup.Lookups, s.Events, s.Lost(), s.Kernel.RingFull, s.Kernel.Flood, s.Kernel.Missed, s.Unread,
		s.Kernel.Paged, s.Kernel.Fragment+s.Lookup.Fragments, s.Lookup.Evicted, s.Lookup.Untold, s.Lookup.HopsCut)
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	return h
}
