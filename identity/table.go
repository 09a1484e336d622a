package identity

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// table maps 16-byte keys to clients. Reads take no lock and usually touch one cache line; writes must not run side by
// side.
//
// It is a hash table with linear probing, whose slots are published by an atomic store of the client and whose keys
// never change once published: what is removed leaves its key behind, and a table with too few free slots is copied and
// swapped. A Go map a shard, copied on write, was the other way: twice the memory, and four dependent loads instead of
// one.
type table struct {
	seed  key
	slots atomic.Pointer[[]slot]
	live  atomic.Int64
	used  int // slots that have a key, live or removed: the writer's
}

// slot is free while client is nil. key is written before client, and read after it.
type slot struct {
	key    key
	client atomic.Pointer[Client]
}

// removed stands in a slot whose client is gone.
var removed = new(Client)

const (
	minSlots = 64
	// A table is copied when four fifths of its slots have a key, into one of which two thirds have.
	fullNum, fullDen   = 4, 5
	freshNum, freshDen = 3, 2
)

// key is 16 bytes as two words.
type key struct{ hi, lo uint64 }

func keyOf(b [16]byte) key {
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// home gives the slot at which a key is looked for first. The key is mixed with a random seed, so that nobody can
// choose addresses that collide.
func (t *table) home(k key, slots int) int {
	hi, lo := bits.Mul64(k.hi^t.seed.hi, k.lo^t.seed.lo)
	h := (hi ^ lo) * 0x9e3779b97f4a7c15
	i, _ := bits.Mul64(h^h>>32, uint64(slots))
	return int(i)
}

// get gives the client at k, or nil.
func (t *table) get(k key) *Client {
	p := t.slots.Load()
	if p == nil {
		return nil
	}
	slots := *p
	for i := t.home(k, len(slots)); ; i++ { // it ends: some slots are always free
		if i == len(slots) {
			i = 0
		}
		s := &slots[i]
		c := s.client.Load()
		if c == nil {
			return nil
		}
		if s.key == k {
			if c == removed {
				return nil
			}
			return c
		}
	}
}

// find gives the slot of k, or the free one where it would go.
func (t *table) find(slots []slot, k key) *slot {
	for i := t.home(k, len(slots)); ; i++ {
		if i == len(slots) {
			i = 0
		}
		if s := &slots[i]; s.client.Load() == nil || s.key == k {
			return s
		}
	}
}

// put sets the client at k.
func (t *table) put(k key, c *Client) {
	if p := t.slots.Load(); p == nil || (t.used+1)*fullDen > len(*p)*fullNum {
		t.grow()
	}
	s := t.find(*t.slots.Load(), k)
	switch s.client.Load() {
	case nil:
		s.key = k
		t.used++
		t.live.Add(1)
	case removed:
		t.live.Add(1)
	}
	s.client.Store(c)
}

// grow copies what is live into a new slice.
func (t *table) grow() {
	slots := make([]slot, max(minSlots, (int(t.live.Load())+1)*freshNum/freshDen))
	n := 0
	t.all(func(k key, c *Client) bool {
		s := t.find(slots, k)
		s.key = k
		s.client.Store(c)
		n++
		return true
	})
	t.used = n
	t.slots.Store(&slots)
}

// remove takes k out if it is c's.
func (t *table) remove(k key, c *Client) {
	p := t.slots.Load()
	if p == nil {
		return
	}
	if s := t.find(*p, k); s.client.Load() == c {
		s.client.Store(removed)
		t.live.Add(-1)
	}
}

// all calls f for every entry, until f says false. Entries that are written meanwhile may or may not be among them.
func (t *table) all(f func(k key, c *Client) bool) {
	p := t.slots.Load()
	if p == nil {
		return
	}
	for i := range *p {
		s := &(*p)[i]
		if c := s.client.Load(); c != nil && c != removed && !f(s.key, c) {
			return
		}
	}
}
