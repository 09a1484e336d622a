package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// filterFlags are the flags that choose rows.
type filterFlags struct {
	lost bool
	slow time.Duration

	rcodes, types, names, clients, namespaces, processes []string
}

func (f *filterFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.lost, "lost", false, "only lookups without an answer; --lost=false: only those with one")
	fs.DurationVar(&f.slow, "slow", 0, "only lookups that took at least this long")
	fs.StringSliceVar(&f.rcodes, "rcode", nil, "only with this result: NOERROR, NXDOMAIN, SERVFAIL, ..., LOST")
	fs.StringSliceVar(&f.types, "type", nil, "only of this type: A, AAAA, ...")
	fs.StringSliceVar(&f.names, "name", nil, "only for this name; * matches dots, too")
	fs.StringSliceVar(&f.clients, "client", nil, "only of this client: namespace/pod, pod, workload, node or address")
	fs.StringSliceVar(&f.namespaces, "namespace", nil, "only of pods in this namespace")
	fs.StringSliceVar(&f.processes, "process", nil, "only of processes with this name")
}

func (f *filterFlags) filter(cmd *cobra.Command) (*output.Filter, error) {
	o := &output.Filter{
		Slow: f.slow, Rcodes: f.rcodes, Types: f.types, Names: f.names, Clients: f.clients, Namespaces: f.namespaces, Processes: f.processes,
	}
	if cmd.Flags().Changed("lost") {
		o.Lost = &f.lost
	}
	if f.slow < 0 {
		return nil, fmt.Errorf("--slow %s: want 0 or more", f.slow)
	}
	for _, c := range []struct {
		flag string
		list []string
	}{
		{"rcode", f.rcodes}, {"type", f.types}, {"name", f.names}, {"client", f.clients}, {"namespace", f.namespaces}, {"process", f.processes},
	} {
		if err := (&output.Filter{Names: c.list}).Check(); err != nil {
			return nil, fmt.Errorf("--%s: %w", c.flag, err)
		}
	}
	return o, nil
}
