package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/pb"
	"github.com/miekg/dns"
	"github.com/pires/go-proxyproto"
	"github.com/quic-go/quic-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/dnstrail/dnstrail/link"
)

// TestTransports asks over each of CoreDNS's transports. Where the DNS ID is not visible on the wire there is no link.
func TestTransports(t *testing.T) {
	c := newCollector(t)
	dir := t.TempDir()
	certificate(t, dir)
	tlsConfig := &tls.Config{InsecureSkipVerify: true,
		MinVersion: tls.VersionTLS12} //nolint:gosec // a test's own certificate
	pack := func(t *testing.T, name string) []byte {
		m := query(name, dns.TypeA)
		m.Id = 0
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	overHTTP := func(header string) func(*testing.T, string, string) {
		return func(t *testing.T, addr, name string) {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true},
				Timeout: 5 * time.Second}
			defer client.CloseIdleConnections()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+addr+"/dns-query",
				bytes.NewReader(pack(t, name)))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/dns-message")
			if header != "" {
				r.Header.Set("traceparent", header)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
		}
	}
	for _, row := range []struct {
		name, scheme, property string
		ask                    func(t *testing.T, addr, name string)
		want                   []any
		linked                 bool
		parent                 string
	}{
		{
			name: "udp", scheme: "dns",
			ask: func(t *testing.T, addr, name string) {
				if _, err := exchange("udp", addr, query(name, dns.TypeA), 5*time.Second); err != nil {
					t.Fatal(err)
				}
			},
			want: []any{"network.protocol.name", "dns", "network.transport", "udp"}, linked: true,
		},
		{
			name: "tcp", scheme: "dns",
			ask: func(t *testing.T, addr, name string) {
				if _, err := exchange("tcp", addr, query(name, dns.TypeA), 5*time.Second); err != nil {
					t.Fatal(err)
				}
			},
			want: []any{"network.protocol.name", "dns", "network.transport", "tcp"}, linked: true,
		},
		{
			name: "tls", scheme: "tls",
			ask: func(t *testing.T, addr, name string) {
				cl := dns.Client{Net: "tcp-tls", TLSConfig: tlsConfig}
				if _, _, err := cl.Exchange(query(name, dns.TypeA), addr); err != nil {
					t.Fatal(err)
				}
			},
			want: []any{"network.protocol.name", "dot", "network.transport", "tcp"},
		},
		{name: "https", scheme: "https", ask: overHTTP(""), want: []any{"network.protocol.name", "doh", "network.transport",
			"tcp"}},
		{
			name: "https-traced", scheme: "https", ask: overHTTP(parent),
			want: []any{"network.protocol.name", "doh", "dnstrail.keep.reason", "parent"}, parent: parent,
		},
		{
			name: "https-ignored", scheme: "https", property: "traceparent ignore_http", ask: overHTTP(parent),
			want: []any{"network.protocol.name", "doh", "dnstrail.keep.reason", "ratio"},
		},
		{
			name: "quic", scheme: "quic",
			ask: func(t *testing.T, addr, name string) {
				conf := tlsConfig.Clone()
				conf.NextProtos = []string{"doq"}
				conn, err := quic.DialAddr(t.Context(), addr, conf, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.CloseWithError(0, "") }()
				s, err := conn.OpenStreamSync(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				b := pack(t, name)
				if _, err := s.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)); err != nil {
					t.Fatal(err)
				}
				_ = s.Close()
				if answer, err := io.ReadAll(s); err != nil || len(answer) < 14 {
					t.Fatal(err, len(answer))
				}
			},
			want: []any{"network.protocol.name", "doq", "network.transport", "udp", "dns.id", 0},
		},
		{
			name: "grpc", scheme: "grpc",
			ask: func(t *testing.T, addr, name string) {
				conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := pb.NewDnsServiceClient(conn).Query(t.Context(), &pb.DnsPacket{Msg: pack(t, name)}); err != nil {
					t.Fatal(err)
				}
			},
			want: []any{"network.protocol.name", "grpc", "network.transport", "tcp"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			addr := net.JoinHostPort("127.0.0.1", freePort(t))
			tlsLine := "tls " + filepath.Join(dir, "cert.pem") + " " + filepath.Join(dir, "key.pem")
			if row.scheme == "dns" {
				tlsLine = ""
			}
			start(t, row.scheme+`://.:`+port(addr)+` {
				bind 127.0.0.1
				`+tlsLine+`
				dnstrail {
					endpoint grpc://$COLLECTOR
					sample 1
					tracer
					identity none
					`+row.property+`
				}
				whoami
			}`, "COLLECTOR", c.grpc)
			name := row.name + ".transport.example."
			row.ask(t, addr, name)
			tr := c.wait(t, name, 0)
			tr.root.want(t, row.want...)
			if _, linked := tr.root.attrs["dnstrail.link.version"]; linked != row.linked {
				t.Errorf("linked: %t, want %t", linked, row.linked)
			}
			switch {
			case row.parent != "":
				if tr.root.traceID != row.parent[3:35] || tr.root.parent != row.parent[36:52] {
					t.Errorf("trace %s, parent %s, want those of %s", tr.root.traceID, tr.root.parent, row.parent)
				}
			case row.linked != (tr.root.parent != ""):
				t.Errorf("parent %q of a query that is linked: %t", tr.root.parent, row.linked)
			}
		})
	}
}

