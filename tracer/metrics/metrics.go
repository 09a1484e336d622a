// Package metrics counts lookups by who asked and how they ended, and the tracer's own losses, for Prometheus.
//
// The number of series is bounded: clients are workloads, at most [Options.MaxClients] of them; the rest is counted
// under `~other`.
package metrics

import (
	"net/http"
	"slices"
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
	other    *client

	duration *prometheus.HistogramVec
	lost     *prometheus.CounterVec
	retries  *prometheus.CounterVec
	untold   *prometheus.CounterVec
	active   prometheus.Gauge
	events   prometheus.Counter
	losses   *prometheus.CounterVec
	inFlight prometheus.Gauge
	spans    *prometheus.CounterVec
	asks     *prometheus.CounterVec
	recent   *prometheus.GaugeVec
	sweep    time.Time

	before struct {
		asks   map[string]uint64
		stats  pipeline.Stats
		export export.Stats
	}
}

type clientKey struct{ namespace, workload string }

// client is a client with series of its own, and which these are: to look for them among all costs time for each of
// them.
type client struct {
	clientKey
	seen      time.Time
	durations []durations
	lost      []loss
}

// durations are those of one error type.
type durations struct {
	errorType string
	observer  prometheus.Observer
}

// durationsOf gives where a client's durations of an error type go. There are few of them.
func (m *Metrics) durationsOf(c *client, errorType string) prometheus.Observer {
	for i := range c.durations {
		if d := &c.durations[i]; d.errorType == errorType {
			return d.observer
		}
	}
	d := durations{errorType, m.duration.WithLabelValues(c.namespace, c.workload, errorType)}
	c.durations = append(c.durations, d)
	return d.observer
}

type loss struct {
	where verdict.Where
	cause verdict.Cause
}

// New makes the metrics; maxClients <= 0 means [DefaultMaxClients].
func New(maxClients int, version string) *Metrics {
	if maxClients <= 0 {
		maxClients = DefaultMaxClients
	}
	labels := []string{"client_namespace", "client_workload"}
	m := &Metrics{
		registry: prometheus.NewRegistry(), max: maxClients, clients: make(map[clientKey]*client),
		other: &client{clientKey: clientKey{Other, Other}},
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dns_lookup_duration_seconds",
			Help: "Time of lookups as their client saw it, of answered ones until the answer came, of lost ones until the " +
				"client gave up; by client and error type (empty for an answer).",
			// semantic conventions, dns.lookup.duration
			Buckets: []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10},

			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, append(labels, "error_type")),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_lookups_lost_total", Help: "Lookups that got no answer, by client, by where they were lost and " +
				"by cause.",
		}, append(labels, "where", "cause")),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_lookup_retries_total", Help: "Attempts of lookups beyond the first, by client.",
		}, labels),
		untold: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_lookups_untold_total",
			Help: "Lookups without an answer of clients that flood, by client: neither judged nor told one by one, " +
				"nor among those lost.",
		}, labels),
		active: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "dnstrail_clients", Help: "Clients that have series of their own."}),
		events: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "dnstrail_kernel_events_total", Help: "Kernel events read."}),
		losses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_losses_total", Help: "What the tracer itself did not see or keep, by kind: ring_full, " +
				"flood, reentered, payload, undecodable (kernel events), fragments (packets whose later fragments were not " +
				"followed), orphan_answer, unmatched_read, unmatched_fragment, evicted (lookups), hops_cut.",
		}, []string{"kind"}),
		inFlight: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "dnstrail_lookups_in_flight", Help: "Lookups held, lost ones that wait for a late " +
				"answer included."}),
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dnstrail_spans_total", Help: "Spans by what became of them: sent, or why not (queue_full, export_failed).",
		}, []string{"outcome"}),
	}
	m.asks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dnstrail_asks_total",
		Help: "Questions among agents and CoreDNS about single lookups, by what became of them. " +
			"Of this agent's: asked, and of these answered and unreachable; limited were not sent. " +
			"Of others': given (answered), forgotten, refused, replayed, forged, malformed. " +
			"Without a question: early (lookups let go before their time), unmarked (and not known any more), " +
			"sent (lookups whose spans went out because somebody asked).",
	}, []string{"result"})
	m.recent = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "dnstrail_recent_past", Help: "Lookups remembered for those who ask back, and the bytes that they take, by " +
			"unit.",
	}, []string{"unit"})
	m.before.asks = map[string]uint64{}
	m.registry.MustRegister(m.asks, m.recent)
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dnstrail_build_info", Help: "The version of the agent.",
		ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.untold)
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
	if !l.Counts || l.Serves != nil || l.Own || l.ClientNetNS == 0 {
		return // a client that another node's agent counts, or a server's own question
	}
	k := m.client(o, now)
	observer := m.durationsOf(k, export.ErrorLabel(l, v))
	seconds := float64(l.End()-l.Start()) / 1e9
	if x, ok := observer.(prometheus.ExemplarObserver); ok && traceID != "" {
		x.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": traceID})
	} else {
		observer.Observe(seconds)
	}
	if v.Lost() {
		if lost := (loss{v.Where, v.Cause}); !slices.Contains(k.lost, lost) {
			k.lost = append(k.lost, lost)
		}
		m.lost.WithLabelValues(k.namespace, k.workload, string(v.Where), string(v.Cause)).Inc()
	}
	if l.Attempts > 1 {
		m.retries.WithLabelValues(k.namespace, k.workload).Add(float64(l.Attempts - 1))
	}
}

