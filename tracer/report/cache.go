package report

import (
	"cmp"
	"fmt"
	"time"

	"golang.org/x/net/publicsuffix"
)

// keptAtLeast is what caches are tried with: so long CoreDNS keeps an answer at the most where its Corefile is the
// usual one (cache 30), so that nobody gets older answers for it than are usual.
const keptAtLeast = 30 * time.Second

// zone gives the domain that somebody registered, of a name: what stands before a public suffix.
func zone(name string) string {
	name = fold(name)
	if z, err := publicsuffix.EffectiveTLDPlusOne(name); err == nil {
		return z
	}
	return name // a suffix itself
}

// fetch is when a question's answer came into a server's cache for the last time, as it would be if the cache kept it
// for [keptAtLeast], and as it was.
type fetch struct{ would, was time.Time }

// zoneCache is what the servers' caches did for a zone.
type zoneCache struct {
	lookups, hits, misses int
	refetched             int             // misses of what was fetched before
	gaps                  []time.Duration // since it had been
	saved, savedDenials   int
	sooner, hitTook       time.Duration
	ids                   []string
}

// cache judges, by zone, what the DNS servers' caches answer. It goes through the lookups again with caches that keep
// each answer for [keptAtLeast]. A miss that no upstream was asked for costs nothing, and counts for nothing.
func (j *judge) cache() {
	type question struct{ server, name, qtype string }
	fetched := map[question]fetch{}
	zones := map[string]*zoneCache{}
	told := 0
	for i := range j.lookups {
		l := &j.lookups[i]
		if l.Cache == "" || l.lost() || serverFailed(l.Result) {
			continue
		}
		told++
		z := zones[zone(l.Name)]
		if z == nil {
			z = &zoneCache{}
			zones[zone(l.Name)] = z
		}
		z.lookups++
		if l.Cache != "miss" {
			z.hits++
			z.hitTook += l.total()
			continue
		}
		z.misses++
		if !j.served[l.TraceID] {
			continue
		}
		q := question{l.instance(), fold(l.Name), l.Type}
		came := l.Time.Add(l.total())
		f, known := fetched[q]
		if known && !l.Time.Before(f.was) {
			z.refetched++
			z.gaps = append(z.gaps, l.Time.Sub(f.was))
		}
		switch {
		case known && l.Time.Before(f.would): // it was still under way
		case known && l.Time.Before(f.would.Add(keptAtLeast)):
			z.saved++
			z.sooner += l.total()
			z.ids = append(z.ids, l.TraceID)
			if l.Result == "NXDOMAIN" || len(l.Answers) == 0 {
				z.savedDenials++
			}
		default:
			f.would = came
		}
		if !known || came.After(f.was) {
			f.was = came
		}
		fetched[q] = f
	}
	if told < enough {
		j.little(Cache, fmt.Sprintf("CoreDNS told of %s what its cache had", plural(told, "lookup", "lookups")))
		return
	}
	var found []Finding
	for name, z := range zones {
		if z.lookups < enough || z.saved < manyAsked || share(z.saved, z.lookups) < wastedShare {
			continue
		}
		if z.hits > 0 { // what would be hits takes as long as hits do
			z.sooner -= time.Duration(z.saved) * (z.hitTook / time.Duration(z.hits))
		}
		found = append(found, Finding{
			Who: name, Lookups: z.saved, Queries: z.saved, Waited: max(0, z.sooner.Seconds()), Evidence: evidence(z.ids),
			Text: fmt.Sprintf("of %s the caches answer %d of %d lookups (%s), and %d that they do not answer had been fetched "+
				"before, half of them %s before or less: too short a TTL to matter, or too small a cache", name, z.hits,
				z.lookups, percent(share(z.hits, z.lookups)), z.refetched, duration(quantile(z.gaps, 0.5))),
			Numbers: []Number{
				{"lookups", float64(z.lookups), ""}, {"hits", float64(z.hits), ""},
				{"hit share", share(z.hits, z.lookups), "share"}, {"misses", float64(z.misses), ""},
				{"fetched again", float64(z.refetched), ""}, {"after", quantile(z.gaps, 0.5).Seconds(), "s"},
				{"saved queries", float64(z.saved), ""}, {"saved time", max(0, z.sooner.Seconds()), "s"},
			},
			Change: fmt.Sprintf("let CoreDNS keep answers of %s for %s at least, in a server block of its own (or raise its "+
				"TTL, if it is yours; or the cache's capacity, if coredns_cache_evictions_total grows): the same lookups would "+
				"have made %s of upstreams less", name, duration(keptAtLeast), plural(z.saved, "query", "queries")),
			Patch: corefile(name, z.saved > z.savedDenials, z.savedDenials > 0),
		})
	}
	j.told(Cache, found)
}

// corefile gives the server block that keeps a zone's answers, and its denials, for longer (CoreDNS's plugin cache).
func corefile(zone string, answers, denials bool) string {
	kept := int(keptAtLeast.Seconds())
	text := zone + " {\n    cache {\n"
	if answers {
		text += fmt.Sprintf("        success 9984 3600 %d\n", kept)
	}
	if denials {
		text += fmt.Sprintf("        denial 9984 1800 %d\n", kept)
	}
	return text + "    }\n    forward . /etc/resolv.conf\n}\n"
}

// conntrack judges what connection tracking lost, by the client's node: lookups for which its table had no room, and
// those that lost the race of two packets of one socket for an entry.
func (j *judge) conntrack() {
	if len(j.lookups) < enough {
		j.little(Conntrack, fmt.Sprintf("%s seen", plural(len(j.lookups), "lookup", "lookups")))
		return
	}
	byNode, nodes := by(j.lookups, func(l *lookup) string {
		if !l.ofConntrack() {
			return ""
		}
		return cmp.Or(l.Verdict.Node, l.Client.Node, l.Node, "a node that is not known")
	})
	var found []Finding
	for _, node := range nodes {
		full, raced := 0, 0
		var ids []string
		var waited time.Duration
		for _, l := range byNode[node] {
			if l.Verdict.Cause == causeFull {
				full++
			} else {
				raced++
			}
			ids, waited = append(ids, l.TraceID), waited+l.total()
		}
		n := full + raced
		if n < someFailed {
			continue
		}
		change := remedies[causeFull]
		switch {
		case full == 0:
			change = remedies[causeRace]
		case raced > 0:
			change += "; and " + remedies[causeRace]
		}
		found = append(found, Finding{
			Who: node, Lookups: n, Queries: n, Waited: waited.Seconds(), Evidence: evidence(ids),
			Text: fmt.Sprintf("connection tracking on %s lost %s of %d: %d found the table full, %d were not inserted since "+
				"another packet of their socket came first", node, plural(n, "lookup", "lookups"), len(j.lookups), full, raced),
			Numbers: []Number{
				{"lost", float64(n), ""}, {"table full", float64(full), ""}, {"insert failures", float64(raced), ""},
				{"share", share(n, len(j.lookups)), "share"},
			},
			Change: change + "; how full the table is now: dnstrail doctor on " + node,
		})
	}
	j.told(Conntrack, found)
}

// ofConntrack tells whether connection tracking lost the lookup.
func (l *lookup) ofConntrack() bool {
	return l.lost() && (l.Verdict.Cause == causeFull || l.Verdict.Cause == causeRace)
}
