package report

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// judged gives the lookups by whose they are, of those who made enough; a kind is told of if there is nobody.
func (j *judge) judged(kind Kind, least int) (map[string][]*lookup, []string) {
	byWho, all := by(j.lookups, (*lookup).who)
	var names []string
	for _, who := range all {
		if len(byWho[who]) >= least {
			names = append(names, who)
		}
	}
	if len(names) == 0 {
		j.little(kind, fmt.Sprintf("no client made %d lookups", least))
		return nil, nil
	}
	return byWho, names
}

// retries judges clients that ask again.
func (j *judge) retries() {
	byWho, names := j.judged(Retries, enough)
	if names == nil {
		return
	}
	var found []Finding
	for _, who := range names {
		list := byWho[who]
		var ids []string
		var waited time.Duration
		again := 0
		for _, l := range list {
			if l.Attempts <= 1 && l.Try <= 1 {
				continue
			}
			ids, waited = append(ids, l.TraceID), waited+l.total()
			again += max(0, l.Attempts-1)
			if l.Try > 1 {
				again++
			}
		}
		if len(ids) < someFailed || share(len(ids), len(list)) < failedShare {
			continue
		}
		found = append(found, Finding{
			Who: who, Lookups: len(ids), Queries: again, Waited: waited.Seconds(), Evidence: evidence(ids),
			Text: fmt.Sprintf("%s asked again in %d of %d lookups (%s)", who, len(ids), len(list),
				percent(share(len(ids), len(list)))),
			Numbers: []Number{
				{"lookups", float64(len(list)), ""}, {"asked again", float64(len(ids)), ""}, {"share", share(len(ids), len(list)),
					"share"},
				{"further queries", float64(again), ""},
			},
			Change: "find what was lost or failed before they asked again: explain of one of these tells; a shorter timeout " +
				"only hides it",
		})
	}
	j.told(Retries, found)
}

// ports judges clients that ask from few ports.
func (j *judge) ports() {
	byWho, names := j.judged(Ports, manyOfPorts)
	if names == nil {
		return
	}
	var found []Finding
	for _, who := range names {
		from := map[string]bool{}
		n := 0
		var ids []string
		for _, l := range byWho[who] {
			if l.Transport != "udp" {
				continue
			}
			from[l.Client.Address] = true
			n++
			ids = append(ids, l.TraceID)
		}
		if n < manyOfPorts || share(len(from), n) > ofPorts {
			continue
		}
		found = append(found, Finding{
			Who: who, Lookups: n, Evidence: evidence(ids),
			Text: fmt.Sprintf("%s asked %d lookups over UDP from %s", who, n, plural(len(from), "port", "ports")),
			Numbers: []Number{
				{"lookups", float64(n), ""}, {"ports", float64(len(from)), ""},
			},
			Change: fmt.Sprintf("let the resolver of %s take a new port for each lookup: connection tracking keeps one port "+
				"with one server, also when that "+
				"server has gone, and answers to a port that is known are easier forged (RFC 5452)", who),
		})
	}
	j.told(Ports, found)
}

// beyond tells whether an address is on the internet.
func beyond(address string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}

// shared is the address space of RFC 6598, which clusters use, too.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// outside judges clients that ask other servers than the cluster's. The cluster's are those that were seen at work, or
// of which CoreDNS told; who was not may be outside only where others were seen, or where the address is public.
func (j *judge) outside() {
	inside, told := map[string]bool{}, false
	for i := range j.lookups {
		l := &j.lookups[i]
		knows := l.Instance != nil && l.Instance.Pod != ""
		if l.ServerSeen || knows {
			inside[host(l.Server)] = true
			told = told || knows
		}
	}
	byWho, names := j.judged(Outside, enough)
	if names == nil {
		return
	}
	var found []Finding
	for _, who := range names {
		servers := map[string]int{}
		var ids []string
		for _, l := range byWho[who] {
			s := host(l.Server)
			if l.Client.Pod == "" || s == "" || inside[s] {
				continue
			}
			if beyond(s) || told && !l.lost() { // a server that answers, and that no agent saw
				servers[s]++
				ids = append(ids, l.TraceID)
			}
		}
		if len(ids) < someFailed {
			continue
		}
		found = append(found, Finding{
			Who: who, Lookups: len(ids), Queries: len(ids), Evidence: evidence(ids),
			Text: fmt.Sprintf("%s asks servers outside the cluster in %d of %d lookups: %s", who, len(ids), len(byWho[who]),
				counts(servers)),
			Numbers: []Number{{"lookups", float64(len(byWho[who])), ""}, {"outside", float64(len(ids)), ""},
				{"servers", float64(len(servers)), ""}},
			Change: fmt.Sprintf("see which server %s is told to ask (dnsPolicy, its own resolver): these lookups miss the "+
				"cluster's cache, names and "+
				"policies; dnsPolicy: ClusterFirst sends them to the cluster's", who),
		})
	}
	j.told(Outside, found)
}

