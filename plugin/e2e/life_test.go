package e2e

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestLameduck ends CoreDNS as SIGTERM does: what is asked while health lets it limp still goes out.
func TestLameduck(t *testing.T) {
	c := newCollector(t)
	s, err := tryStart(`.:0 {
		bind 127.0.0.1
		health 127.0.0.1:0 {
			lameduck 400ms
		}
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity none
		}
		whoami
	}`, "COLLECTOR", c.grpc)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan []error)
	go func() { ended <- s.ShutdownCallbacks() }()
	time.Sleep(200 * time.Millisecond)
	s.ask(t, query("lameduck.example.", dns.TypeA))
	if errs := <-ended; len(errs) > 0 {
		t.Error(errs)
	}
	found := false
	for _, sp := range c.spans() { // no waiting: the process would end now
		found = found || sp.attrs["dns.question.name"] == "lameduck.example."
	}
	if !found {
		t.Error("the span of the lameduck time did not go out")
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// load asks a server over UDP from several clients until stop is called, which gives how many queries were asked and
// how many got no answer.
func load(addr string, clients int, timeout time.Duration) (stop func() (asked, lost int64)) {
	var a, l atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				a.Add(1)
				if _, err := exchange("udp", addr, query(fmt.Sprintf("load-%d-%d.example.", i, n%100), dns.TypeA),
					timeout); err != nil {
					l.Add(1)
				}
			}
		})
	}
	return func() (int64, int64) {
		close(done)
		wg.Wait()
		return a.Load(), l.Load()
	}
}

// heap gives the bytes that live on the heap.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestReloads reloads a hundred times under load, with and without us: no more queries are lost, nothing grows, and
// clients stay known.
func TestReloads(t *testing.T) {
	c := newCollector(t)
	spans, unknown := 0, 0
	c.look = func(s *gotSpan) bool { // under its lock; the load's spans are not kept, so as not to grow
		spans++
		if s.attrs["dnstrail.client.kind"] == "unknown" {
			unknown++
		}
		return s.attrs["dns.question.name"] == "after-reloads.example."
	}
	const reloads = 100
	run := func(t *testing.T, directives string) (asked, lost int64, grown int) {
		up := newUpstream(t, answering(60))
		file := identityFile(t)
		corefile := ".:" + freePort(t) + " {\nbind 127.0.0.1\n" + directives + "errors\ncache\nforward . $UP\n}"
		values := []string{"COLLECTOR", c.grpc, "FILE", file, "UP", up.addr}
		s, err := tryStart(corefile, values...)
		if err != nil {
			t.Fatal(err)
		}
		stop := load(s.udp, 2, 500*time.Millisecond)
		var goroutines int
		var before int64
		for i := range reloads {
			if i == reloads/5 { // what is made once has been made
				goroutines, before = runtime.NumGoroutine(), heap()
			}
			next, err := s.Restart(input(corefile, values...))
			if err != nil {
				t.Fatal(err)
			}
			s = &server{Instance: next}
		}
		s.addresses()
		asked, lost = stop()
		grown = runtime.NumGoroutine() - goroutines
		for deadline := time.Now().Add(25 * time.Second); grown > 0 &&
			time.Now().Before(deadline); grown = runtime.NumGoroutine() - goroutines {
			runtime.GC() // forward stops with its finalizer
			time.Sleep(100 * time.Millisecond)
		}
		if h := heap(); h > before+(8<<20) {
			t.Errorf("%d bytes of heap after %d reloads, %d after %d", h, reloads, before, reloads/5)
		}
		if strings.Contains(directives, "dnstrail") {
			s.ask(t, query("after-reloads.example.", dns.TypeA))
			c.wait(t, "after-reloads.example.", 0).root.want(t, "dnstrail.client.pod.name", "cart-7f9c5d4b8-x2x7k")
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Logf("%d spans came", spans)
			if unknown > 0 {
				t.Errorf("the client was not known to %d queries", unknown)
			}
		}
		s.stop()
		return asked, lost, grown
	}
	asked, lost, grown := run(t, "")
	t.Logf("plain: %d queries, %d lost in %d reloads", asked, lost, reloads)
	asked2, lost2, grown2 := run(t, "dnstrail {\nendpoint grpc://$COLLECTOR\nsample 1\nidentity file $FILE\n}\n")
	t.Logf("with dnstrail: %d queries, %d lost in %d reloads", asked2, lost2, reloads)
	t.Logf("goroutines more after %d reloads than after %d: plain %d, with dnstrail %d", reloads, reloads/5, grown, grown2)
	if grown2 > max(grown, 0)+10 {
		t.Errorf("%d goroutines more, %d without us", grown2, grown)
	}
	// A reload may lose what lies in the buffer of a socket that is closed, with us or without.
	if lost2 > lost+reloads/10 {
		t.Errorf("%d queries were lost, %d without us", lost2, lost)
	}
}

