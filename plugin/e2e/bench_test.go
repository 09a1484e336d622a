package e2e

import (
	"context"
	"net"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// BenchmarkHandler serves cache hits inside CoreDNS, without sockets: what a server does with a message that it has
// read, until the answer is handed to the connection.
func BenchmarkHandler(b *testing.B) {
	c := newCollector(b)
	up := newUpstream(b, answering(3600))
	const chain = "errors\nloadbalance\ncache 3600\nforward . $UP\n"
	for _, row := range []struct{ name, directives string }{
		{"plain", ""},
		{"unsampled", "dnstrail {\nendpoint grpc://$COLLECTOR\nidentity file $FILE\nsample 0\n}\n"},
		{"unsampled-no-metrics", "dnstrail {\nendpoint grpc://$COLLECTOR\nidentity file $FILE\nsample 0\nmetrics none\n}\n"},
		{"unsampled-hindsight", "dnstrail {\nendpoint grpc://$COLLECTOR\nidentity file $FILE\nsample 0\n" +
			"hindsight listen 127.0.0.1:0\nhindsight key $KEY\n}\n"},
		{"one-percent", "dnstrail {\nendpoint grpc://$COLLECTOR\nidentity file $FILE\nsample 1%\n}\n"},
		{"all", "dnstrail {\nendpoint grpc://$COLLECTOR\nidentity file $FILE\nsample 1\n}\n"},
		{"trace-plugin", "trace zipkin 127.0.0.1:1 {\nevery 1\n}\n"},
	} {
		b.Run(row.name, func(b *testing.B) {
			s := start(b, ".:0 {\nbind 127.0.0.1\nprometheus 127.0.0.1:0\n"+"e2e_server\n"+row.directives+chain+"}",
				"COLLECTOR", c.grpc, "FILE", identityFile(b), "UP", up.addr, "KEY", keyFile(b))
			srv := s.inner(b)
			w := &sink{ResponseWriter: test.ResponseWriter{RemoteIP: "127.0.0.1"}, addr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1),
				Port: 40212}}
			ctx := context.WithValue(context.WithValue(context.Background(), dnsserver.Key{}, srv), dnsserver.LoopKey{}, 0)
			q := query("bench.example.", dns.TypeA)
			srv.ServeDNS(ctx, w, q.Copy())
			b.ReportAllocs()
			for b.Loop() {
				q.Id++
				srv.ServeDNS(ctx, w, q)
			}
		})
	}
}

// sink is a client that throws answers away.
type sink struct {
	test.ResponseWriter
	addr net.Addr
}

func (w *sink) RemoteAddr() net.Addr        { return w.addr }
func (w *sink) WriteMsg(*dns.Msg) error     { return nil }
func (w *sink) Write(b []byte) (int, error) { return len(b), nil }
