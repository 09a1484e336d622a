// Package metrics counts lookups by who asked and how they ended, and the tracer's own losses, for Prometheus.
//
// The number of series is bounded: clients are workloads, at most [Options.MaxClients] of them; the rest is counted under `~other`.
package metrics

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Other is the client under which those are counted that came after the limit was reached.
const Other = "~other"

// DefaultMaxClients bounds the clients with series of their own.
const DefaultMaxClients = 1000

// idle is how long a client that asks nothing keeps its series.
const idle = 15 * time.Minute

// Metrics are the agent's. Count and Tick are for one goroutine, the handler for any.
type Metrics struct {
	registry *prometheus.Registry
	max      int
	clients  map[clientKey]*client

	duration *prometheus.HistogramVec
	lost     *prometheus.CounterVec
	retries  *prometheus.CounterVec
	active   prometheus.Gauge
	events   prometheus.Counter
	losses   *prometheus.CounterVec
	inFlight prometheus.Gauge
	spans    *prometheus.CounterVec
	sweep    time.Time

	before struct {
		stats  pipeline.Stats
		export export.Stats
	}
}

type clientKey struct{ namespace, workload string }

type client struct {
	clientKey
	seen time.Time
}

// New makes the metrics; maxClients <= 0 means [DefaultMaxClients].
func New(maxClients int, version string) *Metrics {
	if maxClients <= 0 {
		maxClients = DefaultMaxClients
	}
	labels := []string{"client_namespace", "client_workload"}
	m := &Metrics{
		registry: prometheus.NewRegistry(), max: maxClients, clients: make(map[clientKey]*client),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "dns_lookup_duration_seconds",
			Help:    "Time of lookups as their client saw it, of answered ones until the answer came, of lost ones until the client gave up; by client and error type (empty for an answer).",
			Buckets: []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}, // semantic conventions, dns.lookup.duration

			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, append(labels, "error_type")),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_lookups_lost_total", Help: "Lookups that got no answer, by client, by where they were lost and by cause.",
		}, append(labels, "where", "cause")),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_lookup_retries_total", Help: "Attempts of lookups beyond the first, by client.",
		}, labels),
		active: prometheus.NewGauge(prometheus.GaugeOpts{Name: "dnstrail_clients", Help: "Clients that have series of their own."}),
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "dnstrail_kernel_events_total", Help: "Kernel events read."}),
		losses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_losses_total", Help: "What the tracer itself did not see or keep, by kind: ring_full, reentered, payload, undecodable (kernel events), fragments (packets whose later fragments were not followed), orphan_answer, unmatched_read, unmatched_fragment, evicted (lookups), hops_cut.",
		}, []string{"kind"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "dnstrail_lookups_in_flight", Help: "Lookups held, lost ones that wait for a late answer included."}),
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_spans_total", Help: "Spans by what became of them: sent, or why not (queue_full, export_failed).",
		}, []string{"outcome"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dnstrail_build_info", Help: "The version of the agent.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.duration, m.lost, m.retries, m.active, m.events, m.losses, m.inFlight, m.spans, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Count counts a lookup that has ended for good. traceID, if not empty, becomes the exemplar.
func (m *Metrics) Count(l *lookup.Lookup, v *verdict.Verdict, o *origin.Origin, traceID string, now time.Time) {
	if !l.Final || l.FinalBefore || l.Serves != nil || l.ClientNetNS == 0 {
		return // a client that another node's agent counts, or a server's own question
	}
	k := m.client(o, now)
	observer := m.duration.WithLabelValues(k.namespace, k.workload, export.ErrorType(l, v))
	seconds := float64(l.End()-l.Start()) / 1e9
	if x, ok := observer.(prometheus.ExemplarObserver); ok && traceID != "" {
		x.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": traceID})
	} else {
		observer.Observe(seconds)
	}
	if v.Lost() {
		m.lost.WithLabelValues(k.namespace, k.workload, string(v.Where), string(v.Cause)).Inc()
	}
	if l.Attempts > 1 {
		m.retries.WithLabelValues(k.namespace, k.workload).Add(float64(l.Attempts - 1))
	}
}

func (m *Metrics) client(o *origin.Origin, now time.Time) clientKey {
	k := clientKey{o.Namespace, o.Workload}
	if k.workload == "" {
		k.workload = o.Process
	}
	k.namespace, k.workload = strings.ToValidUTF8(k.namespace, "?"), strings.ToValidUTF8(k.workload, "?")
	c := m.clients[k]
	if c == nil {
		if len(m.clients) >= m.max {
			return clientKey{Other, Other}
		}
		c = &client{clientKey: k}
		m.clients[k] = c
		m.active.Set(float64(len(m.clients)))
	}
	c.seen = now
	return k
}

// Tick takes over the counts of the pipeline and the exporter, and forgets idle clients.
func (m *Metrics) Tick(now time.Time, s pipeline.Stats, e export.Stats) {
	b := &m.before
	m.events.Add(float64(s.Events - b.stats.Events))
	for kind, n := range map[string]uint64{
		"ring_full":          s.Kernel.RingFull - b.stats.Kernel.RingFull,
		"reentered":          s.Kernel.Missed - b.stats.Kernel.Missed,
		"payload":            s.Kernel.Paged - b.stats.Kernel.Paged,
		"undecodable":        s.Undecodable - b.stats.Undecodable,
		"orphan_answer":      s.Lookup.Orphans - b.stats.Lookup.Orphans,
		"fragments":          s.Kernel.Fragment - b.stats.Kernel.Fragment,
		"unmatched_read":     s.Lookup.Unmatched - b.stats.Lookup.Unmatched,
		"unmatched_fragment": s.Lookup.Fragments - b.stats.Lookup.Fragments,
		"evicted":            s.Lookup.Evicted - b.stats.Lookup.Evicted,
		"hops_cut":           s.Lookup.HopsCut - b.stats.Lookup.HopsCut,
	} {
		m.losses.WithLabelValues(kind).Add(float64(n))
	}
	m.inFlight.Set(float64(s.Lookup.InFlight))
	for outcome, n := range map[string]uint64{
		"sent": e.Sent - b.export.Sent, "queue_full": e.Dropped - b.export.Dropped, "export_failed": e.Failed - b.export.Failed,
	} {
		m.spans.WithLabelValues(outcome).Add(float64(n))
	}
	b.stats, b.export = s, e
	if now.Sub(m.sweep) < time.Minute {
		return
	}
	m.sweep = now
	for k, c := range m.clients {
		if now.Sub(c.seen) < idle {
			continue
		}
		match := prometheus.Labels{"client_namespace": k.namespace, "client_workload": k.workload}
		m.duration.DeletePartialMatch(match)
		m.lost.DeletePartialMatch(match)
		m.retries.DeletePartialMatch(match)
		delete(m.clients, k)
	}
	m.active.Set(float64(len(m.clients)))
}
