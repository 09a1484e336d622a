// Package attack holds the tests in which a pod tries to blind or kill the agent: real floods in the lab, against an
// agent with the memory that its manifests give it.
package attack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// scrape reads /metrics of an address.
func scrape(t *testing.T, addr string) cluster.Figures {
	t.Helper()
	f, err := cluster.Scrape(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMain(m *testing.M) {
	lab.Reexec()
	if text := os.Getenv(clientEnv); text != "" {
		if err := run(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// limit is the memory that the manifests give an agent, in bytes.
const limit = 256 << 20

// long says whether the floods are to be as long as make test-attack makes them.
var long = os.Getenv("DNSTRAIL_ATTACK") != ""

// scene is a lab with an attacker and a victim on one node, a server that says nothing on the other, and the agent.
type scene struct {
	*cluster.Cluster
	attacker, victim *lab.Pod
	silent           netip.AddrPort
	server           *lab.Process // who says nothing
}

func raise(t *testing.T) *scene {
	t.Helper()
	return raiseFor(t, hung(t), nil)
}

// raiseFor is raise with the collector that agent and CoreDNS send to; before says what is to run before the agent
// does.
func raiseFor(t *testing.T, collector string, before func(s *scene)) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for network namespaces and eBPF")
	}
	bin := os.Getenv("DNSTRAIL_BIN")
	if bin == "" {
		t.Fatal("DNSTRAIL_BIN is not set: run make test-attack, which builds what is tested")
	}
	pod := func(node int, name string) lab.PodSpec {
		w := lab.Workload{Kind: "Deployment", Name: name}
		return lab.PodSpec{Node: fmt.Sprint("node-", node), Namespace: "shop", Workload: w}
	}
	k, err := cluster.Up(t.Context(), cluster.Config{
		Bin: bin, Collector: collector, Agents: cluster.NoAgent, AgentMemory: limit, Plugin: "keep none",
		Pods: []lab.PodSpec{pod(1, "attacker"), pod(1, "victim"), pod(2, "silent")},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{Cluster: k, attacker: k.Clients[0], victim: k.Clients[1]}
	s.silent = netip.AddrPortFrom(k.Clients[2].V4, 53)
	t.Cleanup(func() {
		if err := k.Down(); err != nil {
			t.Errorf("take the cluster down: %v", err)
		}
		if t.Failed() {
			for _, a := range k.Agents {
				t.Logf("the agent wrote:\n%s", cluster.Tail(a))
			}
		}
	})
	if s.server, err = (spec{Do: "silent", Server: s.silent}).start(k.Clients[2]); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(s)
	}
	if err := k.StartLabAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// hung is a collector that takes connections and says nothing: what an agent cannot send it must not keep.
func hung(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		var all []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			all = append(all, c)
		}
		for _, c := range all {
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// finish waits for a program that ends of itself.
func finish(t *testing.T, p *lab.Process, what string) {
	t.Helper()
	if err := p.Err(); err != nil {
		t.Fatalf("%s: %v\n%s", what, err, p.Stderr())
	}
}

// survives checks that the agent runs, and was not killed for its memory.
func (s *scene) survives(t *testing.T) {
	t.Helper()
	killed, err := s.AgentCgroups[0].Killed()
	if err != nil {
		t.Error(err)
	}
	peak, err := s.AgentCgroups[0].Peak()
	if err != nil {
		t.Error(err)
	}
	t.Logf("the agent's memory: %d MiB of %d at most", peak>>20, limit>>20)
	select {
	case <-s.Agents[0].Done():
		t.Fatalf("the agent ended, %d processes were killed for their memory: %v", killed, s.Agents[0].Err())
	default:
	}
	if killed > 0 {
		t.Errorf("%d processes were killed for their memory", killed)
	}
}

// footer is what the agent counted when it ended.
type footer struct{ lookups, events, lost, unread, evicted int }

func (f footer) String() string {
	return fmt.Sprintf("%d lookups, %d events read, %d lost, %d left unread, %d lookups evicted",
		f.lookups, f.events, f.lost, f.unread, f.evicted)
}

var footerText = regexp.MustCompile(`(\d+) lookups, (\d+) kernel events; lost: (\d+) events ` +
	`.*?(\d+) events left unread, .*?(\d+) lookups evicted`)

// stop ends the agent and gives its counts.
func (s *scene) stop(t *testing.T) footer {
	t.Helper()
	a := s.Agents[0]
	if err := a.Stop(30 * time.Second); err != nil {
		t.Fatalf("the agent: %v", err)
	}
	m := footerText.FindStringSubmatch(a.Stderr())
	if m == nil {
		t.Fatalf("the agent told no counts:\n%s", a.Stderr())
	}
	var n [5]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // digits
	}
	return footer{n[0], n[1], n[2], n[3], n[4]}
}

// events gives the kernel events that the agent read, lost ones included, once no more come.
func (s *scene) events(t *testing.T) int {
	t.Helper()
	last := -1.0
	for range 100 {
		m := scrape(t, s.AgentMetrics[0])
		n := m.Sum("dnstrail_kernel_events_total")
		for _, kind := range []string{"ring_full", "flood", "reentered"} {
			n += m.Sum("dnstrail_losses_total", "kind", kind)
		}
		if n == last {
			return int(n)
		}
		last = n
		time.Sleep(1500 * time.Millisecond) // longer than the metrics stand
	}
	t.Fatal("kernel events do not end")
	return 0
}

// refused gives the datagrams that the silent server's socket had no room for, as the kernel counted them. The drop of
// each is a kernel event of its own: nothing is seen of what the server does read.
func (s *scene) refused(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", s.server.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != "Udp:":
		case names == nil:
			names = fields
		default:
			at := slices.Index(names, "InErrors")
			if at < 0 || at >= len(fields) {
				t.Fatalf("no InErrors in:\n%s", text)
			}
			n, err := strconv.Atoi(fields[at])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no counts of UDP in:\n%s", text)
	return 0
}

// TestNothingIsUnaccountedFor: of a flood each kernel event was read, lost or left unread, and each is counted. What
// one query is worth is measured beforehand, and what the server had no room for is worth one more.
func TestNothingIsUnaccountedFor(t *testing.T) {
	floods := []string{"one-id"}
	if long {
		floods = append(floods, "names")
	}
	for _, do := range floods {
		t.Run(do, func(t *testing.T) {
			s := raise(t)
			const few = 320
			ask := func(n, rate int, prefix string) {
				p, err := spec{Do: do, Server: s.silent, Count: n, Rate: rate, Prefix: prefix}.start(s.attacker)
				if err != nil {
					t.Fatal(err)
				}
				finish(t, p, "the attacker")
			}
			ask(16, 100, "first") // neighbors are resolved
			before := s.events(t)
			ask(few, 200, "few")
			between := s.events(t)
			if (between-before)%few != 0 || between == before {
				t.Fatalf("%d queries made %d kernel events", few, between-before)
			}
			each := (between - before) / few
			count := 20_000
			if long && do == "names" {
				count = 150_000
			}
			start, refused := time.Now(), s.refused(t)
			ask(count, 0, "flood")
			took := time.Since(start)
			f := s.stop(t)
			refused = s.refused(t) - refused
			t.Logf("%d queries in %v, %d kernel events each, and %d that the server had no room for: %v",
				count, took.Round(time.Millisecond), each, refused, f)
			if got, want := f.events+f.lost+f.unread-between, count*each+refused; got != want {
				t.Errorf("%d kernel events are accounted for, %d queries made %d", got, count, want)
			}
			// A query of which no event was read has lost them all.
			if missing := 16 + few + count - f.lookups; missing < 0 || missing*each > f.lost+f.unread {
				t.Errorf("%d queries became nothing: %v", missing, f)
			}
		})
	}
}

// inTime is how long after its end a lookup of a victim is told at the latest. A processor that the flood takes is
// not there to tell.
const inTime = 5 * time.Second

// TestFlood: the agent outlives a flood, and tells of each lookup of a victim meanwhile, in time.
func TestFlood(t *testing.T) {
	const steady = 1200 // a second: lookups that stay in flight for as long as they are waited for
	floods := []struct {
		name string
		spec spec
	}{
		{"random names", spec{Do: "names", Count: 24 * steady, Rate: steady}},
		{"one socket, one ID", spec{Do: "one-id", Count: 20_000}},
		{"random names at once", spec{Do: "names", Count: 300_000}},
		{"spoofed sources", spec{Do: "spoofed", Count: 150_000}},
	}
	lookups := 50
	if !long {
		floods = floods[:1] // the agent did not outlive this one when nothing bounded its memory
	} else {
		floods[0].spec.Count, lookups = 60*steady, 200
	}
	for _, flood := range floods {
		t.Run(flood.name, func(t *testing.T) {
			s := raise(t)
			told := s.follow(t, "victim*")
			usual := told.delays(t, s.asked(t, 20, 20, "victim-before-"), 5*time.Second)
			flood.spec.Server, flood.spec.Prefix = s.silent, "flood"
			start := time.Now()
			p, err := flood.spec.start(s.attacker)
			if err != nil {
				t.Fatal(err)
			}
			outcomes := s.asked(t, lookups, 20, "victim-among-")
			finish(t, p, "the attacker")
			took := time.Since(start)
			delays := told.delays(t, outcomes, 15*time.Second)
			if delays > inTime {
				t.Errorf("a lookup of the victim was told after %v, want %v", delays, inTime)
			}
			s.survives(t)
			m := scrape(t, s.AgentMetrics[0])
			untold := m.Sum("dnstrail_lookups_untold_total")
			if mine := m.Sum("dnstrail_lookups_untold_total", "client_workload", "victim"); mine > 0 {
				t.Errorf("%.0f lookups of the victim were left untold", mine)
			}
			if untold == 0 {
				t.Error("no metric names who floods")
			}
			f := s.stop(t)
			t.Logf("%d queries while %v passed: %v, %.0f untold; the victim's were told after %v at most, %v before",
				flood.spec.Count, took.Round(time.Millisecond), f, untold, delays, usual)
		})
	}
}

// asked makes a victim's lookups and gives how they ended.
func (s *scene) asked(t *testing.T, n, rate int, prefix string) []outcome {
	t.Helper()
	do := spec{Do: "ask", Server: netip.AddrPortFrom(lab.ServiceV4, 53), Count: n, Rate: rate, Prefix: prefix}
	var out bytes.Buffer // a process keeps but the end of what it writes
	p, err := do.startTo(s.victim, &out)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, p, "the victim")
	var all []outcome
	for d := json.NewDecoder(&out); d.More(); {
		var o outcome
		if err := d.Decode(&o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	if len(all) != n {
		t.Fatalf("the victim made %d lookups of %d", len(all), n)
	}
	return all
}

// rows are those that a follower of the agent has been told, by name, each with when.
type rows struct {
	mu sync.Mutex
	by map[string]told
}

type told struct {
	row output.Row
	at  time.Time
}

// follow starts an observe that asks the agent for rows.
func (s *scene) follow(t *testing.T, name string) *rows {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(os.Getenv("DNSTRAIL_BIN"), "dnstrail"))
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	if _, err := s.Start(lab.Command{
		Path: bin, Stdout: w,
		Args: []string{"observe", "--socket", s.AgentSocket(), "--follow", "-o", "jsonl", "--name", name},
	}); err != nil {
		t.Fatal(err)
	}
	all := &rows{by: map[string]told{}}
	go func() {
		for d := json.NewDecoder(r); ; {
			var row output.Row
			if d.Decode(&row) != nil {
				return
			}
			all.mu.Lock()
			if _, again := all.by[row.Name]; !again && row.Verdict.Where != "" && !row.Own {
				all.by[row.Name] = told{row, time.Now()}
			}
			all.mu.Unlock()
		}
	}()
	return all
}

// delays waits until each lookup was told, and gives the longest time from its end to its row.
func (r *rows) delays(t *testing.T, outcomes []outcome, patience time.Duration) time.Duration {
	t.Helper()
	j := r.judge(t, outcomes, patience)
	if j.untold > 0 || j.wrong > 0 {
		t.Errorf("of %d lookups of the victim %d were not told, %d told wrong", len(outcomes), j.untold, j.wrong)
	}
	return j.longest
}

// judgment is how lookups were told: how many were not, how many wrong, and of these how many with certainty or without
// a word of lost events; and the longest time from the end of one to its row.
type judgment struct {
	untold, wrong, certain, unaware int
	longest                         time.Duration
}

// judge waits until each lookup was told, or for so long.
func (r *rows) judge(t *testing.T, outcomes []outcome, patience time.Duration) (j judgment) {
	t.Helper()
	end := time.Now().Add(patience)
	for _, o := range outcomes {
		for {
			r.mu.Lock()
			x, ok := r.by[o.Name]
			r.mu.Unlock()
			if ok {
				if o.Answered {
					j.longest = max(j.longest, x.at.Sub(o.Ended))
				}
				if v := x.row.Verdict; o.Answered != (x.row.Result != output.Lost) {
					j.wrong++
					if v.Certainty == trace.Certain {
						j.certain++
					}
					if !strings.Contains(strings.Join(v.Evidence, " "), "events were lost") {
						j.unaware++
					}
					t.Logf("%s: answered %v, told %s %+v", o.Name, o.Answered, x.row.Result, v)
				}
				break
			}
			if time.Now().After(end) {
				j.untold++
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return j
}
