package verdict

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
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
		// rejected is the type and code of an ICMP error that follows the drop; 0: none does.
		rejected uint16
		where    Where
		cause    Cause
	}{
		{"rejected before translation", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "NETFILTER_DROP", true), 3<<8 | 3, Service,
			CauseNoEndpoints},
		{"rejected after translation", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NETFILTER_DROP", true), 3<<8 | 3, Node,
			CauseRejected},
		{"connection tracking full", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "NETFILTER_DROP", false), 0, Service,
			CauseConntrack},
		{"no rule, lost further on", []hop.Hop{sent, atNode, untranslatedOut}, drop(farNS, vip, "NOT_SPECIFIED", false), 0,
			Service, CauseUntranslated},
		{"no rule, no route", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "IP_INNOROUTES", true), 0, Service,
			CauseUntranslated},
		{"translated to nobody", []hop.Hop{sent, atNode}, drop(farNS, dead, "NEIGH_FAILED", true), 0, Service,
			CauseDeadEndpoint},
		{"translated, neighbor gone", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NEIGH_FAILED", true), 0, Node,
			CauseNeighbour},
		{"translated, policy", []hop.Hop{sent, atNode}, drop(nodeNS, alive, "NETFILTER_DROP", true), 0, Node,
			CausePolicyDrop},
		{"prohibited, untranslated", []hop.Hop{sent, atNode}, drop(nodeNS, vip, "NETFILTER_DROP", true), 3<<8 | 10, Node,
			CauseRejected},
		{"rejected by the pod itself", []hop.Hop{}, drop(podNS, vip, "NETFILTER_DROP", true), 3<<8 | 3, Client,
			CauseRejected},
		{"own output", []hop.Hop{}, drop(podNS, vip, "NETFILTER_DROP", false), 0, Client, CausePolicyDrop},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := &Judge{
				nodes:    map[uint32]bool{nodeNS: true, farNS: true},
				services: map[hop.Endpoint]bool{vip: true},
				podSide:  map[device]bool{},
				tracks:   map[uint32]bool{nodeNS: true},
				Namespace: func(netns uint32) Owner {
					if netns == podNS {
						return Owner{Kind: semconv.OwnerPod, Name: "shop/cart-1"}
					}
					return Owner{}
				},
			}
			l := &lookup.Lookup{Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1,
				Ending: lookup.Dropped, Hops: append(slices.Clone(c.hops), c.drop(t))}
			if c.rejected != 0 {
				l.Hops = append(l.Hops, hop.Hop{Kind: hop.Unreachable, NetNS: nodeNS, IfIndex: 3, ICMP: c.rejected})
			}
			v := j.Of(l)
			if v.Where != c.where || v.Cause != c.cause {
				t.Errorf("judged %s/%s (%s), want %s/%s", v.Where, v.Cause, v.Text, c.where, c.cause)
			}
		})
	}
}

func TestAnswerThatNobodyTakes(t *testing.T) {
	gone := hop.Hop{Kind: hop.Drop, Answer: true, NetNS: podNS, IfIndex: 2, Src: vip, Dst: pod,
		Reason: reason(t, "NO_SOCKET"), Time: 2e8}
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
		{"upstream slow", late, []*lookup.Upstream{{Server: endpoint("192.168.100.53:53"), Answered: true}}, Client,
			CauseTooLate},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
				AnswerSeen: true, Upstreams: c.upstreams,
				Hops: []hop.Hop{{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip}, c.drop},
			}
			if v := new(Judge).Of(l); v.Where != c.where || v.Cause != c.cause {
				t.Errorf("judged %s/%s (%s), want %s/%s", v.Where, v.Cause, v.Text, c.where, c.cause)
			}
		})
	}
}

// TestAnswerThatTheClientClosedUnread: its socket had the answer, however long that took.
func TestAnswerThatTheClientClosedUnread(t *testing.T) {
	for _, after := range []int64{2e6, 2e9} {
		drop := hop.Hop{
			Kind: hop.Drop, Answer: true, NetNS: podNS, Src: vip, Dst: pod, Reason: hop.NotSpecified,
			Location: function(t, "udp_destruct_common"), Time: after,
		}
		v := new(Judge).Of(&lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
			AnswerSeen: true,
			Hops:       []hop.Hop{{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip}, drop},
		})
		if v.Where != Client || v.Cause != CauseClientGone || !v.Certain || v.Lost() {
			t.Errorf("judged %s/%s, certain %v, lost %v (%s)", v.Where, v.Cause, v.Certain, v.Lost(), v.Text)
		}
	}
}

// TestRejectedBeyondTheClientsNode: a query that another node has passed on was for no service.
func TestRejectedBeyondTheClientsNode(t *testing.T) {
	for name, c := range map[string]struct {
		homes    map[hop.Endpoint]uint32
		services map[hop.Endpoint]bool
		where    Where
		cause    Cause
		certain  bool
	}{
		"a server is known to read there": {map[hop.Endpoint]uint32{alive: farNS}, nil, Node, CauseRejected, true},
		"nothing is known of the address": {nil, nil, Node, CauseRejected, false},
		"it is a service's":               {nil, map[hop.Endpoint]bool{alive: true}, Service, CauseNoEndpoints, false},
	} {
		j := new(Judge)
		j.Forwards(nodeNS)
		maps.Copy(j.homes, c.homes)
		maps.Copy(j.services, c.services)
		v := j.Of(&lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: alive, Attempts: 1, Ending: lookup.Dropped,
			Hops: []hop.Hop{
				{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, Src: pod, Dst: alive},
				{
					Kind: hop.Drop, NetNS: nodeNS, IfIndex: 3, Src: pod, Dst: alive, Tracked: true, Route: hop.RouteOn,
					Reason: reason(t, "NETFILTER_DROP"),
				},
				{Kind: hop.Unreachable, NetNS: nodeNS, IfIndex: 3, ICMP: 3<<8 | 3},
			},
		})
		if v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
			t.Errorf("%s: %s/%s, certain %v (%s)", name, v.Where, v.Cause, v.Certain, v.Text)
		}
	}
}

// TestAQueryOnAConnectionThatIsGone: that nobody listens is said of a connection that is asked for, not of one that
// was.
func TestAQueryOnAConnectionThatIsGone(t *testing.T) {
	for connect, want := range map[bool]Cause{true: CauseNoListener, false: CauseClosed} {
		v := new(Judge).Of(&lookup.Lookup{
			Transport: link.TCP, Connect: connect, Client: pod, Server: alive, ClientNetNS: podNS, Attempts: 1,
			Ending: lookup.Dropped,
			Hops: []hop.Hop{
				{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: alive},
				{Kind: hop.Drop, NetNS: farNS, IfIndex: 2, Src: pod, Dst: alive, Route: hop.RouteLocal,
					Reason: reason(t, "NO_SOCKET")},
			},
		})
		if v.Where != CoreDNSSocket || v.Cause != want {
			t.Errorf("connecting %v: %s/%s (%s)", connect, v.Where, v.Cause, v.Text)
		}
	}
}