// truncation judges answers that do not fit.
func (j *judge) truncation() {
	if len(j.lookups) < enough {
		j.little(Truncation, fmt.Sprintf("%s seen", plural(len(j.lookups), "lookup", "lookups")))
		return
	}
	cut, tcp := map[string]int{}, 0
	n := 0
	var ids []string
	var waited time.Duration
	for i := range j.lookups {
		l := &j.lookups[i]
		again := false
		for _, r := range l.Related {
			again = again || r.Kind == "truncated"
		}
		if l.Transport == "tcp" {
			tcp++
		}
		if again {
			waited += l.total()
		}
		if l.Truncated {
			n++
			cut[fold(l.Name)]++
			ids = append(ids, l.TraceID)
		}
	}
	if n < someFailed || share(n, len(j.lookups)) < failedShare {
		j.told(Truncation, nil)
		return
	}
	j.told(Truncation, []Finding{{
		Lookups: n, Queries: n, Waited: waited.Seconds(), Evidence: evidence(ids),
		Text: fmt.Sprintf("%s of %d (%s) did not fit into UDP: %s; %d lookups went over TCP", plural(n, "answer", "answers"),
			len(j.lookups),
			percent(share(n, len(j.lookups))), counts(cut), tcp),
		Numbers: []Number{
			{"truncated", float64(n), ""}, {"share", share(n, len(j.lookups)), "share"}, {"over TCP", float64(tcp),
				""}, {"names", float64(len(cut)), ""},
		},
		Change: "make those answers smaller (fewer endpoints in a headless service, fewer records), or let clients say " +
			"that they take 1232 bytes: " +
			"edns0 in the pods' dnsConfig",
		Patch: patch("edns0", ""),
	}})
}

// losses judges lookups without an answer, by where and why.
func (j *judge) losses() {
	if len(j.lookups) < enough {
		j.little(Losses, fmt.Sprintf("%s seen", plural(len(j.lookups), "lookup", "lookups")))
		return
	}
	byPlace, names := by(j.lookups, func(l *lookup) string {
		if !l.lost() || l.ofConntrack() { // that is told of apart
			return ""
		}
		return l.Verdict.Where + ": " + l.Verdict.Cause
	})
	var found []Finding
	for _, name := range names {
		list := byPlace[name]
		if len(list) < someFailed {
			continue
		}
		var ids []string
		var waited time.Duration
		certain := 0
		pairs, reasons, whose := map[string]int{}, map[string]int{}, map[string]int{}
		for _, l := range list {
			waited += l.total()
			ids = append(ids, l.TraceID)
			if l.Verdict.Certainty == "certain" {
				certain++
			}
			if l.Verdict.Drop != "" {
				reasons[l.Verdict.Drop]++
			}
			whose[l.who()]++
			if n := l.Client.Node; n != "" {
				pairs[n]++
			} else if l.Node != "" {
				pairs[l.Node]++
			}
		}
		text := fmt.Sprintf("%s of %d (%s) got no answer, lost at %s for %s", plural(len(list), "lookup", "lookups"),
			len(j.lookups),
			percent(share(len(list), len(j.lookups))), list[0].Verdict.Where, list[0].Verdict.Cause)
		if len(reasons) > 0 {
			text += " (" + counts(reasons) + ")"
		}
		if len(pairs) > 0 {
			text += "; of clients on " + counts(pairs)
		}
		text += "; " + counts(whose)
		found = append(found, Finding{
			Who: name, Lookups: len(list), Queries: len(list), Waited: waited.Seconds(), Evidence: evidence(ids), Text: text,
			Numbers: []Number{
				{"lost", float64(len(list)), ""}, {"share", share(len(list), len(j.lookups)), "share"}, {"certain",
					float64(certain), ""},
				{"lookups", float64(len(j.lookups)), ""},
			},
			Change: remedy(list[0].Verdict.Where, list[0].Verdict.Cause) + ": " + usualEvidence + ids[0] +
				" tells what to look at",
		})
	}
	j.told(Losses, found)
}

// The causes of which more is known here than what to change.
const (
	causeFull = string(verdict.CauseConntrack)
	causeRace = string(verdict.CauseInsertRace)
)

