package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

type options struct {
	bin      string
	only     *regexp.Regexp
	names    []string // only these rows, where there are any
	v4, v6   bool
	settings setting
	// core runs only what a fault's core names.
	core bool
	// sample is the share of lookups that both sides keep.
	sample string
	// alone leaves it out that agents and CoreDNS ask one another, which they do where not all lookups are kept.
	alone bool
	// slow is how many times as long to wait for what comes late; 0 means once.
	slow int
	// labs is how many run at a time.
	labs int
}

// partial says whether only a share of lookups is kept: of one that went well, nothing need be known.
func (o *options) partial() bool { return o.sample != "1" }

// asks says whether agents and CoreDNS ask one another.
func (o *options) asks() bool { return o.partial() && !o.alone }

var families = []family{{lab.ServiceV4}, {lab.ServiceV6}}

// row is what came of one fault.
type row struct {
	fault   *fault
	family  family
	setting setting
	name    string // that was asked
	truths  []truth
	begin   time.Time // when the client began to ask
	end     time.Time // when the fault was taken back
	// wrong is what is wrong with what each of the columns says; "" for one that is right.
	wrong [columns]string
	// counted says how many rows there are where that is not right.
	counted string
	// socket is what is wrong with what the agent's socket told last, and socketAt when that was.
	socket   string
	socketAt time.Time
	// explained says that the socket has told of the lookups what is right.
	explained bool
	text      string
	// judged is how the lookups were judged: by observe, else in the joined rows.
	judged string
	// after is how long after the query the right verdict was there, 0 if it never was.
	after time.Duration
	err   error
}

// The columns: who says something of a lookup.
const (
	observed  = iota // dnstrail observe, of an agent that sees all
	joined           // dnstrail observe --store
	traced           // the exported trace
	explained        // dnstrail explain, with all other traces at hand
	socketed         // dnstrail explain --socket, of the agent that sees the client
	columns
)

var columnNames = [columns]string{"OBSERVE", "JOINED", "TRACE", "EXPLAIN", "SOCKET"}

// right says whether everything that judged judged right.
func (r *row) right() bool { return r.err == nil && r.wrong == [columns]string{} && r.counted == "" }

