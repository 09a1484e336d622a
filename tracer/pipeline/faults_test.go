package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// seen is what the test keeps of a result.
type seen struct {
	verdict  verdict.Verdict
	ending   lookup.Ending
	attempts int
	hops     int
	at       time.Time
	process  string
	pod      string // its UID
	related  []lookup.Relation
	client   uint32
	snat     bool
	final    bool
	key      string
}

// rig is a lab of two nodes with a DNS server of this process in a pod on the second, and a tracer.
type rig struct {
	lab    *lab.Lab
	client *lab.Pod
	server *lab.Pod

	mu      sync.Mutex
	seen    map[string][]seen
	cgroups map[uint64]bool // that a packet was sent from
}

const giveUp = 1500 * time.Millisecond

func raise(t *testing.T, namespaces func(*rig) []uint32) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces and eBPF")
	}
	if err := bpf.Check(); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	l, err := lab.Up(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{lab: l, seen: make(map[string][]seen), cgroups: make(map[uint64]bool)}
	pod := func(node, ns, name string) *lab.Pod {
		p, err := l.AddPod(lab.PodSpec{Node: node, Namespace: ns, Workload: lab.Workload{Kind: "Deployment", Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	r.server, r.client = pod("node-2", "kube-system", "coredns"), pod("node-1", "shop", "cart")
	if err := l.Service.SetEndpoints(r.server); err != nil {
		t.Fatal(err)
	}
	r.serve(t)
	if namespaces != nil {
		r.trace(t, namespaces(r))
	}
	return r
}

// serve answers every A with 192.0.2.1, but names that start with "silent", and after a second those that start with
// "slow".
func (r *rig) serve(t *testing.T) {
	t.Helper()
	pc, err := r.server.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := r.server.Listen("tcp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		if len(name) > 6 && name[:6] == "silent" {
			return
		}
		if len(name) > 4 && name[:4] == "slow" {
			time.Sleep(1200 * time.Millisecond)
		}
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5},
			A: net.IPv4(192, 0, 2, 1)})
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp && name[:5] == "trunc" {
			m.Truncated, m.Answer = true, nil
		}
		for range 60 {
			if name[:5] != "large" {
				break
			}
			m.Answer = append(m.Answer, m.Answer[0])
		}
		_ = w.WriteMsg(m) // the client's timeout tells
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: answer}, {Listener: ln, Handler: answer}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
}

