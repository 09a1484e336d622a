package identity

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync/atomic"
)

// shards is how many pieces a table is cut into. A write copies one piece: at 100,000 entries, about six of them.
const shards = 1 << 14

// table maps 16-byte keys to clients. Reads take no lock: a shard is a slice that never changes once it can be seen. Writes copy a
// shard, and must not run side by side.
//
// A Go map a shard was the other way; slices have no empty slots, which is half the memory, and at this length a scan is faster.
type table struct {
	seed   key
	shards [shards]atomic.Pointer[[]entry]
	size   atomic.Int64
}

type entry struct {
	key    key
	client *Client
}

// key is 16 bytes as two words.
type key struct{ hi, lo uint64 }

func keyOf(b [16]byte) key {
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// shard folds the product of both halves, as wyhash does; the seed is random, so that nobody can choose addresses that collide.
func (t *table) shard(k key) *atomic.Pointer[[]entry] {
	hi, lo := bits.Mul64(k.hi^t.seed.hi, k.lo^t.seed.lo)
	return &t.shards[(hi^lo)%shards]
}

// get gives the client at k, or nil.
func (t *table) get(k key) *Client {
	p := t.shard(k).Load()
	if p == nil {
		return nil
	}
	for i := range *p {
		if e := &(*p)[i]; e.key == k {
			return e.client
		}
	}
	return nil
}

// put sets the client at k.
func (t *table) put(k key, c *Client) {
	shard := t.shard(k)
	var old []entry
	if p := shard.Load(); p != nil {
		old = *p
	}
	i := slices.IndexFunc(old, func(e entry) bool { return e.key == k })
	next := make([]entry, len(old), len(old)+1)
	copy(next, old)
	if i >= 0 {
		next[i].client = c
	} else {
		next = append(next, entry{k, c})
		t.size.Add(1)
	}
	shard.Store(&next)
}

// remove takes k out if it is c's.
func (t *table) remove(k key, c *Client) {
	shard := t.shard(k)
	p := shard.Load()
	if p == nil {
		return
	}
	i := slices.IndexFunc(*p, func(e entry) bool { return e.key == k && e.client == c })
	if i < 0 {
		return
	}
	t.size.Add(-1)
	if len(*p) == 1 {
		shard.Store(nil)
		return
	}
	next := make([]entry, 0, len(*p)-1)
	next = append(append(next, (*p)[:i]...), (*p)[i+1:]...)
	shard.Store(&next)
}

// all calls f for every entry, until f says false. Entries that are written meanwhile may or may not be among them.
func (t *table) all(f func(k key, c *Client) bool) {
	for i := range t.shards {
		p := t.shards[i].Load()
		if p == nil {
			continue
		}
		for _, e := range *p {
			if !f(e.key, e.client) {
				return
			}
		}
	}
}
