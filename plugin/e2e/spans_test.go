package e2e

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
)

// identityFile writes an identity file that names the loopback address.
func identityFile(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "clients.yaml")
	const content = `clients:
- addresses: [127.0.0.1]
  namespace: shop
  pod: cart-7f9c5d4b8-x2x7k
  uid: 5e2a9f60-8d1c-4f6a-9a51-0c2f6f6a7b11
  workload: {kind: Deployment, name: cart}
  node: node-1
  serviceAccount: cart
  labels: {app: cart}
`
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestLinkedTrace sends a query from a known port and derives the IDs as the tracer does.
func TestLinkedTrace(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	for _, row := range []struct {
		name, property string
		linked         bool
	}{
		{"with a tracer the client span is the parent", "tracer", true},
		{"without a tracer the server span is the root", "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, `.:0 {
				bind 127.0.0.1
				dnstrail {
					endpoint grpc://$COLLECTOR
					sample 1
					identity file $FILE
					$TRACER
				}
				cache
				forward . $UP
			}`, "COLLECTOR", c.grpc, "FILE", identityFile(t), "TRACER", row.property, "UP", up.addr)
			for _, network := range []string{"udp", "tcp"} {
				name := "LiNk-" + network + "." + map[bool]string{true: "tracer", false: "alone"}[row.linked] + ".example."
				addr := map[string]string{"udp": s.udp, "tcp": s.tcp}[network]
				conn, err := net.Dial(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				q := query(name, dns.TypeA)
				before := time.Now()
				if _, _, err := (&dns.Client{Net: network}).ExchangeWithConn(q, &dns.Conn{Conn: conn}); err != nil {
					t.Fatal(err)
				}
				after := time.Now()
				wire, err := link.AppendQName(nil, name)
				if err != nil {
					t.Fatal(err)
				}
				k := link.Key{
					Transport: map[string]link.Transport{"udp": link.UDP, "tcp": link.TCP}[network],
					Client:    netip.MustParseAddrPort(conn.LocalAddr().String()),
					ID:        q.Id, QName: wire, QType: dns.TypeA, QClass: dns.ClassINET,
				}
				conn.Close()
				tr := c.wait(t, name, 0)
				id := k.TraceID(link.EpochOf(before))
				if other := k.TraceID(link.EpochOf(after)); tr.root.traceID == other.String() {
					id = other
				}
				if tr.root.traceID != id.String() {
					t.Errorf("%s: trace ID %s, want %s", network, tr.root.traceID, id)
				}
				want := ""
				if row.linked {
					want = id.ClientSpanID().String()
				}
				if tr.root.parent != want {
					t.Errorf("%s: parent of the server span is %q, want %q", network, tr.root.parent, want)
				}
			}
		})
	}
}

// TestWholeTrace looks at everything that a query through cache and forward leaves.
func TestWholeTrace(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}
		errors
		loadbalance
		cache
		forward . $UP
	}`, "COLLECTOR", c.grpc, "FILE", identityFile(t), "UP", up.addr)
	s.ask(t, query("whole.example.", dns.TypeA))
	s.ask(t, query("whole.example.", dns.TypeA))
	hit := c.wait(t, "whole.example.", 1)
	miss := c.wait(t, "whole.example.", 0)

	const shape = `DNS A
  errors
    loadbalance
      cache
        forward
          DNS A
`
	if got := miss.tree(); got != shape {
		t.Errorf("the miss is\n%swant\n%s", got, shape)
	}
	miss.root.want(t,
		"dnstrail.client.kind", "pod", "dnstrail.client.pod.name", "cart-7f9c5d4b8-x2x7k", "dnstrail.client.namespace.name",
		"shop",
		"dnstrail.client.workload.kind", "Deployment", "dnstrail.client.workload.name", "cart", "dnstrail.client.node.name",
		"node-1",
		"dnstrail.client.service_account", "cart", "dnstrail.client.label.app", "cart",
		"dns.question.name", "whole.example.", "dns.question.type", "A", "dns.response_code", "NOERROR", "dns.answers",
		"[192.0.2.1]",
		"client.address", "127.0.0.1", "network.transport", "udp", "network.type", "ipv4", "network.protocol.name", "dns",
		"dnstrail.cache.status", "miss", "dnstrail.answered_by", "forward", "dnstrail.upstream.attempts", 1,
		"dnstrail.response.written", true, "dnstrail.response.truncated", false, "dnstrail.response.flags", "qr rd ra",
		"dnstrail.keep.reason", "ratio", "error.type", nil,
	)
	if miss.root.scope != "github.com/dnstrail/dnstrail/plugin" || miss.root.resource["service.name"] != "coredns" {
		t.Errorf("scope %q, resource %v", miss.root.scope, miss.root.resource)
	}
	at := miss.attempts()[0]
	host, port, _ := net.SplitHostPort(up.addr)
	at.want(t, "network.peer.address", host, "network.peer.port", port, "network.transport", "udp", "dns.response_code",
		"NOERROR",
		"dnstrail.upstream.connection", "new", "network.protocol.name", "dns", "error.type", nil)
	up1, fwd, total := miss.root.seconds("dnstrail.upstream.duration"), miss.root.seconds("dnstrail.forward.duration"),
		miss.root.duration()
	if up1 <= 0 || up1 > fwd || fwd > total {
		t.Errorf("upstream %v, forward %v, total %v: want each within the next", up1, fwd, total)
	}
	for _, sp := range miss.all {
		if sp != miss.root && (sp.StartTimestamp() < miss.root.StartTimestamp() ||
			sp.EndTimestamp() > miss.root.EndTimestamp()) {
			t.Errorf("span %s is not within the query", sp.Name())
		}
	}

	const cached = `DNS A
  errors
    loadbalance
      cache
`
	if got := hit.tree(); got != cached {
		t.Errorf("the hit is\n%swant\n%s", got, cached)
	}
	hit.root.want(t, "dnstrail.cache.status", "hit", "dnstrail.answered_by", "cache", "dnstrail.upstream.attempts", nil,
		"dnstrail.upstream.duration", nil, "dnstrail.forward.duration", nil)
	if hit.root.Kind() != ptrace.SpanKindServer {
		t.Errorf("kind %s", hit.root.Kind())
	}
}

