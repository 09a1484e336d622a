package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/dnstrail/dnstrail/test/cluster"
)

// alternative is one Corefile that is measured against the first.
type alternative struct {
	name   string
	block  string  // what stands in the server block beside the rest
	budget float64 // least share of the plain throughput; 0: none
}

// measured is one measurement of an alternative.
type measured struct {
	qps     float64
	cpu     float64 // microseconds a query
	sent    float64 // spans exported, a query
	dropped float64 // spans that were not, a query
}

// benchCoreDNS measures cache hits: the cheapest query, on which any cost shows most. CoreDNS has the first CPU to
// itself: the load, the upstream and the collectors, which are in this process, run on the last.
func benchCoreDNS(ctx context.Context, b *bench) error {
	all, err := allowedCPUs()
	if err != nil {
		return err
	}
	var last unix.CPUSet
	last.Set(lastCPU())
	if err := setCPUs(os.Getpid(), &last); err != nil {
		return err
	}
	defer func() { _ = setCPUs(os.Getpid(), &all) }()
	upstream, stopUpstream, err := answerer()
	if err != nil {
		return err
	}
	defer stopUpstream()
	otlp, stopOTLP, err := discardOTLP()
	if err != nil {
		return err
	}
	defer stopOTLP()
	zipkin := httptest.NewServer(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	defer zipkin.Close()
	identity := filepath.Join(b.dir, "clients.yaml")
	if err := os.WriteFile(identity,
		[]byte("clients:\n- addresses: [127.0.0.1]\n  namespace: shop\n  pod: cart-1\n  workload: {kind: Deployment, "+
			"name: cart}\n  node: node-1\n"), 0o600); err != nil {
		return err
	}
	ours := func(sample string) string {
		return fmt.Sprintf("dnstrail {\n endpoint grpc://%s\n sample %s\n identity file %s\n }", otlp, sample, identity)
	}
	alts := []alternative{
		{"plain CoreDNS", "", 0},
		{"dnstrail, metrics, no span kept", ours("0"), 0},
		{"dnstrail, metrics, 1 % of spans", ours("0.01"), 0.97},
		{"dnstrail, metrics, all spans", ours("1"), 0.80},
		{"CoreDNS's trace, every query", "trace zipkin " + zipkin.URL + "/api/v2/spans {\n every 1\n }", 0},
	}
	rounds := make([][]measured, len(alts))
	for round := range b.rounds {
		for i, a := range alts {
			m, err := loadCoreDNS(ctx, b, a.block, upstream)
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			rounds[i] = append(rounds[i], m)
			fmt.Fprintf(os.Stderr, "  round %d of %d: %-34s %8.0f q/s %7.2f us CPU a query\n", round+1, b.rounds, a.name, m.qps,
				m.cpu)
		}
	}
	middle := func(i int, figure func(m measured) float64) float64 {
		v := make([]float64, b.rounds)
		for n, m := range rounds[i] {
			v[n] = figure(m)
		}
		return median(v)
	}
	ratio := func(i, of int) float64 {
		r := make([]float64, b.rounds)
		for n := range r {
			r[n] = rounds[i][n].qps / rounds[of][n].qps
		}
		return median(r)
	}
	fmt.Printf("%-34s %10s %10s %12s %14s %16s\n", "", "q/s", "of plain", "us CPU/query", "spans/query", "budget")
	ratios := make([]float64, len(alts))
	for i := range alts {
		ratios[i] = ratio(i, 0)
	}
	overTrace := ratio(3, len(alts)-1)
	for i, a := range alts {
		budget := ""
		if a.budget > 0 {
			budget = fmt.Sprintf("%.2f %s", a.budget, met(ratios[i] >= a.budget))
		}
		fmt.Printf("%-34s %10.0f %10.3f %12.2f %14s %16s\n", a.name, middle(i, func(m measured) float64 { return m.qps }),
			ratios[i],
			middle(i, func(m measured) float64 { return m.cpu }), spans(middle(i, func(m measured) float64 { return m.sent }),
				middle(i, func(m measured) float64 { return m.dropped })), budget)
	}
	fmt.Printf("all spans against CoreDNS's trace: %.2f x (budget 1.5 x: %s)\n", overTrace, met(overTrace >= 1.5))
	return nil
}

// spans says how many spans a query were exported, and how many were not.
func spans(sent, dropped float64) string {
	switch {
	case dropped > 0:
		return fmt.Sprintf("%.2f, lost %.2f", sent, dropped)
	case sent > 0:
		return fmt.Sprintf("%.2f", sent)
	}
	return ""
}

var qpsLine = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)
var completedLine = regexp.MustCompile(`Queries completed:\s+([0-9]+)`)