func (r *row) expected() string {
	var all []string
	for i := range r.truths {
		t := &r.truths[i]
		s := t.String()
		if t.by == onlyObserve && r.setting != inHost {
			continue
		}
		if n := t.times(); n > 1 {
			s = fmt.Sprintf("%d %s", n, s)
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

// says gives what a column says: what is expected, if it is right.
func (r *row) says(column int) string { return cmp.Or(r.wrong[column], r.expected()) }

// problems says in a line what is wrong.
func (r *row) problems() string {
	if r.err != nil {
		return r.err.Error()
	}
	var all []string
	for c, w := range r.wrong {
		if w != "" {
			all = append(all, strings.ToLower(columnNames[c])+": "+w)
		}
	}
	if r.counted != "" {
		all = append(all, "rows: "+r.counted)
	}
	return strings.Join(all, "; ")
}

func (r *row) progress() string {
	mark := "ok   "
	if !r.right() {
		mark = "WRONG"
	}
	return fmt.Sprintf("%s %-8s %-50s %s  %s  %s", mark, r.setting, r.fault.name, r.family, r.expected(),
		cmp.Or(r.problems(), r.text))
}

// task is a lab's work: faults that need the same lab.
type task struct {
	setting setting
	overlay lab.Overlay
	faults  []*fault
}

// takes says whether a fault is to be made in a setting.
func (o *options) takes(f *fault, set setting) bool {
	_, cannot := f.not[set]
	named := len(o.names) == 0 || slices.Contains(o.names, f.name)
	return !cannot && named && o.only.MatchString(f.name) && (!o.core || f.core&set != 0)
}

// check says what is asked for and does not exist.
func (o *options) check() error {
	for _, name := range o.names {
		if !slices.ContainsFunc(matrix, func(f fault) bool { return f.name == name }) {
			return fmt.Errorf("-row: there is no row %q", name)
		}
	}
	for i := range matrix {
		for _, set := range settings {
			if o.settings&set != 0 && o.takes(&matrix[i], set) {
				return nil
			}
		}
	}
	return errors.New("no row is asked for")
}

// tasks gives what is to be run, in as many parts as there may be labs at a time.
func tasks(o options) []task {
	var all []task
	for _, set := range settings {
		if o.settings&set == 0 {
			continue
		}
		for _, overlay := range []lab.Overlay{lab.Routed, lab.VXLAN} {
			var pending []*fault
			for i := range matrix {
				f := &matrix[i]
				if f.overlay == overlay && o.takes(f, set) {
					pending = append(pending, f)
				}
			}
			parts := min(o.labs, (len(pending)+3)/4) // a lab takes some seconds to raise
			for i := range parts {
				j := task{setting: set, overlay: overlay}
				for n, f := range pending {
					if n%parts == i {
						j.faults = append(j.faults, f)
					}
				}
				all = append(all, j)
			}
		}
	}
	return all
}

// run runs the matrix and reports each row as it comes. The error says that a lab could not be raised; wrong verdicts
// are in the rows.
func run(ctx context.Context, o options, report func(*row)) ([]*row, error) {
	var (
		mu   sync.Mutex
		all  []*row
		errs []error
		wg   sync.WaitGroup
	)
	pending := make(chan task)
	token := fmt.Sprintf("%04x", rand.N(1<<16)) // of this run: other labs of this machine ask for names of their own
	numbers := &counter{}
	for range max(1, o.labs) {
		wg.Go(func() {
			for j := range pending {
				rows, err := runWith(ctx, o, j, token, numbers, func(r *row) {
					mu.Lock()
					defer mu.Unlock()
					report(r)
				})
				mu.Lock()
				all = append(all, rows...)
				if err != nil {
					errs = append(errs, fmt.Errorf("setting %s: %w", j.setting, err))
				}
				mu.Unlock()
			}
		})
	}
	for _, j := range tasks(o) {
		pending <- j
	}
	close(pending)
	wg.Wait()
	place := map[*fault]int{}
	for i := range matrix {
		place[&matrix[i]] = i
	}
	slices.SortStableFunc(all, func(a, b *row) int {
		return cmp.Or(cmp.Compare(place[a.fault], place[b.fault]), cmp.Compare(a.setting, b.setting),
			cmp.Compare(a.family.String(), b.family.String()))
	})
	return all, errors.Join(errs...)
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func runWith(ctx context.Context, o options, j task, token string, numbers *counter, report func(*row)) (
	all []*row, err error) {
	s, err := raise(ctx, o, j.setting, j.overlay)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.down()) }()
	for _, f := range j.faults {
		for _, fam := range families {
			if fam.v4() && (!o.v4 || f.only == 6) || !fam.v4() && (!o.v6 || f.only == 4) {
				continue
			}
			r := s.one(ctx, f, fam, fmt.Sprintf("f%d-%s", numbers.next(), token))
			if err := ctx.Err(); err != nil {
				return all, err
			}
			report(r)
			all = append(all, r)
		}
	}
	// What comes late may spoil a row: a lookup that comes back, a query of a server's own that is called lost. Or it
	// makes one right: a lost lookup's spans are sent when no answer can be expected any more.
	begin := time.Now()
	for time.Since(begin) < 12*time.Second && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		right := true
		for _, r := range all {
			s.judge(r)
			right = right && r.right()
		}
		if right && time.Since(begin) > 4*time.Second {
			break
		}
	}
	return all, errors.Join(s.observe.problem(), s.joined.problem())
}

// patience is how long a verdict may take that rests on silence: five seconds without an answer, until the agents have
// sent it, and until nothing more comes of it.
const patience = 5*time.Second + 5*time.Second

// one makes one fault, runs a lookup into it, and takes the fault back.
func (s *scene) one(ctx context.Context, f *fault, fam family, label string) (r *row) {
	zone := "example."
	if f.label != "" {
		zone = f.label + ".example."
	}
	r = &row{fault: f, family: fam, setting: s.setting, name: label + "." + zone,
		truths: f.truthsIn(s.setting, fam, s.options.asks())}
	s.add(r)
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
	slow := time.Duration(s.slow)
	wait := cmp.Or(f.wait, 2*time.Second)
	if f.wait == 0 && r.truths[0].got() != output.Lost {
		wait *= slow // an answer that comes is the point, not when
	}
	type end struct {
		truths []truth
		err    error
	}
	s.begin(r)
	asked := make(chan end, 1)
	go func() {
		var e end
		if f.ask != nil {
			e.truths, e.err = f.ask(s, fam, r.name)
		} else {
			e.err = s.dig(ctx, f, fam, r.name, wait, r.truths[0].got() != output.Lost)
		}
		asked <- e
	}()
	ended := time.Time{}
	limit := time.After(wait + slow*20*time.Second)
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for r.err == nil && ctx.Err() == nil {
		select {
		case e := <-asked:
			ended, r.err = time.Now(), e.err
			if e.truths != nil {
				r.truths = e.truths
			}
		case <-limit:
			if ended.IsZero() {
				r.err = errors.New("the client did not end")
			}
		case <-tick.C:
		}
		if ended.IsZero() && f.tries {
			continue // what is true is known when it has ended
		}
		s.judge(r)
		if !ended.IsZero() && (r.right() || time.Since(ended) > slow*3*time.Second && time.Since(r.begin) > slow*patience) {
			break
		}
	}
	select { // what comes late may still spoil it
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
	}
	s.judge(r)
	r.end = time.Now()
	return r
}

// judge compares what is said of a row's lookups with what is true of them.
func (s *scene) judge(r *row) {
	if r.err != nil {
		return
	}
	var wrong [columns]string
	var counts []string
	note := func(column int, t *truth, problem string) {
		if problem == "" || strings.Contains(wrong[column], problem) {
			return
		}
		if len(r.truths) > 1 {
			problem = t.String() + " is " + problem
		}
		if wrong[column] != "" {
			problem = wrong[column] + " and " + problem
		}
		wrong[column] = problem
	}
	all := s.store.Traces(trace.Filter{})
	text := ""
	var said [columns][]string
	var first time.Time
	for column, from := range map[int]*rows{observed: s.observe, joined: s.joined} {
		if from == nil {
			continue
		}
		rows := from.of(s, r)
		truths := map[int]witness{observed: onlyObserve, joined: onlyStore}[column].of(r.truths)
		if column == joined && s.options.partial() {
			truths = slices.DeleteFunc(truths, func(t truth) bool { return t.well() })
			rows = slices.DeleteFunc(rows, func(l *output.Row) bool { return wentWell(l) })
		}
		pairs, left := match(truths, rows, r.name, column == joined)
		for _, p := range pairs {
			if p.row == nil {
				note(column, p.truth, "nothing")
				if column == joined {
					note(traced, p.truth, "nothing")
					note(explained, p.truth, "nothing")
				}
				continue
			}
			note(column, p.truth, p.truth.denies(rowSaid(p.row), column == joined))
			if column == observed || text == "" {
				text = p.row.Verdict.Text
			}
			if v := &p.row.Verdict; v.Certainty != "" {
				said[column] = append(said[column], fmt.Sprintf("%s/%s, %s", v.Where, v.Cause, v.Certainty))
			} else {
				said[column] = append(said[column], fmt.Sprintf("%s/%s", v.Where, v.Cause))
			}
			if p.truth.process != "" && p.row.Client.Process != p.truth.process && (column == observed ||
				p.row.Client.Process != "") {
				note(column, p.truth, fmt.Sprintf("process %q, want %q", p.row.Client.Process, p.truth.process))
			}
			if p.truth.blank && (p.row.Type+p.row.Class != "" || !fromPod(p.row.Client.Address)) {
				note(column, p.truth, fmt.Sprintf("type %q class %q from %q", p.row.Type, p.row.Class, p.row.Client.Address))
			}
			if n := p.truth.attempts; column == observed && n != 0 && p.row.Attempts != n {
				note(column, p.truth, fmt.Sprintf("%d attempts, want %d", p.row.Attempts, n))
			}
			if took := time.Duration(p.row.Total); took < p.truth.atLeast {
				note(column, p.truth, fmt.Sprintf("%v long, want %v", took, p.truth.atLeast))
			}
			if column != joined {
				continue
			}
			if at := from.at(p.row); first.IsZero() || at.After(first) {
				first = at
			}
			ofTrace, story := s.told(p.row, all)
			note(traced, p.truth, p.truth.denies(ofTrace, false))
			note(explained, p.truth, p.truth.denies(story, true))
			if p.truth.mostly != "" && !holds(story.mostly, p.truth.mostly) {
				note(explained, p.truth, fmt.Sprintf("mostly %q", story.mostly))
			}
			for _, words := range p.truth.advice {
				if !holds(story.advice, words) {
					note(explained, p.truth, fmt.Sprintf("%q not advised", words))
				}
			}
		}
		want := 0
		for i := range truths {
			want += truths[i].times()
		}
		if len(rows) != want {
			if len(rows) <= 3 {
				left = rows
			}
			counts = append(counts, fmt.Sprintf("%s %d, want %d%s", strings.ToLower(columnNames[column]), len(rows), want,
				listed(left)))
		}
	}
	slices.Sort(counts)
	if r.fault.linked && !s.options.partial() && wrong[traced] == "" {
		wrong[traced] = s.apart(r)
	}
	r.counted = strings.Join(counts, "; ")
	// The agent is asked when all else is right: until then it may know no more.
	if now := time.Now(); wrong == [columns]string{} && now.Sub(r.socketAt) > 500*time.Millisecond {
		r.socketAt, r.socket = now, s.bySocket(r)
	}
	wrong[socketed] = r.socket
	// Of a fault that gives the lookup its answer when it is taken back, what was said before counts.
	if !r.end.IsZero() && r.fault.reverts && wrong != [columns]string{} {
		return
	}
	r.wrong, r.text, r.judged = wrong, text, counted(said[observed])
	if r.setting != inHost {
		r.judged = counted(said[joined])
	}
	if r.after == 0 && r.right() {
		r.after = first.Sub(r.begin)
	}
}

// fromPod says whether a row's address is one that a pod may have.
func fromPod(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && !at.Addr().IsUnspecified()
}

// counted gives words once each, with how often they stand.
func counted(words []string) string {
	var all []string
	for i, w := range words {
		if slices.Contains(words[:i], w) {
			continue
		}
		n := 0
		for _, x := range words {
			if x == w {
				n++
			}
		}
		if n > 1 {
			w = fmt.Sprintf("%d %s", n, w)
		}
		all = append(all, w)
	}
	return strings.Join(all, "; ")
}

// listed names rows, the first ones of many.
func listed(rows []*output.Row) string {
	var b strings.Builder
	for i, r := range rows {
		if i == 3 {
			fmt.Fprintf(&b, " and %d more", len(rows)-i)
			break
		}
		fmt.Fprintf(&b, " [%s %s %s>%s %s %s/%s %s, revision %d of %.4s]", r.Name, r.Type, r.Client.Address, r.Server,
			r.Result,
			r.Verdict.Where, r.Verdict.Cause, r.Verdict.Certainty, r.Revision, r.TraceID)
	}
	return b.String()
}

// told gives what the trace of a joined row says, and what explain says of it.
func (s *scene) told(row *output.Row, all []*trace.Trace) (ofTrace, story said) {
	id, err := trace.ParseID(row.TraceID)
	if err != nil {
		return ofTrace, story
	}
	t := s.store.Trace(id)
	if t == nil {
		return ofTrace, story
	}
	t = t.Whole(s.store.Trace)
	for _, one := range t.Lookups() {
		if one.Asked().Address.String() == row.Server {
			t = one
		}
	}
	of := func(v trace.Verdict) said {
		return said{where: v.Where, cause: v.Cause, certainty: v.Certainty,
			text: strings.Join(append([]string{v.Text}, v.Evidence...), "\n")}
	}
	ofTrace = of(t.Verdict())
	tale := explain.Tell(t, all)
	story = of(tale.Verdict)
	story.advice = strings.Join(tale.Advice, "\n")
	var drawn strings.Builder
	_ = render.Story(&drawn, tale, render.Options{}) // strings.Builder does not fail
	for l := range strings.Lines(drawn.String()) {
		if words, ok := strings.CutPrefix(strings.TrimSpace(l), "mostly "); ok {
			story.mostly = strings.TrimSpace(words)
			break
		}
	}
	return ofTrace, story
}

// apart says what keeps the traces of a lookup from being one, in which CoreDNS was asked by another address than the
// client's; "" for nothing.
func (s *scene) apart(r *row) string {
	traces := trace.AllLookups(s.store.Traces(trace.Filter{Name: r.name}))
	shadows := trace.Shadows(traces)
	traces = slices.DeleteFunc(slices.Clone(traces), func(t *trace.Trace) bool { return shadows[t] })
	if len(traces) != 1 {
		return fmt.Sprintf("%d traces, want one", len(traces))
	}
	pod := pick(r.family, s.client.V4, s.client.V6).String()
	switch t := traces[0]; {
	case !t.Linked():
		return "the two sides are not joined"
	case t.Server().String(clientAddress) == pod:
		return "CoreDNS was asked by the client's own address"
	case t.Client().String(clientAddress) != pod:
		return "the client is " + t.Client().String(clientAddress)
	}
	return ""
}

// wrong gives an error that names the rows that are not right.
func wrong(rows []*row) error {
	var errs []error
	for _, r := range rows {
		if !r.right() {
			errs = append(errs, fmt.Errorf("%s, %s, %s: expected %s: %s", r.fault.name, r.setting, r.family, r.expected(),
				r.problems()))
		}
	}
	return errors.Join(errs...)
}

// truthsIn gives what is true in a setting, over a family.
// Where agents ask one another, what is known among other lookups is known of each.
func (f *fault) truthsIn(s setting, fam family, asks bool) []truth {
	truths := f.truths
	if in, ok := f.in[s]; ok {
		truths = in
	}
	truths = slices.Clone(truths)
	for i := range truths {
		if t := &truths[i]; t.certain == mustOver4 {
			t.certain = pick(fam, must, may)
		}
		if t := &truths[i]; asks && t.among != "" {
			t.cause, t.among = t.among, ""
		}
	}
	return truths
}

// dig asks once, as a process in the pod.
func (s *scene) dig(ctx context.Context, f *fault, fam family, name string, wait time.Duration, answered bool) error {
	args := []string{"@" + fam.vip.String(), "+tries=1", fmt.Sprintf("+time=%d", int(wait.Seconds())), "+noall",
		"+comments", name, "A"}
	if f.tcp {
		args = append(args, "+tcp")
	}
	if f.buffer > 0 {
		args = append(args, fmt.Sprintf("+bufsize=%d", f.buffer))
	}
	ctx, cancel := context.WithTimeout(ctx, wait+time.Duration(s.slow)*15*time.Second)
	defer cancel()
	run := s.client.Run
	if f.hostNetwork {
		run = s.client.Node.Run
	}
	out, err := run(ctx, "dig", args...)
	return digSaid(out, err, answered)
}
