package dnstrail

import (
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/identity"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

// identitySources tells the state of every source of identities that the process has open, when the metrics are read.
type identitySources struct {
	addresses, pods, synced, forbidden, lastEvent, errors, reloads *prometheus.Desc
}

func init() { prometheus.MustRegister(newIdentitySources()) }

func newIdentitySources() *identitySources {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, subsystem, name), help,
			append([]string{"source"}, labels...), nil)
	}
	return &identitySources{
		addresses: desc("identity_addresses", "Addresses by which clients are known."),
		pods:      desc("identity_pods", "Pods that are known, those deleted a moment ago among them."),
		synced: desc("identity_synced", "Whether all objects of a resource have been read once: 1 or 0. Of pods: "+
			"until then clients are `unknown`.", "resource"),
		forbidden: desc("identity_forbidden", "Whether the Kubernetes API refuses to let us read a resource: 1 or 0. "+
			"Only pods are needed.", "resource"),
		lastEvent: desc("identity_last_event_timestamp_seconds", "When the Kubernetes API last told something about a "+
			"resource (it does so once a minute at least), or the file was last read.", "resource"),
		errors: desc("identity_watch_errors_total", "Lists and watches of a resource that failed. What was known before "+
			"stays.", "resource"),
		reloads: desc("identity_file_reloads_total", "Changes of the identity file, by whether they were `taken` or "+
			"`refused` for being wrong.", "result"),
	}
}

// Describe implements [prometheus.Collector].
func (s *identitySources) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.addresses, s.pods, s.synced, s.forbidden, s.lastEvent, s.errors, s.reloads} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (s *identitySources) Collect(ch chan<- prometheus.Metric) {
	for _, source := range identity.Sources() {
		s.collect(ch, source)
	}
}

func (s *identitySources) collect(ch chan<- prometheus.Metric, source *identity.Source) {
	name := strings.ToValidUTF8(source.Name(), "\uFFFD")
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append([]string{name}, labels...)...)
	}
	addresses, pods := source.Index().Size()
	gauge(s.addresses, float64(addresses))
	gauge(s.pods, float64(pods))
	if k := source.Kubernetes(); k != nil {
		for _, w := range k.Watches() {
			gauge(s.synced, oneIf(w.Synced), w.Resource)
			gauge(s.forbidden, oneIf(w.Forbidden), w.Resource)
			counter(s.errors, w.Errors, w.Resource)
			if !w.LastEvent.IsZero() {
				gauge(s.lastEvent, unixSeconds(w.LastEvent), w.Resource)
			}
		}
	}
	if f := source.File(); f != nil {
		taken, refused := f.Reloads()
		gauge(s.synced, 1, "file")
		gauge(s.lastEvent, unixSeconds(source.Index().LastEvent()), "file")
		counter(s.reloads, taken, "taken")
		counter(s.reloads, refused, "refused")
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
