// Package commands runs dnstrail's commands as a user does, in the lab: walk and doctor as a pod, explain on what two
// agents and CoreDNS saw.
package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/page"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// scene is a cluster with a client pod that lives, and a store that CoreDNS and an agent a node send to.
type scene struct {
	*cluster.Cluster
	pod   *lab.Pod
	store *store.Store
	api   string
	bin   string
}

// up makes the scene.
func up(t *testing.T) *scene {
	t.Helper()
	return upWith(t, cluster.Config{})
}

// upWith makes the scene with more pods beside the client's, and with other configuration.
func upWith(t *testing.T, c cluster.Config) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for network namespaces and eBPF")
	}
	bin := os.Getenv("DNSTRAIL_BIN")
	if bin == "" {
		t.Fatal("DNSTRAIL_BIN is not set: run make test-system, which builds what is tested")
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	otlp, api := listen(), listen()
	s := &scene{store: store.New(store.Limits{}), api: api.Addr().String(), bin: bin}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { _ = s.store.ServeGRPC(ctx, otlp) }()
	go func() {
		_ = store.ServeHTTP(ctx, api,
			joined.Handler(s.store, page.Handler(&joined.Rows{Store: s.store}, s.store, 0, traceapi.Handler(s.store))))
	}()
	c.Bin, c.Collector, c.Agents = bin, otlp.Addr().String(), cluster.AgentPerNode
	c.Pods = append([]lab.PodSpec{
		{Node: "node-1", Namespace: "shop", Workload: lab.Workload{Kind: "Deployment", Name: "cart"}},
	}, c.Pods...)
	k, err := cluster.Up(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Down(); err != nil {
			t.Errorf("take the cluster down: %v", err)
		}
	})
	s.Cluster, s.pod = k, k.Clients[0]
	// A pod has a process that lives as long as it does: kubelet's pause.
	for _, p := range k.Clients {
		if _, err := p.Start(lab.Command{Path: "sleep", Args: []string{"600"}}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run runs dnstrail on the host and gives what it printed.
func (s *scene) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	p, err := s.Start(lab.Command{Path: filepath.Join(s.bin, "dnstrail"), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		p.Kill()
		t.Fatalf("dnstrail %s has not ended after 30 s:\n%s", strings.Join(args, " "), p.Stdout()+p.Stderr())
	}
	if err := p.Err(); err != nil {
		return p.Stdout(), fmt.Errorf("%w: %s", err, p.Stderr())
	}
	return p.Stdout(), nil
}

// reads fails the test unless text has all the words, in this order, and no line over 100 cells.
func reads(t *testing.T, text string, words ...string) {
	t.Helper()
	rest := text
	for _, w := range words {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("%q is missing, or not in its place, in:\n%s", w, text)
			return
		}
		rest = after
	}
	for l := range strings.Lines(text) {
		if n := runewidth.StringWidth(strings.TrimRight(l, "\n")); n > 100 {
			t.Errorf("%d cells wide: %s", n, l)
		}
	}
}

func TestCommands(t *testing.T) {
	s := up(t)
	from := []string{"--from", "shop/" + s.pod.Name, "--identity-file", s.IdentityFile}
	walk := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := s.run(t, append(append([]string{"walk"}, args...), from...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}

	t.Run("walk", func(t *testing.T) {
		out := walk(t, "delay-20ms.example.com")
		reads(t, out, "as shop/"+s.pod.Name+", of 10.96.0.10:53",
			"eth0 out", "10.96.0.10:53", "cbr0 in", "now ", "10.244.2.10:53", "socket read", "coredns[",
			"192.168.100.53:53", "now 10.96.0.10:53 > ", "socket read", "dnstrail[",
			"NOERROR  delay-20ms.example.com. A  in ", "network there: ", "the upstream", "network back: ")
		reads(t, walk(t, "delay-20ms.example.com", "--hops"),
			"NOERROR  delay-20ms.example.com. A  in ", "service translation", "DNS server", "client socket")
	})
	t.Run("walk over IPv6 and TCP", func(t *testing.T) {
		out := walk(t, "www.example.com", "AAAA", "--server", "fd00:10:96::a", "--tcp")
		reads(t, out, "[fd00:10:96::a]:53", "[fd00:10:244:2::10]:53", "NOERROR  www.example.com. AAAA", " tcp")
	})
	t.Run("walk with CoreDNS's side", func(t *testing.T) {
		out := walk(t, "www.example.com", "--jaeger", s.api)
		reads(t, out, "NOERROR  www.example.com. A", "both sides joined", "CoreDNS  NOERROR", "cache  miss", "forward",
			"upstream 192.168.100.53:53 udp  NOERROR")
	})
	t.Run("walk lost", func(t *testing.T) {
		undo, err := s.DNS.Drop(lab.DropRule{Hook: lab.Input, DstPort: 53, Proto: unix.IPPROTO_UDP})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = undo() }()
		begin := time.Now()
		out := walk(t, "lost.example.com", "--timeout", "2s")
		reads(t, out, "eth0 in", "eth0 drop", "NETFILTER_DROP", "LOST  lost.example.com. A", "✗coredns-socket", "policy-drop",
			"What to look at next", "nft list ruleset")
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("took %v for a timeout of 2 s", took)
		}
	})
	t.Run("walk refuses", func(t *testing.T) {
		for want, args := range map[string][]string{
			"no process of it on this host": {"walk", "x", "--from", "shop/nobody", "--identity-file", s.IdentityFile},
			"is no type":                    {"walk", "x", "AAAAA"},
			"want an address":               {"walk", "x", "--server", "dns.example.com"},
			"not a domain name":             {"walk", strings.Repeat("a", 64)},
			"--timeout 0s":                  {"walk", "x", "--timeout", "0"},
		} {
			if out, err := s.run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
	})

	t.Run("doctor", func(t *testing.T) {
		out, err := s.run(t, append([]string{"doctor"}, from...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		reads(t, out, "ok    capabilities", "ok    kernel", "ok    hooks", "ok    resolv.conf", "of shop/"+s.pod.Name,
			"10.96.0.10", "ndots 5",
			"warn  search path", "ndots to 2", "over udp from shop/", "over tcp from shop/")
	})
	t.Run("doctor finds what is wrong", func(t *testing.T) {
		undo, err := s.DNS.Drop(lab.DropRule{Hook: lab.Input, DstPort: 53, Proto: unix.IPPROTO_TCP})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = undo() }()
		out, err := s.run(t, append([]string{"doctor", "--timeout", "500ms", "--endpoint", "http://127.0.0.1:1"}, from...)...)
		if err == nil {
			t.Error("exit status 0")
		}
		reads(t, out, "ok    reachability", "over udp", "FAIL  reachability", "over tcp",
			"dnstrail walk . NS --server 10.96.0.10 --from shop/", "FAIL  collector", "connection refused")
	})
}

// observed gives the one row that observe has of the cluster's past.
func (s *scene) observed(t *testing.T, args ...string) *output.Row {
	t.Helper()
	out, err := s.run(t, append([]string{"observe", "--store", "http://" + s.api, "--since", "10m", "-o", "jsonl"},
		args...)...)
	if err != nil {
		t.Fatal(err)
	}
	row := new(output.Row)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(row); err != nil || d.More() {
		t.Fatalf("want one row (%v): %s", err, out)
	}
	return row
}

// TestExplainJoinsTwoAgents: what neither node's agent knows alone.
func TestExplainJoinsTwoAgents(t *testing.T) {
	s := up(t)
	dig := func(t *testing.T, name string) {
		t.Helper()
		// that it fails is what is tested
		_, _ = s.pod.Run(t.Context(), "dig", "@"+lab.ServiceV4.String(), "+tries=1", "+time=1", name)
	}
	// explained waits until all of a lookup has come, which is when its client has given up, and explains it.
	explained := func(t *testing.T, name string, lost bool) (string, map[string]any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		tr, err := s.store.Await(ctx, trace.Filter{Name: name}, func(tr *trace.Trace) bool {
			return tr.Client() != nil &&
				tr.Verdict().Lost() == lost
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.store.Settle(ctx, 2*time.Second); err != nil {
			t.Fatal(err)
		}
		text, err := s.run(t, "explain", tr.ID.String(), "--jaeger", s.api)
		if err != nil {
			t.Fatal(err)
		}
		js, err := s.run(t, "explain", "--lost", "--last", "100", "--name", name, "--jaeger", s.api, "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var story map[string]any
		if lost {
			if err := json.Unmarshal([]byte(js), &story); err != nil {
				t.Fatalf("%v in %s", err, js)
			}
		} else if js != "" {
			t.Errorf("an answered lookup is called lost: %s", js)
		}
		return text, story
	}
	says := func(t *testing.T, story map[string]any, where, cause, certainty string) {
		t.Helper()
		if story["where"] != where || story["cause"] != cause || story["certainty"] != certainty {
			t.Errorf("%v: %v (%v), want %s: %s (%s)", story["where"], story["cause"], story["certainty"], where, cause,
				certainty)
		}
	}

	t.Run("answered", func(t *testing.T) {
		dig(t, "delay-30ms.example.com")
		text, _ := explained(t, "delay-30ms.example.com", false)
		row := s.observed(t, "--name", "delay-30ms.example.com")
		if row.Result != "NOERROR" || !row.ServerSeen || row.AtServer == nil || *row.AtServer < int64(30*time.Millisecond) ||
			row.Client.Pod != s.pod.Name {
			t.Errorf("observe --store: %+v", row)
		}
		table, err := s.run(t, "observe", "--store", s.api, "--last", "5", "--name", "delay-30ms.example.com")
		if err != nil || strings.Count(table, "\n") != 2 || !strings.Contains(table, "delay-30ms.example.com.") {
			t.Errorf("%v\n%s", err, table)
		}
		reads(t, text, "NOERROR  delay-30ms.example.com. A", "mostly   upstream 192.168.100.53:53", "both sides joined",
			"network there: 7 hops  node-1 → node-2", "CoreDNS  NOERROR by forward", "cache  miss → forward",
			"upstream 192.168.100.53:53 udp  NOERROR", "network back: ",
			"What happened", "dig[", "is read from the socket on node-2, past ", "CoreDNS asks upstream", "has its answer")
		if n := strings.Count(text, "\n"); n > 24 {
			t.Errorf("%d lines, want at most 24:\n%s", n, text)
		}
		id := regexp.MustCompile(`[0-9a-f]{32}`).FindString(text)
		hops, err := s.run(t, "explain", id, "--hops", "--jaeger", s.api)
		if err != nil {
			t.Fatal(err)
		}
		reads(t, hops, "beyond this node", "node-2: DNS server's socket", "node-2: DNS server", "CoreDNS  NOERROR by forward",
			"cache  miss", "upstream 192.168.100.53:53 udp  NOERROR", "is read from the socket on node-2")
	})
	for _, fault := range []struct {
		name                    string
		where, cause, certainty string
		words                   []string
		inject                  func() (lab.Undo, error)
	}{
		{
			"dropped on the other node", "node", "policy-drop", "certain", []string{"on node-2",
				"rules that drop port 53 on node-2"},
			func() (lab.Undo, error) {
				return s.DNS.Node.Drop(lab.DropRule{Hook: lab.Forward, DstPort: 53, Proto: unix.IPPROTO_UDP})
			},
		},
		{
			"answer dropped on the other node", "return-path", "policy-drop", "certain", []string{"node-2: answer dropped",
				"on node-2"},
			func() (lab.Undo, error) {
				return s.DNS.Node.Drop(lab.DropRule{Hook: lab.Forward, Src: s.DNS.V4, SrcPort: 53, Proto: unix.IPPROTO_UDP})
			},
		},
		{
			"dropped between the nodes", "between-nodes", "not-seen-further", "inferred", []string{"the tracer there was " +
				"watching", "saw ", " other lookup"},
			func() (lab.Undo, error) {
				return s.Underlay.Drop(lab.DropRule{Hook: lab.Switched, DstPort: 53, Proto: unix.IPPROTO_UDP})
			},
		},
		{
			"answer dropped between the nodes", "return-path", "not-seen-further", "inferred", nil,
			func() (lab.Undo, error) {
				return s.Underlay.Drop(lab.DropRule{Hook: lab.Switched, Src: s.DNS.V4, SrcPort: 53, Proto: unix.IPPROTO_UDP})
			},
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			undo, err := fault.inject()
			if err != nil {
				t.Fatal(err)
			}
			name := strings.ReplaceAll(fault.name, " ", "-") + ".example.com"
			dig(t, name)
			if err := undo(); err != nil {
				t.Fatal(err)
			}
			dig(t, "after-"+name) // that the other node was still watched shows by what it saw since
			text, story := explained(t, name, true)
			row := s.observed(t, "--lost", "--name", name)
			if row.Verdict.Where != fault.where || row.Verdict.Cause != fault.cause ||
				row.Verdict.Certainty != fault.certainty || row.TraceID != story["traceId"] {
				t.Errorf("observe --store: %+v of trace %s, want %s: %s (%s)", row.Verdict, row.TraceID, fault.where, fault.cause,
					fault.certainty)
			}
			// The agent on the client's node alone knows less, and says so.
			own, err := s.run(t, "explain", "--lost", "--name", name, "--socket",
				filepath.Join(filepath.Dir(s.IdentityFile), "node-1.sock"))
			if err != nil {
				t.Fatal(err)
			}
			reads(t, own, "LOST  "+name, "✓service ✓node ✗between-nodes", "no-reply-seen", "shop/"+s.pod.Name, "dig[",
				"network there: 2 hops", "✗ lost at between-nodes", "translated to 10.244.2.10:53", "What to look at next")
			says(t, story, fault.where, fault.cause, fault.certainty)
			joined := strings.Join(strings.Fields(text), " ")
			for _, w := range append(fault.words, "LOST", "✗"+fault.where, "What to look at next") {
				if !strings.Contains(joined, w) {
					t.Errorf("%q is missing in:\n%s", w, text)
				}
			}
		})
	}
}
