package podns

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/plugin/identity"
)

// Names tells whose a network namespace is. It looks through /proc at most so often that it costs little, and gives no name whose namespace has gone: the kernel uses
// their numbers again. Its methods are safe for concurrent use.
type Names struct {
	proc, named string
	index       *identity.Index
	node        string

	known   atomic.Pointer[map[uint32]found]
	mu      sync.Mutex
	looking chan struct{} // closed when the look that is under way is over; nil if none is
	next    time.Time     // no look before
}

// Bounds of a look: how long a caller waits for it at most, the least time from one to the next, and how many times its own duration that is at least.
const (
	lookWait  = 20 * time.Millisecond
	lookEvery = time.Second
	lookShare = 50
)

// NewNames looks once. node is the name of this host's node, "" if it has none; index may be nil.
func NewNames(index *identity.Index, node string) (*Names, error) {
	n := &Names{proc: "/proc", named: namedDir, index: index, node: node}
	return n, n.look()
}

func (n *Names) look() error {
	begin := time.Now()
	m, err := owners(n.proc, n.named, n.index, n.node)
	if err == nil {
		n.known.Store(&m)
	}
	end := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next = end.Add(max(lookEvery, lookShare*end.Sub(begin)))
	return err
}

// Of gives the owner of the namespace with that inode number; ok is false if nothing is known of it. It may look again for one of which no pod and no node is known
// (the index may know it by now), and waits up to 20 ms for that.
func (n *Names) Of(netns uint32) (o Owner, ok bool) {
	if netns == 0 {
		return Owner{}, false
	}
	if o, ok = n.have(netns); ok && o.Kind > OfName {
		return o, true
	}
	n.mu.Lock()
	if n.looking == nil {
		if time.Now().Before(n.next) {
			n.mu.Unlock()
			return o, ok
		}
		done := make(chan struct{})
		n.looking = done
		go func() {
			_ = n.look() // without /proc nothing is known
			n.mu.Lock()
			defer n.mu.Unlock()
			n.looking = nil
			close(done)
		}()
	}
	done := n.looking
	n.mu.Unlock()
	select {
	case <-done:
	case <-time.After(lookWait):
	}
	return n.have(netns)
}

func (n *Names) have(netns uint32) (Owner, bool) {
	m := n.known.Load()
	if m == nil {
		return Owner{}, false
	}
	f, ok := (*m)[netns]
	if !ok {
		return Owner{}, false
	}
	if now, err := inodeAt(f.path); err != nil || now != netns {
		return Owner{}, false
	}
	return f.Owner, true
}

// On tells where somebody is who is in that namespace, "in pod shop/cart-1" or "on node node-1"; "" if it is not known.
func (n *Names) On(netns uint32) string {
	o, ok := n.Of(netns)
	if !ok {
		return ""
	}
	return o.On()
}