func (r *rig) trace(t *testing.T, netns []uint32) {
	t.Helper()
	p, err := pipeline.Open(pipeline.Options{
		BPF:    bpf.Options{NetNS: netns},
		Lookup: lookup.Options{GiveUp: giveUp},
		Packet: func(p *hop.Packet) {
			if p.Process == nil {
				return
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.cgroups[p.Process.CgroupID] = true
		},
		Result: func(x pipeline.Result) {
			l := x.Lookup
			r.mu.Lock()
			defer r.mu.Unlock()
			s := seen{verdict: *x.Verdict, ending: l.Ending, attempts: l.Attempts, hops: len(l.Hops), at: time.Now(),
				client: l.ClientNetNS, snat: l.Client != l.Translated, final: l.Final}
			s.related = append(s.related, l.Related...)
			s.key, s.pod = l.Translated.String(), x.Origin.PodUID
			if l.Process != nil {
				s.process = l.Process.Name
			}
			r.seen[l.Question()] = append(r.seen[l.Question()], s)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Missing()) > 0 {
		t.Log("without", p.Missing())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := p.Stats(); s.Lost() > 0 {
			t.Errorf("%d events were lost: %+v", s.Lost(), s.Kernel)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// all are the namespaces of nodes and pods: what a tracer sees that runs on every node.
func all(r *rig) []uint32 {
	var n []uint32
	for _, x := range r.lab.Nodes() {
		n = append(n, uint32(x.Inode()))
	}
	for _, x := range r.lab.Pods() {
		n = append(n, uint32(x.Inode()))
	}
	return n
}

// ask sends one query to an address and waits for the answer until the timeout.
func (r *rig) ask(t *testing.T, network, server, name string, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	conn, err := r.client.Dial(ctx, network, server)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := dns.Client{Net: network, Timeout: timeout}
	_, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	return err
}

// wait gives what was seen of a name when the n-th report of it has come.
func (r *rig) wait(t *testing.T, name string, n int) seen {
	t.Helper()
	for end := time.Now().Add(giveUp + 2*time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		s := r.seen[name]
		r.mu.Unlock()
		if len(s) >= n {
			return s[n-1]
		}
	}
	t.Fatalf("%s: no report", name)
	return seen{}
}

func service(v6 bool) string {
	if v6 {
		return "[fd00:10:96::a]:53"
	}
	return "10.96.0.10:53"
}

func TestFaultsAreJudged(t *testing.T) {
	r := raise(t, all)
	l := r.lab
	node1, node2 := l.Node("node-1"), l.Node("node-2")
	drop := func(n *lab.Namespace, d lab.DropRule) func() (lab.Undo, error) {
		return func() (lab.Undo, error) { return n.Drop(d) }
	}
	const udp = unix.IPPROTO_UDP
	stale := netip.MustParseAddr("10.244.2.200")
	for _, c := range []struct {
		name   string
		fault  func() (lab.Undo, error)
		query  string
		want   verdict.Where
		cause  verdict.Cause
		within time.Duration // of the drop; 0: at giving up
		v4     bool          // IPv4 only
	}{
		{name: "forward drop on the client's node",
			fault: drop(node1.Namespace,
				lab.DropRule{Hook: lab.Forward, Proto: udp,
					DstPort: 53}), want: verdict.Node, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "forward drop on the server's node",
			fault: drop(node2.Namespace,
				lab.DropRule{Hook: lab.Forward, Proto: udp,
					DstPort: 53}), want: verdict.Node, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "local output drop", fault: drop(r.client.Namespace, lab.DropRule{Hook: lab.Output, Proto: udp, DstPort: 53}),
			want: verdict.Client, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "input drop in the server's pod",
			fault: drop(r.server.Namespace,
				lab.DropRule{Hook: lab.Input, Proto: udp,
					DstPort: 53}), want: verdict.CoreDNSSocket, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "switch between the nodes, unwatched",
			fault: drop(l.Underlay, lab.DropRule{Hook: lab.Switched, Proto: udp,
				DstPort: 53}), want: verdict.BetweenNodes, cause: verdict.CauseNoReply},
		{name: "service without endpoints", fault: func() (lab.Undo, error) {
			return func() error { return l.Service.SetEndpoints(r.server) }, l.Service.SetEndpoints()
		}, want: verdict.Service, cause: verdict.CauseNoEndpoints, within: time.Second},
		{name: "service without any rule", fault: func() (lab.Undo, error) {
			return func() error { return l.Service.SetEndpoints(r.server) }, node1.RemoveService()
		}, want: verdict.Service, cause: verdict.CauseUntranslated},
		{name: "no route from the node", fault: func() (lab.Undo, error) {
			undo, err := node1.WithoutRoute(netip.MustParsePrefix("0.0.0.0/0"))
			if err != nil {
				return nil, err
			}
			also, err := node1.WithoutRoute(netip.MustParsePrefix("10.244.2.0/24"))
			return func() error { return errors.Join(also(), undo()) }, err
		}, v4: true, want: verdict.Node, cause: verdict.CauseNoRoute, within: time.Second},
		{name: "conntrack table full", fault: node1.FillConntrack, want: verdict.Service, cause: verdict.CauseConntrack,
			within: time.Second},
		{name: "large answer dropped", query: "large",
			fault: drop(node1.Namespace, lab.DropRule{Hook: lab.Forward, Proto: udp, SrcPort: 53,
				MinLength: 900}), want: verdict.ReturnPath, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "stale endpoint", fault: func() (lab.Undo, error) {
			return func() error { return l.Service.SetEndpoints(r.server) }, l.Service.SetEndpointAddrs(stale)
		}, want: verdict.Service, cause: verdict.CauseDeadEndpoint},
		{name: "server reads and does not answer", query: "silent", want: verdict.CoreDNS, cause: verdict.CauseNoAnswer},
		{name: "answer dropped on the server's node",
			fault: drop(node2.Namespace,
				lab.DropRule{Hook: lab.Forward, Proto: udp,
					SrcPort: 53}), want: verdict.ReturnPath, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "answer dropped on the client's node",
			fault: drop(node1.Namespace,
				lab.DropRule{Hook: lab.Forward, Proto: udp,
					SrcPort: 53}), want: verdict.ReturnPath, cause: verdict.CausePolicyDrop, within: time.Second},
		{name: "answer later than the client waits", query: "slow", want: verdict.Client, cause: verdict.CauseTooLate},
	} {
		for _, family := range []string{"ipv4", "ipv6"} {
			v6 := family == "ipv6"
			if v6 && (c.v4 || c.name == "stale endpoint") {
				continue
			}
			t.Run(c.name+"/"+family, func(t *testing.T) {
				query := c.query
				if query == "" {
					query = "lost"
				}
				id := fmt.Sprintf("%s-%d.test.", query, time.Now().UnixNano())
				if err := r.ask(t, "udp", service(v6), "before-"+id, time.Second); err != nil {
					t.Fatalf("before the fault: %v", err)
				}
				if c.fault != nil {
					undo, err := c.fault()
					if err != nil {
						t.Fatal(err)
					}
					defer func() {
						if err := undo(); err != nil {
							t.Error(err)
						}
					}()
				}
				asked := time.Now()
				timeout := 1000 * time.Millisecond
				if err := r.ask(t, "udp", service(v6), id, timeout); err == nil {
					t.Fatal("was answered")
				}
				got := r.wait(t, id, 1)
				if c.cause == verdict.CauseDeadEndpoint && got.verdict.Cause != c.cause {
					got = r.wait(t, id, 2) // the neighbor is given up after three seconds, later than the lookup
				}
				if got.verdict.Where != c.want || got.verdict.Cause != c.cause {
					t.Errorf("%s/%s, want %s/%s: %s %q", got.verdict.Where, got.verdict.Cause, c.want, c.cause, got.verdict.Text,
						got.verdict.Evidence)
				}
				if d := got.at.Sub(asked); c.within > 0 && d > c.within {
					t.Errorf("judged after %s, want %s", d, c.within)
				}
				if got.process == "" {
					t.Error("without its process")
				}
				t.Logf("%s after %s: %s", got.verdict.Certainty(), got.at.Sub(asked).Round(time.Millisecond), got.verdict.Text)
			})
		}
	}
}

func TestTCPBlockedAfterTruncation(t *testing.T) {
	r := raise(t, all)
	undo, err := r.lab.Node("node-1").Drop(lab.DropRule{Hook: lab.Forward, Proto: unix.IPPROTO_TCP, DstPort: 53})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := undo(); err != nil {
			t.Error(err)
		}
	}()
	const name = "truncated.test."
	if err := r.ask(t, "udp", service(false), name, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := r.ask(t, "tcp", service(false), name, 700*time.Millisecond); err == nil {
		t.Fatal("TCP was answered")
	}
	got := r.wait(t, name, 2)
	if got.verdict.Where != verdict.Node || got.verdict.Cause != verdict.CausePolicyDrop || len(got.related) != 1 ||
		got.related[0].Kind != lookup.Truncated {
		t.Errorf("%s/%s, related %v: %s", got.verdict.Where, got.verdict.Cause, got.related, got.verdict.Text)
	}
}

func TestAnsweredLookups(t *testing.T) {
	r := raise(t, all)
	for _, c := range []struct {
		name, network string
		v6            bool
	}{{"udp4", "udp", false}, {"udp6", "udp", true}, {"tcp4", "tcp", false}, {"tcp6", "tcp", true}} {
		t.Run(c.name, func(t *testing.T) {
			name := c.name + ".test."
			if err := r.ask(t, c.network, service(c.v6), name, time.Second); err != nil {
				t.Fatal(err)
			}
			got := r.wait(t, name, 1)
			if got.verdict.Where != verdict.Answered || got.attempts != 1 || got.process == "" || !got.final {
				t.Errorf("%+v", got)
			}
			// Two pods, two nodes, each passed in and out, both ways.
			if got.hops < 12 {
				t.Errorf("%d hops", got.hops)
			}
		})
	}
}

func TestAConfinedTracerTellsOnlyWhatItSaw(t *testing.T) {
	r := raise(t, func(r *rig) []uint32 {
		return []uint32{uint32(r.lab.Node("node-2").Inode()), uint32(r.server.Inode())}
	})
	const name = "confined.test."
	if err := r.ask(t, "udp", service(false), name, time.Second); err != nil {
		t.Fatal(err)
	}
	got := r.wait(t, name, 1)
	if got.client != 0 || got.process != "" || got.verdict.Where != verdict.Answered {
		t.Errorf("%+v", got)
	}
}
