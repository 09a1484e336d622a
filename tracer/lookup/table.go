package lookup

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// The tables of lookups by their key and of sockets by their end are asked at every hop. They are chained through what
// they hold, so that neither putting nor removing allocates, and hash a few words instead of a structure.

// seed makes hashes that nobody outside can foresee: who chooses ports and IDs cannot make all of them alike.
type seed [3]uint64

func newSeed() seed {
	// #nosec G404 -- seeded by Go from the kernel; it guards a table, no secret
	return seed{rand.Uint64(), rand.Uint64(), rand.Uint64()}
}

// hash gives a hash of an endpoint and of what else is told it.
func (s *seed) hash(e *hop.Endpoint, a, b uint64) uint64 {
	x := mix(binary.LittleEndian.Uint64(e.Addr[:8])^s[0], binary.LittleEndian.Uint64(e.Addr[8:])^s[1])
	return mix(x^a, uint64(e.Port)^b^s[2])
}

// mix gives both halves of a product, one over the other.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// minBuckets is a table's least size; it doubles as it fills.
const minBuckets = 1 << 8

// table holds lookups by their keys.
type table struct {
	seed    seed
	buckets []*node
	n       int // keys
}

func (t *table) hash(k *key) uint64 {
	return t.seed.hash(&k.client, k.question, uint64(k.id)<<16|uint64(k.proto)<<32)
}

// get gives the first node of a key, nil where there is none. The others are next of it.
func (t *table) get(k *key) *node {
	if t.n == 0 {
		return nil
	}
	h := t.hash(k)
	for n := t.buckets[h&uint64(len(t.buckets)-1)]; n != nil; n = n.chain {
		if n.hash == h && n.key.equal(k) {
			return n
		}
	}
	return nil
}

// put makes a node the first of its key.
func (t *table) put(n *node) {
	if t.n >= len(t.buckets) {
		t.grow()
	}
	n.hash = t.hash(&n.key)
	at := t.place(n)
	if *at == nil {
		t.n++
	} else {
		n.next, n.chain = *at, (*at).chain
		n.next.chain = nil
	}
	*at = n
}

// place gives where the first node of a key is, or would be: at the end of its chain.
func (t *table) place(n *node) **node {
	at := &t.buckets[n.hash&uint64(len(t.buckets)-1)]
	for *at != nil && ((*at).hash != n.hash || !(*at).key.equal(&n.key)) {
		at = &(*at).chain
	}
	return at
}

func (t *table) remove(n *node) {
	at := t.place(n)
	switch head := *at; {
	case head == n && n.next == nil:
		*at = n.chain
		t.n--
	case head == n:
		n.next.chain = n.chain
		*at = n.next
	default:
		for x := head; x != nil; x = x.next {
			if x.next == n {
				x.next = n.next
				break
			}
		}
	}
}

func (t *table) grow() {
	old := t.buckets
	if old == nil {
		t.seed = newSeed()
	}
	t.buckets = make([]*node, max(2*len(old), minBuckets))
	for _, n := range old {
		for n != nil {
			next := n.chain
			at := &t.buckets[n.hash&uint64(len(t.buckets)-1)]
			n.chain, *at = *at, n
			n = next
		}
	}
}

// socketTable holds sockets by their ends.
type socketTable struct {
	seed    seed
	buckets []*socket
	n       int
}

func (t *socketTable) hash(id *socketID) uint64 { return t.seed.hash(&id.end, 0, uint64(id.proto)<<32) }

func (t *socketTable) get(id socketID) *socket {
	if t.n == 0 {
		return nil
	}
	h := t.hash(&id)
	for s := t.buckets[h&uint64(len(t.buckets)-1)]; s != nil; s = s.chain {
		if s.hash == h && s.id.proto == id.proto && s.id.end.Equal(&id.end) {
			return s
		}
	}
	return nil
}

// put adds a socket, which is not there yet.
func (t *socketTable) put(s *socket) {
	if t.n >= len(t.buckets) {
		t.grow()
	}
	s.hash = t.hash(&s.id)
	at := &t.buckets[s.hash&uint64(len(t.buckets)-1)]
	s.chain, *at = *at, s
	t.n++
}

func (t *socketTable) remove(s *socket) {
	at := &t.buckets[s.hash&uint64(len(t.buckets)-1)]
	for *at != nil && *at != s {
		at = &(*at).chain
	}
	if *at == nil {
		return
	}
	*at, s.chain = s.chain, nil
	t.n--
}

func (t *socketTable) grow() {
	old := t.buckets
	if old == nil {
		t.seed = newSeed()
	}
	t.buckets = make([]*socket, max(2*len(old), minBuckets))
	for _, s := range old {
		for s != nil {
			next := s.chain
			at := &t.buckets[s.hash&uint64(len(t.buckets)-1)]
			s.chain, *at = *at, s
			s = next
		}
	}
}
