package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/output"
)

// asText is a collector that keeps all that it gets as text, and the names asked for.
type asText struct {
	collectorpb.UnimplementedTraceServiceServer

	mu    sync.Mutex
	text  strings.Builder
	names map[string]map[string]bool // by scope
}

func (c *asText) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (
	*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.WriteString(prototext.Format(r))
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				for _, a := range s.GetAttributes() {
					if a.GetKey() == semconv.QuestionName {
						scope := ss.GetScope().GetName()
						if c.names[scope] == nil {
							c.names[scope] = map[string]bool{}
						}
						c.names[scope][a.GetValue().GetStringValue()] = true
					}
				}
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// TestHiddenNamesLeaveNowhere: with one policy for both sides, no part of a name that it hides is in what either
// exports, serves or writes; and both hash alike.
func TestHiddenNamesLeaveNowhere(t *testing.T) {
	const secret = "tell-nobody"
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	policy := write("names", "redact 2\nhash 0 example.org\nkey "+write("key", strings.Repeat("k", 32))+"\n")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &asText{names: map[string]map[string]bool{}}
	s := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	// CoreDNS's own error log, which has names, is left out of the Corefile.
	k, pods := up(t, cluster.Config{
		Bin: binaries(t), Collector: l.Addr().String(), Plugin: "names file " + policy,
		Corefile:  "prometheus 0.0.0.0:9153\n    cache 30\n    forward . " + lab.UpstreamV4.String(),
		Agents:    cluster.NoAgent,
		AgentArgs: []string{"--names", "file " + policy},
	})
	if err := k.StartLabAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	r, w := io.Pipe()
	follower, err := k.Start(lab.Command{
		Path: filepath.Join(binaries(t), "dnstrail"), Stdout: w,
		Args: []string{"observe", "--socket", k.AgentSocket(), "--follow", "-o", "jsonl"},
	})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(&rows, r) }()

	service := net.JoinHostPort(lab.ServiceV4.String(), "53")
	ask(t, pods[0], clientSpec{Servers: []string{service}, Networks: []string{"udp", "tcp"}, Questions: []question{
		{secret + ".www.example.com.", dns.TypeA}, {secret + ".www.example.com.", dns.TypeAAAA},
		{secret + ".example.org.", dns.TypeA}, {secret + ".nxdomain.example.net.", dns.TypeA},
	}})
	// What gets no answer, and an answer to another question, are told in words.
	upstream := lab.UpstreamV4.String()
	for _, server := range []string{lab.ServiceV4.String(), upstream} {
		for _, label := range []string{"silent", "wrong-question", "servfail"} {
			_, _ = pods[0].Run(t.Context(), "dig", "+tries=1", "+time=1", "@"+server, secret+"."+label+".example.com")
		}
	}
	time.Sleep(7 * time.Second) // longer than a lookup is waited for
	served := ""
	for _, addr := range []string{k.AgentMetrics[0], k.Metrics} {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		served += string(b)
	}
	_ = follower.Stop(5 * time.Second)
	w.Close()
	<-read
	_ = k.Agents[0].Stop(10 * time.Second)
	_ = k.CoreDNS.Stop(10 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, text := range map[string]string{
		"spans": c.text.String(), "metrics": served, "rows": rows.String(),
		"the agent's output": k.Agents[0].Stdout() + k.Agents[0].Stderr(), "CoreDNS's output": k.CoreDNS.Stdout() +
			k.CoreDNS.Stderr(),
	} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%s tell the name: ...%s...", what, text[max(0, i-200):min(len(text), i+100)])
		}
	}
	hashed := ""
	for name := range c.names[semconv.ScopeTracer] {
		if strings.HasPrefix(name, "h-") && strings.HasSuffix(name, ".example.org.") {
			hashed = name
		}
	}
	if hashed == "" || !c.names[semconv.ScopePlugin][hashed] {
		t.Errorf("the tracer shows %v, the plugin %v", c.names[semconv.ScopeTracer], c.names[semconv.ScopePlugin])
	}
	shown := map[string]bool{}
	for d := json.NewDecoder(strings.NewReader(rows.String())); ; {
		var row output.Row
		if d.Decode(&row) != nil {
			break
		}
		shown[row.Name] = true
	}
	if !shown[hashed] || !shown["*.example.com."] {
		t.Errorf("rows show %v", shown)
	}
}
