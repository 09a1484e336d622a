package dnstrail

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"

	"github.com/prometheus/client_golang/prometheus"
)

// Per-client metrics are bounded by construction:
//
//   - a client is a workload, unless pods are asked for;
//   - at most so many clients have series of their own; the rest, and the namespaces left out, are counted together
//     under otherClient;
//   - a client that asks nothing for a while loses its series. This is looked at when the metrics are read, so that
//     there is no goroutine.
//
// A query finds its client's counters by one look-up in a map that reads take no lock on.

// otherClient is the client_workload of all that have no series of their own. No Kubernetes name starts with a tilde.
const otherClient = "~other"

// noRcode is the rcode of a query that got no answer.
const noRcode = "none"

// Defaults of clientOptions.
const (
	defaultMaxClients = 1000
	defaultClientIdle = 30 * time.Minute
)

// clientOptions say which clients are told apart.
type clientOptions struct {
	pods     bool          // by pod and node instead of by workload
	max      int           // how many clients have series of their own; 0 means defaultMaxClients
	idle     time.Duration // how long a client keeps its series without asking; 0 means defaultClientIdle
	included []string      // namespaces that are told; none means all
	excluded []string      // namespaces that are not
}

// clientQuery is a finished query, as the metrics want it.
type clientQuery struct {
	client     *identity.Client // never nil
	server     string           // as in CoreDNS's own metrics: "dns://:53"
	rcode      string           // the rcode on the wire in words; not looked at if written is false
	plugin     string           // the plugin that answered, or that ended the query without an answer
	written    bool             // whether an answer was written
	searchMiss bool             // see searchPathMiss
	total      time.Duration
	upstream   time.Duration // all attempts; 0 if there was none
	traceID    link.TraceID  // of a trace that is kept, for the exemplar; zero if it is not
}

// clientTable holds the series of all clients of the process.
type clientTable struct {
	vecs *clientVecs
	now  func() time.Time

	mu     sync.Mutex
	series map[clientName]*clientSeries
	views  map[string]*clientMetrics
	rest   *clientSeries
}

// clientName is a client by the values of clientLabels.
type clientName [5]string

// clientSeries are the counters of one client.
type clientSeries struct {
	name     clientName
	vecs     *clientVecs
	duration *histogram
	upstream atomic.Pointer[histogram] // made when needed, as the ones below: most clients never fail
	misses   atomic.Pointer[prometheus.Counter]
	requests atomic.Pointer[[]requestCounter]

	mu   sync.Mutex // held to add to the above
	dead atomic.Bool

	idle   time.Duration // the table's: held under its lock
	active time.Time     // the table's
}

type requestCounter struct {
	server, rcode, plugin string
	counter               prometheus.Counter
	unanswered            prometheus.Counter // nil if the query was answered
}

// clientMetrics tell clients apart in the way that one set of options says.
type clientMetrics struct {
	table *clientTable
	opts  clientOptions
	// known leads from what is at hand in a query to the series: from identity.Group, or from *identity.Client where pods
	// are told apart, to *clientHandle.
	known sync.Map
}

// clientHandle is an entry of known.
type clientHandle struct {
	series *clientSeries
	used   atomic.Bool // since the last sweep; written once between two, so that cores do not fight for it
}

// newClientTable makes a table; what it counts is had from it as a [prometheus.Collector].
func newClientTable() *clientTable {
	t := &clientTable{
		vecs:   newClientVecs(),
		now:    time.Now,
		series: map[clientName]*clientSeries{},
		views:  map[string]*clientMetrics{},
	}
	t.rest = t.newSeries(clientName{3: otherClient})
	return t
}

// with gives the metrics for a set of options: the same ones for the same options, so that a reload finds all as it
// was.
func (t *clientTable) with(o clientOptions) *clientMetrics {
	if o.max == 0 {
		o.max = defaultMaxClients
	}
	if o.idle == 0 {
		o.idle = defaultClientIdle
	}
	o.included, o.excluded = slices.Sorted(slices.Values(o.included)), slices.Sorted(slices.Values(o.excluded))
	key := fmt.Sprintf("%+v", o)
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.views[key]
	if m == nil {
		m = &clientMetrics{table: t, opts: o}
		t.views[key] = m
	}
	return m
}

