package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/page"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// made is what a workload asked, by its own count.
type made struct {
	Sent      int `json:"sent"`
	Completed int `json:"completed"`
	Lost      int `json:"lost"`
}

// walkQueries is how many queries glibc makes for a name outside the cluster, with three search domains, ndots:5, and A
// and AAAA of each name.
const walkQueries = 4 * 2

// asker is a workload of the page's lab: what it asks each round.
type asker struct {
	workload, node string
	// names gives the names of a round, which dnsperf asks at a rate of so many a second.
	names func(round int) []string
	rate  int
	// resolve, if not "", is a name that the pod's resolver resolves instead, once a second, times times.
	resolve string
	times   int
}

func same(n int, names ...string) func(int) []string {
	return func(int) (list []string) {
		for i := range n {
			list = append(list, names[i%len(names)])
		}
		return list
	}
}

// The faults of the page's lab.
const (
	blocked  = "billing"  // what this workload sends to node-2 is lost between the nodes
	wasteful = "checkout" // this one resolves names by its search path
	delayed  = "reports"  // this one's names have a slow upstream
)

var askers = []asker{
	{workload: "web", node: "node-2", rate: 25, names: same(100, "kubernetes.default.svc.cluster.local",
		"payments.shop.svc.cluster.local", "www.example.com", "cdn.example.com")},
	{workload: "cart", node: "node-1", rate: 15, names: same(60, "payments.shop.svc.cluster.local", "www.example.com")},
	{workload: blocked, node: "node-1", rate: 3, names: same(10, "payments.shop.svc.cluster.local")},
	{workload: delayed, node: "node-1", rate: 4, names: func(round int) (list []string) {
		for i := range 15 {
			list = append(list, fmt.Sprintf("delay-300ms.r%d-%d.example.org", round, i))
		}
		return list
	}},
	{workload: wasteful, node: "node-2", resolve: "api.example.com", times: 4},
}

// sight is the page's lab.
type sight struct {
	dir       string
	collector *collector
	cluster   *cluster.Cluster
	mu        sync.Mutex
	made      map[string]made
}

