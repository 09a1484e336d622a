package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// walk is what one call of a client's resolver asked: a name by its search path, step by step.
type walk struct {
	steps []step
	who   string
	// asked is the name that the program meant, without a final dot; "" where only one name was asked, which may be any.
	asked string
}

// step is one name of a walk with the queries for it.
type step struct {
	name    string
	queries []*lookup
}

// found tells whether one of the queries had an answer.
func (s *step) found() bool {
	return slices.ContainsFunc(s.queries, func(l *lookup) bool { return l.Result == "NOERROR" })
}

// gone tells whether all were answered, and said that there is no such name.
func (s *step) gone() bool {
	return len(s.queries) > 0 && !slices.ContainsFunc(s.queries, func(l *lookup) bool { return l.Result != "NXDOMAIN" })
}

// took gives how long the step held up its client: its queries are asked side by side.
func (s *step) took() time.Duration {
	var from, to time.Time
	for i, l := range s.queries {
		if i == 0 || l.Time.Before(from) {
			from = l.Time
		}
		if end := l.Time.Add(l.total()); i == 0 || end.After(to) {
			to = end
		}
	}
	return to.Sub(from)
}

// walksOf puts together what belongs together. A tracer tells which lookups a search path made ([output.Row.Group] and
// SearchStep): within one group a step that does not go on begins another walk.
func walksOf(lookups []lookup) []walk {
	groups := map[string][]*lookup{}
	var order []string
	for i := range lookups {
		l := &lookups[i]
		id := cmp.Or(l.Group, l.TraceID)
		if groups[id] == nil {
			order = append(order, id)
		}
		groups[id] = append(groups[id], l)
	}
	var walks []walk
	for _, id := range order {
		var open *walk
		for _, l := range groups[id] {
			at := -1
			if open != nil {
				at = slices.IndexFunc(open.steps, func(s step) bool { return fold(s.name) == fold(l.Name) })
			}
			switch {
			case open == nil, l.SearchStep == 0 && (at != 0 || len(open.steps) > 1):
				walks = append(walks, walk{who: l.who(), steps: []step{{l.Name, []*lookup{l}}}})
				open = &walks[len(walks)-1]
			case at >= 0:
				open.steps[at].queries = append(open.steps[at].queries, l)
			default:
				open.steps = append(open.steps, step{l.Name, []*lookup{l}})
			}
		}
	}
	for i := range walks {
		walks[i].asked = meant(walks[i].steps)
	}
	return walks
}

// meant gives the name that all names of a walk begin with: one name with each search domain behind it, and as it is.
func meant(steps []step) string {
	if len(steps) < 2 {
		return ""
	}
	common := strings.Split(fold(steps[0].name), ".")
	for _, s := range steps[1:] {
		labels := strings.Split(fold(s.name), ".")
		n := 0
		for n < len(common) && n < len(labels) && common[n] == labels[n] {
			n++
		}
		common = common[:n]
	}
	return strings.Join(common, ".")
}

// absolute gives the step at which the name was asked as it stands; nil if it was not.
func (w *walk) absolute() *step {
	for i := range w.steps {
		if w.asked != "" && fold(w.steps[i].name) == w.asked {
			return &w.steps[i]
		}
	}
	return nil
}

func (w *walk) queries() int {
	n := 0
	for i := range w.steps {
		n += len(w.steps[i].queries)
	}
	return n
}

// replay tells how many queries the walk would take less with another ndots, and how much sooner it would have ended:
// what resolvers do (resolv.conf(5)) with the answers that were seen. Less than nothing is more.
func (w *walk) replay(ndots int) (queries int, sooner time.Duration) {
	if len(w.steps) < 2 || w.asked == "" || strings.Count(w.asked, ".") < ndots {
		return 0, 0 // by the search path first, as now; of a name that was found at once the same is taken
	}
	abs := w.absolute()
	switch {
	case abs == nil: // it would be asked as it stands first, for nothing, as often as each name was
		first := &w.steps[0]
		return -len(first.queries), -first.took()
	case abs == &w.steps[0], !abs.found():
		return 0, 0 // it is so now; or the search path is gone through all the same
	}
	for i := range w.steps {
		s := &w.steps[i]
		if s != abs {
			queries += len(s.queries)
			sooner += s.took()
		}
	}
	return queries, sooner
}

// searchPath judges, by workload, what search paths cost, by going through their walks again with a lower ndots.
func (j *judge) searchPath(walks []walk) {
	byWho, names := by(walks, func(w *walk) string { return w.who })
	var found []Finding
	seen := 0
	for _, who := range names {
		all, searched := 0, 0
		var ids []string
		for _, w := range byWho[who] {
			all += w.queries()
			if len(w.steps) > 1 {
				searched++
			}
		}
		if all < enough {
			continue
		}
		seen++
		best, saved, sooner := 0, 0, time.Duration(0)
		for ndots := highestNdots; ndots >= lowestNdots; ndots-- { // the least change that saves as much
			n, d := 0, time.Duration(0)
			for _, w := range byWho[who] {
				q, s := w.replay(ndots)
				n, d = n+q, d+s
			}
			if n > saved {
				best, saved, sooner = ndots, n, d
			}
		}
		if saved < manyAsked || share(saved, all) < wastedShare {
			continue
		}
		helped := 0
		for _, w := range byWho[who] {
			if q, _ := w.replay(best); q > 0 {
				helped++
				ids = append(ids, w.absolute().queries[0].TraceID)
			}
		}
		found = append(found, Finding{
			Who: who, Lookups: helped, Queries: saved, Waited: max(0, sooner.Seconds()), Evidence: evidence(ids),
			Text: fmt.Sprintf("%s asks %d of its %d queries (%s) by its search path, for names that it would have found as "+
				"they stand",
				who, saved, all, percent(share(saved, all))),
			Numbers: []Number{
				{"queries", float64(all), ""}, {"saved queries", float64(saved), ""}, {"saved share", share(saved, all), "share"},
				{"searches", float64(searched), ""}, {"ndots", float64(best), ""}, {"saved time", sooner.Seconds(), "s"},
			},
			Change: fmt.Sprintf("give the pods of %s ndots %d: the same lookups would have made %s less; "+
				"or ask for full names, with a dot at the end", who, best, plural(saved, "query", "queries")),
			Patch: patch("ndots", fmt.Sprint(best)),
		})
	}
	if seen == 0 {
		j.little(SearchPath, fmt.Sprintf("no client made %d queries", enough))
		return
	}
	j.told(SearchPath, found)
}

