// Package hindsight is the agent's part of asking back: it remembers for some seconds what became of every lookup,
// tells others who ask, asks others about lookups that ended badly, and puts what they say into the verdict.
// HINDSIGHT.md beside package link says how they speak.
package hindsight

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// DefaultPast is how long lookups are remembered. It is longer than a client waits (5 s), a lookup is lingered over and
// a question travels, together.
const DefaultPast = 15 * time.Second

// Bounds.
const (
	maxWaiting = 256             // questions that wait for the next tick
	maxWanted  = 4096            // lookups that were asked for
	maxHeld    = 1024            // lookups that wait for answers
	maxServers = 4096            // addresses of servers that were seen here
	patience   = time.Second / 2 // how long an answer waits until all that had happened by then is read
)

// Asker asks; [askback.Peer] does.
type Asker interface {
	Ask(to netip.AddrPort, q askback.Question, got func(askback.Result, askback.Answer))
}

// Watch is what is seen here; [pipeline.Pipeline] is one.
type Watch interface {
	Held() iter.Seq[*lookup.Lookup]
	Drained() time.Time
	Stats() pipeline.Stats
}

// Options say what a [Memory] remembers, and whom it asks.
type Options struct {
	Past time.Duration // how long; [DefaultPast] if 0
	// Facts is where lookups are kept, with that reach or more. They are added to it by Remember alone.
	Facts *past.Past
	// Bytes of memory for marks of more lookups than there is room for in Facts.
	Bytes int
	// Slow is the duration from which an answered lookup is asked about; 0 asks about none.
	Slow time.Duration
	// Node is this node's name. Guard is how far apart this host's clock and others' may be.
	Node  string
	Guard time.Duration
	// Peers are who is asked, by the name of the node whose agent it is or by the address of a server. A server that
	// is not among them is asked at ServerPort of its own address; at none if that is 0.
	Peers      map[string]netip.AddrPort
	ServerPort uint16
	// Index tells on whose node a server is. Nil knows nobody.
	Index *identity.Index
	// Send gets a lookup whose spans are to go out as if it were sampled, and why it was asked for; 0 where it was not:
	// it is a query that a server made to answer one whose spans have gone out. Judged gets one that waited for answers,
	// with the verdict as it is after them. Both are called from within the Memory's methods.
	Send   func(pipeline.Result, askback.Reason)
	Judged func(pipeline.Result)
}

// Stats are counts since the start.
type Stats struct {
	Lookups int    // remembered now, those that observe alone can ask for included
	Bytes   int    // of memory that they take
	Early   uint64 // let go before their time, because there was no room: their spans cannot be sent any more
	// Unmarked counts lookups of which, besides, it is not known any more that they were seen.
	Unmarked uint64
	Sent     uint64 // lookups whose spans went out because somebody asked
}

// Memory remembers, answers and asks. But for Handle and Stats its methods are for one goroutine.
type Memory struct {
	o     Options
	asker Asker
	watch Watch
	begun int64
	facts *past.Past
	marks *marks

	questions chan asked
	waiting   []asked
	wanted    []askback.Question
	servers   map[netip.Addr]struct{} // who was seen here being asked
	whole     whole

	byHands chan *hand
	hands   []*hand

	answers chan answered
	held    map[*lookup.Lookup]*holding
	missed  []missed // by time

	lookups, bytes, early, unmarked, sent atomic.Int64
}

// asked is a question that waits.
type asked struct {
	askback.Question
	came  time.Time
	reply func(askback.Answer)
}

// holding is a lookup that waits for answers.
type holding struct {
	past.Kept
	open   int // answers that are waited for
	heard  []heard
	agent  bool      // an agent was asked
	until  time.Time // no longer than that
	node   string    // that the server is on, as far as is known
	server netip.AddrPort
	ask    askback.Question
}

// heard is what came of asking one.
type heard struct {
	who    string
	agent  bool // the agent of the server's node; else the server
	result askback.Result
	askback.Answer
}

type answered struct {
	of *lookup.Lookup
	h  *holding
	heard
}

// missed is how much had been missed by a time.
type missed struct {
	at    int64
	total uint64
}

// New makes a memory that has seen nothing before now. Call Open before it is used.
func New(o Options) *Memory {
	if o.Past == 0 {
		o.Past = DefaultPast
	}
	m := &Memory{
		o: o, begun: time.Now().UnixNano(),
		facts:     o.Facts,
		marks:     newMarks(o.Bytes, o.Past),
		questions: make(chan asked, maxWaiting), answers: make(chan answered, 4*maxHeld),
		byHands: make(chan *hand, maxHands),
		servers: map[netip.Addr]struct{}{}, held: map[*lookup.Lookup]*holding{},
	}
	return m
}