// remedies are what to change by cause, and, where the cause is not among them, by place.
var remedies = map[string]string{
	string(verdict.CausePolicyDrop): "let UDP and TCP port 53 pass in the network policy or firewall rule that drops it",
	string(verdict.CauseBufferFull): "give the server more CPU or more replicas: its socket's buffer ran over",
	string(verdict.CauseNoListener): "see that the server runs and listens where the service points",
	causeFull: "raise nf_conntrack_max on the node, or make fewer connections: use a node-local " +
		"cache",
	causeRace: "ask one after the other (single-request-reopen in the pods' dnsConfig), or use a node-local " +
		"cache",
	string(verdict.CauseNoEndpoints):  "see why the service has no server that is ready",
	string(verdict.CauseDeadEndpoint): "see why the service still points at a server that has gone",
	string(verdict.CauseVanished):     "see to the way behind the last place it was seen at: both ways must pass UDP 53",
	string(
		verdict.CauseNoReply): "run the agent on the other node, too; what lies between must pass UDP 53 both ways",
	string(verdict.CauseTimeout): "see to the upstream that does not answer, or take it out of forward",

	"client": "see to the client", "pod-link": "see to the pod's network", "node": "see to the node's firewall and routes",
	"service": "see to the service's endpoints and kube-proxy", "between-nodes": "see to the network between the nodes",
	"coredns-socket": "give CoreDNS more CPU or more replicas", "coredns": "see to CoreDNS's log and Corefile",
	"upstream": "see to the upstreams in forward", "return-path": "see to the way back: a firewall that knows one " +
		"direction only",
}

func remedy(where, cause string) string {
	if r := remedies[cause]; r != "" {
		return r
	}
	if r := remedies[where]; r != "" {
		return r
	}
	return "find out what happens at " + where
}

// nodes judges whether lookups of the clients on one node are worse off than those on the others.
func (j *judge) nodes() {
	byNode, names := by(j.lookups, func(l *lookup) string {
		if l.Client.Node != "" {
			return l.Client.Node
		}
		return l.Node
	})
	var judged []string
	for _, n := range names {
		if len(byNode[n]) >= enough {
			judged = append(judged, n)
		}
	}
	if len(judged) < 2 {
		j.little(Nodes, fmt.Sprintf("%s with %d lookups of their own: it takes two to compare",
			plural(len(judged), "node", "nodes"), enough))
		return
	}
	lost := func(list []*lookup) (n int, ids []string, waited time.Duration) {
		for _, l := range list {
			if l.Result == output.Lost {
				n, ids, waited = n+1, append(ids, l.TraceID), waited+l.total()
			}
		}
		return n, ids, waited
	}
	// network gives how long the way there and back took, which the node has its part in.
	network := func(list []*lookup) (times []time.Duration, ids []string) {
		for _, l := range list {
			if l.ToServer != nil && l.Return != nil && l.ServerSeen {
				times, ids = append(times, time.Duration(*l.ToServer+*l.Return)), append(ids, l.TraceID)
			}
		}
		return times, ids
	}
	var found []Finding
	for _, n := range judged {
		var others []*lookup
		for _, o := range judged {
			if o != n {
				others = append(others, byNode[o]...)
			}
		}
		here, ids, waited := lost(byNode[n])
		there, _, _ := lost(others)
		mine, theirs := share(here, len(byNode[n])), share(there, len(others))
		if here >= someFailed && mine >= failedShare && mine >= timesSlower*theirs {
			found = append(found, Finding{
				Who: n, Lookups: here, Queries: here, Waited: waited.Seconds(), Evidence: evidence(ids),
				Text: fmt.Sprintf("clients on %s lose %s of their lookups (%d of %d), those on other nodes %s", n, percent(mine),
					here, len(byNode[n]), percent(theirs)),
				Numbers: []Number{
					{"lookups", float64(len(byNode[n])), ""}, {"lost", float64(here), ""}, {"share", mine,
						"share"}, {"share elsewhere", theirs, "share"},
				},
				Change: fmt.Sprintf("keep pods off %s (kubectl cordon %s) until it is known why: dnstrail doctor there, and "+
					"explain of one of these", n, n),
			})
		}
		times, slow := network(byNode[n])
		other, _ := network(others)
		p50, best := quantile(times, 0.5), quantile(other, 0.5)
		if len(times) >= enough && len(other) >= enough && p50 >= timesSlower*best && p50-best >= slowerBy {
			var over time.Duration
			for _, t := range times {
				over += max(0, t-best)
			}
			found = append(found, Finding{
				Who: n, Lookups: len(times), Queries: len(times), Waited: over.Seconds(), Evidence: evidence(slow),
				Text: fmt.Sprintf("the way to the DNS server and back takes clients on %s %s for half of the lookups, those on "+
					"other nodes %s", n, duration(p50), duration(best)),
				Numbers: []Number{
					{"lookups", float64(len(times)), ""}, {"p50", p50.Seconds(), "s"}, {"p50 elsewhere", best.Seconds(), "s"},
				},
				Change: fmt.Sprintf("look at the load of %s and at its way to the DNS servers; a node-local cache keeps most "+
					"lookups on the node", n),
			})
		}
	}
	j.told(Nodes, found)
}
