package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/tracer/doctor"
	"github.com/dnstrail/dnstrail/tracer/podns"
	"github.com/dnstrail/dnstrail/tracer/render"
)

type doctorFlags struct {
	watch    watchFlags
	from     string
	endpoint string
	timeout  time.Duration
}

// errUnwell says that a check failed; the checks have told which.
var errUnwell = errors.New("not everything that dnstrail needs is there")

func newDoctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether dnstrail can work here, and say what to do where it cannot",
		Long: `doctor looks at what dnstrail needs (capabilities, kernel, BTF, hooks, cgroups, a clock that is kept right) and at what lookups need (resolv.conf, the
DNS servers that it names, over UDP and TCP), for this host or for a pod. Each line is ok, or says what to do. The exit status is 1 if one is FAIL.`,
		Example: `  dnstrail doctor
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
	return cmd
}

func (f *doctorFlags) run(cmd *cobra.Command) error {
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: want more than 0", f.timeout)
	}
	o := doctor.Options{Timeout: f.timeout}
	for _, p := range f.watch.ports {
		if p == 0 || p > 65535 {
			return fmt.Errorf("--port %d: want 1 to 65535", p)
		}
		o.Ports = append(o.Ports, uint16(p))
	}
	if f.endpoint != "" {
		if _, err := otlpenv.Parse(f.endpoint); err != nil {
			return fmt.Errorf("--endpoint: %w", err)
		}
	}
	target, err := otlpenv.Resolve(f.endpoint)
	if err != nil {
		return err
	}
	if target.Sends() {
		o.Collector = target.Host
	}
	index, closeIndex, err := f.watch.identities()
	if err != nil {
		return err
	}
	defer closeIndex()
	if f.from == "" {
		o.Place, err = podns.Self()
	} else {
		o.Place, err = podns.Find(f.from, index)
	}
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	options := render.Options{}
	if file, ok := cmd.OutOrStdout().(*os.File); ok {
		options = render.For(file)
	}
	var failed bool
	var outErr error
	doctor.Examine(cmd.Context(), o, func(found doctor.Finding) {
		failed = failed || found.State == doctor.Fail
		outErr = errors.Join(outErr, render.Finding(cmd.OutOrStdout(), found, options))
	})
	if outErr != nil {
		return outErr
	}
	if failed {
		return errUnwell
	}
	return nil
}
