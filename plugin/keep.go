package dnstrail

import (
	"net/netip"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"golang.org/x/time/rate"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// reason says why a query is kept.
type reason uint8

const (
	notKept   reason = iota
	byRatio          // its trace ID lies within the ratio
	byParent         // whoever sent its traceparent keeps it
	byClient         // its client is on the list
	byName           // its name is on the list
	asError          // it failed
	asSlow           // it took too long
	asRefresh        // a background refresh failed or took too long
	asAsked          // somebody has asked for it
)

// String gives the value of the attribute dnstrail.keep.reason.
func (r reason) String() string {
	return [...]string{"", "ratio", "parent", "client", "name", "error", "slow", "refresh", "asked"}[r]
}

// keeper decides which queries are kept.
type keeper struct {
	ratio     link.Ratio
	errors    bool
	slow      time.Duration // 0: none is slow
	prefixes  []netip.Prefix
	workloads []workload
	names     []string // canonical zones

	all     *rate.Limiter // spans a second of any query; nil: no bound
	byRules *rate.Limiter // spans a second of queries that the ratio has not chosen; nil: no bound
}

// workload is a client that is always kept: all of a namespace if the name is empty.
type workload struct{ namespace, name string }

// atStart gives the reason for which a query is kept whatever comes of it; flags are those of the traceparent that came
// with it, if one did.
func (k *keeper) atStart(q *query, traced bool, flags byte) reason {
	switch {
	case traced && flags&link.FlagSampled != 0:
		return byParent
	case !traced && k.ratio.Holds(q.traceID):
		return byRatio
	}
	for _, p := range k.prefixes {
		if p.Contains(q.addr.Addr()) {
			return byClient
		}
	}
	for _, w := range k.workloads {
		if w.namespace == q.client.Namespace() && (w.name == "" || w.name == q.client.Workload()) {
			return byClient
		}
	}
	if len(k.names) > 0 && plugin.Zones(k.names).Matches(strings.ToLower(q.name)) != "" {
		return byName
	}
	return notKept
}

// atEnd gives the reason for which a query that is over is kept.
func (k *keeper) atEnd(q *query, res *result) reason {
	if q.reason != notKept {
		return q.reason
	}
	r := notKept
	switch {
	case k.errors && res.failed():
		r = asError
	case k.slow > 0 && res.total >= k.slow:
		r = asSlow
	}
	if r != notKept && q.link != nil {
		r = asRefresh
	}
	return r
}

// allow takes n spans of a query from what may be sent in this second.
func (k *keeper) allow(now time.Time, r reason, n int) bool {
	if k.byRules != nil && r != byRatio && !k.byRules.AllowN(now, n) {
		return false
	}
	return k.all == nil || k.all.AllowN(now, n)
}

// failed says whether a query counts as an error: it was not answered, or with an rcode that says that a server could
// not. NXDOMAIN is an answer.
func (r *result) failed() bool {
	return r.rcode < 0 || r.panicked || semconv.RcodeFails(r.rcode)
}
