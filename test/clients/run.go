package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
)

type options struct {
	bin, extracted string
	only           *regexp.Regexp
	core           bool // only the clients that are marked so
}

// scene is a running cluster, with a pod for each client.
type scene struct {
	cluster *cluster.Cluster
	store   *store.Store
	rows    *rows
	pods    map[string]*lab.Pod // by client
}

// together is how many clients run at once: most of their time is waiting.
const together = 3

// The spans of a flood wait until they are sent, all of them: what is judged is what they say.
const (
	agentMemory  = "4GiB"
	coreDNSQueue = "OTEL_BSP_MAX_QUEUE_SIZE=262144"
)

// run runs the clients and gives what came of each.
func run(ctx context.Context, o options, dir string) (results []*result, err error) {
	t, err := makeTools(ctx, dir, o.extracted, !o.core)
	if err != nil {
		return nil, err
	}
	var chosen []client
	for _, c := range clients(t) {
		if o.only.MatchString(c.name) && (c.core || !o.core) {
			chosen = append(chosen, c)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &scene{store: store.New(store.Limits{Spans: 2_000_000, Bytes: 4 << 30}), rows: &rows{},
		pods: map[string]*lab.Pod{}}
	storeCtx, stop := context.WithCancel(context.Background())
	stored := make(chan error, 1)
	go func() { stored <- s.store.ServeGRPC(storeCtx, ln) }()
	defer func() {
		if s.cluster != nil {
			err = errors.Join(err, s.cluster.Down())
		}
		stop()
		err = errors.Join(err, <-stored)
	}()
	if err := s.raise(ctx, o.bin, ln.Addr().String(), chosen); err != nil {
		return nil, err
	}
	results = make([]*result, len(chosen))
	free := make(chan struct{}, together)
	var wg sync.WaitGroup
	for i, c := range chosen {
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			results[i] = s.one(ctx, c)
		})
	}
	wg.Wait()
	// What was lost last is reported and exported when it is given up.
	select {
	case <-time.After(8 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := s.rows.problem(); err != nil {
		return nil, err
	}
	switch unsent, words, err := s.cluster.UnsentSpans(ctx); {
	case err != nil:
		return nil, err
	case unsent > 0:
		return nil, fmt.Errorf("the traces cannot be judged: %s", words)
	}
	for _, r := range results {
		s.judge(r)
	}
	return results, nil
}

func (s *scene) raise(ctx context.Context, bin, collector string, chosen []client) (err error) {
	var specs []lab.PodSpec
	for _, c := range chosen {
		specs = append(specs, lab.PodSpec{
			Node: "node-1", Namespace: "shop",
			Workload:    lab.Workload{Kind: "Deployment", Name: strings.ReplaceAll(c.name, " ", "-")},
			Nameservers: c.nameservers, ResolvOptions: c.options,
		})
	}
	specs = append(specs, lab.PodSpec{Node: "node-1", Namespace: "shop", Name: "ready"})
	s.cluster, err = cluster.Up(ctx, cluster.Config{
		Bin: bin, Collector: collector, Pods: specs, Agents: cluster.NoAgent, Env: []string{coreDNSQueue},
		AgentArgs: []string{"--memory", agentMemory},
	})
	if err != nil {
		return err
	}
	for i, c := range chosen {
		s.pods[c.name] = s.cluster.Clients[i]
	}
	if err := s.cluster.StartLabAgent(ctx); err != nil {
		return err
	}
	return s.startObserve(ctx, bin, s.cluster.Clients[len(chosen)])
}

// startObserve starts `dnstrail observe`, confined to the lab, and waits until it has seen a lookup of the pod.
func (s *scene) startObserve(ctx context.Context, bin string, ready *lab.Pod) error {
	path, err := filepath.Abs(filepath.Join(bin, "dnstrail"))
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	args := append([]string{"observe", "-o", "jsonl", "--identity-file", s.cluster.IdentityFile}, s.cluster.NetNSArgs()...)
	p, err := s.cluster.Start(lab.Command{Path: path, Args: args, Stdout: w})
	if err != nil {
		return err
	}
	go func() {
		<-p.Done()
		_ = w.Close() // never fails: io.Pipe
	}()
	go s.rows.read(r)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if _, err := ready.Run(ctx, "dig", "+tries=1", "+time=1", "ready.example.com."); err != nil {
			return err
		}
		for range 20 {
			if len(s.rows.of(ready)) > 0 {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	_ = p.Stop(3 * time.Second) // its last line says what it did see
	return fmt.Errorf("dnstrail observe saw no lookup in 20 s\n%s", cluster.Tail(p))
}

// one runs a client in its pod and captures beside it.
func (s *scene) one(ctx context.Context, c client) *result {
	r := &result{client: c, pod: s.pods[c.name]}
	capture, err := startCapture(r.pod)
	if err != nil {
		r.err = err
		return r
	}
	if c.server != nil {
		server, err := r.pod.Start(*c.server)
		if err == nil {
			defer func() { _ = server.Stop(3 * time.Second) }() // how it ends is of no interest
			err = listening(ctx, r.pod, server, c.local)
		}
		if err != nil {
			_, stopErr := capture.stop()
			r.err = errors.Join(err, stopErr)
			return r
		}
	}
	for _, command := range c.runs {
		var out bytes.Buffer
		command.Stdout, command.Stderr = &out, &out
		p, err := r.pod.Start(command)
		if err != nil {
			r.err = errors.Join(r.err, err)
			break
		}
		select {
		case <-p.Done():
		case <-time.After(90 * time.Second):
			p.Kill()
			r.err = errors.Join(r.err, fmt.Errorf("%s did not end in 90 s", command.Path))
		case <-ctx.Done():
			p.Kill()
		}
		<-p.Done()
		// How a client likes its answers is not what is judged: its words are shown where it asked nothing.
		if r.said.Len() < 1<<16 {
			fmt.Fprintf(&r.said, "%s: %v\n%s", command.Path, p.Err(), &out)
		}
	}
	time.Sleep(300 * time.Millisecond) // for answers on their way
	asked, err := capture.stop()
	r.asked, r.silent, r.err = asked, capture.silent(), errors.Join(r.err, err)
	if len(asked) == 0 {
		r.err = errors.Join(r.err, fmt.Errorf("asked nothing:\n%s", &r.said))
	}
	return r
}

// listening waits until a DNS server in the pod listens.
func listening(ctx context.Context, p *lab.Pod, server *lab.Process, at netip.Addr) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := p.Dial(ctx, "tcp", netip.AddrPortFrom(at, dnsPort).String())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-server.Done():
			return fmt.Errorf("the server in %s ended at its start: %w\n%s", p.Name, server.Err(), cluster.Tail(server))
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("the server in %s does not listen: %w\n%s", p.Name, err, cluster.Tail(server))
		}
	}
}

// rows are what `dnstrail observe` printed.
type rows struct {
	mu   sync.Mutex
	list []*output.Row
	bad  error
}

func (r *rows) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := new(output.Row)
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		err := d.Decode(row)
		r.mu.Lock()
		if err != nil {
			r.bad = fmt.Errorf("a row of dnstrail observe: %w: %s", err, lines.Text())
		} else {
			r.list = append(r.list, row)
		}
		r.mu.Unlock()
	}
}

func (r *rows) problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad
}

// of gives the rows of the pod's lookups, of several revisions the last.
func (r *rows) of(p *lab.Pod) []*output.Row {
	type id struct{ trace, client, server, name, qtype, transport string }
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*output.Row
	last := map[id]int{}
	for _, row := range r.list {
		if !askedIn(p, row) {
			continue
		}
		k := id{row.TraceID, row.Client.Address, row.Server, row.Name, row.Type, row.Transport}
		if i, ok := last[k]; ok {
			if row.Revision > all[i].Revision {
				all[i] = row
				continue
			}
			// The same revision twice is two rows of one lookup, and stays in sight.
		}
		last[k] = len(all)
		all = append(all, row)
	}
	return all
}

func askedIn(p *lab.Pod, row *output.Row) bool {
	a, err := netip.ParseAddrPort(row.Client.Address)
	if err != nil {
		return false
	}
	if !a.Addr().IsLoopback() {
		return a.Addr() == p.V4 || a.Addr() == p.V6
	}
	for _, h := range row.Hops {
		if h.NetNS != 0 {
			return uint64(h.NetNS) == p.Inode()
		}
	}
	return false
}