// observe counts a finished query.
func (m *clientMetrics) observe(q *clientQuery) {
	s := m.seriesOf(q.client)
	c := s.request(q)
	c.counter.Inc()
	if c.unanswered != nil {
		c.unanswered.Inc()
	}
	s.duration.observe(q.total, q.traceID)
	if q.upstream > 0 {
		s.upstreamOf().observe(q.upstream, q.traceID)
	}
	if q.searchMiss {
		s.missesOf().Inc()
	}
}

// exemplarEvery is how often a bucket gets a new exemplar: more often than anybody reads them, and not at each query,
// which would cost more than all other metrics together.
const exemplarEvery = time.Second

// histogram is a client's histogram and, for each of its classic buckets, when it last got an exemplar (in nanoseconds
// since 1970).
type histogram struct {
	prometheus.Observer
	exemplars [len(durationBuckets) + 1]atomic.Int64
}

// observe adds a duration; a trace that is kept may become the exemplar of its bucket.
func (h *histogram) observe(d time.Duration, trace link.TraceID) {
	v := d.Seconds()
	if trace == (link.TraceID{}) {
		h.Observe(v)
		return
	}
	bucket := 0
	for bucket < len(durationBuckets) && v > durationBuckets[bucket] {
		bucket++
	}
	last, now := h.exemplars[bucket].Load(), time.Now().UnixNano()
	if now-last < int64(exemplarEvery) || !h.exemplars[bucket].CompareAndSwap(last, now) {
		h.Observe(v)
		return
	}
	h.Observer.(prometheus.ExemplarObserver).ObserveWithExemplar(v, prometheus.Labels{"trace_id": trace.String()})
}

// seriesOf gives the series that a client is counted under.
func (m *clientMetrics) seriesOf(c *identity.Client) *clientSeries {
	var key any = c.Group()
	if m.opts.pods {
		key = c
	}
	if h, ok := m.known.Load(key); ok {
		h := h.(*clientHandle)
		if !h.series.dead.Load() {
			if !h.used.Load() {
				h.used.Store(true)
			}
			return h.series
		}
	}
	h := &clientHandle{series: m.admit(c)}
	h.used.Store(true)
	m.known.Store(key, h) // also if it is the rest: a client that is refused must not cost a lock each time
	return h.series
}

// admit finds or makes the series of a client that is not known here yet.
func (m *clientMetrics) admit(c *identity.Client) *clientSeries {
	name := m.opts.name(c)
	t := m.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.series[name]; s != nil {
		s.active = t.now()
		return s
	}
	if name == t.rest.name || len(t.series) >= m.opts.max {
		return t.rest
	}
	s := t.newSeries(name)
	s.idle, s.active = m.opts.idle, t.now()
	t.series[name] = s
	return s
}

// name gives the label values that a client is counted under.
func (o *clientOptions) name(c *identity.Client) clientName {
	ns := c.Namespace()
	if ns != "" && (len(o.included) > 0 && !slices.Contains(o.included, ns) || slices.Contains(o.excluded, ns)) {
		return clientName{3: otherClient}
	}
	n := clientName{c.Kind().String(), ns, c.WorkloadKind(), c.Workload(), ""}
	if o.pods {
		n[4] = c.Pod()
		if c.Kind() == identity.Node {
			n[2], n[3] = "Node", c.Node()
		}
	}
	for i := range n {
		n[i] = strings.ToValidUTF8(n[i], "\uFFFD")
	}
	return n
}

// newSeries makes the series of a client. Of a client that asks, requests and duration always exist.
func (t *clientTable) newSeries(name clientName) *clientSeries {
	s := &clientSeries{name: name, vecs: t.vecs,
		duration: &histogram{Observer: t.vecs.duration.WithLabelValues(name[:]...)}}
	s.requests.Store(&[]requestCounter{})
	return s
}

