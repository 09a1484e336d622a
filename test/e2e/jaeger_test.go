package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/backend"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// mix is n questions: names of the cluster, outside names (each asked twice: cold, then cached), names that do not
// exist.
func mix(n int, seed string) []question {
	var qs []question
	for i := 0; len(qs) < n; i++ {
		outside := question{fmt.Sprintf("host-%s-%d.example.com.", seed, i), dns.TypeA}
		if i%2 == 1 {
			outside.Type = dns.TypeAAAA
		}
		qs = append(qs,
			question{"kubernetes.default.svc.cluster.local.", dns.TypeA}, question{"payments.shop.svc.cluster.local.",
				dns.TypeAAAA},
			outside, outside,
			question{fmt.Sprintf("nxdomain-%s-%d.shop.svc.cluster.local.", seed, i), dns.TypeA},
		)
	}
	return qs[:n]
}

// lookupID is how a lookup is found again among the traces.
type lookupID struct {
	client  netip.Addr
	port    int64
	id      int64
	name    string
	qtype   string
	network string
}

// The main job: after a mix of lookups from two pods on two nodes, IPv4 and IPv6, Jaeger holds for every lookup exactly
// one linked trace.
func TestEveryLookupIsOneTrace(t *testing.T) {
	const each = 150 // a pod and address family: 600 in all
	bin := binaries(t)
	j, err := backend.StartJaeger(t.Context(), filepath.Join(bin, "jaeger"), "../jaeger/config.yaml", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Stop)
	k, pods := up(t, cluster.Config{Bin: bin, Collector: j.OTLP})
	start := time.Now()
	want := map[lookupID]*lab.Pod{}
	for i, p := range pods {
		for f, server := range []netip.Addr{lab.ServiceV4, lab.ServiceV6} {
			for _, a := range ask(t, p, clientSpec{
				Servers: []string{netip.AddrPortFrom(server, 53).String()}, Networks: []string{"udp"},
				Questions: mix(each, fmt.Sprintf("%d%d", i, f)),
			}) {
				id := lookupID{netip.MustParseAddr(a.Client), int64(a.Port), int64(a.ID), a.Name, dns.TypeToString[a.Type],
					a.Network}
				if want[id] != nil {
					t.Fatalf("%s was asked twice: the test cannot tell the two apart", a)
				}
				want[id] = p
			}
		}
	}
	t.Logf("%d lookups made in %v", len(want), time.Since(start).Round(time.Millisecond))

	// Agents and CoreDNS send in batches.
	var found map[lookupID][]*trace.Trace
	var copies int
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		found, copies = map[lookupID][]*trace.Trace{}, 0
		for _, tr := range allTraces(t, j.Query, start.Add(-time.Second), time.Now()) {
			c := tr.Client()
			if c == nil {
				continue
			}
			if !tr.Linked() && tr.Copy() {
				copies++
				continue
			}
			addr, _ := netip.ParseAddr(c.String(semconv.ClientAddress))
			id := lookupID{addr, c.Int(semconv.ClientPort), c.Int(semconv.DNSID), c.String(semconv.QuestionName),
				c.String(semconv.QuestionType), c.String(semconv.NetworkTransport)}
			found[id] = append(found[id], tr)
		}
		if complete(want, found) || time.Now().After(end) {
			break
		}
	}
	var linked, bad int
	for id, pod := range want {
		traces := found[id]
		if err := oneLinkedTrace(traces, pod, k.DNS); err != nil {
			if bad++; bad <= 10 {
				t.Errorf("%+v: %v", id, err)
			}
			continue
		}
		linked++
	}
	t.Logf("%d lookups: %d with exactly one linked trace; %d copies for the epoch boundary, counted apart", len(want),
		linked, copies)
	if linked != len(want) {
		t.Errorf("%d of %d lookups are one linked trace each", linked, len(want))
	}
}

// allTraces asks Jaeger's query API for every trace of every service.
func allTraces(t *testing.T, query string, from, to time.Time) []*trace.Trace {
	t.Helper()
	c, err := traceapi.NewClient(query, nil)
	if err != nil {
		t.Fatal(err)
	}
	services, err := c.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]*trace.Trace{}
	for _, service := range services {
		traces, err := c.All(t.Context(), service, from, to)
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range traces {
			byID[tr.ID.String()] = tr
		}
	}
	return slices.Collect(maps.Values(byID))
}