// look runs traffic and faults, and serves the page, until ctx ends.
func look(ctx context.Context, c config) (err error) {
	s := &sight{made: map[string]made{}}
	if s.dir, err = os.MkdirTemp("", "dnstrail-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	if s.collector, err = newCollector(""); err != nil {
		return err
	}
	defer s.collector.close()
	var pods []lab.PodSpec
	for _, a := range askers {
		pods = append(pods, lab.PodSpec{Node: a.node, Namespace: "shop",
			Workload: lab.Workload{Kind: "Deployment", Name: a.workload}})
	}
	s.cluster, err = cluster.Up(ctx, cluster.Config{
		Bin: c.bin, Collector: s.collector.addr, Agents: cluster.AgentPerNode, AskBack: true, Pods: pods,
		Zones: []cluster.Zone{{Name: "example.org", Chain: "errors\n    cache 30\n    forward . " + lab.UpstreamV6.String()}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cluster.Down()) }()
	for _, p := range s.cluster.Clients {
		// A pod has a process that lives as long as it does: kubelet's pause.
		if _, err := p.Start(lab.Command{Path: "sleep", Args: []string{"infinity"}}); err != nil {
			return err
		}
	}
	if _, err := s.cluster.Underlay.Drop(lab.DropRule{Hook: lab.Switched, Proto: unix.IPPROTO_UDP, DstPort: 53,
		Src: s.pod(blocked).V4}); err != nil {
		return err
	}
	where := c.page
	if where == "1" {
		where = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", where)
	if err != nil {
		return err
	}
	kept := s.collector.store
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- store.ServeHTTP(serving, listener, access.Local(nil,
			joined.Handler(kept, page.Handler(&joined.Rows{Store: kept}, kept, 0, traceapi.Handler(kept)))))
	}()
	defer func() { stop(); err = errors.Join(err, <-served) }()
	introduceSight(listener.Addr().String())
	for round := 1; ctx.Err() == nil && (c.rounds == 0 || round <= c.rounds); round++ {
		if err := s.round(ctx, round); err != nil && ctx.Err() == nil {
			return err
		}
	}
	if ctx.Err() == nil {
		if err := s.settled(ctx); err != nil {
			return err
		}
		line, err := json.Marshal(s.made)
		if err != nil {
			return err
		}
		fmt.Printf("made %s\n", line)
	}
	<-ctx.Done()
	return nil
}

func introduceSight(addr string) {
	fmt.Printf(
		`Two nodes, CoreDNS on node-2, five workloads in shop that ask all the time. Three things are wrong. To find them,

  open http://%s/

  Now   the red cell of the table from node to node: what %s on node-1 asks is lost on its way to node-2
  Who   the upstreams by p50: one of them takes 300 ms, and shop/%s waits for it
  Who   the clients by search path: shop/%s asks eight queries for each name
  Rows  a lookup's time opens its walk

The same in words: dnstrail report --store http://%[1]s --since 5m
Ctrl-C ends it.
`, addr, blocked, delayed, wasteful)
}

func (s *sight) pod(workload string) *lab.Pod {
	for _, p := range s.cluster.Clients {
		if p.Workload.Name == workload {
			return p
		}
	}
	panic("no workload " + workload)
}

// round has every workload ask once what it asks a round.
func (s *sight) round(ctx context.Context, n int) error {
	errs := make(chan error, len(askers))
	for _, a := range askers {
		go func() {
			m, err := s.ask(ctx, &a, n)
			if err != nil {
				err = fmt.Errorf("shop/%s: %w", a.workload, err)
			}
			s.mu.Lock()
			all := s.made[a.workload]
			s.made[a.workload] = made{all.Sent + m.Sent, all.Completed + m.Completed, all.Lost + m.Lost}
			s.mu.Unlock()
			errs <- err
		}()
	}
	var all error
	for range askers {
		all = errors.Join(all, <-errs)
	}
	return all
}

// ask has a workload ask, and gives what it counted.
func (s *sight) ask(ctx context.Context, a *asker, round int) (made, error) {
	pod := s.pod(a.workload)
	if a.resolve != "" {
		for range a.times {
			if _, err := pod.Run(ctx, "getent", "ahosts", a.resolve); err != nil {
				return made{}, err
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		return made{Sent: a.times * walkQueries, Completed: a.times * walkQueries}, nil
	}
	file := filepath.Join(s.dir, a.workload)
	text := strings.Join(a.names(round), " A\n") + " A\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return made{}, err
	}
	out, err := pod.Run(ctx, "dnsperf", "-s", lab.ServiceV4.String(), "-d", file, "-n", "1", "-t", "2", "-Q",
		strconv.Itoa(a.rate))
	if err != nil {
		return made{}, fmt.Errorf("%w\n%s", err, out)
	}
	return counted(out)
}

var counts = regexp.MustCompile(`Queries (sent|completed|lost): +(\d+)`)

// counted reads what dnsperf says that it did.
func counted(out string) (m made, err error) {
	found := 0
	for _, match := range counts.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(match[2])
		if err != nil {
			return m, err
		}
		switch found++; match[1] {
		case "sent":
			m.Sent = n
		case "completed":
			m.Completed = n
		default:
			m.Lost = n
		}
	}
	if found != 3 {
		return m, fmt.Errorf("dnsperf counts %d things, want 3, in:\n%s", found, out)
	}
	return m, nil
}

// settled waits until the store has all that was asked: what is lost is known some seconds after the rest.
func (s *sight) settled(ctx context.Context) error {
	const limit = time.Minute
	lost := s.made[blocked].Lost
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Millisecond) {
		n := 0
		for _, t := range s.collector.store.Traces(trace.Filter{}) {
			if t.Client() != nil && t.Verdict().Lost() {
				n++
			}
		}
		if n >= lost {
			return s.collector.store.Settle(ctx, 3*time.Second)
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("%d lookups are lost in the store after %v, dnsperf lost %d", n, limit, lost)
		}
	}
}
