package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// function gives an address in a kernel function.
func function(t *testing.T, name string) uint64 {
	t.Helper()
	address := hop.AddressOf(name)
	if address == 0 {
		t.Skipf("this kernel does not show where %s is", name)
	}
	return address + 1
}

func TestInsertRaceIsToldFromARule(t *testing.T) {
	for _, c := range []struct {
		name, function string
		clash          bool
		status         hop.ConntrackStatus
		device         uint32
		where          Where
		cause          Cause
		certain        bool
	}{
		{"the other entry was seen", hookFunction, true, hop.DstNAT, 9, Service, CauseInsertRace, true},
		{"no other entry was seen", hookFunction, false, hop.DstNAT, 9, Node, CausePolicyDrop, false},
		{"no other entry was seen, and a rule", ruleFunction, false, hop.DstNAT, 9, Node, CausePolicyDrop, true},
		{"a rule on the way out", ruleFunction, true, hop.DstNAT, 9, Node, CausePolicyDrop, true},
		{"a connection that is known", hookFunction, true, hop.DstNAT | hop.Confirmed, 9, Node, CausePolicyDrop, true},
		{"still at the device by which it came", hookFunction, true, hop.DstNAT, 3, Node, CausePolicyDrop, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ct := hop.Conntrack{OrigSrc: pod, OrigDst: vip, ReplySrc: alive, ReplyDst: pod, Status: c.status}
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
				Paired: true,
				Hops: []hop.Hop{
					{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.Drop, NetNS: nodeNS, IfIndex: c.device, SKB: 1, Src: pod, Dst: alive, Tracked: true, Conntrack: ct,
						Reason: reason(t, "NETFILTER_DROP"), Location: function(t, c.function)},
				},
			}
			if c.clash {
				l.Clash = &lookup.Clash{Conntrack: ct, Type: 28, Gap: -4000}
			}
			var j Judge
			j.Forwards(nodeNS)
			if v := j.Of(l); v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want %s/%s, certain %v", v.Where, v.Cause, v.Certain, v.Text, c.where,
					c.cause, c.certain)
			}
		})
	}
}

func TestConntrackFullIsToldFromARule(t *testing.T) {
	for _, c := range []struct {
		name, function string
		count, limit   int
		unknown        bool
		where          Where
		cause          Cause
		certain        bool
	}{
		{"full", hookFunction, 100, 100, false, Service, CauseConntrack, true},
		{"nearly full when it was read", hookFunction, 95, 100, false, Service, CauseConntrack, false},
		{"room enough", hookFunction, 50, 100, false, Node, CausePolicyDrop, true},
		{"not to be read", hookFunction, 0, 0, true, Service, CauseConntrack, false},
		{"full, and a rule in the raw table", ruleFunction, 100, 100, false, Node, CausePolicyDrop, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
				Hops: []hop.Hop{
					{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.Drop, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip, Reason: reason(t, "NETFILTER_DROP"),
						Location: function(t, c.function), Time: 7},
				},
			}
			j := Judge{Conntrack: func(netns uint32, after int64) (int, int, bool) {
				if netns != nodeNS || after != 7 {
					t.Errorf("asked of namespace %d after %d", netns, after)
				}
				return c.count, c.limit, !c.unknown
			}}
			j.Forwards(nodeNS)
			j.tracks[nodeNS] = true
			if v := j.Of(l); v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want %s/%s, certain %v", v.Where, v.Cause, v.Certain, v.Text, c.where,
					c.cause, c.certain)
			}
		})
	}
}

func TestTheRouteOfADropTellsANode(t *testing.T) {
	for _, c := range []struct {
		route hop.Route
		where Where
	}{{hop.RouteOn, Node}, {hop.RouteLocal, CoreDNSSocket}, {hop.RouteUnknown, CoreDNSSocket}} {
		l := &lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
			Hops: []hop.Hop{
				{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, SKB: 1, Src: pod, Dst: vip},
				{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip},
				{Kind: hop.Out, NetNS: nodeNS, IfIndex: 4, SKB: 1, Src: pod, Dst: alive},
				{Kind: hop.In, NetNS: farNS, IfIndex: 3, SKB: 1, Src: pod, Dst: alive},
				{Kind: hop.Drop, NetNS: farNS, IfIndex: 3, SKB: 1, Src: pod, Dst: alive, Reason: reason(t, "NETFILTER_DROP"),
					Route: c.route},
			},
		}
		var j Judge // the first lookup that it sees
		if v := j.Of(l); v.Where != c.where || v.Cause != CausePolicyDrop {
			t.Errorf("route %d: judged %s/%s, want %s", c.route, v.Where, v.Cause, c.where)
		}
		if j.isNode(farNS) != (c.route == hop.RouteOn) {
			t.Errorf("route %d: taken for a node: %v", c.route, j.isNode(farNS))
		}
	}
}