// TestProxyProtocol asks through a balancer that tells the client's address: that client is identified.
func TestProxyProtocol(t *testing.T) {
	c := newCollector(t)
	s := start(t, `.:0 {
		bind 127.0.0.1
		proxyproto {
			allow 127.0.0.0/8
		}
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity none
		}
		whoami
	}`, "COLLECTOR", c.grpc)
	conn, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711},
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 53})
	if _, err := h.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (&dns.Client{Net: "tcp"}).ExchangeWithConn(query("proxied.example.", dns.TypeA),
		&dns.Conn{Conn: conn}); err != nil {
		t.Fatal(err)
	}
	c.wait(t, "proxied.example.", 0).root.want(t, "client.address", "192.0.2.7", "client.port", 4711)
}

// TestTraceparent asks with and without the EDNS option, through a CoreDNS that accepts and sends it, and through one
// that does neither.
func TestTraceparent(t *testing.T) {
	c := newCollector(t)
	in := link.Traceparent{TraceID: link.TraceID{1, 2, 3}, SpanID: link.SpanID{4, 5, 6}, Flags: 1}
	with := func(name string, code uint16, data []byte) *dns.Msg {
		m := query(name, dns.TypeA)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: code, Data: data},
			&dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		return m
	}
	unsampledIn := in
	unsampledIn.Flags = 0
	for _, row := range []struct {
		name, properties string
		message          func(name string) *dns.Msg
		followed, sent   bool
		flags            byte
		code             uint16
		none             bool // nothing is kept
	}{
		{name: "stripped", message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)) }},
		{
			name: "accepted and stripped", properties: "traceparent accept", followed: true,
			message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)) },
		},
		{
			name: "accepted and sent", properties: "traceparent accept\ntraceparent send", followed: true, sent: true, flags: 1,
			message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)) },
		},
		{
			name: "accepted from others only", properties: "traceparent accept 192.0.2.0/24",
			message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)) },
		},
		{
			name: "short form", properties: "traceparent accept", followed: true,
			message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)[:26]) },
		},
		{
			name: "broken", properties: "traceparent accept\ntraceparent send", sent: true, flags: 1,
			message: func(n string) *dns.Msg { return with(n, 65500, in.Append(nil)[:25]) },
		},
		{
			name: "another code", properties: "traceparent accept\ntraceparent send\ntraceparent code 65123", followed: true,
			sent: true, flags: 1, code: 65123,
			message: func(n string) *dns.Msg { return with(n, 65123, in.Append(nil)) },
		},
		{
			name: "sent for a client without EDNS", properties: "traceparent send", sent: true, flags: 1,
			message: func(n string) *dns.Msg { return query(n, dns.TypeA) },
		},
		{
			name: "not sampled by the sender", properties: "traceparent accept\ntraceparent send", sent: true, none: true,
			followed: true,
			message:  func(n string) *dns.Msg { return with(n, 65500, unsampledIn.Append(nil)) },
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			up := newUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
				m := new(dns.Msg)
				m.SetReply(r)
				m.RecursionAvailable = true
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
					Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
				if r.IsEdns0() != nil {
					m.SetEdns0(1232, false)
				}
				_ = w.WriteMsg(m)
			})
			s := start(t, `.:0 {
				bind 127.0.0.1
				dnstrail {
					endpoint grpc://$COLLECTOR
					sample 1
					identity none
					`+row.properties+`
				}
				forward . $UP
			}`, "COLLECTOR", c.grpc, "UP", up.addr)
			name := strings.ReplaceAll(row.name, " ", "-") + ".edns.example."
			m := row.message(name)
			hadEDNS := m.IsEdns0() != nil
			r := s.ask(t, m)
			if (r.IsEdns0() != nil) != hadEDNS {
				t.Errorf("the answer has an OPT record: %t, the query: %t", r.IsEdns0() != nil, hadEDNS)
			}
			if o := r.IsEdns0(); o != nil {
				for _, o := range o.Option {
					if o.Option() >= 65001 {
						t.Errorf("option %d came back", o.Option())
					}
				}
			}
			code := row.code
			if code == 0 {
				code = 65500
			}
			sent, nsid := link.Traceparent{}, false
			got := up.queries(name)
			if len(got) != 1 {
				t.Fatalf("%d queries upstream", len(got))
			}
			if o := got[0].IsEdns0(); o != nil {
				for _, o := range o.Option {
					if l, ok := o.(*dns.EDNS0_LOCAL); ok && l.Code == code {
						var err error
						if sent, err = link.ParseTraceparent(l.Data); err != nil {
							t.Error(err)
						}
					}
					nsid = nsid || o.Option() == dns.EDNS0NSID
				}
			}
			if hadEDNS && !nsid {
				t.Error("another option of the client was lost")
			}
			if (sent.TraceID != link.TraceID{}) != row.sent || sent.Flags != row.flags {
				t.Errorf("sent upstream: %v, want one: %t with flags %d", sent, row.sent, row.flags)
			}
			if row.followed && row.sent && sent.TraceID != in.TraceID {
				t.Errorf("trace %s went upstream, want %s", sent.TraceID, in.TraceID)
			}
			if row.none {
				return
			}
			tr := c.wait(t, name, 0)
			if (tr.root.traceID == in.TraceID.String()) != row.followed ||
				(tr.root.parent == in.SpanID.String()) != row.followed {
				t.Errorf("trace %s, parent %s: followed should be %t", tr.root.traceID, tr.root.parent, row.followed)
			}
			if row.sent && hex.EncodeToString(sent.SpanID[:]) != tr.forward().id {
				t.Errorf("the span sent upstream is %s, want that of forward, %s", sent.SpanID, tr.forward().id)
			}
		})
	}
}

