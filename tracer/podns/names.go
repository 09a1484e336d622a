package podns

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Names tells whose a network namespace is. It looks through /proc at most so often that it costs little, and gives no
// name whose namespace has gone: the kernel uses their numbers again. Its methods are safe for concurrent use.
type Names struct {
	proc, named string
	index       *identity.Index
	node        string

	known   atomic.Pointer[map[uint32]found]
	mu      sync.Mutex
	looking chan struct{} // closed when the look that is under way is over; nil if none is
	next    time.Time     // no look before
}

// Bounds of a look: how long a caller waits for it at most, the least time from one to the next, and how many times its
// own duration that is at least.
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

// Of gives the owner of the namespace with that inode number; ok is false if nothing is known of it. It may look again
// for one of which no pod and no node is known (the index may know it by now), and waits up to 20 ms for that.
func (n *Names) Of(netns uint32) (o Owner, ok bool) {
	if netns == 0 {
		return Owner{}, false
	}
	if o, ok = n.have(netns); ok && o.Kind > OfName {
		return o, true
	}
	done := n.lookAgain()
	if done == nil {
		return o, ok
	}
	select {
	case <-done:
	case <-time.After(lookWait):
	}
	return n.have(netns)
}

// Client gives who is in the namespace with that inode number, as the index or the node's name tells; nil if they do
// not. It never waits: where nothing is known it looks again for later callers.
func (n *Names) Client(netns uint32) *identity.Client {
	if netns == 0 {
		return nil
	}
	f, ok := n.found(netns)
	if !ok || f.Kind <= OfName {
		n.lookAgain()
	}
	return f.client
}

// lookAgain sees to it that a look is under way, and gives what is closed when it is over; nil if it is too early for
// one.
func (n *Names) lookAgain() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.looking == nil {
		if time.Now().Before(n.next) {
			return nil
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
	return n.looking
}

func (n *Names) have(netns uint32) (Owner, bool) {
	f, ok := n.found(netns)
	return f.Owner, ok
}

// found gives what the last look found, if its namespace is there still.
func (n *Names) found(netns uint32) (found, bool) {
	m := n.known.Load()
	if m == nil {
		return found{}, false
	}
	f, ok := (*m)[netns]
	if !ok {
		return found{}, false
	}
	if now, err := inodeAt(f.path); err != nil || now != netns {
		return found{}, false
	}
	return f, true
}

// Owner is [Names.Of] for verdicts and spans; the zero value where the owner is not known.
func (n *Names) Owner(netns uint32) verdict.Owner {
	o, ok := n.Of(netns)
	if !ok {
		return verdict.Owner{}
	}
	return verdict.Owner{Kind: ownerKinds[o.Kind], Name: o.Name}
}

var ownerKinds = map[OwnerKind]verdict.OwnerKind{
	OfProcess: semconv.OwnerProcess, OfName: semconv.OwnerNamed, OfPod: semconv.OwnerPod, OfNode: semconv.OwnerNode,
	OfHost: semconv.OwnerHost,
}
