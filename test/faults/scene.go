package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	view "github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/store"
)

// scene is a running cluster with everything that watches it.
type scene struct {
	cluster *cluster.Cluster
	client  *lab.Pod
	idle    *lab.Pod // in which nothing listens
	odd     *lab.Pod // which answers what others were asked
	second  *lab.Pod // of another CoreDNS
	peer    *lab.Pod // another client, on the client's node
	options options
	dummies bool // the client's node has the devices of NodeLocal DNSCache
	setting setting
	slow    int // see options
	store   *store.Store
	// observe has the rows of an agent that sees all, nil where there is none; joined has those of the store.
	observe, joined *rows
	agent           *rowapi.Client // of the agent that sees the client; nil until it is asked

	stopStore context.CancelFunc
	stored    chan error
	api       string // where the store gives rows

	mu   sync.Mutex
	made []*row // the rows of the matrix so far
}

// wholeRun lets the store keep the spans of all lookups of a lab: every row is judged once more at the end.
var wholeRun = store.Limits{Spans: 2_000_000, Bytes: 2 << 30}

// slowStart is how long observe may take until it sees lookups, on a machine that is not called slower: it ends a
// hopeless wait.
const slowStart = 90 * time.Second

// chain is CoreDNS's, with a zone in which it loses queries itself.
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
    forward . %s`, lab.UpstreamV4)
}

// nobodysAddress is on the underlay, and no machine has it.
var nobodysAddress = netip.MustParseAddr("192.168.100.201")

// noRouteAddress is for documentation (RFC 5737).
var noRouteAddress = netip.MustParseAddr("192.0.2.53")

// zones are CoreDNS's further server blocks, each with a way of its own to fail.
func zones() []cluster.Zone {
	forward := "forward . " + lab.UpstreamV4.String()
	renamed := func(zone, to string) cluster.Zone {
		return cluster.Zone{Name: zone + ".example:53",
			Chain: fmt.Sprintf("rewrite name regex (.*)[.]%s[.]example {1}.%s.example.com answer auto\n    errors\n    %s", zone,
				to, forward)}
	}
	return []cluster.Zone{
		{Name: "erratic.example:53", Chain: "erratic {\n        drop 1\n    }"},
		renamed("renamed", "well"), renamed("renamed-silent", "silent"), renamed("renamed-servfail", "servfail"),
		{Name: "alias.example:53", Chain: "errors\n    template ANY ANY alias.example {\n" +
			"        match \"^(?P<label>[^.]+)[.]alias[.]example[.]$\"\n" +
			"        answer \"{{ .Name }} 60 IN CNAME {{ .Group.label }}.silent.example.com.\"\n    }"},
		{Name: "other-question.example:53", Chain: "errors\n    rewrite continue type A TXT\n    template IN TXT " +
			"other-question.example {\n        answer \"{{ .Name }} 60 IN TXT x\"\n    }"},
		{Name: "limit.example:53", Chain: "errors\n    forward . " + lab.UpstreamV4.String() +
			" {\n        max_concurrent 1\n    }"},
		{Name: "dead-upstream.example:53", Chain: "errors\n    forward . " + nobodysAddress.String()},
		{Name: "no-route.example:53", Chain: "errors\n    forward . " + noRouteAddress.String()},
		{Name: "nxdomain-here.example:53", Chain: "errors\n    template ANY ANY nxdomain-here.example {\n        rcode " +
			"NXDOMAIN\n    }"},
		{Name: "servfail-here.example:53", Chain: "errors\n    template ANY ANY servfail-here.example {\n        rcode " +
			"SERVFAIL\n    }"},
		{Name: ".:5353", Chain: "errors\n    " + forward},
	}
}

func raise(ctx context.Context, o options, set setting, overlay lab.Overlay) (s *scene, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s = &scene{slow: max(o.slow, 1), setting: set, options: o, api: api.Addr().String()}
	s.store, s.stored = store.New(wholeRun), make(chan error, 2)
	storeCtx, stop := context.WithCancel(context.Background())
	s.stopStore = stop
	go func() { s.stored <- s.store.ServeGRPC(storeCtx, ln) }()
	go func() { s.stored <- store.ServeHTTP(storeCtx, api, view.Handler(s.store, http.NotFoundHandler())) }()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.down())
		}
	}()
	s.cluster, err = cluster.Up(ctx, cluster.Config{
		Bin: o.bin, Collector: ln.Addr().String(), Corefile: chain(), Zones: zones(), Sample: o.sample,
		Agents: cluster.NoAgent, Overlay: overlay,
		AskBack: o.asks(),
	})
	if err != nil {
		return s, err
	}
	for _, p := range []struct {
		to         **lab.Pod
		node, name string
	}{{&s.client, set.clientNode(), "cart"}, {&s.idle, "node-2", "idle"}, {&s.odd, "node-2", "odd"}, {&s.second, "node-2",
		"second"}, {&s.peer, set.clientNode(), "till"}} {
		if *p.to, err = s.cluster.AddPod(
			lab.PodSpec{Node: p.node, Namespace: "shop", Workload: lab.Workload{Kind: "Deployment", Name: p.name}}); err != nil {
			return s, err
		}
		// A pod has a process of its own from its start to its end, the pause container's: by that it is known.
		if _, err = (*p.to).Start(lab.Command{Path: "sleep", Args: []string{"infinity"}}); err != nil {
			return s, err
		}
	}
	if set == inHost {
		if err = s.cluster.StartLabAgent(ctx); err == nil {
			s.observe, err = s.startObserve(
				ctx, o.bin, append(s.cluster.NetNSArgs(), "--identity-file", s.cluster.IdentityFile)...)
		}
	} else {
		err = s.cluster.StartNodeAgents(ctx)
	}
	if err == nil {
		s.joined, err = s.startObserve(ctx, o.bin, "--store", s.api)
	}
	return s, err
}

// startObserve starts `dnstrail observe` with further arguments, and reads its rows.
func (s *scene) startObserve(ctx context.Context, bin string, args ...string) (*rows, error) {
	path, err := filepath.Abs(filepath.Join(bin, "dnstrail"))
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	p, err := s.cluster.Start(lab.Command{Path: path, Args: append([]string{"observe", "-o", "jsonl"}, args...),
		Stdout: w})
	if err != nil {
		return nil, err
	}
	go func() {
		<-p.Done()
		_ = w.Close() // never fails: io.Pipe
	}()
	rows := &rows{}
	go rows.read(r)
	// It says nothing when it is ready: ask until it has seen a lookup.
	limit := time.Duration(s.slow) * slowStart
	for end := time.Now().Add(limit); ; {
		zone := "example."
		if s.options.partial() {
			zone = "servfail-here.example." // which is kept, whatever the share
		}
		// Over both families: a tracer knows a service by a lookup that it saw translated.
		for _, f := range families {
			conn, err := s.send(f, fmt.Sprintf("%s%d.%s", readyPrefix, time.Now().UnixNano(), zone))
			if err != nil {
				return nil, err
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // never fails: an open UDP socket
			_, _ = conn.Read(make([]byte, 512))                   // no answer is no row either
			_ = conn.Close()
		}
		for range 100 { // rows wait a while to be put in order, or for what another node's agent sends
			if rows.any() {
				return rows, nil
			}
			time.Sleep(50 * time.Millisecond)
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("dnstrail observe ended at its start: %w\n%s", p.Err(), cluster.Tail(p))
		case <-ctx.Done():
			return nil, ctx.Err()
		default:
		}
		if time.Now().After(end) {
			_ = p.Stop(3 * time.Second) // its last line says what it did see
			return nil, errors.Join(fmt.Errorf("dnstrail observe saw no lookup in %v\n%s", limit, cluster.Tail(p)),
				rows.problem())
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

// add puts a row of the matrix to those that lookups may belong to.
func (s *scene) add(r *row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = append(s.made, r)
}

// begin notes that the client begins to ask.
func (s *scene) begin(r *row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.begin = time.Now()
}

// owner gives the row of the matrix that a lookup belongs to, nil if none: the one whose label its name holds, and that
// which was being made when it began if it holds none of this scene's.
func (s *scene) owner(l *output.Row) *row {
	s.mu.Lock()
	defer s.mu.Unlock()
	labels := strings.Split(strings.ToLower(l.Name), ".")
	var last *row
	for _, r := range s.made {
		label, _, _ := strings.Cut(r.name, ".")
		if slices.Contains(labels, label) {
			return r
		}
		if !r.begin.IsZero() && !l.Time.Before(r.begin) {
			last = r
		}
	}
	return last
}