// complete tells whether every lookup wanted has a linked trace with an end to it.
func complete(want map[lookupID]*lab.Pod, found map[lookupID][]*trace.Trace) bool {
	for id := range want {
		if len(found[id]) == 0 || !found[id][0].Linked() {
			return false
		}
	}
	return true
}

// oneLinkedTrace checks what the issue asks of each lookup's trace.
func oneLinkedTrace(traces []*trace.Trace, pod, coredns *lab.Pod) error {
	linked := traces[:0:0]
	for _, tr := range traces {
		if tr.Linked() {
			linked = append(linked, tr)
		}
	}
	if len(linked) != 1 || len(traces) != 1 {
		return fmt.Errorf("%d traces, %d of them linked", len(traces), len(linked))
	}
	tr := linked[0]
	if missing := tr.Missing(); len(missing) > 0 {
		return fmt.Errorf("trace %v: %d spans without their parent, the first is %q", tr.ID, len(missing), missing[0].Name)
	}
	if n := len(tr.Servers()); n != 1 {
		return fmt.Errorf("trace %v: %d SERVER spans", tr.ID, n)
	}
	c, s := tr.Client(), tr.Server()
	for _, check := range []struct{ what, got, want string }{
		{"the client's pod by the tracer", c.Resource.Attributes.String(semconv.K8SPodName), pod.Name},
		{"its namespace", c.Resource.Attributes.String(semconv.K8SNamespaceName), pod.PodSpec.Namespace},
		{"its UID", c.Resource.Attributes.String(semconv.K8SPodUID), pod.UID},
		{"the client's pod by the plugin", s.String(semconv.ClientPodName), pod.Name},
		{"its namespace by the plugin", s.String(semconv.ClientNamespaceName), pod.PodSpec.Namespace},
		{"the server's pod", s.Resource.Attributes.String(semconv.K8SPodName), coredns.Name},
		{"where", c.String(semconv.VerdictWhere), "answered"},
		{"the rcode on both sides", s.String(semconv.ResponseCode), c.String(semconv.ResponseCode)},
	} {
		if check.got != check.want {
			return fmt.Errorf("trace %v: %s is %q, want %q", tr.ID, check.what, check.got, check.want)
		}
	}
	segments, plugins, attempts := 0, 0, 0
	for _, span := range tr.Spans {
		switch {
		case span.Kind == trace.KindInternal && span.From(semconv.ScopeTracer):
			segments++
		case span.Kind == trace.KindInternal && span.From(semconv.ScopePlugin):
			plugins++
		case span.Kind == trace.KindClient && span.From(semconv.ScopePlugin):
			attempts++
		}
	}
	upstream := s.Int(semconv.UpstreamAttempts)
	if segments < 4 || plugins == 0 || int64(attempts) != upstream {
		return fmt.Errorf("trace %v: %d segments, %d plugins, %d upstream spans for %d attempts", tr.ID, segments, plugins,
			attempts, upstream)
	}
	// The names of the cluster and what the cache holds need no upstream; the first question for an outside name does.
	if cold := s.String(semconv.CacheStatus) == "miss" && strings.HasSuffix(c.String(semconv.QuestionName),
		".example.com."); cold && attempts == 0 {
		return fmt.Errorf("trace %v: a cache miss for an outside name, and no upstream span", tr.ID)
	}
	return attributesKnown(tr)
}

// attributesKnown holds every attribute of a trace against the one list.
func attributesKnown(tr *trace.Trace) error {
	for _, span := range tr.Spans {
		for _, attr := range slices.Concat(span.Attributes, span.Resource.Attributes) {
			if a, ok := listed(attr.Key); !ok {
				return fmt.Errorf("trace %v, span %q: attribute %q is not in the list", tr.ID, span.Name, attr.Key)
			} else if got := typeOf(attr.Value); a.Type != "template" && got != a.Type {
				return fmt.Errorf("trace %v, span %q: attribute %q is of type %s, the list says %s", tr.ID, span.Name, attr.Key,
					got, a.Type)
			}
		}
	}
	return nil
}

func listed(key string) (semconv.Attribute, bool) {
	for _, a := range semconv.All {
		if a.Name == key || a.Type == "template" && strings.HasPrefix(key, a.Name) {
			return a, true
		}
	}
	return semconv.Attribute{}, false
}

func typeOf(value any) string {
	switch value.(type) {
	case string:
		return "string"
	case int64:
		return "int"
	case float64:
		return "double"
	case bool:
		return "boolean"
	case []any, []string:
		return "string[]"
	}
	return fmt.Sprintf("%T", value)
}
