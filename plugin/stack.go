package dnstrail

import (
	"sync/atomic"

	"github.com/miekg/dns"
)

// CoreDNS serves each UDP query in a goroutine of its own. Such a one starts with a stack of 2 KiB and needs between 4
// and 8: the runtime doubles it twice, and the second time, deep in the chain of plugins, copies and adjusts every
// frame there is (runtime.newstack, runtime.copystack). That is a sixth of what a cached answer costs, and it costs
// more with every frame above it, ours too.
//
// The runtime grows a stack in one step to what the frame of the function that is being called needs (runtime.newstack,
// by funcMaxSPDelta). So a function with a large frame is called as early as a plugin can have one called: when a
// server decides whether to accept a message, before it unpacks it. No goroutine gets a larger stack by it than the
// chain would give it.

// stackRoom is the size of the frame of reserveStack, in bytes: 8 KiB is the power of two that holds it and what stands
// above it.
const stackRoom = 3 << 10

// reserveStack makes the runtime grow the stack to what a query needs. It is called with i < 0, and then does nothing:
// the frame is what counts, and that is not even cleared.
//
//go:noinline
func reserveStack(i int) byte {
	if i < 0 {
		return 0
	}
	var room [stackRoom]byte
	room[i%stackRoom] = 1
	return room[i/stackRoom%stackRoom]
}

// growEarly says that a Corefile has us. It stays so: a stack that is grown early does no harm.
var growEarly atomic.Bool

func init() { dns.DefaultMsgAcceptFunc = growing(dns.DefaultMsgAcceptFunc) }

// growing makes a function that accepts what accept does, and reserves stack before.
func growing(accept dns.MsgAcceptFunc) dns.MsgAcceptFunc {
	return func(h dns.Header) dns.MsgAcceptAction {
		if growEarly.Load() {
			reserveStack(-1)
		}
		return accept(h)
	}
}
