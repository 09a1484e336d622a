package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/tracer/doctor"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/podns"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
)

type doctorFlags struct {
	watch    watchFlags
	from     string
	endpoint string
	timeout  time.Duration
	output   string
	here     bool
	context  string // of the kubeconfig; see reach
}

// errUnwell says that a check failed; the checks have told which.
var errUnwell = errors.New("not everything that dnstrail needs is there")

func newDoctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether dnstrail can work here, and say what to do where it cannot",
		Long: `doctor looks at what dnstrail needs (capabilities, kernel, BTF, hooks, cgroups, a clock that is kept
right) and at what lookups need (resolv.conf, the DNS servers that it names, over UDP and TCP), for
this host or for a pod. Each line is ok, or says what to do. The exit status is 1 if one is FAIL.

Where a kubeconfig names a cluster ($KUBECONFIG, ~/.kube/config), doctor looks at that cluster: the
store, CoreDNS, who is behind its Service, and each node from within its agent's pod, which needs
the right to create pods/exec in kube-system. --here looks at this host.`,
		Example: `  dnstrail doctor
  dnstrail doctor --here
  dnstrail doctor --from shop/cart-7f9c5d4b8-x2x7k --endpoint grpc://collector:4317`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	fs.UintSliceVar(&f.watch.ports, "port", []uint{53}, "DNS ports, at most 8")
	f.watch.registerIdentity(fs)
	fs.StringVar(&f.from, "from", "", "whose resolv.conf and network: NAMESPACE/POD, POD, an address or pid:PID; this "+
		"host if empty")
	fs.StringVar(&f.endpoint, "endpoint", "", "OTLP endpoint to try, as a URL, before OTEL_EXPORTER_OTLP_ENDPOINT")
	fs.DurationVar(&f.timeout, "timeout", 2*time.Second, "how long to wait for each answer")
	fs.StringVarP(&f.output, "output", "o", "text", "text, or json: a line a finding")
	fs.BoolVar(&f.here, "here", false, "look at this host, even where a kubeconfig names a cluster")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig whose cluster is looked at")
	offer(cmd, "output", "text", "json")
	return cmd
}

func (f *doctorFlags) run(cmd *cobra.Command) error {
	switch {
	case f.timeout <= 0:
		return fmt.Errorf("--timeout %s: want more than 0", f.timeout)
	case f.output != "text" && f.output != "json":
		return fmt.Errorf("--output %q: want text or json", f.output)
	}
	far, err := f.far(cmd)
	if err != nil {
		return err
	}
	var examine func(context.Context, func(doctor.Finding))
	if far != nil {
		examine = far.Examine
	} else {
		o, done, err := f.local()
		if err != nil {
			return err
		}
		defer done()
		examine = func(ctx context.Context, found func(doctor.Finding)) { doctor.Examine(ctx, o, found) }
	}
	options := render.Options{}
	if file, ok := cmd.OutOrStdout().(*os.File); ok {
		options = render.For(file)
	}
	var failed bool
	var outErr error
	examine(cmd.Context(), func(found doctor.Finding) {
		failed = failed || found.State == doctor.Fail
		if f.output == "json" {
			outErr = errors.Join(outErr, found.WriteJSON(cmd.OutOrStdout()))
		} else {
			outErr = errors.Join(outErr, render.Finding(cmd.OutOrStdout(), found, options))
		}
	})
	if outErr != nil {
		return outErr
	}
	if failed {
		return errUnwell
	}
	return nil
}

// local gives what is looked at on this host. Done frees it.
func (f *doctorFlags) local() (o doctor.Options, done func(), err error) {
	o.Timeout = f.timeout
	for _, p := range f.watch.ports {
		if p == 0 || p > 65535 {
			return o, nil, fmt.Errorf("--port %d: want 1 to 65535", p)
		}
		o.Ports = append(o.Ports, uint16(p))
	}
	if f.endpoint != "" {
		if _, err := otlpenv.Parse(f.endpoint); err != nil {
			return o, nil, fmt.Errorf("--endpoint: %w", err)
		}
	}
	target, err := otlpenv.Resolve(f.endpoint)
	if err != nil {
		return o, nil, err
	}
	if target.Sends() {
		o.Collector = target.Host
	}
	index, done, err := f.watch.identities()
	if err != nil {
		return o, nil, err
	}
	if f.from == "" {
		o.Place, err = podns.Self()
	} else {
		o.Place, err = podns.Find(f.from, index)
	}
	if err != nil {
		done()
		return o, nil, fmt.Errorf("--from: %w", err)
	}
	return o, done, nil
}

// doctorNode is how long the checks of a node of a cluster may take: an agent's pod asks every server that its
// resolv.conf names, over UDP and TCP.
const doctorNode = 30 * time.Second

// far gives the cluster that is looked at, nil where it is this host.
func (f *doctorFlags) far(cmd *cobra.Command) (*doctor.Cluster, error) {
	chosen := f.context != ""
	local := f.watch.changed(cmd.Flags()) != "" || f.from != "" || f.endpoint != "" || f.here
	switch {
	case local && chosen:
		return nil,
			errors.New("--context is for a cluster, and goes without --here, --from, --endpoint and what says how to " +
				"watch")
	case local, !chosen && inPod():
		return nil, nil
	}
	c, err := kube.Connect("", f.context)
	if errors.Is(err, kube.ErrNoCluster) && !chosen {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: looking at cluster %s; --here looks at this host\n", c.Name)
	far := &doctor.Cluster{Cluster: c, Timeout: doctorNode}
	base, err := c.Store(cmd.Context())
	if err != nil {
		far.StoreError = err
		return far, nil
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return nil, err
	}
	var stats joined.Stats
	far.StoreError = rows.Stats(cmd.Context(), &stats)
	far.Watched, far.Received = stats.Nodes, stats.SpansReceived
	return far, nil
}
