package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
)

type options struct {
	bin    string
	only   *regexp.Regexp
	v4, v6 bool
}

var families = []family{{lab.ServiceV4}, {lab.ServiceV6}}

// row is what came of one fault.
type row struct {
	fault  *fault
	family family
	name   string // that was asked
	begin  time.Time
	// judged is which of the queries for the name is.
	judged question
	over   bool // the fault is: what is observed from now on is of a sound network
	// observed is what `dnstrail observe` judged at last, traced what the exported trace says, explained what `dnstrail explain` says of it with all
	// other traces at hand; "" for nothing.
	observed, traced, explained judgement
	text, certainty             string
	// apart says why the two sides' spans are not one trace, where they are to be.
	apart string
	// after is how long after the query the right verdict was there, 0 if it never was.
	after time.Duration
	err   error
}

// question is one of the queries that a client made.
type question struct {
	// qtype is dns.TypeA if 0.
	qtype uint16
	// sent is when, if not when the client was started.
	sent time.Time
}

func (q question) is(qtype string) bool {
	return qtype == dns.TypeToString[cmp.Or(q.qtype, dns.TypeA)]
}

// judgement is where and why.
type judgement struct{ where, cause string }

func (j judgement) String() string {
	if j.where == "" {
		return "nothing"
	}
	return j.where + "/" + j.cause
}

func (r *row) expected() judgement { return judgement{r.fault.where, r.fault.cause} }

// right says whether everything that judged judged right.
func (r *row) right() bool {
	want := r.expected()
	// What other traces show (that the other node was watched) may make the cause more exact, and never changes the place.
	return r.err == nil && r.apart == "" && (r.fault.certainty == "" || r.certainty == r.fault.certainty) && r.traced == want && r.explained.where == want.where && r.seen()
}

func (r *row) progress() string {
	mark := "ok   "
	if !r.seen() || r.err != nil {
		mark = "WRONG"
	}
	return fmt.Sprintf("%s %-42s %s  %s  %s", mark, r.fault.name, r.family, r.observed, r.text)
}

// run runs the matrix and reports each row as it comes. The error says that a fault could not be made; wrong verdicts are in the rows.
func run(ctx context.Context, o options, report func(*row)) ([]*row, error) {
	var all []*row
	for _, overlay := range []lab.Overlay{lab.Routed, lab.VXLAN} {
		for _, agents := range []cluster.Agents{cluster.AgentOnHost, cluster.AgentPerNode} {
			var pending []*fault
			for i := range matrix {
				if f := &matrix[i]; f.overlay == overlay && f.perNode == (agents == cluster.AgentPerNode) && o.only.MatchString(f.name) {
					pending = append(pending, f)
				}
			}
			if pending == nil {
				continue
			}
			rows, err := runWith(ctx, o, agents, overlay, pending, report)
			all = append(all, rows...)
			if err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

func runWith(ctx context.Context, o options, agents cluster.Agents, overlay lab.Overlay, pending []*fault, report func(*row)) (all []*row, err error) {
	s, err := raise(ctx, o.bin, agents, overlay)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.down()) }()
	n := 0
	for _, f := range pending {
		for _, fam := range families {
			if fam.v4() && (!o.v4 || f.only == 6) || !fam.v4() && (!o.v6 || f.only == 4) {
				continue
			}
			n++
			r := s.one(ctx, f, fam, n)
			if err := ctx.Err(); err != nil {
				return all, err
			}
			report(r)
			all = append(all, r)
		}
	}
	// A lost lookup's spans are sent when no answer can be expected any more.
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end) && ctx.Err() == nil && wrong(all) != nil; time.Sleep(100 * time.Millisecond) {
		for _, r := range all {
			s.judge(r)
		}
	}
	return all, s.rows.problem()
}

// one makes one fault, runs a lookup into it, and takes the fault back.
func (s *scene) one(ctx context.Context, f *fault, fam family, n int) (r *row) {
	r = &row{fault: f, family: fam, name: fmt.Sprintf("f%d.example.", n)}
	if f.label != "" {
		r.name = fmt.Sprintf("f%d.%s.example.", n, f.label)
	}
	if f.inject != nil {
		undo, err := f.inject(s, fam)
		if undo != nil {
			defer func() { r.err = errors.Join(r.err, undo()) }()
		}
		if err != nil {
			r.err = err
			return r
		}
	}
	r.begin = time.Now()
	wait := f.wait
	if wait == 0 {
		wait = 2 * time.Second
	}
	type end struct {
		question
		err error
	}
	asked := make(chan end, 1)
	go func() {
		var e end
		if f.ask != nil {
			e.question, e.err = f.ask(s, fam, r.name)
		} else {
			e.err = s.dig(ctx, f, fam, r.name, wait)
		}
		asked <- e
	}()
	took := func(e end) {
		r.judged, r.err = e.question, e.err
		if !r.judged.sent.IsZero() {
			r.begin = r.judged.sent
		}
	}

	// The verdict may come before the client has given up, and may be corrected until some time after.
	ended := false
	for limit := r.begin.Add(wait + f.late + 3*time.Second); time.Now().Before(limit) && ctx.Err() == nil && r.err == nil && (!ended || !r.seen() || f.late > 0 && r.traced != r.expected()); {
		select {
		case e := <-asked:
			took(e)
			ended, asked = true, nil
		case <-time.After(20 * time.Millisecond):
		}
		if ended || !f.tries {
			s.judge(r)
		}
	}
	if !ended && r.err == nil {
		select {
		case e := <-asked:
			took(e)
		case <-time.After(10 * time.Second):
			r.err = errors.New("the client did not end")
		}
	}
	time.Sleep(300 * time.Millisecond) // what comes late may still spoil it
	s.judge(r)
	r.over = true
	return r
}