// TestOverHTTP exports by OTLP over HTTP, with a header.
func TestOverHTTP(t *testing.T) {
	c := newCollector(t)
	s := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint http://$COLLECTOR
			header X-Test seen
			service dns-here
			sample 100%
			identity none
		}
		whoami
	}`, "COLLECTOR", c.http)
	s.ask(t, query("http.example.", dns.TypeA))
	tr := c.wait(t, "http.example.", 0)
	tr.root.want(t, "dnstrail.answered_by", "whoami", "dnstrail.cache.status", nil, "dnstrail.client.kind", "unknown")
	if tr.root.resource["service.name"] != "dns-here" {
		t.Errorf("resource %v", tr.root.resource)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.headers) == 0 || c.headers[0] != "seen" {
		t.Errorf("headers %q", c.headers)
	}
}

// TestEnvironment takes the endpoint from OTEL_*.
func TestEnvironment(t *testing.T) {
	c := newCollector(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+c.grpc)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=coredns-1,service.version=7")
	t.Setenv("OTEL_SERVICE_NAME", "dns-env")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	s := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			sample 1
			identity none
		}
		whoami
	}`)
	s.ask(t, query("env.example.", dns.TypeA))
	tr := c.wait(t, "env.example.", 0)
	for k, v := range map[string]string{"service.name": "dns-env", "k8s.pod.name": "coredns-1", "service.version": "7"} {
		if tr.root.resource[k] != v {
			t.Errorf("resource: %s = %v, want %s", k, tr.root.resource[k], v)
		}
	}
}
