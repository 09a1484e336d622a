package report

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// world makes the rows of a cluster: two nodes, two DNS servers, two upstreams, three workloads.
type world struct {
	rows []*output.Row
	at   time.Time
	n    int
}

const (
	service     = "10.96.0.10:53"
	goodOne     = "192.0.2.1:53"
	goodTwo     = "192.0.2.2:53"
	clusterName = "web.shop.svc.cluster.local."
)

func nanos(d time.Duration) *int64 { n := int64(d); return &n }

// ask adds a lookup of a workload, changed by the changes.
func (w *world) ask(workload, name, qtype string, change ...func(*output.Row)) *output.Row {
	w.n++
	w.at = w.at.Add(10 * time.Millisecond)
	node := w.n % 2
	r := &output.Row{
		Schema: output.SchemaVersion, Time: w.at, Node: fmt.Sprint("node-", node+1),
		Client: output.Client{
			Address: fmt.Sprintf("[fd00::%x]:%d", node+1, 10000+w.n%50000), Namespace: "shop",
			Pod: fmt.Sprint(workload, "-", node), Workload: workload,
			WorkloadKind: "Deployment", Node: fmt.Sprint("node-", node+1),
		},
		Server: service, Transport: "udp", Name: name, Type: qtype, Result: "NOERROR", Answers: []string{"10.96.0.1"},
		Instance: &output.Instance{Namespace: "kube-system", Pod: fmt.Sprint("coredns-", w.n/2%2)}, Cache: "hit",
		Total: int64(time.Millisecond), ToServer: nanos(100 * time.Microsecond),
		AtServer: nanos(800 * time.Microsecond), Return: nanos(100 * time.Microsecond),
		ServerSeen: true, Attempts: 1, Verdict: output.Verdict{Where: "answered", Cause: "answered", Certainty: "certain"},
		Hops:    []output.Hop{{Nanos: 0, Kind: "out"}, {Nanos: 80_000, Kind: "in"}, {Nanos: 100_000, Kind: "read"}},
		TraceID: fmt.Sprintf("%032x", w.n),
	}
	if qtype == "AAAA" {
		r.Answers = []string{"fd00:96::1"}
	}
	for _, c := range change {
		c(r)
	}
	w.rows = append(w.rows, r)
	return r
}

func to(upstreams ...output.Upstream) func(*output.Row) {
	return func(r *output.Row) { r.Cache, r.Upstreams = "miss", upstreams }
}

func up(address string, took time.Duration, result string) output.Upstream {
	return output.Upstream{Address: address, Nanos: int64(took), Result: result, Failed: result == "timeout"}
}

// resolve adds what a resolver asks for a name by the search path of a pod, A and AAAA of each, until found. It gives
// how many queries.
func (w *world) resolve(workload, name string, exists string) int {
	group := ""
	var before string
	queries := 0
	for i, domain := range []string{".shop.svc.cluster.local", ".svc.cluster.local", ".cluster.local", ""} {
		full := name + domain + "."
		for _, qtype := range []string{"A", "AAAA"} {
			r := w.ask(workload, full, qtype)
			queries++
			if group == "" {
				group = r.TraceID
			}
			r.Group, r.SearchStep = group, i
			if i > 0 {
				r.Related = []output.Related{{Kind: "search", TraceID: before}}
			}
			if full != exists {
				r.Result, r.Answers = "NXDOMAIN", nil
			}
			before = r.TraceID
		}
		if full == exists {
			break
		}
	}
	return queries
}

// healthy adds what is as it should be, of each kind enough to be judged.
func healthy() *world {
	w := &world{at: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)}
	for i := range 300 {
		for _, workload := range []string{"cart", "checkout", "web"} {
			w.ask(workload, clusterName, "A")
			w.ask(workload, clusterName, "AAAA")
		}
		w.ask("cart", fmt.Sprintf("host-%d.example.com.", i), "A",
			to(up(goodOne, time.Duration(9+i%3)*time.Millisecond, "NOERROR")))
		w.ask("web", fmt.Sprintf("site-%d.example.com.", i), "A",
			to(up(goodTwo, time.Duration(9+i%3)*time.Millisecond, "NOERROR")))
	}
	return w
}

