// Command story plays an incident in the lab and prints it: a cluster of two nodes whose firewall between them has lost
// the rule that lets UDP port 53 through. Lookups fail from one node only, and ping works. The output stands in the
// README; `make story` prints it anew.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

func main() {
	lab.Reexec()
	bin := flag.String("bin", "bin", "directory of the built coredns and dnstrail")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := play(ctx, *bin)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "story:", err)
		os.Exit(1)
	}
}

func play(ctx context.Context, bin string) (err error) {
	command, err := filepath.Abs(filepath.Join(bin, "dnstrail"))
	if err != nil {
		return err
	}
	addrs, err := free(2)
	if err != nil {
		return err
	}
	k, err := cluster.Up(ctx, cluster.Config{
		Bin: bin, Collector: addrs[0], Agents: cluster.NoAgent,
		Pods: []lab.PodSpec{
			{Node: "node-1", Namespace: "shop", Name: "cart-7f9c5d4b8-x2x7k",
				Workload: lab.Workload{Kind: "Deployment", Name: "cart"}},
			{Node: "node-2", Namespace: "shop", Name: "checkout-6b8f9c7d5-m2lqp",
				Workload: lab.Workload{Kind: "Deployment", Name: "checkout"}},
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Down()) }()
	// What the agents of both nodes and CoreDNS send comes together in one store; a Jaeger does as well.
	if _, err := k.Start(lab.Command{Path: command, Args: []string{"store", "--grpc", addrs[0], "--http", "", "--api",
		addrs[1]}}); err != nil {
		return err
	}
	if err := ready(ctx, "http://"+addrs[1]+"/api/v3/services"); err != nil {
		return err
	}
	if err := k.StartNodeAgents(ctx); err != nil {
		return err
	}
	undo, err := k.Underlay.Drop(lab.DropRule{Hook: lab.Switched, Proto: unix.IPPROTO_UDP, DstPort: 53})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()

	cart, checkout := k.Clients[0], k.Clients[1]
	run(ctx, checkout, "dig", "+short", "kubernetes.default.svc.cluster.local")
	run(ctx, cart, "dig", "+short", "+tries=1", "+time=2", "kubernetes.default.svc.cluster.local")
	run(ctx, cart, "ping", "-c", "1", "-W", "2", k.DNS.V4.String())
	// That node-2 is watched is known of what its tracer sees before and after.
	run(ctx, checkout, "dig", "+short", "kubernetes.default.svc.cluster.local")
	time.Sleep(7 * time.Second) // until the tracer gives the lookup up, too
	fmt.Println("$ dnstrail observe --store http://127.0.0.1:16686 --since 1m --namespace shop")
	if err := dnstrail(k, command, "observe", "--store", "http://"+addrs[1], "--since", "1m", "--namespace",
		"shop"); err != nil {
		return err
	}
	fmt.Println("\n$ dnstrail explain --lost")
	return dnstrail(k, command, "explain", "--lost", "--store", "http://"+addrs[1])
}

// dnstrail runs the command as on a terminal of 100 columns.
func dnstrail(k *cluster.Cluster, path string, args ...string) error {
	p, err := k.Start(lab.Command{Path: path, Args: args, Env: []string{"COLUMNS=100"}, Stdout: os.Stdout})
	if err != nil {
		return err
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s: %w\n%s", args[0], err, p.Stderr())
	}
	return nil
}

// run prints a command in a pod with what it prints.
func run(ctx context.Context, p *lab.Pod, path string, args ...string) {
	fmt.Printf("%s on %s $ %s %s\n", p.PodSpec.Namespace+"/"+p.Workload.Name, p.Node.Name, path, strings.Join(args, " "))
	out, err := p.Run(ctx, path, args...)
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		fmt.Println("   ", line)
	}
	if err != nil && strings.TrimSpace(out) == "" {
		fmt.Printf("    (%v)\n", err)
	}
	fmt.Println()
}

func ready(ctx context.Context, url string) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			return nil
		}
	}
	return fmt.Errorf("no answer from %s within ten seconds", url)
}

// free gives n addresses on the loopback that nothing listens on.
func free(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