// patch gives the text that sets an option of pods' resolvers.
func patch(name, value string) string {
	option := "        - name: " + name + "\n"
	if value != "" {
		option += "          value: \"" + value + "\"\n"
	}
	return "spec:\n  template:\n    spec:\n      dnsConfig:\n        options:\n" + option
}

// neverThere judges names for which nobody has ever an answer.
func (j *judge) neverThere(walks []walk) {
	if len(j.lookups) < enough {
		j.little(NeverThere, fmt.Sprintf("%d lookups seen", len(j.lookups)))
		return
	}
	exists := map[string]bool{}
	for i := range j.lookups {
		if j.lookups[i].Result != "NXDOMAIN" {
			exists[fold(j.lookups[i].Name)] = true // or it is not known
		}
	}
	type asked struct {
		walks, queries int
		waited         time.Duration
		ids            []string
		who            map[string]int
	}
	names := map[string]*asked{}
	for i := range walks {
		w := &walks[i]
		name := w.asked
		if len(w.steps) == 1 {
			name = fold(w.steps[0].name)
		}
		if name == "" || exists[name] || slices.ContainsFunc(w.steps, func(s step) bool { return !s.gone() }) {
			continue
		}
		a := names[name]
		if a == nil {
			a = &asked{who: map[string]int{}}
			names[name] = a
		}
		a.walks++
		a.queries += w.queries()
		a.who[w.who] += w.queries()
		for k := range w.steps {
			a.waited += w.steps[k].took()
		}
		a.ids = append(a.ids, w.steps[len(w.steps)-1].queries[0].TraceID)
	}
	var found []Finding
	for name, a := range names {
		if a.queries < manyAsked {
			continue
		}
		who, most := "", 0
		for w, n := range a.who {
			if n > most || n == most && w < who {
				who, most = w, n
			}
		}
		others := ""
		if n := len(a.who) - 1; n > 0 {
			others = " and " + plural(n, "other", "others")
		}
		found = append(found, Finding{
			Who: who, Lookups: a.walks, Queries: a.queries, Waited: a.waited.Seconds(), Evidence: evidence(a.ids),
			Text: fmt.Sprintf("%s never exists, and %s%s asked for it %s, with %s",
				name, who, others, times(a.walks), plural(a.queries, "query", "queries")),
			Numbers: []Number{{"queries", float64(a.queries), ""}, {"lookups", float64(a.walks), ""},
				{"clients", float64(len(a.who)), ""}},
			Change: fmt.Sprintf("take %s out of what %s is told to talk to, or make it exist", name, who),
		})
	}
	j.told(NeverThere, found)
}

// noIPv6 judges whether AAAA is asked where nothing has IPv6.
func (j *judge) noIPv6() {
	var empty []*lookup
	asked, six := 0, false
	v4 := map[string]bool{}
	for i := range j.lookups {
		l := &j.lookups[i]
		if a, err := netip.ParseAddrPort(l.Client.Address); err == nil && a.Addr().Unmap().Is6() {
			six = true
		}
		for _, text := range l.Answers {
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil:
			case a.Is6():
				six = true
			default:
				v4[fold(l.Name)] = true
			}
		}
	}
	for i := range j.lookups {
		if l := &j.lookups[i]; l.Type == "AAAA" {
			asked++
			if l.Result == "NOERROR" && v4[fold(l.Name)] {
				empty = append(empty, l)
			}
		}
	}
	switch {
	case asked < enough:
		j.little(NoIPv6, fmt.Sprintf("%s for AAAA seen", plural(asked, "query", "queries")))
		return
	case six || len(empty) < enough:
		j.told(NoIPv6, nil)
		return
	}
	var ids []string
	for _, l := range empty {
		ids = append(ids, l.TraceID)
	}
	j.told(NoIPv6, []Finding{{
		Lookups: len(empty), Queries: asked, Evidence: evidence(ids),
		Text: fmt.Sprintf("%d of %d queries (%s) ask for AAAA, and not one had an IPv6 address for an answer: no client "+
			"has IPv6, "+
			"and %d of them are for names with an IPv4 address", asked, len(j.lookups),
			percent(share(asked, len(j.lookups))), len(empty)),
		Numbers: []Number{
			{"AAAA queries", float64(asked), ""}, {"queries", float64(len(j.lookups)), ""}, {"share",
				share(asked, len(j.lookups)), "share"},
			{"AAAA of names with A", float64(len(empty)), ""},
		},
		Change: "where the cluster shall stay without IPv6: no-aaaa in pods with glibc 2.36 or later; for others let " +
			"CoreDNS answer them at once: " +
			"template IN AAAA . { rcode NOERROR } before forward",
		Patch: patch("no-aaaa", ""),
	}})
}
