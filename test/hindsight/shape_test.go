package hindsight

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/backend"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// finder finds traces in a Jaeger.
type finder struct {
	t      *testing.T
	otlp   string // where spans are taken
	traces *traceapi.Client
}

// open starts a Jaeger with room for so many traces. Where none is built, dnstrail's own store stands in for it, but
// not in CI.
func (f *finder) open(bin string, traces int) {
	f.t.Helper()
	jaeger := filepath.Join(bin, "jaeger")
	if _, err := os.Stat(jaeger); err != nil && os.Getenv("CI") != "true" {
		f.store()
		return
	}
	j, err := backend.StartJaeger(f.t.Context(), jaeger, "../jaeger/config.yaml", traces)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(j.Stop)
	f.otlp = j.OTLP
	if f.traces, err = j.Traces(); err != nil {
		f.t.Fatal(err)
	}
}

// store starts a store of dnstrail's in this process.
func (f *finder) store() {
	f.t.Helper()
	f.t.Log("no Jaeger is built (make jaeger): dnstrail's own store stands in for it")
	s := store.New(store.Limits{Spans: 1 << 20, Bytes: 1 << 30})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.otlp = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeGRPC(ctx, l) }()
	api := httptest.NewServer(traceapi.Handler(s))
	f.t.Cleanup(func() {
		api.Close()
		stop()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
	if f.traces, err = traceapi.NewClient(api.URL, nil); err != nil {
		f.t.Fatal(err)
	}
}

// settled is how long after a lookup's end its spans may come: an agent calls it lost after five seconds, asks, and
// sends once a second.
const settled = 30 * time.Second

// get gives the traces of a lookup: at the end of an epoch there may be two.
func (f *finder) get(a *asked) []*trace.Trace {
	var found []*trace.Trace
	for _, id := range a.traces(f.t) {
		tr, err := f.traces.Trace(f.t.Context(), id)
		if errors.Is(err, traceapi.ErrNotFound) {
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		found = append(found, tr)
	}
	return found
}

// shapes gives, for each kind, how often each shape is that of its lookups, when all spans have come.
func (f *finder) shapes(lookups []asked) []map[string]int {
	time.Sleep(8 * time.Second) // nothing tells when all have come
	shapes := make([]map[string]int, len(kinds))
	for i := range lookups {
		a := &lookups[i]
		if shapes[a.kind] == nil {
			shapes[a.kind] = map[string]int{}
		}
		found := f.get(a)
		if len(found) == 0 {
			continue
		}
		// At the end of an epoch there are two, of which one has CoreDNS's side.
		tr := found[max(0, slices.IndexFunc(found, func(tr *trace.Trace) bool { return tr.Server() != nil }))]
		shapes[a.kind][shape(tr, a.name)]++
	}
	for i, s := range shapes {
		n := 0
		for _, times := range s {
			n += times
		}
		f.t.Logf("%s: %d shapes of %d lookups where all are kept", kinds[i].name, len(s), n)
		if n < reference*3/4 {
			f.t.Errorf("%s: of %d lookups only %d came to a trace", kinds[i].name, reference, n)
		}
	}
	return shapes
}

// compare gives how many lookups have a shape of their kind. What it does not find it shows.
func (f *finder) compare(lookups []asked, whole []map[string]int) int {
	equal := make([]int, len(kinds))
	number := make([]int, len(kinds))
	for i := range lookups {
		number[lookups[i].kind]++
	}
	left := slices.Clone(lookups)
	for end := time.Now().Add(settled); len(left) > 0 && time.Now().Before(end); time.Sleep(time.Second) {
		left = slices.DeleteFunc(left, func(a asked) bool {
			is := slices.ContainsFunc(f.get(&a), func(tr *trace.Trace) bool { return whole[a.kind][shape(tr, a.name)] > 0 })
			if is {
				equal[a.kind]++
			}
			return is
		})
	}
	sum := 0
	for i, n := range equal {
		f.t.Logf("%s: %d of %d", kinds[i].name, n, number[i])
		sum += n
	}
	shown := map[string]int{}
	for i := range left {
		a := &left[i]
		text := "no trace"
		if found := f.get(a); len(found) > 0 {
			text = ""
			for _, tr := range found {
				text += closest(shape(tr, a.name), whole[a.kind])
				if c := tr.Client(); c != nil {
					evidence := strings.Join(c.Attributes.Strings(semconv.VerdictEvidence), "; ")
					text += "\n  evidence: " + digits.ReplaceAllString(evidence, "N")
				}
			}
		}
		shown[kinds[a.kind].name+": "+text]++
	}
	for text, n := range shown {
		f.t.Logf("%d times not: %s", n, text)
	}
	return sum
}

// closest tells how a shape differs from the one of those that is most like it.
func closest(got string, whole map[string]int) string {
	best, least := "", -1
	lines := strings.Split(got, "\n")
	for want := range whole {
		var b strings.Builder
		n := 0
		rest := slices.Clone(lines)
		for line := range strings.SplitSeq(want, "\n") {
			if i := slices.Index(rest, line); i >= 0 {
				rest = slices.Delete(rest, i, i+1)
				continue
			}
			fmt.Fprintf(&b, "\n  - %s", line)
			n++
		}
		for _, line := range rest {
			fmt.Fprintf(&b, "\n  + %s", line)
			n++
		}
		if least < 0 || n < least {
			best, least = b.String(), n
		}
	}
	return best
}

// varying are the attributes that differ between lookups of one kind: numbers that are of one lookup or one run alone,
// times, and why a lookup was kept.
var varying = []string{
	semconv.DNSID, semconv.ClientPort, semconv.LinkEpoch, semconv.KeepReason, semconv.AskedReason,
	semconv.ForwardDuration, semconv.UpstreamDuration, semconv.UpstreamConnection, semconv.Answers,
	semconv.SegmentFromNetNS, semconv.SegmentToNetNS, semconv.DropNetNS, semconv.VerdictText, semconv.VerdictEvidence,
	semconv.ConntrackOriginal, semconv.ConntrackReply, semconv.Hops, semconv.ClientPodName, semconv.ClientPodUID,
	semconv.ProcessPID, semconv.ServedTraceID,
	semconv.ConntrackOlder, semconv.ConntrackStatus, // an entry may be left of a lookup whose port it has again
}

// What stands in texts and is of one run or one lookup alone.
var (
	veth   = regexp.MustCompile(`veth[0-9a-f]{6,}`)
	port   = regexp.MustCompile(`((?:\d+\.){3}\d+):\d+`)
	digits = regexp.MustCompile(`\d+`)
	pod    = regexp.MustCompile(`\b(cart|till|coredns)-[0-9a-z]+-[0-9a-z]+`)
)

// shape draws a trace, a line a span: who sent it, its name, kind and status, the span above it, and the attributes
// that do not vary. Lines are in order of their text.
func shape(tr *trace.Trace, name string) string {
	byID := map[link.SpanID]*trace.Span{}
	for _, s := range tr.Spans {
		byID[s.SpanID] = s
	}
	var lines []string
	for _, s := range tr.Spans {
		above := "-"
		if p := byID[s.Parent]; p != nil {
			above = p.Name
		} else if s.Parent != (link.SpanID{}) {
			above = "(missing)"
		}
		var attributes []string
		for _, a := range s.Attributes {
			if slices.Contains(varying, a.Key) || strings.HasPrefix(a.Key, semconv.Group) ||
				strings.HasPrefix(a.Key, semconv.LinkCopy) {
				continue
			}
			value := veth.ReplaceAllString(fmt.Sprint(a.Value), "veth")
			value = pod.ReplaceAllString(port.ReplaceAllString(value, "$1:port"), "$1")
			attributes = append(attributes, a.Key+"="+strings.ReplaceAll(value, name, "NAME"))
		}
		slices.Sort(attributes)
		lines = append(lines, fmt.Sprintf("%s %s: %s %v %v below %s, %d links: %s", s.Scope.Name, s.Node(), s.Name, s.Kind,
			s.Status, above, linked(s), strings.Join(attributes, " ")))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// linked counts the links of a span that do not follow from what the client asked before, nor from the end of an epoch.
func linked(s *trace.Span) int {
	n := 0
	for _, l := range s.Links {
		if _, copied := l.Attributes.Bool(semconv.LinkCopy); !copied && l.Attributes.String(semconv.GroupRelation) == "" {
			n++
		}
	}
	return n
}

// kept counts the lookups for names with a prefix that have a CLIENT span.
func (f *finder) kept(prefix string, from time.Time) int {
	services, err := f.traces.Services(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("services: %q", services)
	found := map[string]bool{}
	for _, service := range services {
		if service == "coredns" || service == "dnstrail" {
			continue // each lookup has spans of its client
		}
		all, err := f.traces.All(f.t.Context(), service, from, time.Now())
		if err != nil {
			f.t.Fatal(err)
		}
		for _, tr := range all {
			if c := tr.Client(); c != nil && strings.HasPrefix(tr.Name(), prefix) && !tr.OfServer() {
				found[fmt.Sprint(tr.Name(), c.Int(semconv.ClientPort), c.Int(semconv.DNSID))] = true
			}
		}
	}
	return len(found)
}

// counters gives the counts of questions at a program's /metrics, by result.
func counters(t *testing.T, at string) map[string]float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	counts := map[string]float64{}
	line := regexp.MustCompile(`^(?:coredns_)?dnstrail_asks_total\{result="([a-z]+)"\} (\S+)$`)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		if counts[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
			t.Fatal(err)
		}
	}
	return counts
}
