package identity

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Index maps addresses and pod UIDs to clients. One source writes it; any number of goroutines read it. Make one with
// [NewIndex].
type Index struct {
	addrs table
	uids  table
	miss  atomic.Pointer[Client] // what an address that is not there is told as

	local atomic.Pointer[Client]   // the node that this process is on; nil if that is not known
	pods  atomic.Pointer[prefixes] // where pods have their addresses; nil if that is not known

	lastEvent atomic.Int64 // nanoseconds since 1970
	isSynced  atomic.Bool

	clients atomic.Int64 // those that are not nodes

	mu        sync.Mutex            // held by writers
	gone      map[*Client]time.Time // clients that were deleted, and until when they are still found
	contested map[key][]claim       // addresses that more than one client claims
}

var (
	unknownClient  = NewClient(Description{Kind: Unknown})
	externalClient = NewClient(Description{Kind: External})
)

// NewIndex makes an index that knows nothing: every address is [Unknown] until a source has read all it has.
func NewIndex() *Index {
	x := &Index{gone: map[*Client]time.Time{}, contested: map[key][]claim{}}
	// #nosec G404 -- math/rand/v2's own source is ChaCha8, which nobody outside can guess
	x.addrs.seed = key{rand.Uint64(), rand.Uint64()}
	x.uids.seed = key{rand.Uint64(), rand.Uint64()} // #nosec G404 -- as above
	x.miss.Store(unknownClient)
	return x
}

// Lookup tells whose address a is; never nil. An IPv4 address and the same one mapped into IPv6 are one; a zone is
// ignored. It takes no lock and does not allocate. A nil index knows nobody.
func (x *Index) Lookup(a netip.Addr) *Client {
	if x == nil || !a.IsValid() {
		return unknownClient
	}
	if c := x.addrs.get(keyOf(a.As16())); c != nil {
		return c
	}
	return x.stranger(a)
}

// stranger tells who an address is that the index does not hold: this node itself, a pod that the source has not heard
// of yet (its first query may be faster than the news of its address), or somebody outside.
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

// LookupUID tells whose pod UID this is: as the API writes it, or as the kubelet writes it into the name of a cgroup
// (with underscores, or without dashes for a static pod). Never nil: an UID that is not there is [Unknown]. It takes no
// lock and does not allocate.
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

// Size gives how many addresses the index holds, and how many clients other than nodes: pods, or what a file tells as
// such, with a UID or without.
func (x *Index) Size() (addrs, clients int) {
	return int(x.addrs.live.Load()), int(x.clients.Load())
}

// Synced says whether the source has read all it has at least once: only then is an address that is not there
// [External].
func (x *Index) Synced() bool { return x.isSynced.Load() }

// LastEvent gives the time of the last word from the source; zero if there was none.
func (x *Index) LastEvent() time.Time {
	ns := x.lastEvent.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// synced says that all is read. Of an index that holds a part of the cluster, an address that is not there stays
// [Unknown].
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
	if old == nil && c.Kind() != Node {
		x.clients.Add(1)
	}
	delete(x.gone, old)
	for a := range c.Addrs() {
		if k := keyOf(a.As16()); old != nil && old.has(a) {
			x.substitute(old, c, k)
		} else {
			x.claim(c, k, old != nil)
		}
	}
	if old == nil {
		return
	}
	if old.uid != c.uid {
		x.uids.remove(keyOf(old.uid), old)
	}
	for a := range old.Addrs() {
		if !c.has(a) {
			x.withdraw(old, keyOf(a.As16()))
		}
	}
}

// drop forgets c. Callers hold mu.
func (x *Index) drop(c *Client) {
	if c.Kind() != Node {
		x.clients.Add(-1)
	}
	delete(x.gone, c)
	x.uids.remove(keyOf(c.uid), c)
	for a := range c.Addrs() {
		x.withdraw(c, keyOf(a.As16()))
	}
}
