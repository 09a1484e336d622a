package build

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/backend"
)

// A real Prometheus scrapes CoreDNS with the plugin, and every panel's query gives something there.
func TestDashboardsShowWhatCoreDNSServes(t *testing.T) {
	dir := t.TempDir()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	metrics := free()
	prom, err := backend.StartPrometheus(t.Context(), dir, metrics)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(prom.Stop)

	upstream := &dns.Server{Addr: "127.0.0.1:0", Net: "udp",
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			time.Sleep(2 * time.Millisecond)
			m := new(dns.Msg)
			_ = w.WriteMsg(m.SetReply(r))
		})}
	if upstream.PacketConn, err = net.ListenPacket("udp", upstream.Addr); err != nil {
		t.Fatal(err)
	}
	go upstream.ActivateAndServe() //nolint:errcheck // ends with Shutdown
	t.Cleanup(func() { upstream.Shutdown() })

	ids := filepath.Join(dir, "identity.yaml")
	if err := os.WriteFile(ids, []byte("clients:\n- {addresses: [127.0.0.1], namespace: shop, pod: cart-1, workload: "+
		"{kind: Deployment, name: cart}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	caddy.Quiet = true
	coredns, err := caddy.Start(caddy.CaddyfileInput{ServerTypeName: "dns", Contents: fmt.Appendf(nil, `
.:0 {
    bind 127.0.0.1
    dnstrail {
        endpoint none
        identity file %s
    }
    prometheus %s
    acl dropped.example {
        drop
    }
    template IN ANY cluster.local {
        rcode NXDOMAIN
    }
    forward . %s
}
`, ids, metrics, upstream.PacketConn.LocalAddr())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { coredns.Stop() }) //nolint:errcheck // the test is over
	server := coredns.Servers()[0].LocalAddr().String()

	ask := func(name string) {
		c := dns.Client{Timeout: 20 * time.Millisecond}
		_, _, _ = c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), server) // one of them is dropped on purpose
	}
	missing := expressions(t, "clients.json")
	for title := range missing {
		if strings.Contains(title, "Last word from the API") {
			delete(missing, title) // there is no API here
		}
	}
	replace := strings.NewReplacer("$__rate_interval", "10s", "$namespace", "shop", "$workload", "cart|~other")
	for deadline := time.Now().Add(30 * time.Second); len(missing) > 0; time.Sleep(500 * time.Millisecond) {
		for _, name := range []string{"example.org.", "api.example.com.shop.svc.cluster.local.", "dropped.example."} {
			ask(name)
		}
		for title, expr := range missing {
			samples, err := prom.Instant(t.Context(), replace.Replace(expr))
			if err != nil {
				t.Fatalf("panel %q: %v", title, err)
			}
			if len(samples) > 0 {
				delete(missing, title)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("these panels show nothing: %v", missing)
		}
	}
}
