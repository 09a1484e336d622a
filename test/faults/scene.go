package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
)

// scene is a running cluster with everything that watches it.
type scene struct {
	cluster *cluster.Cluster
	client  *lab.Pod
	idle    *lab.Pod // in which nothing listens
	odd     *lab.Pod // which answers what others were asked
	store   *store.Store
	rows    *rows
	observe *lab.Process

	stopStore context.CancelFunc
	stored    chan error
	api       string // where the store gives rows
}

// chain is CoreDNS's, with zones in which it loses queries itself.
func chain() string {
	return fmt.Sprintf(`prometheus 0.0.0.0:9153
    errors
    acl acl-drop.example {
        drop
    }
    template ANY ANY cluster.local {
        rcode NXDOMAIN
    }
    cache 1
    forward . %s
}
erratic.example:53 {
    erratic {
        drop 1
    }`, lab.UpstreamV4)
}

func raise(ctx context.Context, bin string, agents cluster.Agents, overlay lab.Overlay) (s *scene, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s = &scene{store: store.New(store.Limits{}), rows: &rows{}, stored: make(chan error, 2), api: api.Addr().String()}
	storeCtx, stop := context.WithCancel(context.Background())
	s.stopStore = stop
	go func() { s.stored <- s.store.ServeGRPC(storeCtx, ln) }()
	go func() { s.stored <- store.ServeHTTP(storeCtx, api, joined.Handler(s.store, http.NotFoundHandler())) }()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.down())
		}
	}()
	if s.cluster, err = cluster.Up(ctx, cluster.Config{Bin: bin, Collector: ln.Addr().String(), Corefile: chain(), Agents: cluster.NoAgent, Overlay: overlay}); err != nil {
		return s, err
	}
	for _, p := range []struct {
		to         **lab.Pod
		node, name string
	}{{&s.client, "node-1", "cart"}, {&s.idle, "node-2", "idle"}, {&s.odd, "node-2", "odd"}} {
		if *p.to, err = s.cluster.AddPod(lab.PodSpec{Node: p.node, Namespace: "shop", Workload: lab.Workload{Kind: "Deployment", Name: p.name}}); err != nil {
			return s, err
		}
	}
	// A node has processes of its own: by way of them its connection tracking can be read.
	for _, n := range s.cluster.Nodes() {
		if _, err = n.Start(lab.Command{Path: "sleep", Args: []string{"infinity"}}); err != nil {
			return s, err
		}
	}
	if agents == cluster.AgentPerNode {
		if err = s.cluster.StartNodeAgents(ctx); err == nil {
			err = s.startObserve(ctx, bin, "--store", s.api)
		}
		return s, err
	}
	if err = s.cluster.StartLabAgent(ctx); err == nil {
		err = s.startObserve(ctx, bin, append(s.cluster.NetNSArgs(), "--identity-file", s.cluster.IdentityFile)...)
	}
	return s, err
}

// startObserve starts `dnstrail observe` with further arguments, and reads its rows.
func (s *scene) startObserve(ctx context.Context, bin string, args ...string) (err error) {
	path, err := filepath.Abs(filepath.Join(bin, "dnstrail"))
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	s.observe, err = s.cluster.Start(lab.Command{Path: path, Args: append([]string{"observe", "-o", "jsonl"}, args...), Stdout: w})
	if err != nil {
		return err
	}
	go func() {
		<-s.observe.Done()
		_ = w.Close() // never fails: io.Pipe
	}()
	go s.rows.read(r)
	// It says nothing when it is ready: ask until it has seen a lookup.
	for end := time.Now().Add(10 * time.Second); ; {
		name := fmt.Sprintf("ready-%d.example.", time.Now().UnixNano())
		conn, err := s.send(families[0], name)
		if err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // never fails: an open UDP socket
		_, _ = conn.Read(make([]byte, 512))                   // no answer is no row either
		_ = conn.Close()
		for range 100 { // rows wait a while to be put in order, or for what another node's agent sends
			if row, _ := s.rows.find(&row{name: name, fault: &fault{}}, func(*output.Row) bool { return true }); row != nil {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
		}
		select {
		case <-s.observe.Done():
			return fmt.Errorf("dnstrail observe ended at its start: %w\n%s", s.observe.Err(), cluster.Tail(s.observe))
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(end) {
			_ = s.observe.Stop(3 * time.Second) // its last line says what it did see
			return errors.Join(fmt.Errorf("dnstrail observe saw no lookup in 10 s\n%s", cluster.Tail(s.observe)), s.rows.problem())
		}
	}
}

func (s *scene) down() error {
	var err error
	if s.cluster != nil {
		err = s.cluster.Down()
	}
	s.stopStore()
	return errors.Join(err, <-s.stored, <-s.stored)
}

// rows are what `dnstrail observe` printed, and when.
type rows struct {
	mu   sync.Mutex
	list []seen
	bad  error
}

type seen struct {
	row *output.Row
	at  time.Time
}

func (r *rows) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := new(output.Row)
		d := json.NewDecoder(strings.NewReader(lines.Text()))
		d.DisallowUnknownFields()
		err := d.Decode(row)
		r.mu.Lock()
		if err != nil {
			r.bad = fmt.Errorf("a row of dnstrail observe: %w: %s", err, lines.Text())
		} else {
			r.list = append(r.list, seen{row, time.Now()})
		}
		r.mu.Unlock()
	}
}

// problem gives what was wrong with a row, if one was.
func (r *rows) problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad
}

// find gives the newest row for the lookup that is judged, and when the first came that ok accepts.
func (r *rows) find(of *row, ok func(*output.Row) bool) (last *output.Row, first time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.list {
		if !strings.EqualFold(strings.TrimSuffix(s.row.Name, "."), strings.TrimSuffix(of.name, ".")) || s.row.Serves != "" || s.row.Transport != of.fault.transport() || !of.judged.is(s.row.Type) {
			continue
		}
		last = s.row
		if first.IsZero() && ok(s.row) {
			first = s.at
		}
	}
	return last, first
}