// request gives the counter for how a query ended. A client has a handful of them, so that a scan finds it.
func (s *clientSeries) request(q *clientQuery) *requestCounter {
	rcode := q.rcode
	if !q.written {
		rcode = noRcode
	}
	find := func() *requestCounter {
		all := *s.requests.Load()
		for i := range all {
			if r := &all[i]; r.rcode == rcode && r.plugin == q.plugin && r.server == q.server {
				return r
			}
		}
		return nil
	}
	if r := find(); r != nil {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := find(); r != nil {
		return r
	}
	r := requestCounter{server: q.server, rcode: rcode, plugin: q.plugin}
	r.counter = s.vecs.requests.WithLabelValues(s.with(r.server, rcode, r.plugin)...)
	if !q.written {
		r.unanswered = s.vecs.unanswered.WithLabelValues(s.with(r.plugin)...)
	}
	next := append(slices.Clone(*s.requests.Load()), r)
	s.requests.Store(&next)
	return &next[len(next)-1]
}

// with gives the client's label values and more, all of them valid: client_golang panics at one that is not UTF-8.
func (s *clientSeries) with(more ...string) []string {
	out := slices.Clone(s.name[:])
	for _, v := range more {
		out = append(out, strings.ToValidUTF8(v, "\uFFFD"))
	}
	return out
}

func (s *clientSeries) upstreamOf() *histogram {
	if h := s.upstream.Load(); h != nil {
		return h
	}
	s.upstream.CompareAndSwap(nil, &histogram{Observer: s.vecs.upstream.WithLabelValues(s.name[:]...)})
	return s.upstream.Load()
}

func (s *clientSeries) missesOf() prometheus.Counter {
	if p := s.misses.Load(); p != nil {
		return *p
	}
	c := s.vecs.searchPathMisses.WithLabelValues(s.name[:]...)
	s.misses.Store(&c)
	return c
}

// sweep forgets what leads to a client that asked nothing since the last sweep, and drops the series of clients that
// have been idle for long. What a query counts in the moment in which its client is dropped is lost: it was the first
// one in a long time.
func (t *clientTable) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, m := range t.views {
		m.known.Range(func(key, h any) bool {
			if h := h.(*clientHandle); h.used.Swap(false) {
				h.series.active = now
			} else {
				m.known.Delete(key)
			}
			return true
		})
	}
	dropped := 0
	for name, s := range t.series {
		if now.Sub(s.active) < s.idle {
			continue
		}
		s.dead.Store(true)
		delete(t.series, name)
		t.drop(s)
		dropped++
	}
	if dropped > 0 { // there is room again: whoever was refused may ask again
		t.vecs.expired.Add(float64(dropped))
		for _, m := range t.views {
			m.known.Range(func(key, h any) bool {
				if h.(*clientHandle).series == t.rest {
					m.known.Delete(key)
				}
				return true
			})
		}
	}
	t.vecs.tracked.Set(float64(len(t.series)))
}

// drop takes a client's series out of the metrics.
func (t *clientTable) drop(s *clientSeries) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range *s.requests.Load() {
		t.vecs.requests.DeleteLabelValues(s.with(r.server, r.rcode, r.plugin)...)
		t.vecs.unanswered.DeleteLabelValues(s.with(r.plugin)...)
	}
	t.vecs.duration.DeleteLabelValues(s.name[:]...)
	t.vecs.upstream.DeleteLabelValues(s.name[:]...)
	t.vecs.searchPathMisses.DeleteLabelValues(s.name[:]...)
}

// Describe implements [prometheus.Collector].
func (t *clientTable) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range t.vecs.collectors() {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector]. It sweeps first.
func (t *clientTable) Collect(ch chan<- prometheus.Metric) {
	t.sweep()
	for _, c := range t.vecs.collectors() {
		c.Collect(ch)
	}
}
