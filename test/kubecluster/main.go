// Command kubecluster raises a Kubernetes of one control plane and two nodes on this machine, each in namespaces of
// its own: etcd, the API server, the controllers, the scheduler, and on each node containerd, a kubelet, kube-proxy
// and a bridge between its pods. CoreDNS runs in it as kubeadm sets it up. The host's own network stays as it is but
// for the API server's port on loopback.
//
//	kubecluster up      raises it, unless it is up
//	kubecluster down    takes it down
//	kubecluster test    installs dnstrail in it, and holds what it says against what is true
//
// test/kube/build.sh builds what it runs; make cluster and make cluster-down call this.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options say where a cluster's files are, and of what it is made.
type options struct {
	bin   string // the directory of the programs
	dir   string // the directory of what is running
	proxy string // the mode of kube-proxy: iptables or nftables
}

func main() {
	if err := mainErr(); err != nil {
		fmt.Fprintln(os.Stderr, "kubecluster:", err)
		os.Exit(1)
	}
}

func mainErr() error {
	if len(os.Args) < 2 {
		return errors.New("usage: kubecluster up|down|test [flags]")
	}
	verb := os.Args[1]
	var o options
	var t testOptions
	fs := flag.NewFlagSet(verb, flag.ExitOnError)
	fs.StringVar(&o.bin, "bin", "bin", "the directory of the programs")
	fs.StringVar(&o.dir, "dir", ".cache/cluster", "the directory of the cluster's files")
	fs.StringVar(&o.proxy, "proxy", "iptables", "the mode of kube-proxy: iptables or nftables")
	fs.IntVar(&t.lookups, "lookups", 10_000, "with test: how many lookups are held against what is true")
	fs.StringVar(&t.chart, "chart", "build/chart/dnstrail", "with test: the chart")
	fs.StringVar(&t.helm, "helm", "helm", "with test: the helm program")
	parts := fs.String("parts", strings.Join(testParts, ","), "with test: which parts are run")
	_ = fs.Parse(os.Args[2:]) // it exits by itself
	for _, p := range []*string{&o.bin, &o.dir} {
		var err error
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	t.parts = strings.Split(*parts, ",")
	for _, p := range t.parts {
		if !slices.Contains(testParts, p) {
			return fmt.Errorf("-parts: %q is none of %s", p, strings.Join(testParts, ","))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch verb {
	case "up":
		return up(ctx, o)
	case "down":
		return down(o)
	case "test":
		return test(ctx, o, t)
	case "serve":
		return serve(ctx, o)
	case "enter":
		return enter(o, fs.Arg(0))
	case "node":
		return node(o, fs.Arg(0))
	case "kubelet":
		return startKubelet(o, fs.Arg(0))
	case "kubelet-here":
		return kubeletHere(o, fs.Arg(0))
	}
	return fmt.Errorf("%q: want up, down or test", verb)
}
