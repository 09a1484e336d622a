package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/install"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// clusterFlags say which cluster is meant.
type clusterFlags struct{ kubeconfig, context string }

func (f *clusterFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; $KUBECONFIG or ~/.kube/config if not given")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig; its current one if not given")
}

func (f *clusterFlags) connect() (*kube.Cluster, error) {
	c, err := kube.Connect(f.kubeconfig, f.context)
	if errors.Is(err, kube.ErrNoCluster) {
		return nil, fmt.Errorf("%w: set KUBECONFIG, or give --kubeconfig", err)
	}
	return c, err
}

type installFlags struct {
	cluster clusterFlags
	options install.Options
	dryRun  bool
	noProbe bool
}

func (f *installFlags) register(cmd *cobra.Command) {
	f.cluster.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.options.Image, "image", "", "image of the agent and the store; the manifests' if not given")
	fs.StringVar(&f.options.CoreDNSImage, "coredns-image", "", "image of CoreDNS with the plugin; the same")
	fs.StringArrayVar(&f.options.AgentArgs, "agent-arg", nil, "a further argument of the agent (repeatable)")
	fs.BoolVar(&f.options.TracerOnly, "tracer-only", false, "leave CoreDNS as it is")
	fs.BoolVar(&f.dryRun, "dry-run", false, "print what would be applied and changed, and change nothing")
	fs.BoolVar(&f.noProbe, "no-probe", false, "do not look a name up in the end, from a pod made for that")
	f.registerTimeout(cmd)
}

func (f *installFlags) registerTimeout(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.options.Timeout, "timeout", 3*time.Minute, "how long each rollout may take")
}

func newInstallCommand() *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "install",
		Short: "Install dnstrail in the cluster of your kubeconfig, CoreDNS's side included",
		Long: `install brings the store, the agent of every node and their rights to the cluster, gives CoreDNS the image
with the plugin, and adds the dnstrail block to the Corefile that is there, in this order, waiting for each.
Then it looks a name up from a pod and shows that lookup as both sides saw it. What CoreDNS was before is
noted in the cluster, and "dnstrail uninstall" brings exactly that back.

If CoreDNS's pods do not come up with the new image, all of its change is taken back at once. Where another
keeps CoreDNS as it is (helm, an add-on manager, k3s), nothing of it is changed, and what to change is
printed.

Run it again to change an image or an argument.`,
		Example: `  dnstrail install --dry-run
  dnstrail install --image registry.example/dnstrail:v1 --coredns-image registry.example/coredns:v1
  dnstrail install --tracer-only
  dnstrail observe --last 20`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, false) },
	}
	f.register(c)
	return c
}

func newUpgradeCommand() *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring what dnstrail install installed to this version, or to other images",
		Long: `upgrade does what install does, where install has been run before: it applies the objects of this version, and
the images that are given. What CoreDNS was before the first install stays noted.`,
		Example: `  dnstrail upgrade --image registry.example/dnstrail:v2 --coredns-image registry.example/coredns:v2`,
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd, true) },
	}
	f.register(c)
	return c
}

func newUninstallCommand() *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Bring the cluster back to what it was before dnstrail install",
		Long: `uninstall takes the dnstrail block out of the Corefile, brings CoreDNS's image back, waits for its pods, and
deletes what install made. What others changed in CoreDNS since stays. It deletes nothing that install did not
make.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.cluster.connect()
			if err != nil {
				return err
			}
			f.options.Out = cmd.OutOrStdout()
			return install.Uninstall(cmd.Context(), c, f.options)
		},
	}
	f.cluster.register(c)
	f.registerTimeout(c)
	return c
}

func newStatusCommand() *cobra.Command {
	var f clusterFlags
	c := &cobra.Command{
		Use:   "status",
		Short: "Tell what the cluster of your kubeconfig has of dnstrail, and whether spans arrive",
		Long: `status tells how many agents are ready, whether the store is, what CoreDNS runs, and what the store has
received. Exit status 1: something of it is not as it should be.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.connect()
			if err != nil {
				return err
			}
			return status(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	f.register(c)
	return c
}

