package verdict

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// The network of these tests: a pod (namespace 1) on a node (2), a pod of CoreDNS.
const (
	podNS  = 1
	nodeNS = 2
	farNS  = 3
)

func endpoint(s string) hop.Endpoint { return hop.EndpointOf(netip.MustParseAddrPort(s)) }

var (
	pod   = endpoint("10.244.1.10:40000")
	vip   = endpoint("10.96.0.10:53")
	dead  = endpoint("10.244.2.99:53")
	alive = endpoint("10.244.2.10:53")
)

func TestJudgeThatWasToldItsNodeLearns(t *testing.T) {
	var j Judge
	j.Forwards(nodeNS)
	j.Of(&lookup.Lookup{
		Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Answered,
		Hops: []hop.Hop{
			{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip},
			{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, Src: pod, Dst: vip},
			{Kind: hop.Out, NetNS: nodeNS, IfIndex: 4, Src: pod, Dst: alive, Tracked: true},
		},
	})
	if !j.services[vip] || !j.tracks[nodeNS] {
		t.Errorf("learned services %v, tracking %v", j.services, j.tracks)
	}
}

func reason(t *testing.T, name string) hop.Reason {
	t.Helper()
	r, ok := hop.ReasonByName(name)
	if !ok {
		t.Skipf("this kernel has no drop reason %s", name)
	}
	return r
}

func TestServiceFaults(t *testing.T) {
	sent := hop.Hop{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip}
	atNode := hop.Hop{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, Src: pod, Dst: vip}
	untranslatedOut := hop.Hop{Kind: hop.Out, NetNS: nodeNS, IfIndex: 4, Src: pod, Dst: vip, Tracked: true}
	drop := func(netns uint32, dst hop.Endpoint, reason string, tracked bool) func(*testing.T) hop.Hop {
		return func(t *testing.T) hop.Hop {
			t.Helper()
			r, ok := hop.ReasonByName(reason)
			if !ok {
				t.Skipf("this kernel has no drop reason %s", reason)
			}
			return hop.Hop{Kind: hop.Drop, NetNS: netns, IfIndex: 4, Src: pod, Dst: dst, Tracked: tracked, Reason: r}
		}
	}
	for _, c := range []struct {
		name string
		hops []hop.Hop
		drop func(*testing.T) hop.Hop
		// rejected: an ICMP error follows the drop.
		rejected bool
		where    Where
		cause    Cause
	}{
		{"rejected before translation", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "NETFILTER_DROP", true), true, Service, CauseNoEndpoints},
		{"rejected after translation", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NETFILTER_DROP", true), true, Node, CauseRejected},
		{"connection tracking full", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "NETFILTER_DROP", false), false, Service, CauseConntrack},
		{"no rule, lost further on", []hop.Hop{sent, atNode, untranslatedOut}, drop(farNS, vip, "NOT_SPECIFIED", false), false, Service, CauseUntranslated},
		{"no rule, no route", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "IP_INNOROUTES", true), false, Service, CauseUntranslated},
		{"translated to nobody", []hop.Hop{sent, atNode}, drop(farNS, dead, "NEIGH_FAILED", true), false, Service, CauseDeadEndpoint},
		{"translated, neighbor gone", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NEIGH_FAILED", true), false, Node, CauseNeighbour},
		{"translated, policy", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NETFILTER_DROP", true), false, Node, CausePolicyDrop},
		{"own output", []hop.Hop{}, drop(podNS, vip, "NETFILTER_DROP", false), false, Client, CausePolicyDrop},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := &Judge{
				nodes:    map[uint32]bool{nodeNS: true, farNS: true},
				services: map[hop.Endpoint]bool{vip: true},
				podSide:  map[device]bool{},
				tracks:   map[uint32]bool{nodeNS: true},
			}
			l := &lookup.Lookup{Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped, Hops: append(slices.Clone(c.hops), c.drop(t))}
			if c.rejected {
				l.Hops = append(l.Hops, hop.Hop{Kind: hop.Unreachable, NetNS: nodeNS, IfIndex: 3, ICMP: 3<<8 | 3})
			}
			v := j.Of(l)
			if v.Where != c.where || v.Cause != c.cause {
				t.Errorf("judged %s/%s (%s), want %s/%s", v.Where, v.Cause, v.Text, c.where, c.cause)
			}
		})
	}
}

func TestAnswerThatNobodyTakes(t *testing.T) {
	gone := hop.Hop{Kind: hop.Drop, Answer: true, NetNS: podNS, IfIndex: 2, Src: vip, Dst: pod, Reason: reason(t, "NO_SOCKET"), Time: 2e8}
	odd := gone
	odd.Src = alive
	late := gone
	late.Time = 2e9
	for _, c := range []struct {
		name      string
		drop      hop.Hop
		upstreams []*lookup.Upstream
		where     Where
		cause     Cause
	}{
		{"client gone", gone, nil, Client, CauseClientGone},
		{"from whom it had not asked", odd, nil, Client, CauseWrongSource},
		{"upstream silent", gone, []*lookup.Upstream{{Server: endpoint("192.168.100.53:53")}}, Upstream, CauseTimeout},
		{"upstream slow", late, []*lookup.Upstream{{Server: endpoint("192.168.100.53:53"), Answered: true}}, Client, CauseTooLate},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped, AnswerSeen: true, Upstreams: c.upstreams,
				Hops: []hop.Hop{{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip}, c.drop},
			}
			if v := new(Judge).Of(l); v.Where != c.where || v.Cause != c.cause {
				t.Errorf("judged %s/%s (%s), want %s/%s", v.Where, v.Cause, v.Text, c.where, c.cause)
			}
		})
	}
}
