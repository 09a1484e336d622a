package dnstrail

import (
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var log = clog.NewWithPlugin(pluginName)

// What becomes of our own records. Every query is in queriesTotal once (and once more if it is asked for later), and
// every span of a kept one in spansTotal once.
var (
	queriesTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "traces_total",
		Help: "Counter of queries and background refreshes by what became of their trace: kept, or why not (unsampled, " +
			"limited, queue_full, no_exporter).",
	}, []string{"result"})
	spansTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "spans_total",
		Help: "Counter of spans by what became of them: exported, or why not " +
			"(limited, queue_full, export_failed, shutdown, omitted).",
	}, []string{"result"})
	spansLate = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "late_spans_total",
		Help: "Counter of steps that plugins began for a query that was over: they are nobody's wait, and have no span.",
	})
	exportDuration = promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "export_duration_seconds",
		Buckets: plugin.SlimTimeBuckets, NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
		Help: "Histogram of the time that sending a batch of spans took.",
	})
	queueSpans = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "export_queue_spans",
		Help: "Gauge of the spans that wait to be exported.",
	})
	asksTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "asks_total",
		Help: "Counter of questions among agents and CoreDNS about single lookups by what became of them. " +
			"Of this CoreDNS's: asked, of these answered and unreachable; limited were not sent. " +
			"Of others': given (answered), forgotten, refused, " +
			"replayed, forged, malformed. And early: queries let go before their time.",
	}, []string{"result"})
	panicsTotal = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: pluginName, Name: "panics_total",
		Help: "Counter of panics in dnstrail itself; each cost a record, not a query.",
	})

	tracesKept       = queriesTotal.WithLabelValues("kept")
	tracesUnsampled  = queriesTotal.WithLabelValues("unsampled")
	tracesLimited    = queriesTotal.WithLabelValues("limited")
	tracesQueueFull  = queriesTotal.WithLabelValues("queue_full")
	tracesNoExporter = queriesTotal.WithLabelValues("no_exporter")

	spansExported  = spansTotal.WithLabelValues("exported")
	spansLimited   = spansTotal.WithLabelValues("limited")
	spansQueueFull = spansTotal.WithLabelValues("queue_full")
	spansFailed    = spansTotal.WithLabelValues("export_failed")
	spansShutdown  = spansTotal.WithLabelValues("shutdown")
	spansOmitted   = spansTotal.WithLabelValues("omitted")
)

func countPanic() { panicsTotal.Inc() }

// countNotKept counts a query whose trace is not kept, or has nowhere to go.
func countNotKept(r reason) {
	if r == notKept {
		tracesUnsampled.Inc()
	} else {
		tracesNoExporter.Inc()
	}
}

func countLate() { spansLate.Inc() }
