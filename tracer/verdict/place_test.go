package verdict

import (
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
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
	j := Judge{Namespace: func(netns uint32) Owner {
		return map[uint32]Owner{
			7: {semconv.OwnerNode, "node-1"}, 8: {semconv.OwnerPod, "shop/cart-1"}, 6: {semconv.OwnerNamed, "blue"},
			4: {semconv.OwnerProcess, "coredns (pid 3)"}, 3: {semconv.OwnerHost, "laptop"},
		}[netns]
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
		{at0(hop.In, "eth0", 6), "arriving at eth0 in network namespace blue", "eth0 in netns 6"},
		{at0(hop.In, "lo", 4), "arriving at lo in the network namespace of coredns (pid 3)", "lo in netns 4"},
		{at0(hop.In, "eth0", 3), "arriving at eth0 on host laptop", "eth0 in netns 3"},
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
		s := SpotOf(tt.h)
		if device, _, _ := strings.Cut(tt.place, " "); s.Device != device && device != "no" {
			t.Errorf("%q: device %q", place, s.Device)
		}
		if s.Event != tt.h.Kind.String() || s.NetNS != tt.h.NetNS {
			t.Errorf("%q in parts is %+v", place, s)
		}
	}
}

// TestDropIsToldWithItsOwner: the verdict has the place and its owner as facts, and tells them in its evidence.
func TestDropIsToldWithItsOwner(t *testing.T) {
	j := Judge{Namespace: func(uint32) Owner { return Owner{semconv.OwnerNode, "node-1"} }}
	drop := hop.Hop{Kind: hop.Drop, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip,
		Reason: reason(t, "NETFILTER_DROP")}
	copy(drop.Dev[:], "cbr0")
	v := j.Of(&lookup.Lookup{
		Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
		Hops: []hop.Hop{{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, SKB: 1, Src: pod, Dst: vip}, drop},
	})
	want := Spot{Device: "cbr0", Event: "drop", NetNS: nodeNS, Owner: Owner{semconv.OwnerNode, "node-1"}}
	if v.DropAt != want || v.Drop != "NETFILTER_DROP" {
		t.Errorf("dropped at %+v by %q, want %+v", v.DropAt, v.Drop, want)
	}
	if line := "dropped at cbr0 on node node-1: NETFILTER_DROP"; v.Evidence[0] != line {
		t.Errorf("evidence %q, want %q", v.Evidence[0], line)
	}
}
