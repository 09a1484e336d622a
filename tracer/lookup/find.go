package lookup

import (
	"slices"

	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A lookup is one question, with one ID, of one client's socket to one server. A packet on its way tells the first
// three and, once the service address was translated, no longer the server: which of several servers it is for, its
// conntrack entry, its identity in the kernel and where it was seen going tell.

// key is what every packet of a lookup has in common, wherever it is seen on one side of a source translation.
type key struct {
	client   hop.Endpoint
	id       uint16
	proto    uint8
	question uint64 // hash of the name in lower case, type, class and opcode
}

// node is a lookup's place under a key. Several lookups share a key where a client asks several servers at once.
type node struct {
	key   key
	e     *entry
	next  *node  // of the same key
	hash  uint64 // of the key
	chain *node  // in the table: the first node of another key
}

// maxAlike bounds the lookups under one key: a stub resolver asks three servers. The oldest is emitted as evicted when
// there are more, so that a chain is never long.
const maxAlike = 16

func keyOf(client hop.Endpoint, p *hop.Packet) key {
	return key{client, p.Head.ID, p.Transport, p.Head.QuestionHash()}
}

// same says whether a message has the lookup's question. The hash is of a seed that nobody knows.
func (e *entry) same(h *dnswire.Head) bool {
	return e.questionHash == h.QuestionHash() && e.Type == h.Type && e.Class == h.Class && len(e.Name) == len(h.Name)
}

// equal is ==, word by word.
func (k *key) equal(o *key) bool {
	return k.question == o.question && k.id == o.id && k.proto == o.proto && k.client.Equal(&o.client)
}

// goes says whether a query of the lookup was seen going to an endpoint, so that an answer may come from it.
func (e *entry) goes(to hop.Endpoint) bool {
	return slices.Contains(e.dsts[:e.ndsts], to)
}

// went notes where a query of the lookup was seen going.
func (e *entry) went(to hop.Endpoint) {
	switch {
	case e.goes(to):
	case e.ndsts < len(e.dsts):
		e.dsts[e.ndsts] = to
		e.ndsts++
	default:
		e.dsts[e.ndsts-1] = to
	}
}

// carried says whether the lookup's last hop of a direction is of the same packet in the kernel.
func (e *entry) carried(skb uint64, answer bool) bool {
	if skb == 0 {
		return false
	}
	for i := len(e.Hops) - 1; i >= 0; i-- {
		if h := &e.Hops[i]; h.Answer == answer {
			return h.SKB == skb
		}
	}
	return false
}

// findQuery finds the lookup that a query's hop belongs to; nil where it is the first of one.
func (a *Assembler) findQuery(k key, p *hop.Packet) *entry {
	first := a.table.get(&k)
	if first == nil {
		return nil
	}
	if e := first.e; first.next == nil && e.goes(p.Dst) && e.same(&p.Head) { // nearly always
		return e
	}
	var only, fresh, died *entry
	n := 0
	for x := first; x != nil; x = x.next {
		e := x.e
		if !e.same(&p.Head) {
			continue
		}
		switch {
		case e.goes(p.Dst):
			return e
		case p.Tracked && e.goes(p.Conntrack.OrigDst) && p.Kind != hop.Unreachable:
			e.went(p.Dst)
			return e
		}
		if e.elsewhere(p) {
			continue
		}
		if e.diedAtSender(uint8(e.Attempts-1)) != 0 {
			died = e
			continue
		}
		if e.carried(p.SKB, false) && !p.Local {
			e.went(p.Dst)
			return e
		}
		if e.untranslated() {
			continue
		}
		n++
		only = e
		if fresh == nil && e.ndsts == 1 && !e.done() {
			fresh = e
		}
	}
	if n == 0 && died != nil && died.Again && died.ClientNetNS != 0 && p.NetNS != died.ClientNetNS {
		return died // a copy of what was asked before, under one trace ID: the client takes its answer for one to this
	}
	if n == 0 || p.Local {
		return nil // its own sender asks another server
	}
	if p.IfIndex == 0 && p.Kind == hop.Drop && p.NetNS != 0 && n == 1 && only.ClientNetNS == p.NetNS &&
		only.Server != p.Dst && !p.Tracked {
		return nil // dropped at its sender, on its way to another server
	}
	// It was translated where no conntrack entry tells of it. Of several, one that was not seen translated yet.
	if n == 1 {
		fresh = only
	}
	if fresh != nil {
		fresh.went(p.Dst)
	}
	return fresh
}

// untranslated says that a conntrack entry tells where the lookup's query goes: to whom its client asked.
func (e *entry) untranslated() bool {
	for i := range e.Hops {
		if x := &e.Hops[i]; !x.Answer && x.Tracked && x.NetNS == e.ClientNetNS && x.NetNS != 0 {
			return x.Conntrack.ReplySrc == x.Dst && x.Conntrack.OrigDst == x.Dst
		}
	}
	return false
}

// elsewhere says that a query's packet goes to another server than the lookup's: where it is, one of the lookup's was
// seen going elsewhere. A packet is translated on its way, not at one place, and on its way through a network namespace
// it is one and the same for the kernel.
func (e *entry) elsewhere(p *hop.Packet) bool {
	for i := range e.Hops {
		x := &e.Hops[i]
		if x.Answer || x.Kind == hop.Read || x.Kind == hop.Unreachable || x.NetNS != p.NetNS || x.Dst == p.Dst {
			continue
		}
		if x.SKB != p.SKB || x.Kind == p.Kind && x.IfIndex == p.IfIndex {
			return true
		}
	}
	return false
}

// findAnswer finds the lookup that an answer's hop belongs to. An answer without a question (FORMERR) is known by its
// ID alone.
func (a *Assembler) findAnswer(k key, p *hop.Packet) *entry {
	if p.Head.Questions == 0 {
		if e := a.findByID(k.client, p); e != nil {
			return e
		}
	}
	first := a.table.get(&k)
	if first == nil {
		return nil
	}
	if e := first.e; first.next == nil && e.same(&p.Head) { // nearly always
		ours := e.goes(p.Src) || p.Tracked && e.goes(p.Conntrack.OrigDst) || e.carried(p.SKB, true)
		if !ours && a.reported.elsewhere(e) {
			return nil // the other server's, whose lookup was reported
		}
		return e // that another sends it, the verdict will say
	}
	var best *entry
	rank := 0
	for x := first; x != nil; x = x.next {
		e := x.e
		if !e.same(&p.Head) {
			continue
		}
		r := 1
		switch {
		case e.goes(p.Src):
			r = 5
		case p.Tracked && (e.goes(p.Conntrack.OrigDst) || e.goes(p.Conntrack.ReplySrc)):
			r = 4
		case e.carried(p.SKB, true):
			r = 3
		case !e.AnswerSeen:
			r = 2
		}
		// Of two that the same server was asked, the one that still waits, or whose answer is on its way.
		if r > rank || r == rank && best.done() && !e.done() {
			best, rank = e, r
		}
	}
	if best != nil && rank < 3 && a.reported.elsewhere(best) {
		return nil
	}
	return best
}

// maxByID bounds the search for a lookup by its ID alone.
const maxByID = 64

// findByID finds a lookup of a socket by its ID, and by the server where several have it.
func (a *Assembler) findByID(client hop.Endpoint, p *hop.Packet) *entry {
	s := a.sockets.get(socketID{client, p.Transport})
	if s == nil {
		return nil
	}
	var found *entry
	n := 0
	for l := s.open.last; l != nil && n < maxByID; l, n = l.prev, n+1 {
		e := l.e
		if e.ID != p.Head.ID || e.Connect {
			continue
		}
		if e.goes(p.Src) {
			return e
		}
		found = e
	}
	return found
}

// alias makes a lookup findable by another of its client's ends. The first is that under which it begins.
func (a *Assembler) alias(e *entry, k key) {
	if e.nnodes == len(e.nodes) || slices.ContainsFunc(e.nodes[:e.nnodes], func(n node) bool { return n.key == k }) {
		return
	}
	alike := 0
	var oldest *entry
	for x := a.table.get(&k); x != nil; x = x.next {
		alike++
		oldest = x.e
	}
	if alike >= maxAlike {
		a.evict(oldest)
	}
	n := &e.nodes[e.nnodes]
	e.nnodes++
	*n = node{key: k, e: e}
	a.table.put(n)
}

func (a *Assembler) unindex(e *entry) {
	for i := range e.nodes[:e.nnodes] {
		n := &e.nodes[i]
		a.table.remove(n)
		*n = node{}
	}
	e.nnodes = 0
}
