package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/report"
)

// reportWatch is how long this host is watched where nobody says otherwise.
const reportWatch = time.Minute

type reportFlags struct {
	source sourceFlags
	since  time.Duration
	during time.Duration
	output string
}

func newReportCommand() *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Say what is wrong with the DNS of a cluster or a host, what it costs and what to change",
		Long: `report looks through lookups and tells what is worth a change: search paths that ask for nothing,
names that never exist, AAAA where there is no IPv6, upstreams and servers that are slow or fail,
clients that ask again or elsewhere, answers that do not fit, losses, nodes worse than others,
answers that caches keep for too short a time, what connection tracking loses. Each finding has what
it costs, numbers, trace IDs of lookups that show it, and the change to make. What cannot be judged
for want of lookups is said.

It asks the store of the cluster that your kubeconfig names, or one named by --store, or an agent (--socket),
for the past (--since); it reads rows that observe -o jsonl wrote (--from); or it watches this host for a
while, as root (--here, --for). With --for it also waits for what comes from a store or an agent. The filters
are those of observe.

What a lower ndots saves is counted by going through the lookups that were seen again, as resolv.conf(5) says
that resolvers do. A lookup that its first name answered is taken to stay as it is.`,
		Example: `  dnstrail report                               # the last hour of the cluster of your kubeconfig
  dnstrail report --store http://127.0.0.1:16686 --since 15m
  dnstrail report --socket /run/dnstrail/agent.sock -o json
  dnstrail report -o html > report.html         # to hand around
  dnstrail report --here --for 5m               # this host, as root
  dnstrail observe -o jsonl > rows.jsonl; dnstrail report --from rows.jsonl --namespace shop`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.source.register(cmd)
	fs := cmd.Flags()
	fs.DurationVar(&f.since, "since", time.Hour, "of an agent or a store: the past from this long ago on")
	fs.DurationVar(&f.during, "for", 0, "how long to watch: this host (1m if not given), or what comes from an agent "+
		"or a store")
	fs.StringVarP(&f.output, "output", "o", "text", "text, html (one page that needs nothing else) or json")
	offer(cmd, "output", "text", "html", "json")
	return cmd
}

func (f *reportFlags) run(cmd *cobra.Command) error {
	filter, err := f.source.filter.filter(cmd)
	switch {
	case err != nil:
		return err
	case f.since <= 0 || f.during < 0:
		return fmt.Errorf("--since %s, --for %s: want more than 0", f.since, f.during)
	case !slices.Contains([]string{"text", "html", "json"}, f.output):
		return fmt.Errorf("--output %q: want text, html or json", f.output)
	}
	from, client, err := f.source.open(cmd)
	if err != nil {
		return err
	}
	var c report.Collector
	add := func(r *output.Row) {
		if r != nil {
			c.Add(r)
		}
	}
	ctx := cmd.Context()
	if from == fromKernel && f.during == 0 {
		f.during = reportWatch
	}
	if f.during > 0 && from != fromFile {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, f.during)
		defer stop()
	}
	switch from {
	case fromFile:
		if err := flagsGo(cmd.Flags(), "--from", "since", "for"); err != nil {
			return err
		}
		err = readRows(cmd, f.source.from, filter, add)
	case fromAPI:
		past := 0 // all
		if f.during > 0 && !cmd.Flags().Changed("since") {
			past = -1
		}
		filter.Since = time.Now().Add(-f.since)
		err = client.Lookups(ctx, filter, past, f.during > 0, func(r *output.Row) error { add(r); return nil })
	default:
		if err := flagsGo(cmd.Flags(), "watching this host: it knows no past", "since"); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: watching for %s; Ctrl-C ends it sooner\n", f.during)
		err = f.source.watchRows(ctx, cmd, filter, add)
	}
	if err != nil {
		return err
	}
	r := c.Report()
	switch f.output {
	case "json":
		return r.WriteJSON(cmd.OutOrStdout())
	case "html":
		return r.WriteHTML(cmd.OutOrStdout())
	}
	return r.WriteText(cmd.OutOrStdout(), columns(cmd))
}

// columns gives how wide what is written may be: $COLUMNS, the terminal's own width, or what is usual.
func columns(cmd *cobra.Command) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if file, ok := cmd.OutOrStdout().(*os.File); ok {
		if n, ok := terminal(file); ok {
			return n
		}
	}
	return render.DefaultWidth
}