func (w *world) report() *Report {
	var c Collector
	for _, r := range w.rows {
		c.Add(r)
	}
	return c.Report()
}

func TestHealthyHasNoFindings(t *testing.T) {
	r := healthy().report()
	for _, f := range r.Findings {
		t.Errorf("%s: %s", f.Kind, f.Text)
	}
	for _, g := range r.NotEnough {
		t.Errorf("%s could not be judged: %s", g.Kind, g.Why)
	}
	if len(r.Well) != len(Kinds) || r.Lookups != 2400 {
		t.Errorf("%d of %d kinds are well, of %d lookups", len(r.Well), len(Kinds), r.Lookups)
	}
}

// TestLittleSaysNothing: a few lookups, of which every one failed, make no finding, and nothing is called well.
func TestLittleSaysNothing(t *testing.T) {
	w := &world{}
	for range 4 {
		w.ask("cart", "gone.example.com.", "A", func(r *output.Row) { r.Result = output.Lost })
	}
	for _, r := range []*Report{w.report(), new(Collector).Report()} {
		if len(r.Findings) != 0 || len(r.Well) != 0 || len(r.NotEnough) != len(Kinds) {
			t.Errorf("findings %v, well %v, not enough of %d kinds", r.Findings, r.Well, len(r.NotEnough))
		}
	}
}

