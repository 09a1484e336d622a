package model

import (
	"fmt"
	"sort"
	"strings"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// row is a lookup's reports.
type row struct {
	q       *question
	traceID link.TraceID
	reports []*report
}

func (r *row) last() *report { return r.reports[len(r.reports)-1] }

// of finds the question that a report is of; nil where there is none.
func (w *world) of(r *report) *question {
	name := strings.ToLower(r.Question())
	var found *question
	for _, q := range w.questions {
		if q.transport != uint8(r.Transport) || q.id != r.ID || q.name != name || q.typ != r.Type {
			continue
		}
		if r.Client != q.client && r.Client != q.masked {
			continue
		}
		if s := r.Server.AddrPort(); s != q.net.asked && s != q.net.backend {
			continue
		}
		found = q
		if r.Server.AddrPort() == q.net.asked {
			return q
		}
	}
	return found
}

// finding is something that was reported and is not so.
type finding struct {
	text string
	hard bool // no world may show it; others are asked of the worlds of TestWorlds
}

// findings compares what was reported with what was.
func (w *world) findings(x *watch) (f []finding) {
	add := func(format string, args ...any) { f = append(f, finding{text: fmt.Sprintf(format, args...)}) }
	must := func(format string, args ...any) { f = append(f, finding{fmt.Sprintf(format, args...), true}) }
	// For an agent that loses no record, and gets them in order, more is hard.
	strict := add
	if x.o.losing == 0 && x.o.spread == 0 {
		strict = must
	}
	var rows []*row
	byKey := map[string]*row{}
	spans := map[link.TraceID]*report{}
	for _, r := range x.reports {
		if r.Connect {
			w.connectFindings(r, strict)
			continue
		}
		q := w.of(r)
		if q == nil {
			must("a row of no question: %s", tellReport(r))
			continue
		}
		// A lookup of which more becomes known may get another trace ID; what is reported first, stands in all revisions.
		k := fmt.Sprintf("%p %s", q, r.traceID)
		y := byKey[k]
		if y == nil && r.Revision > 0 {
			for _, z := range rows {
				if z.q == q && z.last().Revision == r.Revision-1 && z.reports[0].Start() <= r.Start() {
					y = z
				}
			}
		}
		if y == nil {
			y = &row{q: q, traceID: r.traceID}
			rows = append(rows, y)
		}
		byKey[k] = y
		// Where the record of the client's send was lost, its server may be known by two addresses.
		torn := len(x.lost) > 0 && (q.net.asked != q.net.backend || q.masked != q.client)
		if n := len(y.reports); n > 0 && !torn && r.Revision <= y.reports[n-1].Revision {
			add("revision %d after %d under one trace ID: %s", r.Revision, y.reports[n-1].Revision, tellReport(r))
		}
		y.reports = append(y.reports, r)
		for _, id := range r.spans {
			if before := spans[id]; before != nil {
				add("a client span ID sent twice, first for %s, then for %s", tellReport(before), tellReport(r))
			}
			spans[id] = r
		}
	}
	for _, y := range rows {
		if !y.last().Final && len(x.lost) == 0 { // else rows of one lookup may be told apart wrongly here
			must("no end: %s", tellReport(y.last()))
		}
	}
	for _, q := range w.questions {
		w.questionFindings(x, q, rows, add, strict)
	}
	s := x.asm.Stats()
	if s.InFlight != 0 || s.Bytes != 0 {
		must("%d lookups, %d bytes held after all", s.InFlight, s.Bytes)
	}
	if left := x.asm.Leftover(); left != "" {
		must("held after all: %s", left)
	}
	return f
}

func (w *world) questionFindings(x *watch, q *question, rows []*row, add, strict func(string, ...any)) {
	var mine []*row
	for _, r := range rows {
		if r.q == q {
			mine = append(mine, r)
		}
	}
	seenAttempts, seenAskings, failures := 0, 0, 0
	for _, a := range q.askings {
		failures += a.afterFailure(w.reads)
		n := 0
		for _, t := range a.attempts {
			if x.saw(w, t.shown) {
				n++
			}
		}
		seenAttempts += n
		if n > 0 {
			seenAskings++
		}
	}
	what := fmt.Sprintf("%s %s %d %s>%s over %s", q.name, dnswire.TypeString(q.typ), q.id, q.client, q.net.asked,
		q.net.name)
	losing := len(x.lost) > 0
	torn := false // of a stream, segments count, and a message has several
	for _, a := range q.askings {
		torn = torn || q.transport == tcp && (w.rough || len(a.reasons) > 0 || len(a.wheres) > 0)
	}
	reported, certain := 0, 0
	for _, r := range mine {
		if !r.last().ReadInferred {
			certain++
		}
		reported += r.last().AttemptsBefore + r.last().Attempts
		w.rowFindings(x, q, r, add)
	}
	switch {
	case seenAskings == 0 && len(mine) > 0 && !losing:
		strict("%d rows of %s, of which nothing was seen", len(mine), what)
	case w.rough && q.transport == tcp && len(mine) == 0 && !x.sees(q.net.clientNS):
		// What lies behind bytes that were lost before they came in sight has no beginning that could be found.
	case seenAskings > 0 && len(mine) == 0 && !losing:
		strict("no row of %s, which was seen", what)
	// who does not see the client does not know that an answer was lost
	case certain > seenAskings+failures && !losing && x.sees(q.net.clientNS):
		add("%d rows of %s, which was asked %d times", len(mine), what, seenAskings)
	case reported != seenAttempts && !losing && !torn && (!w.doubling || x.sees(q.net.clientNS)):
		add("%d attempts in %d rows of %s, which was sent %d times", reported, len(mine), what, seenAttempts)
	}
}

func (x *watch) sees(ns uint32) bool { return x.o.sees(ns) }

// saw says whether any of a query's hops was seen from which a lookup can begin.
func (x *watch) saw(w *world, hops []int) bool {
	for _, i := range hops {
		if h := &w.shown[i]; x.seen[i] && h.NetNS != 0 && h.Kind != hop.Read && h.Kind != hop.Unreachable {
			return true
		}
	}
	return false
}

// asking gives the asking that a report is of: the last that had begun with its hops.
func (q *question) askingOf(r *report) *asking {
	last := int64(0)
	for i := range r.Hops {
		if h := &r.Hops[i]; !h.Answer && h.Kind != hop.Read && h.Kind != hop.Unreachable && h.NetNS != 0 {
			last = max(last, h.Time)
		}
	}
	if last == 0 {
		last = r.Start()
	}
	a := q.askings[0]
	for _, y := range q.askings {
		if y.start <= last {
			a = y
		}
	}
	return a
}

func (w *world) rowFindings(x *watch, q *question, r *row, add func(string, ...any)) {
	l := r.last()
	a := q.askingOf(l)
	v := &l.verdict
	lost := v.Lost()
	handed := a.settled2()
	arrived := a.settled(a.arrived)
	// Where records were lost, a read that was seen may be that of another answer to the same socket.
	// Where the record was lost that tells how the client's address was translated, the packets behind are another
	// client's.
	known := x.sawSender(w, a, q.net.clientNS) &&
		(len(x.lost) == 0 || l.Client == q.client && l.Server.AddrPort() == q.net.asked && q.transport == udp && w.alone(q))
	if lost && handed != nil && handed.shown >= 0 && x.seen[handed.shown] && known {
		add("LOST though the client's read of the answer was seen: %s", tellReport(l))
	}
	// Where reads are out of sight, a query that follows the answer may be a further try of a slow reader, or asked
	// anew.
	told := arrived != nil && (w.reads || arrived.time > a.attempts[len(a.attempts)-1].sent)
	if lost && told && arrived.shown >= 0 && x.seen[arrived.shown] && handed != nil && known && !q.net.strict {
		add("LOST though the answer was seen to arrive, and the client has it: %s", tellReport(l))
	}
	if v.Certain {
		switch {
		case v.Where == verdict.Answered && !x.answered(q, a) && x.sees(q.net.clientNS):
			add("certainly answered, and no answer came: %s", tellReport(l))
		case v.Where != verdict.Answered && lost && handed != nil:
			add("certainly lost, and the client has its answer: %s", tellReport(l))
		case v.Where != verdict.Answered && !a.wheres[v.Where]:
			add("certainly at %s, and that is not so (%s): %s", v.Where, words(a.wheres), tellReport(l))
		case v.Drop != "" && !a.reasons[v.Drop]:
			add("certainly dropped for %s, and that is not so: %s", v.Drop, tellReport(l))
		}
	}
	told = !q.waited() || w.sends && len(x.lost) == 0
	if p := l.Process; p != nil && x.sees(q.net.clientNS) && p.PID != q.process.PID && told &&
		l.ClientNetNS == q.net.clientNS {
		add("process %s, and it was %s: %s", p.Name, q.process.Name, tellReport(l))
	}
}

// answered says whether an answer to an asking came. Where records were lost, a row may be of an earlier one, too: the
// send that would have ended it may be among them.
func (x *watch) answered(q *question, a *asking) bool {
	for _, y := range q.askings {
		if (y == a || len(x.lost) > 0 && y.start < a.start) && len(y.handed)+len(y.arrived) > 0 {
			return true
		}
	}
	return false
}

// alone says whether nothing else is asked from the question's socket.
func (w *world) alone(q *question) bool {
	for _, other := range w.questions {
		if other != q && other.client == q.client {
			return false
		}
	}
	return len(q.askings) == 1
}

// afterFailure counts the attempts that follow an answer which tells of a failure: it ends a row, and what is asked
// again under another trace ID is another row. So is what follows a good answer where reads are out of sight: that the
// client had not read it, nothing shows.
func (a *asking) afterFailure(reads bool) int {
	n := 0
	for _, t := range a.attempts {
		for _, h := range a.arrived {
			if (!h.good || !reads) && h.time < t.sent {
				n++
				break
			}
		}
	}
	return n
}

// waited says whether a query left later than it was sent.
func (q *question) waited() bool {
	for _, a := range q.askings {
		if a.waited {
			return true
		}
	}
	return false
}

// sawSender says whether it was seen where the asking was sent from: in its client's network namespace.
func (x *watch) sawSender(w *world, a *asking, ns uint32) bool {
	for _, t := range a.attempts {
		for _, i := range t.shown {
			if h := &w.shown[i]; x.seen[i] && h.Local && h.NetNS == ns {
				return true
			}
		}
	}
	return false
}

// connectFindings checks what is said of a TCP connection on which nothing was asked.
func (w *world) connectFindings(r *report, add func(string, ...any)) {
	for _, c := range w.conns {
		if c.port != r.Client.Port && c.port+w.shift != r.Client.Port {
			continue
		}
		if r.verdict.Certain && c.opened && r.verdict.Lost() && r.Final {
			add("a connection certainly not made that was: %s", tellReport(r))
		}
		if r.verdict.Certain && r.verdict.Where != verdict.Answered && !c.attempt.wheres[r.verdict.Where] {
			add("a connection that certainly was lost at %s, and that is not so (%s): %s", r.verdict.Where,
				words(c.attempt.wheres), tellReport(r))
		}
		return
	}
	add("a connection that nobody made: %s", tellReport(r))
}

func words(m map[verdict.Where]bool) string {
	var s []string
	for w := range m {
		s = append(s, string(w))
	}
	sort.Strings(s)
	return strings.Join(s, ", ")
}

func tellReport(r *report) string {
	return fmt.Sprintf("%s %s %d %s %s>%s revision %d, attempts %d+%d, %s, final %v, again %v, %s/%s %s %q",
		r.Question(), dnswire.TypeString(r.Type), r.ID,
		r.Transport, r.Client, r.Server, r.Revision, r.AttemptsBefore, r.Attempts, r.Ending, r.Final, r.Again,
		r.verdict.Where, r.verdict.Cause, r.verdict.Certainty(), r.verdict.Text)
}

// tell writes down what happened, and what was seen of it and said about it.
func (w *world) tell(x *watch) string {
	var b strings.Builder
	order := make([]int, len(w.shown))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return w.shown[order[i]].Time < w.shown[order[j]].Time })
	for n, i := range order {
		if n > 400 {
			fmt.Fprintf(&b, "... %d more\n", len(order)-n)
			break
		}
		h := &w.shown[i]
		mark := " "
		if x.seen[i] {
			mark = "*"
		}
		id := ""
		if h.HasHead {
			id = fmt.Sprintf("%d %s %s", h.Head.ID, dnswire.NameString(h.Head.Name), dnswire.TypeString(h.Head.Type))
		} else if h.Transport == tcp {
			id = fmt.Sprintf("tcp seq %d flags %x", h.Seq, h.TCPFlags)
		}
		fmt.Fprintf(&b, "%s %12.6f cpu%d %-11s ns%d %-9s %s>%s len %d skb %x %s %s", mark, float64(h.Time-begin)/1e9,
			h.cpu, h.Kind, h.NetNS, h.Device(), h.Src, h.Dst,
			h.PayloadLen, h.SKB&0xffff, id, h.Reason)
		if h.Answer || h.HasHead && h.Head.Flags.Response() {
			b.WriteString(" ANSWER")
		}
		if h.Process != nil {
			b.WriteString(" " + h.Process.Name)
		}
		if h.Tracked {
			b.WriteString(" ct " + h.Conntrack.String())
		}
		b.WriteByte('\n')
	}
	for _, r := range x.reports {
		fmt.Fprintf(&b, "%12.6f %s trace %s\n", float64(r.at-begin)/1e9, tellReport(r), r.traceID)
	}
	return b.String()
}
