package report

import (
	"cmp"
	"fmt"
	"time"
)

// upstreams judges the servers that DNS servers ask.
func (j *judge) upstreams() {
	byUpstream, names := by(j.asks, func(a *ask) string { return a.upstream })
	if len(j.asks) == 0 {
		j.little(Upstreams, "no query to an upstream seen: ask a store that CoreDNS sends its spans to, or an agent on a "+
			"server's node")
		return
	}
	type facts struct {
		times    []time.Duration
		median   time.Duration
		failed   int
		failedIn time.Duration
	}
	of := map[string]*facts{}
	judged := 0
	for _, name := range names {
		f := &facts{}
		for _, a := range byUpstream[name] {
			if a.failed {
				f.failed++
				f.failedIn += a.took
				continue
			}
			f.times = append(f.times, a.took)
		}
		f.median = quantile(f.times, 0.5)
		of[name] = f
		if len(byUpstream[name]) >= enough {
			judged++
		}
	}
	if judged == 0 {
		j.little(Upstreams, fmt.Sprintf("no upstream was asked %d times", enough))
		return
	}
	var found []Finding
	for _, name := range names {
		f, asks := of[name], byUpstream[name]
		if len(asks) < enough {
			continue
		}
		numbers := []Number{
			{"queries", float64(len(asks)), ""}, {"failures", float64(f.failed), ""}, {"failed share",
				share(f.failed, len(asks)), "share"},
			{"p50", quantile(f.times, 0.5).Seconds(), "s"}, {"p99", quantile(f.times, 0.99).Seconds(), "s"},
		}
		if f.failed >= someFailed && share(f.failed, len(asks)) >= failedShare {
			why := map[string]int{}
			var ids []string
			for _, a := range asks {
				if a.failed {
					why[a.result]++
					ids = append(ids, a.trace)
				}
			}
			found = append(found, Finding{
				Who: name, Lookups: f.failed, Queries: f.failed, Waited: f.failedIn.Seconds(), Numbers: numbers,
				Evidence: evidence(ids),
				Text: fmt.Sprintf("upstream %s fails %d of %d queries (%s): %s", name, f.failed, len(asks),
					percent(share(f.failed, len(asks))), counts(why)),
				Change: fmt.Sprintf("see to %s, or take it out of forward; until then: forward . OTHERS %s { policy "+
					"sequential; max_fails 1; "+
					"health_check 500ms }, so that others are asked first", name, name),
			})
		}
		if len(f.times) < enough {
			continue
		}
		best, other := time.Duration(0), "" // the fastest of the others
		for _, o := range names {
			if o != name && len(of[o].times) >= enough && (other == "" || of[o].median < best) {
				best, other = of[o].median, o
			}
		}
		slower := other != "" && f.median >= timesSlower*best && f.median-best >= upstreamSlow
		if !slower && f.median < upstreamBad {
			continue
		}
		var over time.Duration
		for _, t := range f.times {
			over += max(0, t-best)
		}
		var ids []string
		for _, a := range asks {
			if !a.failed && a.took >= f.median {
				ids = append(ids, a.trace)
			}
		}
		text := fmt.Sprintf("upstream %s is slow: half of its answers take %s or more, one in a hundred %s", name,
			duration(f.median), duration(quantile(f.times, 0.99)))
		change := fmt.Sprintf("ask a resolver nearer than %s, and keep its answers for longer (cache 300, serve_stale)", name)
		if slower {
			text += fmt.Sprintf("; half of %s's take %s or less", other, duration(best))
			change = fmt.Sprintf("let forward prefer %s: policy sequential, with %s before %s; or take %s out", other, other,
				name, name)
		}
		found = append(found, Finding{
			Who: name, Lookups: len(f.times),
			Queries: len(f.times), Waited: over.Seconds(), Numbers: numbers, Evidence: evidence(ids),
			Text: text, Change: change,
		})
	}
	j.told(Upstreams, found)
}

// failover judges what lookups waited for an upstream that failed, before or without another's answer.
func (j *judge) failover() {
	var ids []string
	var waited time.Duration
	asked, hit, saved := 0, 0, 0
	first := map[string]int{}
	for i := range j.lookups {
		l := &j.lookups[i]
		if len(l.Upstreams) > 0 {
			asked++
		}
		if len(l.Upstreams) < 2 {
			continue
		}
		var lost time.Duration
		for k, u := range l.Upstreams {
			switch {
			case u.Failed || serverFailed(u.Result):
				lost += time.Duration(u.Nanos)
				first[host(u.Address)]++
			case lost > 0 && k > 0:
				saved++
			}
		}
		if lost > 0 {
			hit, waited, ids = hit+1, waited+lost, append(ids, l.TraceID)
		}
	}
	switch {
	case asked < enough:
		j.little(Failover, fmt.Sprintf("CoreDNS told of %s that it asked an upstream for",
			plural(asked, "lookup", "lookups")))
		return
	case hit < someFailed:
		j.told(Failover, nil)
		return
	}
	j.told(Failover, []Finding{{
		Lookups: hit, Queries: hit, Waited: waited.Seconds(), Evidence: evidence(ids),
		Text: fmt.Sprintf("%s of %d waited for an upstream that failed (%s), %s each on average, before another was "+
			"asked; %d of them had an answer then",
			plural(hit, "lookup", "lookups"), asked, counts(first), duration(waited/time.Duration(hit)), saved),
		Numbers: []Number{
			{"lookups", float64(hit), ""}, {"share", share(hit, asked), "share"}, {"mean wait",
				(waited / time.Duration(hit)).Seconds(), "s"},
			{"waited", waited.Seconds(), "s"},
		},
		Change: "take the upstream that fails out of forward, or let it be found out sooner: forward { max_fails 1; " +
			"health_check 500ms }",
	}})
}