// Open says who asks for it, and what it watches with, from now on.
func (m *Memory) Open(a Asker, w Watch) {
	m.asker, m.watch, m.begun = a, w, time.Now().UnixNano()
	m.missed = []missed{{at: m.begun}}
}

// Stats gives the counts, from any goroutine.
func (m *Memory) Stats() Stats {
	return Stats{
		Lookups: int(m.lookups.Load()), Bytes: int(m.bytes.Load()), Early: uint64(m.early.Load()), // #nosec G115 -- counts
		Unmarked: uint64(m.unmarked.Load()), // #nosec G115 -- a count
		Sent:     uint64(m.sent.Load()),     // #nosec G115 -- a count
	}
}

// Handle takes a question for the next Tick. It is [askback.Options.Handle], for any goroutine.
func (m *Memory) Handle(q askback.Question, reply func(askback.Answer)) {
	select {
	case m.questions <- asked{q, time.Now(), reply}:
	default:
		reply(askback.Answer{Outcome: askback.Refused, Node: m.o.Node})
	}
}

// Remember takes a lookup that is told, and adds it to [Options.Facts]; sent says that its spans are on their way.
func (m *Memory) Remember(r pipeline.Result, sent bool) {
	l := r.Lookup
	if l.Final && l.Serves != nil && !sent {
		if why, ok := m.whole.why[l.Serves.TraceID]; ok {
			m.send(r, why)
			sent = true
		}
	}
	if !l.Final || !hasQuestion(l) {
		m.facts.Add(r, 0, sent)
		return
	}
	m.learn(l)
	if sent {
		m.along(&r, 0)
	}
	key := l.Key()
	hash := key.QuestionHash()
	if !sent {
		for i := range m.wanted {
			if q := &m.wanted[i]; q.Hash == hash && m.within(l, q) {
				m.send(r, q.Reason)
				m.along(&r, q.Reason)
				sent = true
				break
			}
		}
	}
	m.facts.Add(r, hash, sent)
	epochs := l.Epochs(nil, m.o.Guard)
	m.marks.add(hash, l.Hops[0].Time, l.End(), key.TraceID(epochs[0]), m.ofPod(l), told(l, r.Verdict))
}

// hasQuestion says whether a lookup has a question that others can know it by.
func hasQuestion(l *lookup.Lookup) bool { return !l.Connect && l.Unsent == nil && len(l.Name) > 0 }

func (m *Memory) send(r pipeline.Result, why askback.Reason) {
	if why != 0 {
		m.sent.Add(1)
	}
	m.o.Send(r, why)
}

// along sends, with a lookup whose spans go out, the queries that its server made to answer it: they stand in its
// trace. Those that end later are sent when they do.
func (m *Memory) along(r *pipeline.Result, why askback.Reason) {
	l := r.Lookup
	if l.ServerNetNS == 0 {
		return // its server is out of sight, and so is what that asks
	}
	key := l.Key()
	for _, e := range l.Epochs(nil, m.o.Guard) {
		id := key.TraceID(e)
		for k := m.facts.Serving(id); k != nil; k = k.Prior() {
			if !k.Sent {
				k.Sent = true
				m.send(k.Result(), why)
			}
		}
		m.whole.add(id, why)
	}
}

// whole are the traces of lookups whose spans have gone out, for what the server still asks to answer them: the last
// ones, so many.
type whole struct {
	why  map[link.TraceID]askback.Reason
	last []link.TraceID // a ring
	next int
}

func (w *whole) add(id link.TraceID, why askback.Reason) {
	if w.why == nil {
		w.why = map[link.TraceID]askback.Reason{}
	}
	if had, ok := w.why[id]; ok {
		w.why[id] = max(had, why)
		return
	}
	if len(w.last) < maxWanted {
		w.last = append(w.last, id)
	} else {
		delete(w.why, w.last[w.next])
		w.last[w.next] = id
		w.next = (w.next + 1) % maxWanted
	}
	w.why[id] = why
}

