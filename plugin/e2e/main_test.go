// Package e2e holds the tests of the plugin that need a whole CoreDNS: real servers, started from Corefiles, with all
// of CoreDNS's plugins.
package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/core/plugin" // all of CoreDNS's plugins
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	dnstrail "github.com/dnstrail/dnstrail/plugin"
)

func TestMain(m *testing.M) {
	caddy.Quiet, dnsserver.Quiet = true, true
	clog.Discard()
	os.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20") // ms
	directives, err := dnstrail.WithDirective(dnsserver.Directives)
	if err == nil {
		err = dnsserver.SetDirectives(append(directives, "e2e_panic", "e2e_server"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if corefile := os.Getenv(exampleEnv); corefile != "" {
		if err := runExample(corefile); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// panicking is a plugin that panics.
type panicking struct{}

func (panicking) Name() string { return "e2e_panic" }

func (panicking) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	panic("as told")
}

func init() {
	plugin.Register("e2e_panic", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return panicking{} })
		return nil
	})
}

// grabbed is the server that served the last query of a block with the directive e2e_server.
var grabbed atomic.Pointer[dnsserver.Server]

func init() {
	plugin.Register("e2e_server", func(c *caddy.Controller) error {
		config := dnsserver.GetConfig(c)
		config.FilterFuncs = append(config.FilterFuncs, func(ctx context.Context, _ *request.Request) bool {
			if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok && grabbed.Load() != s {
				grabbed.Store(s)
			}
			return true
		})
		return nil
	})
}

// inner gives the server behind a CoreDNS whose block has the directive e2e_server: it serves messages without a socket
// too.
func (s *server) inner(t testing.TB) *dnsserver.Server {
	t.Helper()
	grabbed.Store(nil)
	s.ask(t, query("inner.example.", dns.TypeA))
	srv := grabbed.Load()
	if srv == nil {
		t.Fatal("no server")
	}
	return srv
}

// freePort gives a loopback port that nobody has, neither for UDP nor for TCP.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			p.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// server is a running CoreDNS.
type server struct {
	*caddy.Instance
	udp, tcp string // addresses of the first server block
}

// start runs a CoreDNS with a Corefile until the test ends. $NAME in the Corefile is replaced by values, given as NAME,
// value, ...; every server block of it is to bind to loopback.
func start(t testing.TB, corefile string, values ...string) *server {
	t.Helper()
	s, err := tryStart(corefile, values...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// starting: caddy sets up one Corefile after the other.
var starting sync.Mutex

func tryStart(corefile string, values ...string) (*server, error) {
	starting.Lock()
	defer starting.Unlock()
	i, err := caddy.Start(input(corefile, values...))
	if err != nil {
		return nil, err
	}
	s := &server{Instance: i}
	s.addresses()
	return s, nil
}

func input(corefile string, values ...string) caddy.Input {
	for i := 0; i < len(values); i += 2 {
		corefile = strings.ReplaceAll(corefile, "$"+values[i], values[i+1])
	}
	return caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
}

func (s *server) addresses() {
	if l := s.Servers(); len(l) > 0 {
		if a := l[0].LocalAddr(); a != nil {
			s.udp = a.String()
		}
		if a := l[0].Addr(); a != nil {
			s.tcp = a.String()
		}
	}
}

// stop ends CoreDNS as SIGTERM does.
func (s *server) stop() {
	for _, err := range s.ShutdownCallbacks() {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := s.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// query builds a query for a name and type.
func query(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

// ask sends a query over UDP, and fails the test if no answer comes.
func (s *server) ask(t testing.TB, m *dns.Msg) *dns.Msg {
	t.Helper()
	r, err := exchange("udp", s.udp, m, 8*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", m.Question[0].String(), err)
	}
	return r
}

func exchange(network, addr string, m *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	c := dns.Client{Net: network, Timeout: timeout}
	r, _, err := c.Exchange(m, addr)
	return r, err
}

// upstream is a DNS server for tests, on UDP and TCP of one loopback port.
type upstream struct {
	addr string
	mu   sync.Mutex
	f    dns.HandlerFunc
	seen []*dns.Msg
}

func newUpstream(t testing.TB, f dns.HandlerFunc) *upstream {
	t.Helper()
	u := &upstream{f: f}
	u.addr = net.JoinHostPort("127.0.0.1", freePort(t))
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		u.mu.Lock()
		u.seen = append(u.seen, r.Copy())
		f := u.f
		u.mu.Unlock()
		f(w, r)
	})
	for _, network := range []string{"udp", "tcp"} {
		started := make(chan struct{})
		s := &dns.Server{Addr: u.addr, Net: network, Handler: h, NotifyStartedFunc: func() { close(started) }}
		go func() {
			if err := s.ListenAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

func (u *upstream) handle(f dns.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.f = f
}

// queries gives the queries for names below zone that have come.
func (u *upstream) queries(zone string) []*dns.Msg {
	u.mu.Lock()
	defer u.mu.Unlock()
	var l []*dns.Msg
	for _, m := range u.seen {
		if dns.IsSubDomain(zone, m.Question[0].Name) {
			l = append(l, m)
		}
	}
	return l
}

// answering answers every A query with an address and a TTL, anything else with no data.
func answering(ttl uint32) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.RecursionAvailable = true
		if q := r.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl},
				A:   net.IPv4(192, 0, 2, 1),
			}}
		}
		_ = w.WriteMsg(m)
	}
}

// failing answers every query with an rcode.
func failing(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(r, rcode)
		m.RecursionAvailable = true
		_ = w.WriteMsg(m)
	}
}

// silent answers nothing.
func silent(dns.ResponseWriter, *dns.Msg) {}

// metric adds up the series of a counter, or the counts of a histogram, that have all of some label values: label,
// value, ...
func (s *server) metric(t testing.TB, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			has := map[string]string{}
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if has[labels[i]] != labels[i+1] {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// reaches waits for a figure to be as wanted: a query is counted after its answer has gone out.
func reaches(t testing.TB, what string, want float64, get func() float64) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Second)
	for get() != want {
		if time.Now().After(deadline) {
			t.Errorf("%s: %v, want %v", what, get(), want)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond)
	if got := get(); got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
