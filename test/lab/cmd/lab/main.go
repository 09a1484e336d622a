// Command lab raises the lab of package lab and keeps it until Ctrl-C, to try things in by hand:
//
//	lab up                 raises two nodes, pods, and a CoreDNS if -coredns names one; prints the map
//	lab exec POD CMD ...   runs a command in a pod of the lab that runs
//	lab node NODE CMD ...  runs a command in a node's network namespace
//	lab drop PLACE HOOK    drops DNS queries over UDP in a pod, a node or "underlay" until Ctrl-C
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/dnstrail/dnstrail/test/lab"
)

func main() {
	lab.Reexec()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("which of up, exec, node, drop?")
	}
	switch args[0] {
	case "up":
		return up(args[1:])
	case "exec", "node", "drop":
		if len(args) < 3 {
			return fmt.Errorf("%s needs a place and what to do there", args[0])
		}
		return ask(request{Verb: args[0], Place: args[1], Args: args[2:]})
	}
	return fmt.Errorf("unknown command %q: want up, exec, node or drop", args[0])
}

func up(args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	coredns := flags.String("coredns", "", "the CoreDNS binary to run in a pod on node-2")
	corefile := flags.String("conf", "", "its Corefile; without one it answers cluster.local by template and forwards "+
		"the rest")
	collector := flags.String("collector", "", "an OTLP/gRPC collector on the host, reachable for pods at their "+
		"node's address, port 4317")
	identities := flags.String("identities", "", "write the identity file to this path")
	overlay := flags.String("overlay", "", "how packets go from node to node: vxlan, or routed if empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := lab.Up(lab.Config{Overlay: lab.Overlay(*overlay)})
	if err != nil {
		return err
	}
	return errors.Join(serve(ctx, l, *coredns, *corefile, *collector, *identities), l.Down())
}

func serve(ctx context.Context, l *lab.Lab, coredns, corefile, collector, identities string) error {
	for _, spec := range []lab.PodSpec{
		{Node: "node-2", Namespace: "kube-system", Name: "coredns-5d78c9869d-q4x9z",
			Workload: lab.Workload{Kind: "Deployment", Name: "coredns"}},
		{Node: "node-1", Namespace: "shop", Name: "cart-7f9c5d4b8-x2x7k",
			Workload: lab.Workload{Kind: "Deployment", Name: "cart"}},
		{Node: "node-2", Namespace: "shop", Name: "checkout-6b8f9c7d5-m2lqp",
			Workload: lab.Workload{Kind: "Deployment", Name: "checkout"}},
	} {
		if _, err := l.AddPod(spec); err != nil {
			return err
		}
	}
	server := l.Pods()[0]
	if err := l.Service.SetEndpoints(server); err != nil {
		return err
	}
	if collector != "" {
		if err := l.Collector(collector); err != nil {
			return err
		}
	}
	if identities != "" {
		var b bytes.Buffer
		if err := l.WriteIdentities(&b); err != nil {
			return err
		}
		if err := os.WriteFile(identities, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	died := make(<-chan struct{})
	var process *lab.Process
	if coredns != "" {
		dir, err := os.MkdirTemp("", "dnstrail-lab")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if corefile == "" {
			corefile = filepath.Join(dir, "Corefile")
			if err := os.WriteFile(corefile, []byte(defaultCorefile), 0o644); err != nil {
				return err
			}
		}
		process, err = server.Start(lab.Command{Path: coredns, Args: []string{"-conf", corefile}, Stdout: os.Stdout,
			Stderr: os.Stderr})
		if err != nil {
			return err
		}
		died = process.Done()
	}
	fmt.Print(l.Map())
	stopControl, err := listen(l)
	if err != nil {
		return err
	}
	defer stopControl()
	fmt.Println("\nup: `lab exec POD CMD ...`, `lab node NODE CMD ...`, `lab drop PLACE HOOK` from another terminal; " +
		"Ctrl-C ends it")
	select {
	case <-ctx.Done():
		return nil
	case <-died:
		return fmt.Errorf("CoreDNS ended: %w", process.Err())
	}
}

var defaultCorefile = `.:53 {
    errors
    log
    template ANY ANY cluster.local {
        match "^[a-z0-9-]+[.](default|shop|kube-system)[.]svc[.]cluster[.]local[.]$"
        answer "{{ if eq .Type \"A\" }}{{ .Name }} 5 IN A 10.96.7.7{{ end }}"
        fallthrough
    }
    template ANY ANY cluster.local {
        rcode NXDOMAIN
        authority "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
    }
    cache 30
    forward . ` + lab.UpstreamV4.String() + `
}
`
