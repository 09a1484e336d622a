package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// result is what came of one client: what was captured, and what dnstrail said of it.
type result struct {
	client client
	pod    *lab.Pod
	asked  []*asked
	silent int // TCP connections to a DNS port without a query
	said   bytes.Buffer
	err    error

	rows                    int
	linked, toLink          int
	relations, toRelate     int
	falseLost, orphans      int
	wrongNames, absentNames int
	unread                  int // answers that came to a socket which its client closed without reading them
	problems                []string
}

func (r *result) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// judge compares the rows and the traces with what was captured.
func (s *scene) judge(r *result) {
	slices.SortStableFunc(r.asked, byTime)
	byKey := map[key][]*output.Row{}
	connects := 0
	for _, row := range s.rows.of(r.pod) {
		if row.Connect {
			connects++
			continue
		}
		r.rows++
		k := keyOf(row)
		byKey[k] = append(byKey[k], row)
	}
	if connects > r.silent {
		r.problem("%d rows of connections without a query, captured %d", connects, r.silent)
	}
	s.judgeTraces(r)
	seen := map[key]bool{}
	for _, a := range r.asked {
		seen[a.key] = true
		r.judgeRows(a, byKey[a.key])
	}
	for k, rows := range byKey {
		if !seen[k] {
			r.problem("row of what was not captured: %s: %s %s", k, rows[0].Result, rows[0].Verdict.Text)
		}
	}
	r.judgeRelations(byKey)
	r.judgeProcesses(byKey)
}

func keyOf(row *output.Row) key {
	client, _ := netip.ParseAddrPort(row.Client.Address) // the zero one is in no capture
	server, _ := netip.ParseAddrPort(row.Server)
	return key{row.Transport, client, server, row.ID, strings.ToLower(row.Name), dns.StringToType[row.Type]}
}

// judgeRows judges the rows of one question of one socket.
func (r *result) judgeRows(a *asked, rows []*output.Row) {
	if len(rows) == 0 {
		r.problem("no row: %s", a.key)
		return
	}
	if len(rows) > a.askings() {
		r.problem("%d rows, asked %d times: %s", len(rows), a.askings(), a.key)
	}
	attempts := 0
	for _, row := range rows {
		attempts += row.Attempts
	}
	// A TCP segment sent again is an attempt, and is put together with the first in the capture.
	if a.transport == "udp" && attempts != len(a.queries) {
		r.problem("%d attempts, captured %d queries: %s", attempts, len(a.queries), a.key)
	}
	last := slices.MaxFunc(rows, func(x, y *output.Row) int { return x.Time.Compare(y.Time) })
	got := a.answered(time.Now())
	switch {
	case got == nil && last.Result != output.Lost && len(a.answers) == 0:
		r.problem("%s, captured no answer: %s", last.Result, a.key)
	case got != nil && last.Result == output.Lost && r.closedUnread(a, last):
		r.unread++
	case got != nil && last.Result == output.Lost:
		r.falseLost++
		v := last.Verdict
		r.problem("FALSE LOST %s/%s (%s), captured %s: %s",
			v.Where, v.Cause, v.Certainty, dns.RcodeToString[got.rcode], a.key)
	case got != nil && last.Result != dns.RcodeToString[got.rcode]:
		r.problem("%s, captured %s: %s", last.Result, dns.RcodeToString[got.rcode], a.key)
	}
}

// closedUnread says whether the client closed the socket without reading this answer: it had had another on the same
// socket, with which it went on.
func (r *result) closedUnread(a *asked, row *output.Row) bool {
	if row.Verdict.Where != "client" {
		return false
	}
	return slices.ContainsFunc(r.asked, func(b *asked) bool {
		return b.client == a.client && b.key != a.key && b.answered(time.Now()) != nil
	})
}

// judgeTraces looks for CoreDNS's span of every query that it answered, and for its spans that hang on nothing.
func (s *scene) judgeTraces(r *result) {
	type query struct {
		client netip.AddrPort
		id     int64
		name   string
	}
	linked := map[query]bool{}
	for _, t := range s.store.Traces(trace.Filter{}) {
		missing := t.Missing()
		sent := map[link.SpanID]*trace.Span{}
		for _, span := range t.Spans {
			if other := sent[span.SpanID]; other != nil && span.String(semconv.K8SPodName) == r.pod.Name {
				r.problem("span ID %s of trace %s sent twice: %s, %s", span.SpanID, t.ID, other.Name, span.Name)
			}
			sent[span.SpanID] = span
		}
		for _, span := range t.Servers() {
			address, _ := netip.ParseAddr(span.String(semconv.ClientAddress)) // the zero one is no pod's
			if address != r.pod.V4 && address != r.pod.V6 {
				continue
			}
			q := query{
				netip.AddrPortFrom(address, uint16(span.Int(semconv.ClientPort))), span.Int(semconv.DNSID),
				strings.ToLower(dns.Fqdn(span.String(semconv.QuestionName))),
			}
			if slices.Contains(missing, span) {
				r.orphans++
				r.problem("orphan: CoreDNS's span of %s ID %d %s in trace %s", q.client, q.id, q.name, t.ID)
				continue
			}
			linked[q] = true
		}
	}
	for _, a := range r.asked {
		if a.server.Addr() != lab.ServiceV4 && a.server.Addr() != lab.ServiceV6 || len(a.answers) == 0 {
			continue
		}
		r.toLink++
		if linked[query{a.client, int64(a.id), a.name}] {
			r.linked++
		} else {
			r.problem("not linked: %s", a.key)
		}
	}
}

