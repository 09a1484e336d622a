package lookup

import (
	"slices"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// Both sides derive a lookup's trace ID from its client's end, ID, question and epoch. A socket that asks the same
// again within the epoch asks under the same trace ID, and so it is the same lookup, however many answers it had. What
// was reported is remembered until the epoch is over, so that no span ID is given twice.

// maxReported bounds the lookups remembered of one generation: two are kept.
const (
	maxReported = 1 << 16
	reportedFor = int64(link.EpochLength) + int64(link.EpochLength)/2
)

// told is what is remembered of a reported lookup.
type told struct {
	epochs
	revision   uint16
	attempts   uint16
	exported   bool
	beside     bool
	began      link.Epoch   // as FirstEpoch
	unread     bool         // answered well, and the answer was not seen read
	owed       uint16       // queries that may still be answered
	translated hop.Endpoint // the client's end behind source translation
	server     hop.Endpoint
}

// generation is the lookups remembered of one span of time.
type generation struct {
	told  []toldOf // in the order in which they came
	index []uint32 // by name: the last of those that share a place, counted from 1
}

// toldOf is what is remembered of a name.
type toldOf struct {
	told
	name uint64
	next uint32 // of the same place in the index
}

// minReported is the room that a generation begins with.
const minReported = 1 << 10

// find gives what is remembered of a name, nil where nothing is.
func (g *generation) find(name uint64) *told {
	if len(g.told) == 0 {
		return nil
	}
	for i := g.index[name&uint64(len(g.index)-1)]; i != 0; i = g.told[i-1].next {
		if x := &g.told[i-1]; x.name == name {
			return &x.told
		}
	}
	return nil
}

// add remembers a name that is not there yet.
func (g *generation) add(name uint64, t told) {
	if len(g.told) == len(g.index) {
		g.grow()
	}
	at := &g.index[name&uint64(len(g.index)-1)]
	g.told = append(g.told, toldOf{t, name, *at})
	*at = uint32(len(g.told))
}

// grow doubles the room, which is a power of two.
func (g *generation) grow() {
	n := max(2*len(g.index), minReported)
	g.told = append(make([]toldOf, 0, n), g.told...)
	g.index = make([]uint32, n)
	for i := range g.told {
		at := &g.index[g.told[i].name&uint64(n-1)]
		g.told[i].next, *at = *at, uint32(i+1)
	}
}

// maybe says of which generations a name may be. Most names that are looked for are of none: two bits a name, which
// stand side by side, say so without the rest, which is too large for the processor's caches.
type maybe []uint64

const (
	ofYoung, ofOld = 1, 2
	youngBits      = 0x5555555555555555 // of a word
	// maybeNames is how many names have bits of their own: a false "maybe" in one of sixteen where a generation is full.
	maybeNames = 16 * maxReported
)

func (m maybe) of(name uint64) uint64 {
	if m == nil {
		return 0
	}
	name %= maybeNames
	return m[name/32] >> (name % 32 * 2) & (ofYoung | ofOld)
}

func (m maybe) set(name uint64) {
	name %= maybeNames
	m[name/32] |= ofYoung << (name % 32 * 2)
}

// turn makes the young ones old.
func (m maybe) turn() {
	for i, w := range m {
		if w != 0 {
			m[i] = w & youngBits << 1
		}
	}
}

type reported struct {
	seed       seed
	seeded     bool
	young, old generation
	maybe      maybe
	since      int64
}

func (r *reported) put(name uint64, t told) {
	if r.maybe == nil {
		r.maybe = make(maybe, maybeNames/32)
	}
	if r.maybe.of(name)&ofYoung != 0 {
		if x := r.young.find(name); x != nil {
			*x = t
			return
		}
	}
	r.young.add(name, t)
	r.maybe.set(name)
}

func (r *reported) seed0() {
	if !r.seeded {
		r.seed, r.seeded = newSeed(), true
	}
}

// name gives the place of a lookup's question: a hash of what its trace ID is made of but for the epoch.
func (r *reported) name(e *entry) uint64 {
	if e.named == e.Client {
		return e.name
	}
	e.name, e.named = r.nameAt(e, hop.Endpoint{}), e.Client
	return e.name
}

// nameAt gives the place of a lookup's question to one of several servers that were asked it.
func (r *reported) nameAt(e *entry, server hop.Endpoint) uint64 {
	r.seed0()
	return r.place(&key{e.Client, e.ID, uint8(e.Transport), e.questionHash}, server)
}

// nameOfTrace gives the place of what a lookup's trace ID is derived from but for the epoch, whomever it asks: its
// client's end is as servers see it.
func (r *reported) nameOfTrace(e *entry, translated hop.Endpoint) uint64 {
	r.seed0()
	return r.place(&key{translated, e.ID, uint8(e.Transport), e.questionHash}, hop.Endpoint{Port: 1})
}

// place gives a hash of a socket's question and of the server that it was put to: the zero one stands for the last of
// them.
func (r *reported) place(k *key, server hop.Endpoint) uint64 {
	h := r.seed.hash(&k.client, k.question, uint64(k.id)<<16|uint64(k.proto)<<32)
	if server.IsZero() {
		return h
	}
	return r.seed.hash(&server, h, 1<<40)
}

// beside says whether another server's lookup was exported under a trace ID that this one would be, too.
func (r *reported) beside(e *entry) bool {
	t, ok := r.get(r.nameOfTrace(e, e.Translated))
	if !ok || t.server == e.Server {
		return false
	}
	var buf [maxCopies]link.Epoch
	es := e.Epochs(buf[:0], link.DefaultGuard)
	return slices.Min(es) <= t.last && slices.Max(es) >= t.first
}

// add remembers a lookup that is let go.
func (r *reported) add(e *entry, now int64) {
	if now-r.since > reportedFor || len(r.young.told) >= maxReported {
		r.old, r.young, r.since = r.young, r.old, now
		r.young.told = r.young.told[:0] // the memory stays for the next
		clear(r.young.index)
		r.maybe.turn()
	}
	var buf [maxCopies]link.Epoch
	es := e.Epochs(buf[:0], link.DefaultGuard) // copies of its spans stand under neighboring ones
	first, last := slices.Min(es), slices.Max(es)
	if e.Again {
		first = min(first, e.told.first)
	}
	t := told{
		epochs: epochs{first, last, e.told.floor}, revision: uint16(min(e.Revision, 1<<16-1)),
		attempts: uint16(min(e.AttemptsBefore+e.Attempts,
			1<<16-1)), exported: e.Exported, beside: e.Beside, began: e.FirstEpoch, server: e.Server,
		translated: e.Translated, unread: e.done() && !e.ReadByClient && (e.goodCame || !e.retried()),
		owed: uint16(min(e.owed(), 1<<16-1)),
	}
	n := r.name(e)
	if other, ok := r.get(n); ok && other.server != e.Server {
		r.put(r.nameAt(e, other.server), other) // the same was asked of two servers
	}
	r.put(n, t)
	if e.Exported && !e.Beside && (e.first || e.second) {
		r.exported(e, t)
	}
}

// owed counts the lookup's queries, and those that its client asked before it, that may still be answered.
func (e *entry) owed() int {
	if e.Attempts == 1 && e.Owed == 0 && e.AnswerSeen {
		return 0 // nearly always
	}
	return max(0, e.Owed+e.Attempts-e.attemptsDropped()-e.answersSent())
}

// attemptsDropped counts the attempts whose query the kernel dropped.
func (e *entry) attemptsDropped() int {
	n, counted := 0, -1
	for i := range e.Hops {
		h := &e.Hops[i]
		if h.Kind == hop.Drop && !h.Answer && !h.Reason.Harmless() && int(h.Attempt) > counted {
			n, counted = n+1, int(h.Attempt)
		}
	}
	return n
}

// answersSent counts the answers that were seen: at the place that most of them passed.
func (e *entry) answersSent() int {
	most := 0
	for i := range e.Hops {
		h := &e.Hops[i]
		if !passes(h) {
			continue
		}
		n := 0
		for j := i; j < len(e.Hops); j++ {
			if x := &e.Hops[j]; passes(x) && x.Kind == h.Kind && x.NetNS == h.NetNS && x.IfIndex == h.IfIndex {
				n++
			}
		}
		if most = max(most, n); most >= e.Attempts+e.Owed || n >= len(e.Hops)-i {
			break
		}
	}
	return most
}

// exported remembers what was told of a lookup whose span was sent, and whose question another server was asked, too: e
// has the question.
func (r *reported) exported(e *entry, t told) {
	n := r.nameOfTrace(e, t.translated)
	x, ok := r.get(n)
	switch {
	case ok && x.server == t.server:
		t.first, t.last = min(t.first, x.first), max(t.last, x.last)
	case ok && x.last >= t.first:
		return
	}
	r.put(n, t)
}

// elsewhere says whether the same was asked of another server lately.
func (r *reported) elsewhere(e *entry) bool {
	t, ok := r.get(r.name(e))
	return ok && t.server != e.Server
}

// answered says whether an answer is one to a lookup that was reported: a late one, or a copy.
func (r *reported) answered(p *hop.Packet) bool {
	if !r.seeded {
		return false
	}
	k := keyOf(p.Dst, p)
	_, ok := r.get(r.place(&k, hop.Endpoint{}))
	return ok
}

func (r *reported) get(n uint64) (t told, ok bool) {
	of := r.maybe.of(n)
	if of&ofYoung != 0 {
		if x := r.young.find(n); x != nil {
			return *x, true
		}
	}
	if of&ofOld != 0 {
		if x := r.old.find(n); x != nil {
			return *x, true
		}
	}
	return t, false
}

// continues makes a lookup that begins the continuation of one that was reported, where both have one trace ID.
func (r *reported) continues(e *entry, now int64) {
	t, ok := r.get(r.name(e))
	if !ok {
		return
	}
	epoch := link.EpochOfNanos(now)
	if t.server != e.Server {
		if epoch <= t.last {
			e.second = true
			if t.exported && !t.beside {
				r.exported(e, t)
			}
		}
		if t, ok = r.get(r.nameAt(e, e.Server)); !ok {
			return
		}
	}
	e.told, e.AskedBefore = t.epochs, true
	e.AnsweredBefore = t.unread
	e.Owed = int(t.owed)
	if epoch > t.last {
		e.told.floor = t.last
		return // a lookup of its own
	}
	e.Again, e.Revision, e.AttemptsBefore, e.Exported = true, int(t.revision), int(t.attempts), t.exported
	e.Beside, e.FirstEpoch = t.beside, t.began
}