// TestTwoCoreDNS makes one trace of a NodeLocal DNSCache and the CoreDNS behind it.
func TestTwoCoreDNS(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	behind := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			service cluster-dns
			sample 0
			identity none
			traceparent accept
		}
		cache
		forward . $UP
	}`, "COLLECTOR", c.grpc, "UP", up.addr)
	local := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			service node-local
			sample 1
			identity none
			traceparent send
		}
		cache
		forward . $BEHIND {
			force_tcp
		}
	}`, "COLLECTOR", c.grpc, "BEHIND", behind.tcp)
	// The second is known by its TCP address alone: their ports are free in both.
	local.ask(t, query("two.example.", dns.TypeA))
	near := c.waitRoot(t, "the near one", 0, func(s *gotSpan) bool {
		return s.attrs["dns.question.name"] == "two.example." && s.resource["service.name"] == "node-local"
	})
	far := c.waitRoot(t, "the far one", 0, func(s *gotSpan) bool {
		return s.attrs["dns.question.name"] == "two.example." && s.resource["service.name"] == "cluster-dns"
	})
	if far.root.traceID != near.root.traceID || far.root.parent != near.forward().id {
		t.Errorf("the far span is in trace %s below %s; want %s below %s",
			far.root.traceID, far.root.parent, near.root.traceID, near.forward().id)
	}
}

// zipkin receives what plugin trace sends.
type zipkin struct {
	addr string
	mu   sync.Mutex
	got  []string
}

func newZipkin(t testing.TB) *zipkin {
	t.Helper()
	z := &zipkin{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		z.mu.Lock()
		z.got = append(z.got, string(b))
		z.mu.Unlock()
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(s.Close)
	z.addr = s.Listener.Addr().String()
	return z
}

func (z *zipkin) all() string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return strings.Join(z.got, "\n")
}

// TestBesideTrace uses plugin trace too: both see all, sampled by us or not.
func TestBesideTrace(t *testing.T) {
	for _, row := range []struct{ name, sample string }{{"sampled", "1"}, {"unsampled", "0"}} {
		t.Run(row.name, func(t *testing.T) {
			c, z := newCollector(t), newZipkin(t)
			up := newUpstream(t, answering(60))
			s := start(t, `.:0 {
				bind 127.0.0.1
				trace zipkin $ZIPKIN {
					every 1
					zipkin_max_batch_interval 20ms
				}
				dnstrail {
					endpoint grpc://$COLLECTOR
					sample $SAMPLE
					identity none
					keep none
				}
				errors
				cache
				forward . $UP
			}`, "COLLECTOR", c.grpc, "ZIPKIN", z.addr, "SAMPLE", row.sample, "UP", up.addr)
			s.ask(t, query("both.example.", dns.TypeA))
			deadline := time.Now().Add(5 * time.Second)
			for _, want := range []string{`"name":"servedns"`, `"name":"dnstrail"`, `"name":"errors"`, `"name":"cache"`,
				`"name":"forward"`, `"name":"connect"`, up.addr, "both.example."} {
				for !strings.Contains(z.all(), want) {
					if time.Now().After(deadline) {
						t.Fatalf("Zipkin has no %s in\n%s", want, z.all())
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			if row.sample == "1" {
				const shape = "DNS A\n  errors\n    cache\n      forward\n        DNS A\n"
				if got := c.wait(t, "both.example.", 0).tree(); got != shape {
					t.Errorf("the trace is\n%swant\n%s", got, shape)
				}
			} else if l := c.spans(); len(l) > 0 {
				t.Errorf("%d spans came", len(l))
			}
		})
	}
}