// learn notes which servers are within sight: a query to another that is not seen need not have come here.
func (m *Memory) learn(l *lookup.Lookup) {
	for i := range l.Hops {
		h := &l.Hops[i]
		if !h.Answer && h.Kind == hop.Read && i > 0 && !l.Hops[i-1].Answer {
			a := l.Hops[i-1].Dst.AddrPort().Addr()
			if _, ok := m.servers[a]; !ok && len(m.servers) < maxServers {
				m.servers[a] = struct{}{}
			}
		}
	}
}

// within says whether a lookup was under way when one that is asked for was.
func (m *Memory) within(l *lookup.Lookup, q *askback.Question) bool {
	guard := int64(m.o.Guard)
	return l.Hops[0].Time <= q.To+guard && l.End() >= q.From-guard
}

// Tick answers what was asked, and ends the wait of lookups whose answers have come or are overdue. Call it every now
// and then.
func (m *Memory) Tick(now time.Time) {
	m.facts.Expire(now)
	m.note(now.UnixNano())
	m.answerAll(now)
	m.hear(now)
	m.tickHands(now)
	m.wanted = slices.DeleteFunc(m.wanted, func(q askback.Question) bool {
		return now.UnixNano()-q.To > int64(m.o.Past)
	})
	lookups, bytes, early := m.facts.Held()
	m.lookups.Store(int64(lookups))
	m.bytes.Store(int64(bytes))
	m.early.Store(int64(early))            // #nosec G115 -- a count
	m.unmarked.Store(int64(m.marks.early)) // #nosec G115 -- a count
}

// note notes what was missed until now.
func (m *Memory) note(now int64) {
	s := m.watch.Stats()
	total := s.Lost() + s.Kernel.Paged + s.Lookup.Untold + s.Lookup.Evicted
	if m.missed[len(m.missed)-1].total == total {
		return
	}
	for len(m.missed) > 1 && m.missed[1].at < now-int64(m.o.Past) {
		m.missed = m.missed[1:]
	}
	m.missed = append(m.missed, missed{now, total})
}

// missedSince counts what was missed since a time, in ns since 1970, rather too much than too little.
func (m *Memory) missedSince(at int64) uint64 {
	before := m.missed[0].total
	for _, x := range m.missed {
		if x.at > at {
			break
		}
		before = x.total
	}
	return m.missed[len(m.missed)-1].total - before
}

// answerAll answers the questions that wait, as far as what they ask about is known by now.
func (m *Memory) answerAll(now time.Time) {
	for range len(m.questions) {
		a := <-m.questions
		m.waiting = append(m.waiting, a)
		m.want(&a.Question)
	}
	if len(m.waiting) == 0 {
		return
	}
	flying := m.flying()
	m.waiting = slices.DeleteFunc(m.waiting, func(a asked) bool {
		ans, known := m.answer(&a.Question, flying)
		if !known && now.Sub(a.came) < patience/2 {
			return false
		}
		a.reply(ans)
		return true
	})
}

// want keeps a question for what comes of the lookup later.
func (m *Memory) want(q *askback.Question) {
	if len(m.wanted) >= maxWanted {
		m.wanted = m.wanted[1:]
	}
	m.wanted = append(m.wanted, *q)
}

// flight is a lookup in flight that somebody asks for, with the hash of its question.
type flight struct {
	*lookup.Lookup
	hash uint64
}

// flying gives the lookups in flight that are asked for.
func (m *Memory) flying() (found []flight) {
	for l := range m.watch.Held() {
		if l.Final || !hasQuestion(l) {
			continue
		}
		i := slices.IndexFunc(m.waiting, func(a asked) bool { return a.ID == l.ID })
		if i < 0 {
			continue
		}
		key := l.Key()
		hash := key.QuestionHash()
		if slices.ContainsFunc(m.waiting, func(a asked) bool { return a.Hash == hash && m.within(l, &a.Question) }) {
			found = append(found, flight{l, hash})
		}
	}
	return found
}

// facts gives what was seen of a lookup here.
func facts(l *lookup.Lookup) (f askback.Facts) {
	for i := range l.Hops {
		switch h := &l.Hops[i]; {
		case h.Kind == hop.Drop || h.Kind == hop.Unreachable || h.Answer:
		case h.Kind == hop.Read:
			f |= askback.SawQuery | askback.TookQuery
		default:
			f |= askback.SawQuery
		}
	}
	return f
}

// told gives what was seen of a lookup that has ended.
func told(l *lookup.Lookup, v *verdict.Verdict) askback.Facts {
	f := facts(l)
	if v.Where == verdict.Answered {
		f |= askback.AnswerLeft
	}
	return f
}

