package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

func at0(kind hop.Kind, device string, netns uint32) *hop.Hop {
	h := &hop.Hop{Kind: kind, NetNS: netns}
	copy(h.Dev[:], device)
	return h
}

// TestSpot: a place as evidence tells it, and as it stands in attributes.
func TestSpot(t *testing.T) {
	j := Judge{Namespace: func(netns uint32) string {
		return map[uint32]string{7: "on node node-1", 8: "in pod shop/cart-1"}[netns]
	}}
	l := &lookup.Lookup{ClientNetNS: 9}
	for _, tt := range []struct {
		h     *hop.Hop
		spot  string
		place string
	}{
		{at0(hop.In, "cbr0", 7), "arriving at cbr0 on node node-1", "cbr0 in netns 7"},
		{at0(hop.Out, "eth0", 8), "leaving by eth0 in pod shop/cart-1", "eth0 out netns 8"},
		{at0(hop.Read, "", 8), "read from a socket in pod shop/cart-1", "socket read netns 8"},
		{at0(hop.Drop, "eth0", 5), "at eth0 in network namespace 5", "eth0 drop netns 5"},
		{at0(hop.Drop, "", 9), "in the client's network namespace (9), before it came to a device", "no device drop netns 9"},
	} {
		if got := j.spot(l, tt.h); got != tt.spot {
			t.Errorf("%q, want %q", got, tt.spot)
		}
		place := Place(tt.h)
		if place != tt.place {
			t.Errorf("%q, want %q", place, tt.place)
		}
		s, ok := ParsePlace(place)
		if !ok || s.Kind != tt.h.Kind.String() || s.NetNS != tt.h.NetNS || tt.h.Device() != "" && s.Device != tt.h.Device() {
			t.Errorf("%q is read as %+v, %v", place, s, ok)
		}
	}
	for _, place := range []string{"", "eth0", "netns 7", "eth0 in netns x", "eth0 of node-1"} {
		if s, ok := ParsePlace(place); ok {
			t.Errorf("%q is read as %+v", place, s)
		}
	}
}

// TestDroppedBy: what the evidence of a drop says can be read again.
func TestDroppedBy(t *testing.T) {
	for _, tt := range []struct{ place, whose, line, by string }{
		{"cbr0 drop netns 7", "on node node-1", "dropped at cbr0 on node node-1: NETFILTER_DROP", "node node-1"},
		{"eth0 drop netns 7", "in pod shop/cart-1", "dropped at eth0 in pod shop/cart-1: NETFILTER_DROP", "pod shop/cart-1"},
		{"no device drop netns 7", "in pod shop/cart-1", "dropped in pod shop/cart-1, before it came to a device: NETFILTER_DROP", "pod shop/cart-1"},
		{"eth0 drop netns 7", "in network namespace 7", "dropped at eth0 in network namespace 7: NETFILTER_DROP", ""},
		{"eth0 of node-2", "on node node-2", "dropped at eth0 of node-2: NETFILTER_DROP", ""},
	} {
		line := DroppedAt(tt.place, tt.whose, "NETFILTER_DROP")
		if line != tt.line {
			t.Errorf("%q, want %q", line, tt.line)
		}
		if by := DroppedBy([]string{"1 attempt", line}); by != tt.by {
			t.Errorf("%q: by %q, want %q", line, by, tt.by)
		}
	}
}
