package hop

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// Reason is the running kernel's enum skb_drop_reason. Its numbers differ between kernels: only its name is worth anything.
type Reason uint32

var reasonNames = sync.OnceValue(func() map[Reason]string {
	names := map[Reason]string{}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return names
	}
	// The subsystems' own lists (enum mac80211_drop_reason, ovs_drop_reason, ...) have their number in the upper half of each value.
	for _, list := range []string{"skb_drop_reason", "ovs_drop_reason", "mac80211_drop_reason"} {
		var e *btf.Enum
		if spec.TypeByName(list, &e) != nil {
			continue
		}
		for _, v := range e.Values {
			name := strings.TrimPrefix(v.Name, "SKB_DROP_REASON_")
			name = strings.TrimPrefix(strings.TrimPrefix(name, "SKB_"), "__")
			names[Reason(v.Value)] = name
		}
	}
	return names
})

// String gives the reason's name in the running kernel, without its prefix: `NETFILTER_DROP`, `NO_SOCKET`. A reason the kernel's own list does
// not have is `REASON_n`.
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
	for r, n := range reasonNames() {
		if n == name {
			return r, true
		}
	}
	return 0, false
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

// Harmless says that a packet freed for this reason was a copy that was not meant to go on, so that it says nothing of the lookup's fate.
func (r Reason) Harmless() bool { return harmlessReasons()[r] }