// answer gives what is to be said, and whether that is the last word.
func (m *Memory) answer(q *askback.Question, flying []flight) (a askback.Answer, known bool) {
	a = askback.Answer{Since: m.begun, Node: m.o.Node}
	missed := m.missedSince(q.From)
	a.Lost = uint32(min(missed, 1<<32-1)) // #nosec G115 -- bounded
	var own, others askback.Facts
	for _, l := range flying {
		if l.hash != q.Hash || !m.within(l.Lookup, q) {
			continue
		}
		switch seen := facts(l.Lookup) | askback.InFlight; {
		case m.has(l.Lookup, q.Traces...):
			own |= seen
		case !m.ofPod(l.Lookup):
			others |= seen
		}
	}
	mine, maybe := m.find(q)
	guard := int64(m.o.Guard)
	marked, markedOthers := m.marks.find(q.Hash, q.From-guard, q.To+guard, q.Traces)
	switch {
	case own != 0 || len(mine) > 0:
		a.Facts = own | m.give(mine, q.Reason)
	case marked != 0:
		a.Facts = marked | askback.SpansGone
	case others != 0 || len(maybe) > 0:
		a.Facts = others | m.give(maybe, q.Reason) | askback.ByQuestion
	case markedOthers != 0:
		a.Facts = markedOthers | askback.SpansGone | askback.ByQuestion
	}
	if a.Facts != 0 {
		a.Outcome = askback.Seen
		return a, true
	}
	a.Outcome = askback.Forgotten
	oldest := max(m.begun, m.marks.reach, time.Now().Add(-m.o.Past).UnixNano())
	switch {
	case oldest > q.From-guard, !m.watches(q.Server.Addr()):
		return a, true
	case m.watch.Drained().UnixNano()+guard < q.To:
		return a, false
	}
	a.Outcome = askback.NotSeen
	return a, true
}

// give sends lookups that are asked for, those that have not been sent, and says what was seen of them all.
func (m *Memory) give(list []*past.Kept, why askback.Reason) (f askback.Facts) {
	for _, k := range list {
		r := k.Result()
		f |= told(r.Lookup, r.Verdict)
		if !k.Sent {
			k.Sent = true
			m.send(r, why)
			m.along(&r, why)
		}
	}
	return f
}

// watches says whether a server is within sight: on this node, or seen here being asked.
func (m *Memory) watches(server netip.Addr) bool {
	server = server.Unmap()
	if _, ok := m.servers[server]; ok {
		return true
	}
	return m.o.Node != "" && m.o.Index.Lookup(server).Node() == m.o.Node
}

// find gives the remembered lookups that are asked for: those with one of the trace IDs, and those with the question
// alone, which may be others'. Of these a pod's own are left out: the asker would have derived their trace IDs.
func (m *Memory) find(q *askback.Question) (mine, maybe []*past.Kept) {
	for k := m.facts.Find(q.Hash); k != nil; k = k.Older() {
		switch l := k.Result().Lookup; {
		case !m.within(l, q):
		case m.has(l, q.Traces...):
			mine = append(mine, k)
		case !m.ofPod(l):
			maybe = append(maybe, k)
		}
	}
	return mine, maybe
}

// ofPod says whether the server sees a lookup come from a pod's own address: then its source was not translated.
func (m *Memory) ofPod(l *lookup.Lookup) bool {
	key := l.Key()
	return m.o.Index.Lookup(key.Client.Addr()).Kind() == identity.Pod
}

// Hold asks about a lookup that ended badly. It gives true where the lookup is to wait for what others say, and is then
// given to Judged within a second.
func (m *Memory) Hold(r pipeline.Result) bool {
	if h := m.held[r.Lookup]; h != nil {
		m.release(r.Lookup, h) // more is known of it, or its memory is another's now
	}
	if l := r.Lookup; l.Connect && l.Final && !l.FinalBefore && r.Verdict.Lost() && len(l.Related) > 0 {
		m.recall(&l.Related[0])
	}
	why := m.bad(&r)
	if why == 0 || m.asker == nil {
		return false
	}
	h := m.about(&r, why)
	if h == nil {
		return false
	}
	wait := r.Verdict.Lost() && !r.Verdict.Certain && r.Verdict.Where == verdict.BetweenNodes && len(m.held) < maxHeld
	if !wait {
		m.ask(nil, h)
		return false
	}
	if m.ask(r.Lookup, h); h.open == 0 {
		return false // nobody can be asked
	}
	h.Fill(&r)
	h.until = time.Now().Add(2*askback.Timeout + askback.Timeout/2)
	m.held[r.Lookup] = h
	return true
}

