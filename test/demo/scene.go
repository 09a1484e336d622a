package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// scene is everything that runs.
type scene struct {
	config    config
	dir       string // of the files made for this run
	jaeger    *jaeger
	collector *collector
	cluster   *cluster.Cluster
	pods      map[string]*lab.Pod // by workload
	done      bool
}

// raise starts everything and waits until a lookup is seen from both sides. The scene is to be taken down also after an
// error, unless it is nil.
func raise(ctx context.Context, c config) (s *scene, err error) {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "dnstrail-demo-")
	if err != nil {
		return nil, err
	}
	s = &scene{config: c, dir: dir, pods: map[string]*lab.Pod{}}
	if c.jaeger == "1" {
		if s.jaeger, err = newJaeger(); err != nil {
			return s, err
		}
		s.config.jaeger = s.jaeger.otlp
	}
	if s.collector, err = newCollector(s.config.jaeger); err != nil {
		return s, err
	}
	zone := filepath.Join(dir, "cluster.local.zone")
	if err := os.WriteFile(zone, []byte(clusterZone), 0o644); err != nil {
		return s, err
	}
	if s.cluster, err = cluster.Up(ctx, cluster.Config{Bin: c.bin, Collector: s.collector.addr, Corefile: chain(zone),
		Agents: cluster.NoAgent}); err != nil {
		return s, err
	}
	if s.jaeger != nil {
		if err := s.jaeger.start(ctx, s.cluster.Lab, c.bin); err != nil {
			return s, err
		}
	}
	for _, p := range []lab.PodSpec{
		{Node: "node-1", Namespace: "shop", Name: "cart-7f9c5d4b8-x2x7k",
			Workload: lab.Workload{Kind: "Deployment", Name: "cart"}},
		{Node: "node-2", Namespace: "shop", Name: "checkout-6b8f9c7d5-m2lqp",
			Workload: lab.Workload{Kind: "Deployment", Name: "checkout"}},
	} {
		if s.pods[p.Workload.Name], err = s.cluster.AddPod(p); err != nil {
			return s, err
		}
	}
	if err := s.cluster.StartLabAgent(ctx); err != nil {
		return s, err
	}
	s.cluster.Upstream.Set("www.example.com.", lab.Behavior{Delay: 20 * time.Millisecond})
	s.cluster.Upstream.Set("api.payments.example.com.", lab.Behavior{Delay: slow})
	if err := s.buildLookup(ctx); err != nil {
		return s, err
	}
	if err := s.awaitBothSides(ctx); err != nil {
		return s, err
	}
	s.introduce(time.Since(begin))
	return s, nil
}

// introduce says what runs.
func (s *scene) introduce(took time.Duration) {
	fmt.Printf(`Up in %.1f s: network namespaces as two nodes and their pods, CoreDNS with the dnstrail plugin, and
the tracer on the host. Everything below is real: resolvers, packets, address translation.

  node-1  %s   shop/cart             %s
  node-2  %s   shop/checkout         %s
                           kube-system/coredns   %s, behind the service address %s
  upstream %s  a DNS server outside the cluster

`, took.Seconds(), s.cluster.Node("node-1").V4, s.pods["cart"].V4, s.cluster.Node(
		"node-2").V4, s.pods["checkout"].V4, s.cluster.DNS.V4,
		lab.ServiceV4, lab.UpstreamV4)
}

// buildLookup builds the Go program that runs in pods.
func (s *scene) buildLookup(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(s.dir, "lookup"),
		"github.com/dnstrail/dnstrail/test/demo/lookup")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // Go's own resolver
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build test/demo/lookup: %w\n%s", err, out)
	}
	return nil
}

// awaitBothSides sends queries until tracer and plugin have both seen one and both know the pod: they read the identity
// file again when it changes.
func (s *scene) awaitBothSides(ctx context.Context) error {
	const limit = 90 * time.Second // an emulated processor takes half a minute
	end := time.Now().Add(limit)
	for n := 1; ; n++ {
		err := s.probe(ctx, fmt.Sprintf("ready-%d.example.", n))
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("no lookup came out as one linked trace in %v: %w", limit, err)
		}
	}
}

func (s *scene) probe(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pod := s.pods["cart"]
	conn, err := pod.Dial(ctx, "udp", netip.AddrPortFrom(lab.ServiceV4, 53).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	c := dns.Client{Timeout: time.Second}
	if _, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn}); err != nil {
		return err
	}
	var problems []string
	_, err = s.collector.store.Await(ctx, trace.Filter{Name: name}, func(t *trace.Trace) bool {
		problems = want{name: name, rcode: "NOERROR", upstream: true}.problems(t, pod)
		return len(problems) == 0
	})
	if err != nil {
		return fmt.Errorf("%w: %q", err, problems)
	}
	return nil
}

func (s *scene) finished() bool { return s != nil && s.done }

// down stops everything and removes what was made.
func (s *scene) down() error {
	var errs []error
	if s.cluster != nil {
		errs = append(errs, s.cluster.Down())
	}
	if s.collector != nil {
		s.collector.close()
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// printLogs prints the ends of what the processes said.
func (s *scene) printLogs(w io.Writer) {
	if s.cluster == nil {
		return // what did not start has said why in its error
	}
	fmt.Fprintf(w, "--- the end of what CoreDNS said\n%s\n", cluster.Tail(s.cluster.CoreDNS))
	if s.jaeger != nil && s.jaeger.process != nil {
		fmt.Fprintf(w, "--- the end of what Jaeger said\n%s\n", cluster.Tail(s.jaeger.process))
	}
	for _, p := range s.cluster.Agents {
		fmt.Fprintf(w, "--- the end of what dnstrail agent said\n%s\n", cluster.Tail(p))
	}
}
