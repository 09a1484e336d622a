package hop

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// Reason is the running kernel's enum skb_drop_reason. Its numbers differ between kernels: only its name is worth
// anything. The zero value is that of a packet that was not dropped; what the kernel numbers zero is [NotSpecified]
// here.
type Reason uint32

// NotSpecified is the reason of a drop for which the kernel gives none. Kernels before 5.17 give none for any.
const NotSpecified Reason = 1<<32 - 1

// reasonOf gives the reason of a drop by the kernel's number.
func reasonOf(n uint32) Reason {
	if n == 0 {
		return NotSpecified
	}
	return Reason(n)
}

var reasonNames = sync.OnceValue(func() map[Reason]string {
	names := map[Reason]string{NotSpecified: "NOT_SPECIFIED"}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return names
	}
	// The subsystems' own lists (enum mac80211_drop_reason, ovs_drop_reason, ...) have their number in the upper half
	// of each value.
	for _, list := range []string{"skb_drop_reason", "ovs_drop_reason", "mac80211_drop_reason"} {
		var e *btf.Enum
		if spec.TypeByName(list, &e) != nil {
			continue
		}
		for _, v := range e.Values {
			if v.Value == 0 {
				continue // NOT_SPECIFIED, SKB_NOT_DROPPED_YET
			}
			name := strings.TrimPrefix(v.Name, "SKB_DROP_REASON_")
			name = strings.TrimPrefix(strings.TrimPrefix(name, "SKB_"), "__")
			names[Reason(v.Value)] = name
		}
	}
	return names
})

// String gives the reason's name in the running kernel, without its prefix: `NETFILTER_DROP`, `NO_SOCKET`. A reason
// that the kernel's own list does not have is `REASON_n`, that of a packet that was not dropped "".
func (r Reason) String() string {
	if r == 0 {
		return ""
	}
	if n, ok := reasonNames()[r]; ok {
		return n
	}
	return fmt.Sprintf("REASON_%d", uint32(r))
}

// ReasonByName gives the number of a reason in the running kernel, for tests and for building hops.
func ReasonByName(name string) (Reason, bool) {
	found := Reason(0)
	for r, n := range reasonNames() {
		if n == name && (found == 0 || r < found) { // the kernel's own number for NOT_SPECIFIED, where it has one
			found = r
		}
	}
	return found, found != 0
}

// harmless are reasons for which the kernel frees copies that were never meant to go on.
var harmless = map[string]bool{
	"OTHERHOST":               true, // a bridge's flood, or a tap: another station's packet
	"UNHANDLED_PROTO":         true,
	"PACKET_SOCK_ERROR":       true,
	"TCP_OLD_DATA":            true, // a retransmission that came twice
	"TCP_OLD_ACK":             true,
	"UNICAST_IN_L2_MULTICAST": true,
}

var harmlessReasons = sync.OnceValue(func() map[Reason]bool {
	m := map[Reason]bool{}
	for r, name := range reasonNames() {
		if harmless[name] {
			m[r] = true
		}
	}
	return m
})

// Harmless says that a packet freed for this reason was a copy that was not meant to go on, so that it says nothing
// of the lookup's fate.
func (r Reason) Harmless() bool { return harmlessReasons()[r] }