// recall sends the lookup whose truncated answer had the client ask over TCP, which came to nothing: that one went
// well, and is where the connection stands. The server is asked about it, too.
func (m *Memory) recall(of *lookup.Relation) {
	for k := range m.facts.Newest() {
		r := k.Result()
		if !r.Lookup.AnswerSeen || !r.Lookup.Flags.Truncated() || !m.has(r.Lookup, of.TraceID) {
			continue
		}
		if !k.Sent {
			k.Sent = true
			m.send(r, askback.Lost)
			m.along(&r, askback.Lost)
		}
		if h := m.about(&r, askback.Lost); h != nil {
			m.ask(nil, h)
		}
		return
	}
}

// has says whether a lookup may have a trace ID.
func (m *Memory) has(l *lookup.Lookup, ids ...link.TraceID) bool {
	key := l.Key()
	return slices.ContainsFunc(l.Epochs(nil, m.o.Guard),
		func(e link.Epoch) bool { return slices.Contains(ids, key.TraceID(e)) })
}

// bad gives why a lookup is one that others are asked about, 0 if it is not.
func (m *Memory) bad(r *pipeline.Result) askback.Reason {
	l, v := r.Lookup, r.Verdict
	if !l.Final || l.FinalBefore || l.ClientNetNS == 0 || l.Own || l.Serves != nil || !hasQuestion(l) {
		return 0
	}
	switch {
	case v.Lost():
		switch v.Where {
		case verdict.Client, verdict.PodLink, verdict.Service, verdict.Node:
			if !l.AnswerSeen {
				return 0 // it went nowhere
			}
		}
		return askback.Lost
	case v.Where != verdict.Answered:
		return askback.Failed
	case m.o.Slow > 0 && time.Duration(l.End()-l.Start()) >= m.o.Slow:
		return askback.Slow
	}
	return 0
}

// about makes the question about a lookup; nil where nobody is to be asked.
func (m *Memory) about(r *pipeline.Result, why askback.Reason) *holding {
	l := r.Lookup
	server, translated := went(l)
	owner := m.o.Index.Lookup(server.Addr())
	_, named := m.o.Peers[server.Addr().String()]
	inside := translated || named || owner.Kind() == identity.Pod || owner.Kind() == identity.Node
	if !server.IsValid() || !inside {
		return nil
	}
	key := l.Key()
	h := &holding{node: owner.Node(), server: server, ask: askback.Question{
		Reason: why, ID: l.ID, Hash: key.QuestionHash(), From: l.Start(),
		To: max(l.End(), time.Now().UnixNano()), Server: server,
	}}
	for i, e := range l.Epochs(nil, m.o.Guard) {
		if i < 4 {
			h.ask.Traces = append(h.ask.Traces, key.TraceID(e))
		}
	}
	return h
}

// went gives where the query went as it was seen last, and whether that is another address than the client asked.
func went(l *lookup.Lookup) (netip.AddrPort, bool) {
	to := l.Server
	for i := len(l.Hops) - 1; i >= 0; i-- {
		h := &l.Hops[i]
		if h.Answer || h.Kind == hop.Unreachable {
			continue
		}
		to = h.Dst
		if h.Tracked && h.Conntrack.Status&hop.DstNAT != 0 && !h.Conntrack.ReplySrc.IsZero() {
			to = h.Conntrack.ReplySrc
		}
		if to != l.Server {
			break
		}
	}
	return to.AddrPort(), to != l.Server
}

// ask asks the server and the agent of its node. Of a lookup that does not wait, of is nil.
func (m *Memory) ask(of *lookup.Lookup, h *holding) {
	server, ok := m.o.Peers[h.server.Addr().String()]
	if !ok && m.o.ServerPort != 0 {
		server, ok = netip.AddrPortFrom(h.server.Addr(), m.o.ServerPort), true
	}
	agent, haveAgent := m.o.Peers[h.node]
	if ok {
		m.put(of, h, server, fmt.Sprintf("the server at %s", h.server.Addr()), false)
	}
	if haveAgent && h.node != m.o.Node {
		m.put(of, h, agent, h.node, true)
	}
}

// put asks one.
func (m *Memory) put(of *lookup.Lookup, h *holding, to netip.AddrPort, who string, agent bool) {
	h.open++
	h.agent = h.agent || agent
	m.asker.Ask(to, h.ask, func(r askback.Result, a askback.Answer) {
		select {
		case m.answers <- answered{of, h, heard{who, agent, r, a}}:
		default: // it is overdue then
		}
	})
}