// relation is that a question belongs to an earlier one.
type relation struct {
	kind   string
	before *asked
}

// How long after an earlier question one may still belong to it.
const (
	atOnce       = 50 * time.Millisecond
	pairWithin   = 2 * time.Second
	searchWithin = 2 * time.Second
	againWithin  = 15 * time.Second
)

// relationsOf says which of the earlier questions a question belongs to, by what was captured: to one of each kind at
// most. Paired are those that have their A or AAAA; what it pairs is added.
func relationsOf(a *asked, earlier []*asked, paired map[*asked]bool) []relation {
	var all []relation
	have := map[string]bool{}
	add := func(kind string, b *asked) {
		if !have[kind] {
			have[kind] = true
			all = append(all, relation{kind, b})
		}
	}
	sameSeen := false // the question was asked before: what lies behind that is settled
	var search, pair *asked
	for _, b := range slices.Backward(earlier) {
		at := a.queries[0]
		age, same := at.Sub(b.queries[0]), b.name == a.name
		answer := b.answered(at)
		switch {
		case same && b.qtype == a.qtype && b.client == a.client && b.id == a.id && b.transport == a.transport:
			// The same lookup, at another server: it belongs to what that belongs to.
		case same && b.qtype == a.qtype && !sameSeen && age <= againWithin:
			switch {
			case a.transport == "tcp" && b.transport == "udp" && truncated(b, earlier, at):
				add("truncated", b)
			case answer == nil || failed(answer.rcode):
				add("retry", b)
			}
			sameSeen = true
		case same && isPair(a.qtype, b.qtype) && a.transport == b.transport:
			if !paired[b] && (age <= pairWithin || answer == nil) &&
				(pair == nil || pair.client != a.client && b.client == a.client) {
				pair = b
			}
		case search != nil || b.qtype != a.qtype || !searched(b.name, a.name):
		case answer != nil && answer.rcode == dns.RcodeNameError && age <= searchWithin,
			b.client == a.client && age <= atOnce:
			search = b
		}
	}
	if pair != nil {
		add("pair", pair)
		paired[a], paired[pair] = true, true
	}
	if search != nil && !sameSeen { // asked again it is the same step as before
		add("search", search)
	}
	return all
}

// truncated says whether the answer was, or the socket was given up for another answer that was.
func truncated(b *asked, earlier []*asked, at time.Time) bool {
	if answer := b.answered(at); answer != nil {
		return answer.truncated
	}
	return slices.ContainsFunc(earlier, func(c *asked) bool {
		answer := c.answered(at)
		return c.client == b.client && c.transport == b.transport && answer != nil && answer.truncated
	})
}

// failed says whether a resolver asks the next server after such an answer.
func failed(rcode int) bool {
	switch rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		return true
	}
	return false
}

func isPair(a, b uint16) bool {
	return a == dns.TypeA && b == dns.TypeAAAA || a == dns.TypeAAAA && b == dns.TypeA
}

// searched says whether two names are one with two suffixes of the pods' search path.
func searched(before, name string) bool {
	for _, suffix := range []string{".shop.svc.cluster.local.", ".svc.cluster.local.", ".cluster.local."} {
		stem, ok := strings.CutSuffix(before, suffix)
		if !ok {
			continue
		}
		for _, next := range []string{".svc.cluster.local.", ".cluster.local.", "."} {
			if name == stem+next {
				return true
			}
		}
	}
	return false
}

