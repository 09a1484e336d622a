// Package report says what a good engineer would say of a cluster's DNS after some time with it: rows in, findings out.
//
// A finding has what it costs, numbers, lookups that show it and the change to make. It comes of enough lookups or not
// at all: what could not be judged is said to be so ([Report.NotEnough]). Nothing here knows where rows come from.
package report

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// SchemaVersion is the version of the JSON form of [Report].
const SchemaVersion = 1

// Kind is what a finding is about.
type Kind string

// The kinds, each judged by itself.
const (
	SearchPath Kind = "search-path" // queries that a search path makes for nothing
	NeverThere Kind = "never-there" // names that do not exist, asked again and again
	NoIPv6     Kind = "no-ipv6"     // AAAA is asked where no name has one
	Upstreams  Kind = "upstream"    // an upstream that fails or is slow
	Failover   Kind = "failover"    // what it costs that a first upstream fails
	Instances  Kind = "instance"    // a DNS server that is slower than the others, or gets more
	Queue      Kind = "queue"       // queries that wait in a DNS server's socket
	Retries    Kind = "retries"     // clients that ask again
	Ports      Kind = "ports"       // clients that ask from few ports
	Outside    Kind = "outside"     // clients that ask servers outside the cluster
	Truncation Kind = "truncation"  // answers that do not fit, and TCP after them
	Losses     Kind = "losses"      // lookups without an answer
	Nodes      Kind = "node"        // a node where things are worse than elsewhere
	Cache      Kind = "cache"       // answers that servers' caches do not keep for long enough
	Conntrack  Kind = "conntrack"   // what connection tracking loses
)

// Kinds are all of them.
var Kinds = []Kind{
	SearchPath, NeverThere, NoIPv6, Upstreams, Failover, Instances, Queue, Retries, Ports, Outside, Truncation, Losses,
	Nodes, Cache, Conntrack,
}

// When something is a finding. Less than enough of anything is judged neither well nor ill.
const (
	enough      = 20   // lookups of one kind, before a share of them or a quantile means something
	someFailed  = 5    // fewer failures are told of nobody
	failedShare = 0.01 // of an upstream's queries, of a client's lookups
	wastedShare = 0.10 // of a workload's queries
	manyAsked   = 10   // queries for a name that never exists
	timesSlower = 3    // than the others
	ofPorts     = 0.1  // ports for each lookup
	manyOfPorts = 50   // lookups over UDP, before the number of ports means something
	uneven      = 1.5  // times an even share
	enoughEven  = 200
	maxOfAKind  = 5 // findings of one kind; the rest is counted in the last
	maxEvidence = 3

	slowerBy      = time.Millisecond      // a server, a node
	upstreamSlow  = 20 * time.Millisecond // slower than the others by this
	upstreamBad   = 200 * time.Millisecond
	inQueue       = 10 * time.Millisecond
	queuedShare   = 0.01
	highestNdots  = 4
	lowestNdots   = 2
	usualEvidence = "dnstrail explain "
)

// Number is one figure of a finding.
type Number struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Unit is "", "s" (seconds) or "share" (of 1).
	Unit string `json:"unit,omitempty"`
}

// Finding is one thing worth a change.
type Finding struct {
	Kind Kind `json:"kind"`
	// Who is whose it is: a workload as namespace/name, a server, a node; "" of the whole.
	Who string `json:"who,omitempty"`
	// Text says what was found.
	Text string `json:"text"`
	// Waited is how long clients waited for it, in seconds, all together; Queries is how many queries it is the cause of.
	Waited  float64 `json:"waitedSeconds"`
	Queries int     `json:"queries"`
	// Lookups is how many lookups show it.
	Lookups int      `json:"lookups"`
	Numbers []Number `json:"numbers"`
	// Evidence are trace IDs of lookups that show it.
	Evidence []string `json:"evidence"`
	// Change is what to do; Patch, where there is one, the text to put in.
	Change string `json:"change"`
	Patch  string `json:"patch,omitempty"`
}