// TestFailedReload reloads with a Corefile that cannot start: the old instance goes on and still exports.
func TestFailedReload(t *testing.T) {
	c := newCollector(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const corefile = `.:$PORT {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}
		$MORE
		whoami
	}`
	values := []string{"COLLECTOR", c.grpc, "FILE", identityFile(t), "PORT", freePort(t)}
	s := start(t, corefile, append(values, "MORE", "")...)
	for range 3 {
		if _, err := s.Restart(input(corefile, append(values, "MORE", "pprof "+taken.Addr().String())...)); err == nil {
			t.Fatal("the reload did not fail")
		}
		s.ask(t, query("failed-reload.example.", dns.TypeA))
	}
	c.wait(t, "failed-reload.example.", 2).root.want(t, "dnstrail.client.workload.name", "cart")
	next, err := s.Restart(input(corefile, append(values, "MORE", "")...))
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = next
	s.ask(t, query("reloaded.example.", dns.TypeA))
	c.wait(t, "reloaded.example.", 0)
}

// TestCollectorTrouble asks while the collector is away, refuses, is slow or hangs: queries are answered as ever, what
// cannot be sent is counted, and when the collector is well again spans come.
func TestCollectorTrouble(t *testing.T) {
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "500")
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2000")
	const seconds = 2
	throughput := func(t *testing.T, s *server) float64 {
		stop := load(s.udp, 4, 2*time.Second)
		time.Sleep(seconds * time.Second)
		asked, lost := stop()
		if lost > 0 {
			t.Errorf("%d of %d queries got no answer", lost, asked)
		}
		return float64(asked) / seconds
	}
	for _, row := range []struct {
		name    string
		behave  func(context.Context) error
		away    bool
		refused bool // the collector says no: the batches are lost, not the queue
	}{
		{name: "away", away: true},
		{name: "refusing", behave: func(context.Context) error { return status.Error(codes.PermissionDenied, "no") }},
		{name: "slow", behave: func(ctx context.Context) error {
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
			}
			return nil
		}},
		{name: "hanging", behave: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCollector(t)
			addr := c.grpc
			var stopCollector func()
			if row.away { // another one, which can be stopped
				stopCollector = c.serve(t, "127.0.0.1:0")
				addr = c.grpc
			}
			s := start(t, `.:0 {
				bind 127.0.0.1
				dnstrail {
					endpoint grpc://$COLLECTOR
					sample 1
					identity none
				}
				whoami
			}`, "COLLECTOR", addr)
			s.ask(t, query("before.example.", dns.TypeA))
			c.wait(t, "before.example.", 0)
			well := throughput(t, s)
			lostBefore := s.lost(t)
			if row.away {
				stopCollector()
			} else {
				c.set(row.behave)
			}
			before := heap()
			ill := throughput(t, s)
			for tries := 0; ill < 0.5*well && tries < 4; tries++ { // whatever else the machine does only slows it
				ill = max(ill, throughput(t, s))
			}
			grown := heap() - before
			t.Logf("throughput with the collector %s / well: %.2f; heap grown by %.1f MB", row.name, ill/well,
				float64(grown)/(1<<20))
			if ill < 0.5*well {
				t.Errorf("%.0f queries a second, %.0f before", ill, well)
			}
			if grown > 32<<20 {
				t.Errorf("the heap has grown by %d bytes", grown)
			}
			if lost := s.lost(t) - lostBefore; lost == 0 {
				t.Error("no span is counted as lost")
			}
			if row.away {
				c.serve(t, addr)
			} else {
				c.set(nil)
			}
			deadline := time.Now().Add(20 * time.Second)
			for n := 0; ; n++ {
				s.ask(t, query("well-again.example.", dns.TypeA))
				came := false
				for _, sp := range c.spans() {
					came = came || sp.attrs["dns.question.name"] == "well-again.example."
				}
				if came {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal("no span comes again")
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
}

// lost gives how many spans are counted as lost in whatever way.
func (s *server) lost(t testing.TB) float64 {
	t.Helper()
	return s.metric(t, "coredns_dnstrail_spans_total", "result", "queue_full") +
		s.metric(t, "coredns_dnstrail_spans_total", "result", "export_failed")
}

// TestEverySpanIsCounted asks a known number of queries: each is kept or told why not, each span exported or lost.
func TestEverySpanIsCounted(t *testing.T) {
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "40")
	c := newCollector(t)
	c.set(func(context.Context) error { time.Sleep(20 * time.Millisecond); return nil })
	s := start(t, block("whoami"), "COLLECTOR", c.grpc)
	count := func(name string) (sum float64) { return s.metric(t, name) }
	exported := func() float64 { return s.metric(t, "coredns_dnstrail_spans_total", "result", "exported") }
	traces, spans, out := count("coredns_dnstrail_traces_total"), count("coredns_dnstrail_spans_total"), exported()
	const asked = 500
	for range asked {
		s.ask(t, query("counted.example.", dns.TypeA))
	}
	reaches(t, "traces", asked, func() float64 { return count("coredns_dnstrail_traces_total") - traces })
	reaches(t, "spans", 2*asked, func() float64 { return count("coredns_dnstrail_spans_total") - spans })
	if got := float64(len(c.spans())); got != exported()-out {
		t.Errorf("%v spans came, %v are counted as exported", got, exported()-out)
	}
}
