package main

import (
	"context"
	"fmt"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// find waits for the trace of a lookup that began after begin, and says what is wrong with it; nil if there is none.
func (s *scene) find(ctx context.Context, pod *lab.Pod, w want, begin time.Time) (*trace.Trace, []string) {
	// The span's times and this program's are of one clock; a millisecond is for rounding.
	filter := trace.Filter{Name: w.name, Type: "A", Since: begin.Add(-time.Millisecond)}
	whole := func(t *trace.Trace) bool { return len(w.problems(t, pod)) == 0 }
	_, err := s.collector.store.Await(ctx, filter, whole)
	if err == nil {
		// A second trace of the same lookup would be as wrong as none: give it time to come.
		_ = s.collector.store.Settle(ctx, 300*time.Millisecond) // at the worst ctx has ended and what is there is looked at
	}
	found := trace.AllLookups(s.collector.store.Traces(filter))
	shadows := trace.Shadows(found)
	var traces []*trace.Trace
	for _, t := range found {
		if !shadows[t] {
			traces = append(traces, t)
		}
	}
	if len(traces) == 0 {
		return nil, []string{fmt.Sprintf("%s: expected one trace, found none (%v)", w.name, err)}
	}
	var problems []string
	if len(traces) > 1 {
		problems = append(problems, fmt.Sprintf("%s: expected one trace, found %d:", w.name, len(traces)))
		for _, t := range traces {
			problems = append(problems, fmt.Sprintf("  %s, %d spans, linked: %v", t.ID, len(t.Spans), t.Linked()))
		}
	}
	for _, p := range w.problems(traces[0], pod) {
		problems = append(problems, fmt.Sprintf("%s: %s", w.name, p))
	}
	return traces[0], problems
}

// problems says what is not as it is wanted in a trace.
func (w want) problems(t *trace.Trace, pod *lab.Pod) []string {
	var problems []string
	expect := func(what string, got, want any) {
		if got != want {
			problems = append(problems, fmt.Sprintf("%s: expected %q, found %q", what, want, got))
		}
	}
	client, server := t.Client(), t.Server()
	if client == nil {
		return []string{"expected a CLIENT span of the tracer, found none"}
	}
	expect("pod on the CLIENT span", client.String(semconv.K8SPodName), pod.Name)
	expect("namespace on the CLIENT span", client.String(semconv.K8SNamespaceName), pod.PodSpec.Namespace)
	if n := len(t.Missing()); n > 0 {
		problems = append(problems, fmt.Sprintf("%d spans have a parent that did not come", n))
	}
	v := t.Verdict()
	if w.rcode == "" {
		expect("where it was lost", v.Where, w.where)
		expect("why", v.Cause, w.cause)
		if server != nil {
			problems = append(problems, "expected no span of CoreDNS, found one")
		}
		return problems
	}
	expect("verdict", v.Where, trace.Answered)
	expect("rcode", t.Rcode(), w.rcode)
	if server == nil {
		return append(problems, "expected a SERVER span of CoreDNS, found none")
	}
	if !t.Linked() {
		problems = append(problems, fmt.Sprintf("expected the SERVER span to be the child of the CLIENT span %s, found "+
			"parent %s", client.SpanID, server.Parent))
	}
	expect("client's pod on the SERVER span", server.String(semconv.ClientPodName), pod.Name)
	expect("client's namespace on the SERVER span", server.String(semconv.ClientNamespaceName), pod.PodSpec.Namespace)
	if w.cache != "" {
		expect("cache", server.String(semconv.CacheStatus), w.cache)
	}
	asked := false
	for _, sp := range t.Spans {
		if sp.Kind == trace.KindClient && sp.From(semconv.ScopePlugin) {
			asked = true
			expect("upstream", sp.Peer().Addr(), lab.UpstreamV4)
		}
	}
	expect("an upstream attempt", asked, w.upstream)
	if t.Duration() < w.atLeast {
		problems = append(problems, fmt.Sprintf("expected it to take %v at least, it took %v", w.atLeast, t.Duration()))
	}
	return problems
}