// TestPlanted: each problem, planted into a healthy cluster, is found, with its numbers, and nothing else is.
func TestPlanted(t *testing.T) {
	type want struct {
		kind    Kind
		who     string
		waited  float64 // seconds; negative: not looked at
		queries int
		numbers map[string]float64
		says    string // in the change or the patch
	}
	for name, tc := range map[string]struct {
		plant func(w *world)
		want  []want
	}{
		"a search path": {
			func(w *world) {
				for range 50 {
					w.resolve("wasteful", "api.example.com", "api.example.com.")
				}
			},
			// Of 8 queries 6 are for nothing; each of 3 steps takes 10 ms between its two queries, and 1 ms.
			[]want{{SearchPath, "shop/wasteful", 50 * 3 * 0.011, 300, map[string]float64{"queries": 400, "saved queries": 300,
				"saved share": 0.75, "ndots": 2}, `value: "2"`}},
		},
		"a search path of a name with four dots, asked beside services": {
			func(w *world) {
				for range 30 {
					w.resolve("wasteful", "a.b.c.example.com", "a.b.c.example.com.")
					w.resolve("wasteful", "web.other", "web.other.svc.cluster.local.") // ndots 1 would cost, 4 does it
				}
			},
			[]want{{SearchPath, "shop/wasteful", -1, 180, map[string]float64{"queries": 360, "saved queries": 180, "ndots": 4},
				`value: "4"`}},
		},
		"a name that never exists": {
			func(w *world) {
				for range 20 {
					w.resolve("stale", "old-db.corp", "")
				}
			},
			[]want{{NeverThere, "shop/stale", -1, 160, map[string]float64{"queries": 160, "lookups": 20}, "old-db.corp"}},
		},
		"no IPv6": {
			func(w *world) {
				for _, r := range w.rows {
					r.Client.Address = "10.244.1.1" + r.Client.Address[strings.LastIndexByte(r.Client.Address, ':'):]
					if r.Type == "AAAA" {
						r.Answers = nil
					}
				}
			},
			[]want{{NoIPv6, "", -1, 900, map[string]float64{"AAAA queries": 900, "share": 900. / 2400}, "no-aaaa"}},
		},
		"an upstream that fails, and failover": {
			func(w *world) {
				for i := range 100 {
					w.ask("cart", fmt.Sprintf("www-%d.example.org.", i), "A", to(up("192.0.2.9:53", 2*time.Second, "timeout"),
						up(goodOne, 10*time.Millisecond, "NOERROR")))
				}
			},
			[]want{
				{Upstreams, "192.0.2.9", 200, 100, map[string]float64{"queries": 100, "failures": 100, "failed share": 1},
					"192.0.2.9"},
				{Failover, "", 200, 100, map[string]float64{"lookups": 100, "mean wait": 2}, "max_fails"},
			},
		},
		"a slow upstream": {
			func(w *world) {
				for i := range 100 {
					w.ask("cart", fmt.Sprintf("www-%d.example.org.", i), "A", to(up("192.0.2.9:53", 110*time.Millisecond, "NOERROR")))
				}
			},
			[]want{{Upstreams, "192.0.2.9", 10, 100, map[string]float64{"queries": 100, "p50": 0.110, "failures": 0},
				"prefer 192.0.2"}},
		},
		"a slow server": {
			func(w *world) {
				for _, r := range w.rows {
					if r.Instance.Pod == "coredns-1" {
						*r.AtServer, r.Total = int64(30*time.Millisecond), int64(31*time.Millisecond)
					}
				}
			},
			[]want{{Instances, "kube-system/coredns-1", 900 * 0.0292, 900, map[string]float64{"p50": 0.030, "best p50": 0.0008},
				"CPU"}},
		},
		"an uneven load": {
			func(w *world) {
				for i, r := range w.rows {
					if i%10 != 0 {
						r.Instance.Pod = "coredns-1"
					}
				}
			},
			[]want{{Instances, "kube-system/coredns-1", 0, 2280, map[string]float64{"share": 0.95, "even share": 0.5},
				"endpoints"}},
		},
		"a starved server": {
			func(w *world) {
				n := 0
				for _, r := range w.rows {
					if r.Instance.Pod == "coredns-0" {
						if n++; n%10 == 0 {
							r.Hops[2].Nanos = r.Hops[1].Nanos + int64(40*time.Millisecond)
						}
					}
				}
			},
			[]want{{Queue, "kube-system/coredns-0", 120 * 0.040, 120, map[string]float64{"late": 120, "late share": 0.1,
				"p99": 0.040}, "CPU"}},
		},
		"a client that asks again": {
			func(w *world) {
				for i := range 200 {
					w.ask("flaky", clusterName, "A", func(r *output.Row) {
						if i%4 == 0 {
							r.Attempts, r.Total = 2, int64(5*time.Second)
						}
					})
				}
			},
			[]want{{Retries, "shop/flaky", 250, 50, map[string]float64{"lookups": 200, "asked again": 50, "share": 0.25},
				"explain"}},
		},
		"a client with one port": {
			func(w *world) {
				for range 200 {
					w.ask("stuck", clusterName, "A", func(r *output.Row) { r.Client.Address = "[fd00::7]:5353" })
				}
			},
			[]want{{Ports, "shop/stuck", 0, 0, map[string]float64{"lookups": 200, "ports": 1}, "RFC 5452"}},
		},
		"a client that asks elsewhere": {
			func(w *world) {
				for i := range 100 {
					w.ask("vendor", "telemetry.example.", "A", func(r *output.Row) {
						if i%2 == 0 {
							r.Server, r.ServerSeen, r.Instance, r.AnsweredBy = "8.8.8.8:53", false, nil, "8.8.8.8:53"
						}
					})
				}
			},
			[]want{{Outside, "shop/vendor", 0, 50, map[string]float64{"outside": 50, "lookups": 100}, "ClusterFirst"}},
		},
		"truncation": {
			func(w *world) {
				for range 100 {
					w.ask("web", "many.shop.svc.cluster.local.", "A", func(r *output.Row) { r.Truncated = true })
					w.ask("web", "many.shop.svc.cluster.local.", "A", func(r *output.Row) {
						r.Transport, r.Total = "tcp", int64(3*time.Millisecond)
						r.Related = []output.Related{{Kind: "truncated"}}
					})
				}
			},
			[]want{{Truncation, "", 0.3, 100, map[string]float64{"truncated": 100, "over TCP": 100, "share": 100. / 2600},
				"edns0"}},
		},
		"losses, all on one node": {
			func(w *world) {
				n := 0
				for _, r := range w.rows {
					if r.Client.Node == "node-2" {
						if n++; n%12 == 0 {
							r.Result, r.Total, r.Instance, r.ServerSeen = output.Lost, int64(5*time.Second), nil, false
							r.Verdict = output.Verdict{Where: "node", Cause: "policy-drop", Certainty: "certain", Drop: "NETFILTER_DROP"}
							r.ToServer, r.AtServer, r.Return = nil, nil, nil
						}
					}
				}
			},
			[]want{
				{Losses, "node: policy-drop", 500, 100, map[string]float64{"lost": 100, "certain": 100, "share": 100. / 2400},
					"port 53"},
				{Nodes, "node-2", 500, 100, map[string]float64{"lost": 100, "lookups": 1200, "share elsewhere": 0},
					"cordon node-2"},
			},
		},
		"a TTL that is too short": {
			func(w *world) {
				for i := range 120 {
					w.at = w.at.Add(2 * time.Second)
					status := to(up(goodOne, 9*time.Millisecond, "NOERROR"))
					if i%4 == 3 { // the second of two at once
						w.at = w.at.Add(-2 * time.Second)
						status = func(*output.Row) {}
					}
					w.ask("cart", "api.vendor.co.uk.", "A", status, func(r *output.Row) {
						r.Instance.Pod, r.Total = "coredns-0", int64(10*time.Millisecond)
						if r.Cache == "hit" {
							r.Total = int64(time.Millisecond)
						}
					})
				}
			},
			// 90 are missed, at 0, 2.01, 4.02 s and then 6.04 s: of each 31 s the first is fetched all the same.
			[]want{{Cache, "vendor.co.uk", 84 * 0.009, 84, map[string]float64{"lookups": 120, "hits": 30, "hit share": 0.25,
				"misses": 90, "fetched again": 89, "after": 2}, "success 9984 3600 30"}},
		},
		"denials that are not kept": {
			func(w *world) {
				for range 100 {
					w.ask("cart", "gone.vendor.example.", "A", to(up(goodOne, 9*time.Millisecond, "NXDOMAIN")),
						func(r *output.Row) { r.Result, r.Answers = "NXDOMAIN", nil })
				}
			},
			[]want{
				{Cache, "vendor.example", 98 * 0.001, 98, map[string]float64{"lookups": 100, "hits": 0}, "denial 9984 1800 30"},
				{NeverThere, "shop/cart", -1, 100, map[string]float64{"queries": 100}, "gone.vendor.example"},
			},
		},
		"connection tracking that is full, and races": {
			func(w *world) {
				for i := range 40 {
					w.ask("web", clusterName, "A", func(r *output.Row) {
						r.Client.Node = "node-1"
						r.Result, r.Total, r.Instance, r.ServerSeen = output.Lost, int64(5*time.Second), nil, false
						r.Verdict = output.Verdict{Where: "node", Cause: "conntrack-full", Certainty: "certain"}
						if i%4 == 0 {
							r.Verdict = output.Verdict{Where: "service", Cause: "conntrack-insert-race", Certainty: "certain"}
						}
						r.ToServer, r.AtServer, r.Return = nil, nil, nil
					})
				}
			},
			[]want{
				{Conntrack, "node-1", 200, 40, map[string]float64{"lost": 40, "table full": 30, "insert failures": 10,
					"share": 40. / 2440}, "nf_conntrack_max"},
				{Nodes, "node-1", 200, 40, map[string]float64{"lost": 40}, "cordon node-1"},
			},
		},
		"a slow node": {
			func(w *world) {
				for _, r := range w.rows {
					if r.Client.Node == "node-1" {
						*r.ToServer, *r.Return, r.Total = int64(4*time.Millisecond), int64(6*time.Millisecond), int64(11*time.Millisecond)
					}
				}
			},
			[]want{{Nodes, "node-1", 1200 * 0.0098, 1200, map[string]float64{"p50": 0.010, "p50 elsewhere": 0.0002},
				"load of node-1"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := healthy()
			tc.plant(w)
			r := w.report()
			if len(r.Findings) != len(tc.want) {
				for _, f := range r.Findings {
					t.Errorf("found: %s, %s: %s", f.Kind, f.Who, f.Text)
				}
				t.Fatalf("%d findings, want %d", len(r.Findings), len(tc.want))
			}
			for _, want := range tc.want {
				i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Kind == want.kind && f.Who == want.who })
				if i < 0 {
					t.Errorf("no finding %s of %q in %+v", want.kind, want.who, r.Findings)
					continue
				}
				f := r.Findings[i]
				if want.waited >= 0 && !near(f.Waited, want.waited) {
					t.Errorf("waited %g s, want %g", f.Waited, want.waited)
				}
				if !near(float64(f.Queries), float64(want.queries)) {
					t.Errorf("%d queries, want %d", f.Queries, want.queries)
				}
				for n, v := range want.numbers {
					if !near(f.Number(n), v) {
						t.Errorf("%s is %g, want %g, of %+v", n, f.Number(n), v, f.Numbers)
					}
				}
				if !strings.Contains(f.Change+f.Patch, want.says) {
					t.Errorf("the change does not say %q: %s\n%s", want.says, f.Change, f.Patch)
				}
				if len(f.Evidence) == 0 {
					t.Error("no lookup shows it")
				}
				for _, id := range f.Evidence {
					if !slices.ContainsFunc(w.rows, func(r *output.Row) bool { return r.TraceID == id }) {
						t.Errorf("there is no lookup %s", id)
					}
				}
			}
		})
	}
}