// Untold counts a lookup of a client that floods.
func (m *Metrics) Untold(o *origin.Origin, now time.Time) {
	k := m.client(o, now)
	m.untold.WithLabelValues(k.namespace, k.workload).Inc()
}

func (m *Metrics) client(o *origin.Origin, now time.Time) *client {
	k := clientKey{o.Namespace, o.Workload}
	if k.workload == "" {
		k.workload = o.Process
	}
	k.namespace, k.workload = strings.ToValidUTF8(k.namespace, "?"), strings.ToValidUTF8(k.workload, "?")
	c := m.clients[k]
	if c == nil {
		if len(m.clients) >= m.max {
			return m.other
		}
		c = &client{clientKey: k}
		m.clients[k] = c
		m.active.Set(float64(len(m.clients)))
	}
	c.seen = now
	return c
}

// Asked takes over the counts of questions, by result, and of lookups remembered.
func (m *Metrics) Asked(results map[string]uint64, lookups, bytes int) {
	for result, n := range results {
		m.asks.WithLabelValues(result).Add(float64(n - m.before.asks[result]))
		m.before.asks[result] = n
	}
	m.recent.WithLabelValues("lookups").Set(float64(lookups))
	m.recent.WithLabelValues("bytes").Set(float64(bytes))
}

// Tick takes over the counts of the pipeline and the exporter, and forgets idle clients.
func (m *Metrics) Tick(now time.Time, s pipeline.Stats, e export.Stats) {
	b := &m.before
	m.events.Add(float64(s.Events - b.stats.Events))
	for kind, n := range map[string]uint64{
		"ring_full":          s.Kernel.RingFull - b.stats.Kernel.RingFull,
		"flood":              s.Kernel.Flood - b.stats.Kernel.Flood,
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
		"sent": e.Sent - b.export.Sent, "queue_full": e.Dropped - b.export.Dropped,
		"export_failed": e.Failed - b.export.Failed,
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
		for _, d := range c.durations {
			m.duration.DeleteLabelValues(k.namespace, k.workload, d.errorType)
		}
		for _, l := range c.lost {
			m.lost.DeleteLabelValues(k.namespace, k.workload, string(l.where), string(l.cause))
		}
		m.retries.DeleteLabelValues(k.namespace, k.workload)
		m.untold.DeleteLabelValues(k.namespace, k.workload)
		delete(m.clients, k)
	}
	m.active.Set(float64(len(m.clients)))
}