// Number gives the figure of that name; 0 if there is none.
func (f *Finding) Number(name string) float64 {
	for _, n := range f.Numbers {
		if n.Name == name {
			return n.Value
		}
	}
	return 0
}

// Gap is what could not be judged.
type Gap struct {
	Kind Kind   `json:"kind"`
	Why  string `json:"why"`
}

// Report is what was found.
type Report struct {
	Schema int `json:"schema"`
	// From and To are when the first and the last lookup began that was looked at.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lookups is how many clients' lookups were looked at, Untold how many were not, since there were too many.
	Lookups int `json:"lookups"`
	Untold  int `json:"untold,omitempty"`
	// EventsLost counts kernel events that tracers lost meanwhile.
	EventsLost uint64    `json:"eventsLost,omitempty"`
	Findings   []Finding `json:"findings"`
	// Well are the kinds that were judged, of which nothing was found; NotEnough those that could not be.
	Well      []Kind `json:"well"`
	NotEnough []Gap  `json:"notEnough"`
}

// MaxLookups is how many lookups are kept where nothing else is said.
const MaxLookups = 200_000

// Collector takes rows and keeps of them what a report needs. The zero value is ready. It is for one goroutine.
type Collector struct {
	// Max is how many lookups are kept, the first that come; 0 means [MaxLookups].
	Max int

	rows   []*output.Row // without their hops
	queued []time.Duration
	at     map[key]int
	untold int
}

// key is what lines of one lookup share.
type key struct{ trace, server, client string }

func keyOf(r *output.Row) key {
	if r.OwnTraceID != "" {
		return key{r.OwnTraceID, r.Server, r.Client.Address}
	}
	return key{trace: r.TraceID, server: r.Server}
}

// Add takes a row. One with a higher revision takes the place of the lookup's earlier one. The row is not kept.
func (c *Collector) Add(r *output.Row) {
	if c.at == nil {
		c.at = map[key]int{}
	}
	kept := *r
	kept.Hops, kept.Verdict.Evidence = nil, nil
	k := keyOf(r)
	at, known := c.at[k]
	if !known && r.Revision > 0 { // CoreDNS does not know which address its client asked
		if at, known = c.at[key{trace: r.TraceID}]; known {
			c.at[k] = at
		}
	}
	switch {
	case known:
		c.rows[at], c.queued[at] = &kept, queued(r)
	case len(c.rows) >= cmp.Or(c.Max, MaxLookups):
		c.untold++
	default:
		c.at[k] = len(c.rows)
		c.rows, c.queued = append(c.rows, &kept), append(c.queued, queued(r))
	}
}

// queued gives how long the query lay in the server's socket; negative where that was not seen.
func queued(r *output.Row) time.Duration {
	if !r.ServerSeen {
		return -1
	}
	arrived := int64(-1)
	for _, h := range r.Hops {
		switch {
		case h.Answer:
			return -1
		case h.Kind == "in":
			arrived = h.Nanos
		case h.Kind == "read" && arrived >= 0:
			return time.Duration(max(0, h.Nanos-arrived))
		}
	}
	return -1
}

// lookup is a client's lookup with what is derived of it.
type lookup struct {
	*output.Row
	queue time.Duration
}

func (l *lookup) lost() bool { return l.Result == output.Lost }

// total gives how long its client waited.
func (l *lookup) total() time.Duration { return time.Duration(l.Total) }

// ask is a query of a DNS server's own.
type ask struct {
	upstream string
	took     time.Duration
	failed   bool
	result   string
	trace    string
}

// judge is one report under way.
type judge struct {
	report  *Report
	lookups []lookup
	asks    []ask
	served  map[string]bool // trace IDs of lookups for which another server was asked
}