// judgeRelations compares what rows say to belong together with what was captured.
func (r *result) judgeRelations(byKey map[key][]*output.Row) {
	byTrace := map[string]key{}
	for k, rows := range byKey {
		for _, row := range rows {
			if row.Serves == "" {
				byTrace[row.TraceID] = k
			}
		}
	}
	var earlier []*asked
	all, paired := map[*asked][]relation{}, map[*asked]bool{}
	partners := map[key]*asked{}
	for _, a := range r.asked {
		// What a server in the pod asks for itself is no step of a client's resolver.
		if r.client.server != nil && !a.client.Addr().IsLoopback() {
			continue
		}
		all[a] = relationsOf(a, earlier, paired)
		earlier = append(earlier, a)
		for _, w := range all[a] {
			if w.kind == "pair" {
				partners[w.before.key], partners[a.key] = a, w.before
			}
		}
	}
	for _, a := range earlier {
		rows := byKey[a.key]
		if len(rows) == 0 {
			continue // told already
		}
		row := earliest(rows)
		for _, w := range all[a] {
			r.toRelate++
			from, to := row, w.before
			if w.kind == "pair" && related(row, w.kind) == "" && len(byKey[w.before.key]) > 0 {
				// Two processors send at once: which was first is for each observer to say.
				from, to = earliest(byKey[w.before.key]), a
			}
			id := related(from, w.kind)
			switch found := byTrace[id]; {
			case id == "":
				r.problem("no %s, wanted to %s: %s", w.kind, w.before.key, a.key)
			case found.name != to.name || found.qtype != to.qtype:
				r.problem("%s to %s, wanted to %s: %s", w.kind, found, w.before.key, a.key)
			default:
				r.relations++
			}
		}
		for _, got := range row.Related {
			// Names asked at once are steps of one search, too; the capture shows only that they share their start.
			atOnce := got.Kind == "search" && searchedEither(byTrace[got.TraceID].name, a.name)
			pair := got.Kind == "pair" && partners[a.key] != nil
			wanted := slices.ContainsFunc(all[a], func(w relation) bool { return w.kind == got.Kind })
			if !atOnce && !pair && !wanted {
				r.problem("%s to %s, captured none: %s", got.Kind, byTrace[got.TraceID], a.key)
			}
		}
	}
}

// earliest gives the first of the rows of one question.
func earliest(rows []*output.Row) *output.Row {
	return slices.MinFunc(rows, func(x, y *output.Row) int { return x.Time.Compare(y.Time) })
}

// related gives the trace that a row says to have that relation to; "" if none.
func related(row *output.Row, kind string) string {
	for _, x := range row.Related {
		if x.Kind == kind {
			return x.TraceID
		}
	}
	return ""
}

func searchedEither(a, b string) bool { return searched(a, b) || searched(b, a) }

// judgeProcesses looks for names of processes that did not ask.
func (r *result) judgeProcesses(byKey map[key][]*output.Row) {
	allowed := map[string]bool{}
	for _, p := range r.client.processes {
		allowed[p] = true
	}
	runs := r.client.runs
	if r.client.server != nil {
		runs = append(slices.Clone(runs), *r.client.server)
	}
	for _, c := range runs {
		name := filepath.Base(c.Path)
		allowed[name[:min(len(name), 15)]] = true
	}
	for k, rows := range byKey {
		for _, row := range rows {
			switch name := row.Client.Process; {
			case name == "":
				r.absentNames++
			case !allowed[name]:
				r.wrongNames++
				r.problem("process %q: %s", name, k)
			}
		}
	}
}

// wrong gives what was wrong, or nil.
func (r *result) wrong() error {
	if r.err == nil && len(r.problems) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", r.client.name, errors.Join(r.err, problems(r.problems)))
}

// mostProblems is how many problems of one client are shown: a kind of fault repeats itself.
const mostProblems = 25

func problems(list []string) error {
	if len(list) == 0 {
		return nil
	}
	more := ""
	if n := len(list) - mostProblems; n > 0 {
		more, list = fmt.Sprintf("\n  and %d more", n), list[:mostProblems]
	}
	return errors.New("\n  " + strings.Join(list, "\n  ") + more)
}

func table(results []*result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "client\tlookups captured\trows\tlinked\trelations\t"+
		"false LOST\torphans\tprocess wrong, absent\tclosed unread\t")
	for _, r := range results {
		verdict := "right"
		if r.wrong() != nil {
			verdict = "WRONG"
		}
		captured := 0
		for _, a := range r.asked {
			captured += a.askings()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d of %d\t%d of %d\t%d\t%d\t%d, %d\t%d\t%s\n", r.client.name,
			captured, r.rows, r.linked, r.toLink, r.relations, r.toRelate, r.falseLost, r.orphans,
			r.wrongNames, r.absentNames, r.unread, verdict)
	}
	_ = w.Flush() // never fails: strings.Builder
	return b.String()
}

// allWrong gives what was wrong with any.
func allWrong(results []*result) error {
	var errs []error
	for _, r := range results {
		errs = append(errs, r.wrong())
	}
	return errors.Join(errs...)
}