func (f *installFlags) run(cmd *cobra.Command, upgrade bool) error {
	ctx := cmd.Context()
	c, err := f.cluster.connect()
	if err != nil {
		return err
	}
	f.options.Out = cmd.OutOrStdout()
	if f.dryRun {
		return install.DryRun(ctx, c, f.options)
	}
	if upgrade {
		if _, err := install.Look(ctx, c); err != nil {
			return err
		}
	}
	fmt.Fprintf(f.options.Out, "cluster %s\n", c.Name)
	if err := install.Install(ctx, c, f.options); err != nil {
		return err
	}
	if f.noProbe {
		return nil
	}
	return f.show(ctx, c)
}

// probeLimit is how long the lookup of the probe may take to be seen; the image may have to be pulled.
const probeLimit = 90 * time.Second

// show looks a name up from a pod, and shows what was seen of it.
func (f *installFlags) show(ctx context.Context, c *kube.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	base, err := c.Store(ctx)
	if err != nil {
		return err
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	traces, err := traceapi.NewClient(base, nil)
	if err != nil {
		return err
	}
	s, err := install.Look(ctx, c)
	if err != nil {
		return err
	}
	both := s.Blocks > 0
	pod, done, err := install.Probe(ctx, c, f.options)
	if err != nil {
		return fmt.Errorf("a pod to look a name up from: %w", err)
	}
	defer done()
	var seen *trace.Trace
	filter := &output.Filter{Clients: []string{kube.Namespace + "/" + pod}}
	for {
		t, err := seenBy(ctx, rows, traces, filter, both)
		if t != nil {
			seen = t
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if seen != nil && (seen.Linked() || !both) {
			break
		}
		select {
		case <-ctx.Done():
			if seen == nil {
				return fmt.Errorf("no lookup of pod %s was seen within %s: dnstrail status tells more", pod, probeLimit)
			}
			side := "CoreDNS's"
			if seen.Client() == nil {
				side = "the agents'"
			}
			return fmt.Errorf("of pod %s's lookups %s side is missing (trace %v): see its logs", pod, side, seen.ID)
		case <-time.After(time.Second):
		}
	}
	fmt.Fprintln(f.options.Out)
	e := explainFlags{output: "text"}
	return e.write(f.options.Out, explain.Tell(seen, nil))
}

// seenBy gives a lookup of the client that the store has: of both sides if there is one, with an address if there is
// one.
func seenBy(
	ctx context.Context, rows *rowapi.Client, traces *traceapi.Client, filter *output.Filter, both bool,
) (*trace.Trace, error) {
	var ids []string
	err := rows.Lookups(ctx, filter, 0, false, func(r *output.Row) error {
		ids = append(ids, r.TraceID)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var seen *trace.Trace
	for _, text := range ids {
		id, err := trace.ParseID(text)
		if err != nil {
			return nil, err
		}
		t, err := traces.Trace(ctx, id)
		if err != nil {
			return seen, err
		}
		whole := t.Linked() || !both
		if whole && t.Rcode() == "NOERROR" {
			return t, nil
		}
		if seen == nil || whole {
			seen = t
		}
	}
	return seen, nil
}

// status writes what the cluster has; the error says what is amiss.
func status(ctx context.Context, c *kube.Cluster, w io.Writer) error {
	s, err := install.Look(ctx, c)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "cluster  %s\n", c.Name)
	fmt.Fprintf(w, "agents   %d of %d ready  %s\n", s.Agents, s.Nodes, s.AgentImage)
	var amiss []error
	if s.Agents < s.Nodes || s.Nodes == 0 {
		amiss = append(amiss, fmt.Errorf("%d of %d agents are ready", s.Agents, s.Nodes))
	}
	if s.CoreDNSError != nil {
		fmt.Fprintf(w, "CoreDNS  %v\n", s.CoreDNSError)
	} else {
		fmt.Fprintf(w, "CoreDNS  dnstrail in %d of %d server blocks  %s\n", s.Blocks, s.Servers, s.CoreDNSImage)
	}
	base, err := c.Store(ctx)
	if err != nil {
		fmt.Fprintln(w, "store    not ready")
		return errors.Join(append(amiss, err)...)
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	var stats joined.Stats
	if err := rows.Stats(ctx, &stats); err != nil {
		return errors.Join(append(amiss, err)...)
	}
	fmt.Fprintf(w, "store    ready; %d spans received, %d refused; agents on %s\n",
		stats.SpansReceived, stats.SpansRefused, places(stats.Nodes))
	if stats.SpansReceived == 0 {
		amiss = append(amiss, errors.New("no span has arrived yet"))
	}
	return errors.Join(amiss...)
}