// Report judges all that was added.
func (c *Collector) Report() *Report {
	j := &judge{report: &Report{Schema: SchemaVersion, Untold: c.untold, Findings: []Finding{}, Well: []Kind{},
		NotEnough: []Gap{}}, served: map[string]bool{}}
	for i, r := range c.rows {
		j.report.EventsLost += r.EventsLost
		switch {
		case r.Connect:
		case r.Own:
			if r.Serves != "" {
				j.served[r.Serves] = true
			}
			j.asks = append(j.asks, ask{host(r.Server), time.Duration(r.Total), r.Result == output.Lost ||
				serverFailed(r.Result), r.Result, r.TraceID})
		default:
			j.lookups = append(j.lookups, lookup{r, c.queued[i]})
			for _, u := range r.Upstreams {
				j.served[r.TraceID] = true
				j.asks = append(j.asks, ask{host(u.Address), time.Duration(u.Nanos), u.Failed || serverFailed(u.Result), u.Result,
					r.TraceID})
			}
		}
	}
	slices.SortStableFunc(j.lookups, func(a, b lookup) int { return a.Time.Compare(b.Time) })
	j.report.Lookups = len(j.lookups)
	if n := len(j.lookups); n > 0 {
		j.report.From, j.report.To = j.lookups[0].Time, j.lookups[n-1].Time
	}
	walks := walksOf(j.lookups)
	j.searchPath(walks)
	j.neverThere(walks)
	j.noIPv6()
	j.upstreams()
	j.failover()
	j.instances()
	j.queue()
	j.retries()
	j.ports()
	j.outside()
	j.truncation()
	j.losses()
	j.nodes()
	j.cache()
	j.conntrack()
	// By what it costs; what nobody waited for, by the queries.
	slices.SortStableFunc(j.report.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(b.Queries, a.Queries))
	})
	return j.report
}

// told puts the findings of a kind into the report: the costliest, and that there are more.
func (j *judge) told(kind Kind, found []Finding) {
	if len(found) == 0 {
		j.report.Well = append(j.report.Well, kind)
		return
	}
	slices.SortStableFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(b.Queries, a.Queries), cmp.Compare(a.Who, b.Who))
	})
	if more := len(found) - maxOfAKind; more > 0 {
		found = found[:maxOfAKind]
		last := &found[maxOfAKind-1]
		last.Text += "; " + plural(more, "more is", "more are") + " like it and cost less"
	}
	for i := range found {
		found[i].Kind = kind
	}
	j.report.Findings = append(j.report.Findings, found...)
}

// little says that a kind could not be judged.
func (j *judge) little(kind Kind, why string) {
	j.report.NotEnough = append(j.report.NotEnough, Gap{kind, why})
}

// serverFailed tells whether an rcode says that the server could not or would not answer.
func serverFailed(rcode string) bool {
	switch rcode {
	case "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP":
		return true
	}
	return false
}

// who names whose a lookup is: its workload, else pod, else node, else address.
func (l *lookup) who() string {
	c := &l.Client
	switch {
	case c.Workload != "":
		return c.Namespace + "/" + c.Workload
	case c.Pod != "":
		return c.Namespace + "/" + c.Pod
	}
	return cmp.Or(c.Node, l.Node, host(c.Address), "a client that is not known")
}

// host gives an address without its port.
func host(address string) string {
	if a, err := netip.ParseAddrPort(address); err == nil {
		return a.Addr().Unmap().String()
	}
	return address
}

// evidence gives a few of the trace IDs, each once.
func evidence(ids []string) []string {
	out := []string{}
	for _, id := range ids {
		if id != "" && !slices.Contains(out, id) {
			if out = append(out, id); len(out) == maxEvidence {
				break
			}
		}
	}
	return out
}

// quantile gives the p-quantile (nearest rank) of times, which it sorts; 0 of none.
func quantile(times []time.Duration, p float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[min(len(times)-1, int(p*float64(len(times))))]
}

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// by groups what is given by a name, and gives the names in order.
func by[T any](list []T, name func(*T) string) (map[string][]*T, []string) {
	groups := map[string][]*T{}
	for i := range list {
		n := name(&list[i])
		if n == "" {
			continue
		}
		groups[n] = append(groups[n], &list[i])
	}
	names := make([]string, 0, len(groups))
	for n := range groups {
		names = append(names, n)
	}
	slices.Sort(names)
	return groups, names
}

// fold writes a name as names are compared.
func fold(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