// hear takes the answers that came, and lets go of lookups that wait no longer.
func (m *Memory) hear(now time.Time) {
	for range len(m.answers) {
		a := <-m.answers
		h := a.h
		if a.of != nil && m.held[a.of] != h {
			continue // it did not wait for this
		}
		h.open--
		h.heard = append(h.heard, a.heard)
		beside := a.Beside
		if a.result == askback.Answered && !a.agent && beside.IsValid() && !h.agent && (h.node == "" || h.node != m.o.Node) &&
			a.Node != m.o.Node {
			who := a.Node
			if who == "" {
				who = "the agent at " + beside.Addr().String()
			}
			m.put(a.of, h, beside, who, true)
		}
	}
	for l, h := range m.held {
		if h.open <= 0 || now.After(h.until) {
			m.release(l, h)
		}
	}
}

// release gives a lookup that waited, with what was said of it.
func (m *Memory) release(l *lookup.Lookup, h *holding) {
	delete(m.held, l)
	m.weigh(h)
	m.o.Judged(h.Result())
}

// Flush ends every wait: at the end of a run.
func (m *Memory) Flush() {
	for l, h := range m.held {
		m.release(l, h)
	}
}

// weigh puts what others said into the verdict of a lookup that left this node and of which nothing came back.
func (m *Memory) weigh(h *holding) {
	v := h.Result().Verdict
	v.Evidence = slices.Clone(v.Evidence)
	var unseen, left *heard
	came := false
	for i := range h.heard {
		x := &h.heard[i]
		who := x.who
		if x.agent {
			who = "the tracer on " + x.who
		}
		switch {
		case x.result == askback.Limited:
			v.Evidence = append(v.Evidence, x.who+" was not asked: there is too much to ask")
		case x.result != askback.Answered:
			v.Evidence = append(v.Evidence, x.who+" could not be asked")
		case x.Outcome == askback.Refused:
			v.Evidence = append(v.Evidence, who+" was asked, and refused: it is asked too much")
		case x.Outcome == askback.Forgotten && !x.agent:
			v.Evidence = append(v.Evidence, who+" was asked, and remembers no such query that it has ended")
		case x.Outcome == askback.Forgotten:
			v.Evidence = append(v.Evidence, who+" was asked, and does not know: it did not watch all the while")
		case x.Outcome == askback.NotSeen && x.Lost > 0:
			v.Evidence = append(v.Evidence, fmt.Sprintf("%s was asked, and did not see it; it missed %d events", who, x.Lost))
		case x.Outcome == askback.NotSeen:
			since := time.Unix(0, x.Since).UTC().Format(time.TimeOnly)
			v.Evidence = append(v.Evidence, fmt.Sprintf("%s was asked: it has been watching since %s, and did not see it", who,
				since))
			if x.agent {
				unseen = x
			}
		case x.Facts&askback.ByQuestion != 0:
			came = true // perhaps
			v.Evidence = append(v.Evidence, who+" was asked: it saw "+saw(x.Facts)+", from another address: it may be "+
				"another's")
		default:
			came = true
			v.Evidence = append(v.Evidence, who+" was asked: it saw "+saw(x.Facts))
			if x.Facts&askback.AnswerLeft != 0 && (left == nil || x.agent) {
				left = x
			}
		}
	}
	if h.open > 0 {
		v.Evidence = append(v.Evidence, "others were asked, and have not answered")
	}
	switch {
	case v.Where != verdict.BetweenNodes || v.Cause != verdict.CauseNoReply:
	case left != nil:
		who := left.who
		v.Where, v.Cause = verdict.ReturnPath, verdict.CauseVanished
		v.Text = fmt.Sprintf("the answer left %s towards the client and did not come back to it", who)
	case unseen != nil && !came:
		v.Cause = verdict.CauseVanished
		v.Text = fmt.Sprintf("the query left %s for %s on %s and never arrived: the tracer there was watching and did "+
			"not see it",
			m.o.Node, h.server, unseen.who)
	}
}

// saw says what the asked saw.
func saw(f askback.Facts) string {
	switch {
	case f&askback.AnswerLeft != 0:
		return "the query, and an answer leave"
	case f&askback.TookQuery != 0:
		return "the query, which the server read, and no answer leave"
	}
	return "the query, and no answer leave"
}