// near: within 5 %.
func near(got, want float64) bool { return math.Abs(got-want) <= 0.05*math.Abs(want)+1e-9 }

// TestReplayIsWhatHappens: what the replay of the walks says that a lower ndots saves is what it saves, where the same
// names are resolved again with it.
func TestReplayIsWhatHappens(t *testing.T) {
	names := []struct{ name, exists string }{
		{"api.example.com", "api.example.com."}, {"www.example.com", "www.example.com."},
		{"web.other", "web.other.svc.cluster.local."}, {"db.data.svc", "db.data.svc.cluster.local."},
		{"a.b.c.d.example.com", "a.b.c.d.example.com."}, {"gone.example.com", ""},
	}
	before := &world{}
	queries := 0
	for range 20 {
		for _, n := range names {
			queries += before.resolve("cart", n.name, n.exists)
		}
	}
	var c Collector
	for _, r := range before.rows {
		c.Add(r)
	}
	walks := walksOf(lookupsOf(&c))
	for ndots := lowestNdots; ndots <= highestNdots; ndots++ {
		saved := 0
		for i := range walks {
			q, _ := walks[i].replay(ndots)
			saved += q
		}
		after := 0
		for range 20 {
			for _, n := range names {
				after += with(ndots, n.name, n.exists)
			}
		}
		if queries-saved != after {
			t.Errorf("ndots %d: %d queries, %d saved by the replay, but %d made", ndots, queries, saved, after)
		}
	}
}