// judge reads what there is.
func (s *scene) judge(r *row) {
	want := r.expected()
	var first time.Time
	if !r.over || r.observed.where == "" {
		var got *output.Row
		got, first = s.rows.find(r, func(row *output.Row) bool { return r.agrees(judgement{row.Verdict.Where, row.Verdict.Cause}) })
		if got != nil {
			r.observed = judgement{got.Verdict.Where, got.Verdict.Cause}
			r.text, r.certainty = got.Verdict.Text, got.Verdict.Certainty
		}
	}
	if r.over && r.fault.late > 0 && r.traced.where != "" {
		return
	}
	traces := s.store.Traces(store.Filter{Name: r.name})
	shadows := store.Shadows(traces)
	if r.fault.linked {
		r.apart = s.apart(r, traces, shadows)
	}
	for _, t := range traces {
		// A try over TCP that does not come about is a part of the trace of the answer that was truncated.
		if t.Client() == nil || shadows[t.ID] || !r.judged.is(t.Type()) || !r.fault.retried && t.Transport() != r.fault.transport() {
			continue
		}
		v := t.Verdict()
		r.traced = judgement{v.Where, v.Cause}
		if r.fault.perNode {
			r.certainty = v.Certainty
		}
		told := explain.Tell(t, s.store.Traces(store.Filter{})).Verdict
		r.explained = judgement{told.Where, told.Cause}
		if v.Where != want.where {
			r.text = v.Text
		}
		break // of several tries of a name the last one
	}
	if r.after == 0 && !first.IsZero() && r.seen() {
		r.after = first.Sub(r.begin)
	}
}

// apart says what keeps the traces of a lookup from being one, in which CoreDNS was asked by the client's node; "" for nothing.
func (s *scene) apart(r *row, traces []*store.Trace, shadows map[link.TraceID]bool) string {
	var of []*store.Trace
	for _, t := range traces {
		if !shadows[t.ID] {
			of = append(of, t)
		}
	}
	if len(of) != 1 {
		return fmt.Sprintf("%d traces, want one", len(of))
	}
	node := s.cluster.Node("node-1")
	switch t := of[0]; {
	case !t.Linked():
		return "the two sides are not joined"
	case t.Server().String(semconv.ClientAddress) != pick(r.family, node.V4, node.V6).String():
		return "CoreDNS was asked by " + t.Server().String(semconv.ClientAddress)
	case t.Client().String(semconv.ClientAddress) != pick(r.family, s.client.V4, s.client.V6).String():
		return "the client is " + t.Client().String(semconv.ClientAddress)
	}
	return ""
}

// seen says whether observe has the right verdict.
func (r *row) seen() bool { return r.agrees(r.observed) }

// agrees says whether observe's judgement is right. That of the whole cluster knows other traces, as explain does: see right.
func (r *row) agrees(j judgement) bool {
	return j == r.expected() || r.fault.perNode && j.where == r.fault.where
}

// transport gives which of the lookups of a name is judged.
func (f *fault) transport() string {
	if f.tcp || f.retried {
		return "tcp"
	}
	return "udp"
}

// dig asks once, as a process in the pod.
func (s *scene) dig(ctx context.Context, f *fault, fam family, name string, wait time.Duration) error {
	args := []string{"@" + fam.vip.String(), "+tries=1", fmt.Sprintf("+time=%d", int(wait.Seconds())), "+noall", "+comments", name, "A"}
	if f.tcp {
		args = append(args, "+tcp")
	}
	if f.buffer > 0 {
		args = append(args, fmt.Sprintf("+bufsize=%d", f.buffer))
	}
	ctx, cancel := context.WithTimeout(ctx, wait+5*time.Second)
	defer cancel()
	run := s.client.Run
	if f.hostNetwork {
		run = s.client.Node.Run
	}
	out, err := run(ctx, "dig", args...)
	if got := strings.Contains(out, "HEADER"); got != f.answered {
		return fmt.Errorf("the client got an answer: %v, want %v (%w): %s", got, f.answered, err, out)
	}
	return nil
}

// table gives the rows as a table.
func table(rows []*row) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\t\tEXPECTED\tJUDGED (observe)\tJUDGED (trace)\tJUDGED (explain)\tSECONDS")
	right := 0
	for _, r := range rows {
		if r.right() {
			right++
		}
		mark := func(j judgement) string {
			if j == r.expected() {
				return "right"
			}
			return j.String()
		}
		observed := mark(r.observed)
		if observed != "right" && r.seen() {
			observed = "right, " + r.observed.cause // by other traces, as below
		}
		seconds := "-"
		if r.after > 0 {
			seconds = fmt.Sprintf("%.2f", r.after.Seconds())
		}
		explained := mark(r.explained)
		if r.explained.where == r.expected().where && explained != "right" {
			explained = "right, " + r.explained.cause // other traces show what the lookup's own does not
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.fault.name, r.family, r.expected(), observed, mark(r.traced), explained, seconds)
	}
	_ = w.Flush() // strings.Builder does not fail
	fmt.Fprintf(&b, "%d of %d judged right\n", right, len(rows))
	return b.String()
}

// wrong gives an error that names the rows that are not right.
func wrong(rows []*row) error {
	var errs []error
	for _, r := range rows {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", r.fault.name, r.family, r.err))
		} else if !r.right() {
			errs = append(errs, fmt.Errorf("%s, %s: expected %s, observed %s, traced %s, explained %s (%s): %s", r.fault.name, r.family, r.expected(), r.observed, r.traced, r.explained, r.certainty, cmp.Or(r.apart, r.text)))
		}
	}
	return errors.Join(errs...)
}