// loadCoreDNS runs one CoreDNS on the first CPU and dnsperf on the last, and gives what that came to.
func loadCoreDNS(ctx context.Context, b *bench, block, upstream string) (m measured, err error) {
	port, err := freePort()
	if err != nil {
		return m, err
	}
	metrics, err := freePort()
	if err != nil {
		return m, err
	}
	corefile := filepath.Join(b.dir, "Corefile")
	text := fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n %s\n prometheus 127.0.0.1:%d\n cache 30\n forward . %s\n}\n",
		port, block, metrics, upstream)
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return m, err
	}
	server := exec.CommandContext(ctx, "taskset", "-c", "0", filepath.Join(b.bin, "coredns"), "-conf", corefile, "-quiet")
	server.Env = append(os.Environ(), "GOMAXPROCS=1")
	var log strings.Builder
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		return m, err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	if err := waitDNS(ctx, addr); err != nil {
		return m, fmt.Errorf("%w\n%s", err, log.String())
	}
	queries := filepath.Join(b.dir, "queries")
	var list strings.Builder
	for i := range 200 {
		fmt.Fprintf(&list, "host-%d.example.org A\n", i)
	}
	if err := os.WriteFile(queries, []byte(list.String()), 0o600); err != nil {
		return m, err
	}
	args := []string{"-c", strconv.Itoa(lastCPU()), "dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(port), "-d", queries,
		"-c", "20", "-T", "1", "-q", "100"}
	// A first, short run fills the cache and the pools.
	if out, err := exec.CommandContext(ctx, "taskset", append(args, "-l", "1")...).CombinedOutput(); err != nil {
		return m, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	sent, lost, err := exportedSpans(ctx, metrics)
	if err != nil {
		return m, err
	}
	before, err := cpuTime(server.Process.Pid)
	if err != nil {
		return m, err
	}
	out, err := exec.CommandContext(
		ctx, "taskset", append(args, "-l", strconv.Itoa(int(b.length.Seconds())))...).CombinedOutput()
	if err != nil {
		return m, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	after, err := cpuTime(server.Process.Pid)
	if err != nil {
		return m, err
	}
	q, done := qpsLine.FindSubmatch(out), completedLine.FindSubmatch(out)
	if q == nil || done == nil {
		return m, fmt.Errorf("dnsperf printed no figures:\n%s", out)
	}
	sentAfter, lostAfter, err := exportedSpans(ctx, metrics)
	if err != nil {
		return m, err
	}
	m.qps, _ = strconv.ParseFloat(string(q[1]), 64)
	n, _ := strconv.ParseFloat(string(done[1]), 64)
	m.cpu = float64((after - before).Microseconds()) / n
	m.sent, m.dropped = (sentAfter-sent)/n, (lostAfter-lost)/n
	return m, nil
}

// exportedSpans gives the spans that the plugin says it exported, and those that it says it did not.
func exportedSpans(ctx context.Context, port int) (sent, lost float64, err error) {
	f, err := cluster.Scrape(ctx, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, 0, err
	}
	for _, result := range []string{"limited", "queue_full", "export_failed", "shutdown", "omitted"} {
		lost += f.Sum("coredns_dnstrail_spans_total", "result", result)
	}
	return f.Sum("coredns_dnstrail_spans_total", "result", "exported"), lost, nil
}

// allowedCPUs gives the CPUs that this process may run on.
func allowedCPUs() (set unix.CPUSet, err error) {
	err = unix.SchedGetaffinity(0, &set)
	return set, err
}

// setCPUs says on which CPUs the threads of a process may run.
func setCPUs(pid int, set *unix.CPUSet) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("set the CPUs of thread %d: %w", tid, err)
		}
	}
	return nil
}

func lastCPU() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0
	}
	last := 0
	for i := range 1024 {
		if set.IsSet(i) {
			last = i
		}
	}
	return last
}

// cpuTime gives the user and system time of a process so far (proc(5), /proc/PID/stat, fields 14 and 15, in clock ticks
// of 10 ms).
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

func freePort() (int, error) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.LocalAddr().(*net.UDPAddr).Port, nil
}

func waitDNS(ctx context.Context, addr string) error {
	m := new(dns.Msg).SetQuestion("host-0.example.org.", dns.TypeA)
	c := dns.Client{Timeout: 200 * time.Millisecond}
	for range 100 {
		if _, _, err := c.ExchangeContext(ctx, m, addr); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("no answer from %s within five seconds", addr)
}

// answerer is an upstream on loopback that answers every question with one address.
func answerer() (addr string, stop func(), err error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
			Ttl: 3600}, A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = s.ActivateAndServe() }()
	return conn.LocalAddr().String(), func() { _ = s.Shutdown() }, nil
}

// discardOTLP is a collector on loopback that takes every export and looks at none, so that it costs little on a shared
// machine.
func discardOTLP() (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(blind{}), grpc.InitialWindowSize(16<<20),
		grpc.InitialConnWindowSize(16<<20), grpc.ReadBufferSize(1<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(nil); err != nil {
				return err
			}
			return stream.SendMsg(nil) // an empty ExportTraceServiceResponse
		}))
	go func() { _ = s.Serve(l) }()
	return l.Addr().String(), s.Stop, nil
}

// blind is a codec that does not look at messages, and makes empty ones.
type blind struct{}

func (blind) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (blind) Unmarshal(mem.BufferSlice, any) error { return nil }
func (blind) Name() string                         { return "proto" }