// with gives how many queries a resolver makes for a name with that ndots (resolv.conf(5)).
func with(ndots int, name, exists string) int {
	order := []string{name + ".shop.svc.cluster.local.", name + ".svc.cluster.local.", name + ".cluster.local."}
	if strings.Count(name, ".") >= ndots {
		order = append([]string{name + "."}, order...)
	} else {
		order = append(order, name+".")
	}
	n := 0
	for _, full := range order {
		n += 2
		if full == exists {
			break
		}
	}
	return n
}

func lookupsOf(c *Collector) []lookup {
	var list []lookup
	for _, r := range c.rows {
		list = append(list, lookup{r, -1})
	}
	return list
}

func TestCorrectionsReplace(t *testing.T) {
	var c Collector
	w := &world{}
	r := w.ask("cart", clusterName, "A", func(r *output.Row) { r.Result = output.Lost })
	c.Add(r)
	again := *r
	again.Result, again.Revision = "NOERROR", 1
	c.Add(&again)
	if len(c.rows) != 1 || c.rows[0].Result != "NOERROR" {
		t.Errorf("%d rows, the first %s", len(c.rows), c.rows[0].Result)
	}
	// CoreDNS alone spoke first, without the address that its client asked.
	alone := *w.ask("cart", clusterName, "A", func(r *output.Row) { r.Server = "" })
	c.Add(&alone)
	both := alone
	both.Server, both.Revision = service, 1
	c.Add(&both)
	if len(c.rows) != 2 || c.rows[1].Server != service {
		t.Errorf("%d rows, the last asked %q", len(c.rows), c.rows[len(c.rows)-1].Server)
	}
}

