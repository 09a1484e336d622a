package dnstrail

import (
	"slices"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

const subsystem = "dnstrail"

// clientLabels are what a client is told by. client_pod is empty (for Prometheus: absent) unless pods are told apart.
var clientLabels = []string{"client_kind", "client_namespace", "client_workload_kind", "client_workload", "client_pod"}

// clients counts for all server blocks, and over reloads. CoreDNS's prometheus plugin serves what is registered here.
var clients = func() *clientTable {
	t := newClientTable()
	prometheus.MustRegister(t)
	return t
}()

// clientVecs are the metrics that each client has, and those about their number.
type clientVecs struct {
	requests         *prometheus.CounterVec
	unanswered       *prometheus.CounterVec
	searchPathMisses *prometheus.CounterVec
	duration         *prometheus.HistogramVec
	upstream         *prometheus.HistogramVec

	tracked prometheus.Gauge
	expired prometheus.Counter
}

func newClientVecs() *clientVecs {
	with := func(labels ...string) []string {
		return append(slices.Clip(clientLabels), labels...)
	}
	return &clientVecs{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: subsystem, Name: "client_requests_total",
			Help: "Queries by client, by the rcode on the wire (`none` where no answer was written) and by the plugin that " +
				"answered or ended them.",
		}, with("server", "rcode", "plugin")),
		unanswered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: subsystem, Name: "client_unanswered_total",
			Help: "Queries by client that got no answer, by the plugin that ended them.",
		}, with("plugin")),
		searchPathMisses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: subsystem, Name: "client_search_path_misses_total",
			Help: "NXDOMAIN answers by client to names that a resolver's search list made.",
		}, with()),
		duration: prometheus.NewHistogramVec(durations("client_request_duration_seconds",
			"Time from a query's arrival in dnstrail to its answer, by client."), with()),
		upstream: prometheus.NewHistogramVec(durations("client_upstream_duration_seconds",
			"Time that a query waited for upstreams, all attempts added, by client; queries that asked none are not in it."),
			with()),
		tracked: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: plugin.Namespace, Subsystem: subsystem, Name: "clients",
			Help: "Clients that have series of their own; those that came after the limit was reached are counted together " +
				"under `~other`.",
		}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: subsystem, Name: "clients_expired_total",
			Help: "Clients whose series were dropped because they asked nothing for a while.",
		}),
	}
}

// durationBuckets are every second one of CoreDNS's own ([plugin.TimeBuckets]), in seconds.
var durationBuckets = [...]float64{0.00025, 0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096}

// durations describes a histogram of seconds: native buckets at CoreDNS's resolution, bounded in number, and classic
// ones for what cannot read those.
func durations(name, help string) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Namespace: plugin.Namespace, Subsystem: subsystem, Name: name, Help: help,
		Buckets:                         durationBuckets[:],
		NativeHistogramBucketFactor:     plugin.NativeHistogramBucketFactor,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}
}

func (v *clientVecs) collectors() []prometheus.Collector {
	return []prometheus.Collector{v.requests, v.unanswered, v.searchPathMisses, v.duration, v.upstream, v.tracked,
		v.expired}
}
