package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/install"
	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

const (
	// farStart is how long a container may take to start: its image may have to be pulled.
	farStart = 90 * time.Second
	// farSettle is how long after the query's end its spans may take to come to the store, and the agents to give it up.
	farSettle = 20 * time.Second
	// farClock is how far a node's clock may be behind the time at which its kubelet says that a container started,
	// which has no fractions of a second.
	farClock = 2 * time.Second
	// lookupProcess is the name of the process that sends the query.
	lookupProcess = "dnstrail"
)

// farWalk is a walk in a cluster.
type farWalk struct {
	*walkFlags
	cluster *kube.Cluster
	rows    *rowapi.Client
	traces  *traceapi.Client
}

// far tells whether the walk is in the cluster that a kubeconfig names; nil: it is on this host.
func (f *walkFlags) far(cmd *cobra.Command) (*farWalk, error) {
	other := f.watch.changed(cmd.Flags())
	if f.here || f.jaeger != "" || other != "" || strings.HasPrefix(f.from, "pid:") {
		if f.context != "" {
			return nil, errors.New("--context is for a walk in a cluster, and goes without --here, --jaeger and what says " +
				"how to watch")
		}
		return nil, nil
	}
	c, base, err := reachCluster(cmd, f.context)
	if err != nil || c == nil {
		return nil, err
	}
	w := &farWalk{walkFlags: f, cluster: c}
	if w.rows, err = rowapi.NewStoreClient(base, nil); err != nil {
		return nil, err
	}
	if w.traces, err = traceapi.NewClient(base, nil); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *farWalk) run(cmd *cobra.Command, args []string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	q, err := query(args)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		args = append(args, dns.TypeToString[q.Question[0].Qtype])
	}
	image := w.image
	if image == "" {
		s, err := install.Look(ctx, w.cluster)
		if err != nil {
			return err
		}
		image = s.AgentImage
	}
	if image == "" {
		return fmt.Errorf("cluster %s has no agent, whose image would be taken: give --image", w.cluster.Name)
	}
	namespace, pod, began, err := w.send(ctx, image, append(append([]string{"lookup"}, w.query.args()...), args...))
	if err != nil {
		return err
	}
	options := render.Options{Location: time.Local}
	if file, ok := out.(*os.File); ok {
		options = render.For(file)
	}
	t, err := w.found(ctx, namespace+"/"+pod, q, began)
	if err != nil {
		return err
	}
	options.Hops = true // it is a walk
	if err := render.Trace(out, t, options); err != nil {
		return err
	}
	return render.Advice(out, explain.Tell(t, nil), options)
}

// send sends the query in the pod, and gives which that was and when its container began.
func (w *farWalk) send(ctx context.Context, image string, program []string) (ns, pod string, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, farStart+w.query.timeout)
	defer cancel()
	container := "dnstrail-walk-" + strings.ToLower(rand.Text()[:8])
	ns = kube.Namespace
	if w.from == "" {
		if pod, err = w.cluster.Once(ctx, "dnstrail-walk-", container, image, program...); err != nil {
			return "", "", at, fmt.Errorf("a pod to ask from: %w", err)
		}
		defer install.Forget(ctx, w.cluster, pod)
	} else {
		var ok bool
		if ns, pod, ok = strings.Cut(w.from, "/"); !ok || ns == "" || pod == "" {
			return "", "", at, fmt.Errorf("--from %q: want NAMESPACE/POD, in a cluster", w.from)
		}
		if err := w.cluster.Attach(ctx, ns, pod, container, image, program...); err != nil {
			return "", "", at, fmt.Errorf("an ephemeral container in pod %s: %w", w.from, err)
		}
	}
	ended, err := w.cluster.Ended(ctx, ns, pod, container)
	if err != nil {
		return "", "", at, err
	}
	if ended.ExitCode != 0 {
		return "", "", at, fmt.Errorf("the query was not sent from pod %s/%s: status %d: %s", ns, pod, ended.ExitCode,
			strings.TrimSpace(ended.Message))
	}
	return ns, pod, ended.StartedAt.Add(-farClock), nil
}

// found waits until the store has both sides of the query, or one and time to settle, and gives its trace.
func (w *farWalk) found(ctx context.Context, client string, q *dns.Msg, since time.Time) (*trace.Trace, error) {
	ctx, cancel := context.WithTimeout(ctx, farSettle)
	defer cancel()
	filter := &output.Filter{
		Clients: []string{client}, Types: []string{dns.TypeToString[q.Question[0].Qtype]},
		Processes: []string{lookupProcess}, Since: since,
	}
	var seen *trace.Trace
	for {
		var last *output.Row
		err := w.rows.Lookups(ctx, filter, 0, false, func(r *output.Row) error {
			if strings.EqualFold(dns.Fqdn(r.Name), q.Question[0].Name) {
				last = r
			}
			return nil
		})
		if last != nil && err == nil {
			var id [16]byte
			if id, err = trace.ParseID(last.TraceID); err == nil {
				seen, err = w.traces.Trace(ctx, id)
			}
		}
		switch {
		case seen != nil && seen.Linked():
			return seen, nil
		case err != nil && ctx.Err() == nil && !errors.Is(err, traceapi.ErrNotFound):
			return nil, err
		}
		select {
		case <-ctx.Done():
			if seen == nil {
				return nil, fmt.Errorf("nothing was seen of the query of pod %s: dnstrail doctor tells what is amiss", client)
			}
			return seen, nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}
