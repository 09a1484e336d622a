package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// collect runs a store that receives OTLP over gRPC for as long as the test runs.
func collect(t *testing.T) (s *store.Store, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = store.New(store.Limits{})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeGRPC(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the store's receiver: %v", err)
		}
	})
	return s, ln.Addr().String()
}

// A lookup through NodeLocal DNSCache is one trace: pod -> cache on its node -> TCP -> service address -> CoreDNS ->
// upstream.
func TestNodeLocalDNSCache(t *testing.T) {
	bin := binaries(t)
	traces, collector := collect(t)
	k, pods := up(t, cluster.Config{
		Bin: bin, Collector: collector, Agents: cluster.NoAgent,
		// The cache is a pod of the host network: CoreDNS sees its node.
		Plugin: "traceparent accept 192.168.100.0/24 fd00:100::/64",
	})
	cart, node := pods[0], pods[0].Node
	local := netip.MustParseAddr("169.254.20.10")
	if err := node.AddDummy("nodelocaldns", local); err != nil {
		t.Fatal(err)
	}
	startNodeLocalDNSCache(t, k, node, local)
	if err := k.StartLabAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Which lookup a server's own query serves is an inference from what was seen before it, and an agent that has only
	// just started may miss it: a name of each kind is asked first.
	for i, name := range []string{"kubernetes.default.svc.cluster.local.", "first.example.com.",
		"payments.shop.svc.cluster.local.", "www.example.com."} {
		upstreams := 1 + i%2 // outside the cluster CoreDNS asks on
		if i < 2 {
			ask(t, cart, clientSpec{Servers: []string{netip.AddrPortFrom(local, 53).String()}, Networks: []string{"udp"},
				Questions: []question{{name, dns.TypeA}}})
			continue
		}
		t.Run(name, func(t *testing.T) {
			ask(t, cart, clientSpec{Servers: []string{netip.AddrPortFrom(local, 53).String()}, Networks: []string{"udp"},
				Questions: []question{{name, dns.TypeA}}})
			var tr *trace.Trace
			whole := func(found *trace.Trace) bool {
				tr = found
				seen := 0 // by the tracer, of queries that servers made
				for _, s := range found.Spans {
					if s.From(semconv.ScopeTracer) && s.Attributes.String(semconv.Segment) == string(verdict.Upstream) {
						seen++
					}
				}
				return len(found.Servers()) == 2 && len(found.Missing()) == 0 && found.Linked() && seen == upstreams
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := traces.Await(ctx, trace.Filter{Name: name}, whole); err != nil {
				t.Errorf("no trace with the spans of both servers and of %d upstream queries, all of whose parents came: %v",
					upstreams, err)
			}
			if tr == nil {
				t.FailNow()
			}
			var drawn bytes.Buffer
			if err := render.Trace(&drawn, tr, render.Options{Width: 110}); err != nil {
				t.Error(err)
			}
			t.Logf("\n%s", &drawn)
			if c := tr.Client(); c == nil || c.String(semconv.K8SPodName) != cart.Name {
				t.Errorf("the CLIENT span is %+v, want one of pod %s", c, cart.Name)
			}
		})
	}
}

func startNodeLocalDNSCache(t *testing.T, k *cluster.Cluster, node *lab.Node, local netip.Addr) {
	t.Helper()
	corefile := filepath.Join(t.TempDir(), "Corefile")
	block := fmt.Sprintf("endpoint grpc://%s\n        identity file %s\n        sample 1\n        tracer\n        "+
		"traceparent send", netip.AddrPortFrom(node.V4, 4317), k.IdentityFile)
	text := fmt.Sprintf(".:53 {\n    dnstrail {\n        %s\n    }\n    errors\n    cache 30\n    bind %s\n    "+
		"forward . %s {\n        force_tcp\n    }\n}\n", block, local, lab.ServiceV4)
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs(filepath.Join(binaries(t), "coredns"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := node.Start(lab.Command{Path: bin, Args: []string{"-conf", corefile},
		Env: []string{"POD_NAME=node-local-dns-x7x2k", "POD_NAMESPACE=kube-system", "NODE_NAME=" + node.Name}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("NodeLocal DNSCache wrote:\n%s", cluster.Tail(p))
		}
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := node.Dial(t.Context(), "udp", netip.AddrPortFrom(local, 53).String())
		if err == nil {
			c := dns.Client{Timeout: 300 * time.Millisecond}
			_, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion("ready.example.net.", dns.TypeA), &dns.Conn{Conn: conn})
			_ = conn.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("NodeLocal DNSCache does not answer: %v\n%s", err, cluster.Tail(p))
		}
	}
}
