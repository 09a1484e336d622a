package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dnstrail/dnstrail/tracer/podns"
)

// lookupStay is how long the command stays when its lookup has ended: an agent finds the pod of a process by its
// cgroup, which goes with the container, and in a node's network by nothing else.
const lookupStay = 200 * time.Millisecond

// newLookupCommand gives the command of the pods and containers that "dnstrail install" and "dnstrail walk" look a name
// up from. It watches nothing.
func newLookupCommand() *cobra.Command {
	times := 1
	var once queryFlags
	c := &cobra.Command{
		Use: "lookup NAME [TYPE]", Short: "Look a name up as programs here do, and watch nothing", Hidden: true,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			defer time.Sleep(lookupStay)
			if len(args) == 2 {
				return once.send(cmd.Context(), cmd.OutOrStdout(), args)
			}
			for i := range times {
				if i > 0 {
					time.Sleep(time.Second)
				}
				addresses, err := net.DefaultResolver.LookupHost(cmd.Context(), args[0])
				if err != nil && i == times-1 {
					return err
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), addresses)
				}
			}
			return nil
		},
	}
	c.Flags().IntVar(&times, "times", 1, "how often, a second apart")
	once.register(c.Flags())
	return c
}

// queryFlags say how one query is sent.
type queryFlags struct {
	server  string
	tcp     bool
	timeout time.Duration
}

func (f *queryFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.server, "server", "", "address to ask, with a port if it is not 53; the first of the pod's "+
		"resolv.conf if empty")
	fs.BoolVar(&f.tcp, "tcp", false, "ask over TCP")
	fs.DurationVar(&f.timeout, "timeout", 5*time.Second, "how long to wait for the answer")
}

// args gives the flags as they were given, for the command in a pod.
func (f *queryFlags) args() []string {
	return []string{"--server=" + f.server, fmt.Sprintf("--tcp=%t", f.tcp), "--timeout=" + f.timeout.String()}
}

// query reads a name and a type, A if there is none.
func query(args []string) (*dns.Msg, error) {
	qtype := dns.TypeA
	if len(args) == 2 {
		t, ok := dns.StringToType[strings.ToUpper(args[1])]
		if !ok {
			return nil, fmt.Errorf("%q is no type: want A, AAAA, SRV or another", args[1])
		}
		qtype = t
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(args[0]), qtype)
	q.SetEdns0(1232, false)
	return q, nil
}

// send sends the query for a name and a type once, as the name stands, and writes what the answer says. That no answer
// comes is no error: who watches tells why.
func (f *queryFlags) send(ctx context.Context, out io.Writer, args []string) error {
	w := &walk{tcp: f.tcp}
	var err error
	if w.query, err = query(args); err != nil {
		return err
	}
	if w.place, err = podns.Self(); err != nil {
		return err
	}
	if w.server, err = serverAddr(f.server, w.place); err != nil {
		return err
	}
	conn, err := w.dial(ctx, f.timeout)
	if err == nil {
		defer func() { _ = conn.Close() }()
		err = w.exchange(conn, f.timeout)
	}
	if err != nil {
		fmt.Fprintln(out, err)
	}
	return nil
}