// instance names the DNS server that answered, of those behind a service.
func (l *lookup) instance() string {
	if l.Instance != nil && l.Instance.Pod != "" {
		return l.Instance.Namespace + "/" + l.Instance.Pod
	}
	return host(l.AnsweredBy)
}

// instances judges the DNS servers behind the services: by what they answer out of themselves, and how many.
func (j *judge) instances() {
	byInstance, names := by(j.lookups, func(l *lookup) string {
		if !l.ServerSeen || l.lost() {
			return ""
		}
		return l.instance()
	})
	type facts struct {
		median, p99 time.Duration
		n           int
		times       []time.Duration
		ids         []string
	}
	of := map[string]*facts{}
	all := 0
	for _, name := range names {
		f := &facts{}
		for _, l := range byInstance[name] {
			f.n++
			if l.AtServer != nil && !j.served[l.TraceID] {
				f.times = append(f.times, time.Duration(*l.AtServer))
				f.ids = append(f.ids, l.TraceID)
			}
		}
		f.median, f.p99 = quantile(append([]time.Duration(nil), f.times...), 0.5),
			quantile(append([]time.Duration(nil), f.times...), 0.99)
		of[name], all = f, all+f.n
	}
	if len(names) < 2 || all < enough {
		j.little(Instances, fmt.Sprintf("%s of %s whose server was seen: it takes two servers to compare",
			plural(all, "lookup", "lookups"), plural(len(names), "server", "servers")))
		return
	}
	var found []Finding
	for _, name := range names {
		f := of[name]
		best := time.Duration(-1)
		for _, o := range names {
			if o != name && len(of[o].times) >= enough && (best < 0 || of[o].median < best) {
				best = of[o].median
			}
		}
		if best >= 0 && len(f.times) >= enough && f.median >= timesSlower*best && f.median-best >= slowerBy {
			var over time.Duration
			for _, t := range f.times {
				over += max(0, t-best)
			}
			found = append(found, Finding{
				Who: name, Lookups: len(f.times), Queries: len(f.times), Waited: over.Seconds(), Evidence: evidence(f.ids),
				Text: fmt.Sprintf("%s is slower than the others: what it answers out of itself takes it %s for half of the "+
					"lookups, another %s",
					name, duration(f.median), duration(best)),
				Numbers: []Number{{"lookups", float64(f.n), ""}, {"p50", f.median.Seconds(), "s"}, {"p99", f.p99.Seconds(), "s"},
					{"best p50", best.Seconds(), "s"}},
				Change: fmt.Sprintf("look at the CPU limit of %s and at its node; a restart on another node tells which of "+
					"them it is", name),
			})
		}
		if even := 1 / float64(len(names)); all >= enoughEven && share(f.n, all) >= uneven*even {
			found = append(found, Finding{
				Who: name, Lookups: f.n, Queries: f.n, Evidence: evidence(f.ids),
				Text: fmt.Sprintf("%s answers %s of the lookups; an even share of %d servers is %s", name,
					percent(share(f.n, all)), len(names), percent(even)),
				Numbers: []Number{{"lookups", float64(f.n), ""}, {"share", share(f.n, all), "share"},
					{"even share", even, "share"}},
				Change: "clients that keep one port stay with one server as long as connection tracking remembers them; see " +
					"the finding on ports, " +
					"and whether all servers are endpoints of the service",
			})
		}
	}
	j.told(Instances, found)
}

// queue judges how long queries lie in a DNS server's socket before it reads them.
func (j *judge) queue() {
	byInstance, names := by(j.lookups, func(l *lookup) string {
		if l.queue < 0 {
			return ""
		}
		return cmp.Or(l.instance(), "the DNS server")
	})
	seen := 0
	var found []Finding
	for _, name := range names {
		list := byInstance[name]
		seen += len(list)
		if len(list) < enough {
			continue
		}
		var times []time.Duration
		var ids []string
		var waited time.Duration
		for _, l := range list {
			times = append(times, l.queue)
			if l.queue >= inQueue {
				waited += l.queue
				ids = append(ids, l.TraceID)
			}
		}
		if len(ids) < someFailed || share(len(ids), len(list)) < queuedShare {
			continue
		}
		found = append(found, Finding{
			Who: name, Lookups: len(ids), Queries: len(ids), Waited: waited.Seconds(), Evidence: evidence(ids),
			Text: fmt.Sprintf("%s leaves queries lying in its socket: %d of %d (%s) for %s or longer", name, len(ids), len(list),
				percent(share(len(ids), len(list))), duration(inQueue)),
			Numbers: []Number{
				{"lookups", float64(len(list)), ""}, {"late", float64(len(ids)), ""}, {"late share", share(len(ids), len(list)),
					"share"},
				{"p50", quantile(times, 0.5).Seconds(), "s"}, {"p99", quantile(times, 0.99).Seconds(), "s"},
			},
			Change: fmt.Sprintf("%s does not get the CPU that it needs: raise its CPU limit, or run more replicas", name),
		})
	}
	if seen < enough {
		j.little(Queue, fmt.Sprintf("of %s the server's reading was seen", plural(seen, "lookup", "lookups")))
		return
	}
	j.told(Queue, found)
}
