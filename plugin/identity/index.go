package identity

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Index maps addresses and pod UIDs to clients. One source writes it; any number of goroutines read it. Make one with [NewIndex].
type Index struct {
	addrs table
	uids  table
	miss  atomic.Pointer[Client] // what an address that is not there is told as

	local atomic.Pointer[Client]   // the node that this process is on; nil if that is not known
	pods  atomic.Pointer[prefixes] // where pods have their addresses; nil if that is not known

	lastEvent atomic.Int64 // nanoseconds since 1970
	isSynced  atomic.Bool

	mu   sync.Mutex            // held by writers
	gone map[*Client]time.Time // pods that were deleted, and until when they are still found
}

var (
	unknownClient  = NewClient(Description{Kind: Unknown})
	externalClient = NewClient(Description{Kind: External})
)

// NewIndex makes an index that knows nothing: every address is [Unknown] until a source has read all it has.
func NewIndex() *Index {
	x := &Index{gone: map[*Client]time.Time{}}
	x.addrs.seed = key{rand.Uint64(), rand.Uint64()}
	x.uids.seed = key{rand.Uint64(), rand.Uint64()}
	x.miss.Store(unknownClient)
	return x
}

// Lookup tells whose address a is; never nil. An IPv4 address and the same one mapped into IPv6 are one; a zone is ignored.
// It takes no lock and does not allocate. A nil index knows nobody.
func (x *Index) Lookup(a netip.Addr) *Client {
	if x == nil || !a.IsValid() {
		return unknownClient
	}
	if c := x.addrs.get(keyOf(a.As16())); c != nil {
		return c
	}
	return x.stranger(a)
}

// stranger tells who an address is that the index does not hold: this node itself, a pod that the source has not heard of yet (its first query may be faster than
// the news of its address), or somebody outside.
func (x *Index) stranger(a netip.Addr) *Client {
	a = a.Unmap()
	if a.IsLoopback() || a.IsLinkLocalUnicast() {
		if c := x.local.Load(); c != nil {
			return c
		}
		return unknownClient
	}
	if x.pods.Load().contain(a) {
		return unknownClient
	}
	return x.miss.Load()
}

// LookupUID tells whose pod UID this is: as the API writes it, or as the kubelet writes it into the name of a cgroup (with underscores,
// or without dashes for a static pod). Never nil: an UID that is not there is [Unknown]. It takes no lock and does not allocate.
func (x *Index) LookupUID(s string) *Client {
	if x == nil {
		return unknownClient
	}
	u, _, ok := parseUID(s)
	if !ok {
		return unknownClient
	}
	if c := x.uids.get(keyOf(u)); c != nil {
		return c
	}
	return unknownClient
}

// Size gives how many addresses and how many pod UIDs the index holds.
func (x *Index) Size() (addrs, uids int) {
	return int(x.addrs.live.Load()), int(x.uids.live.Load())
}

// Synced says whether the source has read all it has at least once: only then is an address that is not there [External].
func (x *Index) Synced() bool { return x.isSynced.Load() }

// LastEvent gives the time of the last word from the source; zero if there was none.
func (x *Index) LastEvent() time.Time {
	ns := x.lastEvent.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// synced says that all is read. Of an index that holds a part of the cluster, an address that is not there stays [Unknown].
func (x *Index) synced(whole bool) {
	if whole {
		x.miss.Store(externalClient)
	}
	x.isSynced.Store(true)
}

func (x *Index) heard(now time.Time) { x.lastEvent.Store(now.UnixNano()) }

// put makes c known under its UID and its addresses, in place of old (nil if there was none). Callers hold mu.
func (x *Index) put(old, c *Client) {
	if c.uid != (uid{}) {
		x.uids.put(keyOf(c.uid), c)
	}
	for a := range c.Addrs() {
		k := keyOf(a.As16())
		if cur := x.addrs.get(k); cur == nil || cur == old || x.yields(cur, c) {
			x.addrs.put(k, c)
		}
	}
	if old == nil {
		return
	}
	if old.uid != c.uid {
		x.uids.remove(keyOf(old.uid), old)
	}
	for a := range old.Addrs() {
		x.addrs.remove(keyOf(a.As16()), old) // nothing, where c has taken it
	}
}

// yields says whether an address goes from cur to c: cur is gone, or started no later, or is the node on which c is the cache. Callers hold mu.
func (x *Index) yields(cur, c *Client) bool {
	_, gone := x.gone[cur]
	return gone || cur.start <= c.start || cur.Kind() == Node && c.Kind() == NodeLocalDNS && cur.Node() == c.Node()
}

// drop forgets c. Callers hold mu.
func (x *Index) drop(c *Client) {
	delete(x.gone, c)
	x.uids.remove(keyOf(c.uid), c)
	for a := range c.Addrs() {
		x.addrs.remove(keyOf(a.As16()), c)
	}
}