func TestBoundIsTold(t *testing.T) {
	c := Collector{Max: 100}
	for _, r := range healthy().rows {
		c.Add(r)
	}
	r := c.Report()
	var out strings.Builder
	if err := r.WriteText(&out, 100); err != nil {
		t.Fatal(err)
	}
	if r.Lookups != 100 || r.Untold != 2300 || !strings.Contains(out.String(), "2300 further lookups were not looked at") {
		t.Errorf("%d lookups, %d untold:\n%s", r.Lookups, r.Untold, out.String())
	}
}

func TestHostileNamesAreHarmless(t *testing.T) {
	w := healthy()
	for range 30 {
		w.resolve("x\x1b[2J", "\x1b]0;owned\x07<script>", "")
	}
	r := w.report()
	var text, js strings.Builder
	if err := r.WriteText(&text, 80); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) == 0 {
		t.Fatal("nothing found")
	}
	for _, out := range []string{text.String(), js.String()} {
		if strings.ContainsAny(out, "\x1b\x07") {
			t.Errorf("a control character: %q", out)
		}
	}
	var back Report
	if err := json.Unmarshal([]byte(js.String()), &back); err != nil || len(back.Findings) != len(r.Findings) {
		t.Errorf("%v: %s", err, js.String())
	}
}

func BenchmarkReport(b *testing.B) {
	rows := healthy().rows
	b.ReportAllocs()
	for b.Loop() {
		var c Collector
		for _, r := range rows {
			c.Add(r)
		}
		c.Report()
	}
}

// TestHTML: the page says what the report says, and what others chose is text.
func TestHTML(t *testing.T) {
	w := healthy()
	for range 100 {
		w.ask("<script>alert(1)</script>", "\u202eevil.example.", "A", func(r *output.Row) {
			r.Result, r.Total = output.Lost, int64(5*time.Second)
			r.Verdict = output.Verdict{Where: "node", Cause: "<img src=x>", Certainty: "certain"}
		})
	}
	var page strings.Builder
	r := w.report()
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, banned := range []string{"<script", "<img", "\u202e", "http:", "https:"} {
		if strings.Contains(page.String(), banned) {
			t.Errorf("the page has %q", banned)
		}
	}
	if len(r.Findings) == 0 || strings.Count(page.String(), "<li data-kind=") != len(r.Findings) {
		t.Errorf("%d findings, in:\n%s", len(r.Findings), page.String())
	}
	for _, want := range []string{"500 s of waiting", "dnstrail explain " + r.Findings[0].Evidence[0], "<dd>100</dd>"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if err := new(Collector).Report().WriteHTML(&page); err != nil || !strings.Contains(page.String(), "0 findings") {
		t.Errorf("of nothing: %v", err)
	}
}
