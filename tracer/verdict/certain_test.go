package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// world is what is known of a network before a lookup is judged in it.
type world struct {
	nodes  []uint32                // namespaces that were seen to forward
	homes  map[hop.Endpoint]uint32 // where servers were seen to read
	owners map[uint32]OwnerKind
}

func (w world) judge() *Judge {
	j := &Judge{ReadsSeen: true, Namespace: func(netns uint32) Owner { return Owner{Kind: w.owners[netns], Name: "x"} }}
	for _, n := range w.nodes {
		j.Forwards(n)
	}
	j.init()
	j.services[vip] = true
	for to, n := range w.homes {
		j.reads(to, n)
	}
	return j
}

func on(kind hop.Kind, netns, ifindex uint32, dev string, dst hop.Endpoint) hop.Hop {
	h := hop.Hop{Kind: kind, NetNS: netns, IfIndex: ifindex, Src: pod, Dst: dst}
	copy(h.Dev[:], dev)
	return h
}

func sentFrom(netns uint32, dev string, dst hop.Endpoint) hop.Hop {
	h := on(hop.Out, netns, 2, dev, dst)
	h.Local = true
	return h
}

// TestCertainOnlyWhereTheDecidingPlaceWasInSight: the same hops in worlds that differ by what is known of the
// namespaces.
func TestCertainOnlyWhereTheDecidingPlaceWasInSight(t *testing.T) {
	local := endpoint("127.0.0.2:53")
	unwatched := endpoint("10.244.2.10:5353")
	atNode := []hop.Hop{sentFrom(podNS, "eth0", vip), on(hop.In, nodeNS, 3, "veth1", vip)}
	atServer := append(atNode[:2:2], on(hop.Out, nodeNS, 4, "eth0", alive), on(hop.In, farNS, 3, "eth0", alive))
	onLoopback := []hop.Hop{sentFrom(podNS, "lo", local), on(hop.In, podNS, 1, "lo", local)}
	for _, c := range []struct {
		name    string
		world   world
		server  hop.Endpoint
		hops    []hop.Hop
		where   Where
		cause   Cause
		certain bool
	}{
		{"a node that has forwarded nothing yet is no server", world{}, vip, atNode, Service, CauseUntranslated, false},
		{"a node that is one by its owner", world{owners: map[uint32]OwnerKind{nodeNS: semconv.OwnerNode}}, vip, atNode,
			Service, CauseUntranslated, false},
		{"last seen at a node towards a port that is not watched", world{nodes: []uint32{nodeNS}}, vip,
			append(atNode[:1:1], on(hop.In, nodeNS, 3, "veth1", unwatched)), Node, CauseVanished, false},
		{"arrived where nobody knows who it is", world{}, vip, atServer, CoreDNSSocket, CauseNotRead, false},
		{"arrived in a pod", world{owners: map[uint32]OwnerKind{farNS: semconv.OwnerPod}}, vip, atServer,
			CoreDNSSocket, CauseNotRead, true},
		{"arrived where a server was seen to read", world{homes: map[hop.Endpoint]uint32{alive: farNS}}, vip, atServer,
			CoreDNSSocket, CauseNotRead, true},
		{"client and server in one pod", world{}, local, onLoopback, CoreDNSSocket, CauseNotRead, true},
		{"client and server on one node", world{nodes: []uint32{podNS}}, local, onLoopback, CoreDNSSocket,
			CauseNotRead, true},
		{"left the client, and its node is out of sight", world{}, vip, atNode[:1], PodLink, CauseVanished, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := c.world.judge().Of(&lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: c.server, ClientNetNS: podNS, Attempts: 1,
				Ending: lookup.GaveUp, Hops: c.hops,
			})
			if v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want %s/%s, certain %v",
					v.Where, v.Cause, v.Certain, v.Text, c.where, c.cause, c.certain)
			}
		})
	}
}

// TestDropInTheClientsOwnNamespace: a socket's drops are the server's, whoever else lives in its namespace.
func TestDropInTheClientsOwnNamespace(t *testing.T) {
	local := endpoint("169.254.20.10:53")
	for _, c := range []struct {
		reason string
		cause  Cause
	}{{"NO_SOCKET", CauseNoListener}, {"SOCKET_RCVBUFF", CauseBufferFull}} {
		drop := on(hop.Drop, nodeNS, 1, "lo", local)
		drop.Reason, drop.Route = reason(t, c.reason), hop.RouteLocal
		v := world{nodes: []uint32{nodeNS}}.judge().Of(&lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: local, ClientNetNS: nodeNS, Attempts: 1, Ending: lookup.Dropped,
			Hops: []hop.Hop{sentFrom(nodeNS, "lo", local), on(hop.In, nodeNS, 1, "lo", local), drop},
		})
		if v.Where != CoreDNSSocket || v.Cause != c.cause || !v.Certain {
			t.Errorf("%s: judged %s/%s, certain %v (%s)", c.reason, v.Where, v.Cause, v.Certain, v.Text)
		}
	}
}

// TestDropWhereNobodyKnowsWhoItIs: a firewall's drop in a namespace of which nothing is known may be a node's or a
// server's.
func TestDropWhereNobodyKnowsWhoItIs(t *testing.T) {
	for _, c := range []struct {
		name    string
		world   world
		route   hop.Route
		where   Where
		certain bool
	}{
		{"nothing known", world{}, hop.RouteUnknown, CoreDNSSocket, false},
		// Or for a service whose address is the node's own: IPVS translates what is local, and drops it like a firewall.
		{"it was for a socket there", world{}, hop.RouteLocal, CoreDNSSocket, false},
		{"it was to go on", world{}, hop.RouteOn, Node, true},
		{"a server reads there", world{homes: map[hop.Endpoint]uint32{alive: farNS}}, hop.RouteUnknown, CoreDNSSocket,
			true},
		{"a pod", world{owners: map[uint32]OwnerKind{farNS: semconv.OwnerPod}}, hop.RouteUnknown, CoreDNSSocket, true},
		{"a node", world{owners: map[uint32]OwnerKind{farNS: semconv.OwnerNode}}, hop.RouteUnknown, Node, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			drop := on(hop.Drop, farNS, 3, "eth0", alive)
			drop.Reason, drop.Route = reason(t, "NETFILTER_DROP"), c.route
			v := c.world.judge().Of(&lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: alive, ClientNetNS: podNS, Attempts: 1,
				Ending: lookup.Dropped,
				Hops: []hop.Hop{
					sentFrom(podNS, "eth0", alive), on(hop.In, nodeNS, 3, "veth1", alive),
					on(hop.In, farNS, 3, "eth0", alive), drop,
				},
			})
			if v.Where != c.where || v.Cause != CausePolicyDrop || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want %s, certain %v", v.Where, v.Cause, v.Certain, v.Text,
					c.where, c.certain)
			}
		})
	}
}

// TestAnswerToAnotherQuestion: what a client read is a fact; what only arrived is one where reads are seen, and the
// query was not sent again since. What has neither the ID nor the question may be of an earlier query.
func TestAnswerToAnotherQuestion(t *testing.T) {
	foo := []byte("\x03foo\x00")
	for _, c := range []struct {
		name      string
		mismatch  lookup.Mismatch
		again     int64 // when the client asked again, 0 if it did not
		readsSeen bool
		text      string
		certain   bool
	}{
		{"another type, read", lookup.Mismatch{ID: 7, Name: []byte("\x03foo\x00"), Type: 16, Read: true, Time: 5}, 0,
			false,
			"what came from 10.96.0.10:53 was no answer to the question: asked foo. A, answered foo. TXT", true},
		{"another ID, arrived", lookup.Mismatch{ID: 8, Name: foo, Type: 1, Arrived: true, Time: 5}, 0, true,
			"what came from 10.96.0.10:53 was no answer to the question: ID 0x0007 was asked, 0x0008 answered", true},
		{"another ID, arrived, and reads are out of sight",
			lookup.Mismatch{ID: 8, Name: foo, Type: 1, Arrived: true, Time: 5}, 0, false,
			"what came from 10.96.0.10:53 was no answer to the question: ID 0x0007 was asked, 0x0008 answered", false},
		{"another ID and another question, read",
			lookup.Mismatch{ID: 8, Name: []byte("\x03bar\x00"), Type: 1, Read: true, Time: 5}, 0, true,
			"what came from 10.96.0.10:53 was no answer to the question: ID 0x0007 was asked, 0x0008 answered", false},
		{"asked again after it", lookup.Mismatch{ID: 8, Name: foo, Type: 1, Read: true, Time: 5}, 9, true,
			"what came from 10.96.0.10:53 was no answer to the question: ID 0x0007 was asked, 0x0008 answered", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.mismatch.Source = vip
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.GaveUp,
				ID:   7,
				Name: []byte("\x03foo\x00"), Type: 1, Mismatch: &c.mismatch, Hops: []hop.Hop{sentFrom(podNS, "eth0",
					vip)},
			}
			if c.again != 0 {
				again := sentFrom(podNS, "eth0", vip)
				again.Time, again.Attempt = c.again, 1
				l.Hops, l.Attempts = append(l.Hops, again), 2
			}
			j := world{}.judge()
			j.ReadsSeen = c.readsSeen
			v := j.Of(l)
			if v.Where != Client || v.Cause != CauseUnexpectedAnswer || v.Text != c.text || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v: %q, want certain %v: %q", v.Where, v.Cause, v.Certain, v.Text,
					c.certain, c.text)
			}
		})
	}
}

// TestConnectionClosedBeforeTheAnswer: a firewall resets in the name of both; only what was seen to leave an end is its
// own.
func TestConnectionClosedBeforeTheAnswer(t *testing.T) {
	for _, c := range []struct {
		name    string
		end     lookup.Close
		where   Where
		cause   Cause
		certain bool
	}{
		{"the server's process", lookup.Close{ByServer: true, Process: &hop.Process{PID: 1}, NetNS: farNS}, CoreDNS,
			CauseClosed, true},
		{"from the server's namespace", lookup.Close{Reset: true, ByServer: true, NetNS: farNS}, CoreDNS, CauseClosed,
			true},
		{"seen at the client alone", lookup.Close{Reset: true, ByServer: true, NetNS: podNS}, CoreDNS, CauseClosed,
			false},
		{"from the client's namespace", lookup.Close{Reset: true, NetNS: podNS}, Client, CauseClientGone, true},
		{"on its way to the server", lookup.Close{Reset: true, NetNS: farNS}, Client, CauseClientGone, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := world{}.judge().Of(&lookup.Lookup{
				Transport: link.TCP, Client: pod, Server: vip, ClientNetNS: podNS, ServerNetNS: farNS, Attempts: 1,
				Ending: lookup.Closed, Close: &c.end, Hops: []hop.Hop{sentFrom(podNS, "eth0", vip)},
			})
			if v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s)", v.Where, v.Cause, v.Certain, v.Text)
			}
		})
	}
}

// TestConnectionRefused: a reset in answer to the handshake is the server's where it was seen to come from there.
func TestConnectionRefused(t *testing.T) {
	syn := sentFrom(podNS, "eth0", alive)
	there := on(hop.In, farNS, 3, "eth0", alive)
	back := hop.Hop{Kind: hop.Out, Answer: true, NetNS: farNS, IfIndex: 3, Src: alive, Dst: pod}
	came := hop.Hop{Kind: hop.In, Answer: true, NetNS: podNS, IfIndex: 2, Src: alive, Dst: pod}
	for _, c := range []struct {
		name    string
		hops    []hop.Hop
		certain bool
	}{
		{"the server in sight", []hop.Hop{syn, there, back, came}, true},
		{"the server out of sight", []hop.Hop{syn, came}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := world{owners: map[uint32]OwnerKind{farNS: semconv.OwnerPod}}.judge().Of(&lookup.Lookup{
				Transport: link.TCP, Client: pod, Server: alive, ClientNetNS: podNS, Attempts: 1,
				Ending: lookup.Dropped, Connect: true,
				Close: &lookup.Close{Reset: true, ByServer: true, NetNS: podNS}, Hops: c.hops,
			})
			if v.Where != CoreDNSSocket || v.Cause != CauseRefused || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want certain %v", v.Where, v.Cause, v.Certain, v.Text,
					c.certain)
			}
		})
	}
}

// TestAddressOfEveryNamespaceIsNobodysHome: a server that reads at a loopback or link-local address in one namespace
// says nothing of another.
func TestAddressOfEveryNamespaceIsNobodysHome(t *testing.T) {
	for _, address := range []string{"127.0.0.1:15053", "169.254.20.10:53", "[::1]:53", "[fe80::1]:53"} {
		own := endpoint(address)
		drop := on(hop.Drop, podNS, 1, "lo", own)
		drop.Reason, drop.Route = reason(t, "NO_SOCKET"), hop.RouteLocal
		v := world{homes: map[hop.Endpoint]uint32{own: farNS}}.judge().Of(&lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
			Hops: []hop.Hop{sentFrom(podNS, "lo", own), on(hop.In, podNS, 1, "lo", own), drop},
		})
		if v.Where != CoreDNSSocket || v.Cause != CauseNoListener || !v.Certain {
			t.Errorf("%s: judged %s/%s, certain %v (%s)", address, v.Where, v.Cause, v.Certain, v.Text)
		}
	}
}

// TestEndpointWhoseAddressIsAnothersNow: two networks may use one address, so it is inferred.
func TestEndpointWhoseAddressIsAnothersNow(t *testing.T) {
	drop := on(hop.Drop, farNS, 3, "eth0", alive)
	drop.Reason, drop.Route = reason(t, "NO_SOCKET"), hop.RouteLocal
	v := world{nodes: []uint32{nodeNS}, homes: map[hop.Endpoint]uint32{alive: 9}}.judge().Of(&lookup.Lookup{
		Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
		EntryOlder: true,
		Hops: []hop.Hop{
			sentFrom(podNS, "eth0", vip), on(hop.In, nodeNS, 3, "veth1", vip), on(hop.Out, nodeNS, 4, "eth0", alive),
			on(hop.In, farNS, 3, "eth0", alive), drop,
		},
	})
	if v.Where != Service || v.Cause != CauseDeadEndpoint || v.Certain {
		t.Errorf("judged %s/%s, certain %v (%s)", v.Where, v.Cause, v.Certain, v.Text)
	}
}

// TestFunctionThatDropsWithoutAReason: kernels split and rename functions; a family's name tells, and an unknown one
// is not guessed at.
func TestFunctionThatDropsWithoutAReason(t *testing.T) {
	for _, c := range []struct {
		function string
		cause    Cause
		sure     bool
	}{
		{"ip_error", CauseNoRoute, true},
		{"ip6_pkt_discard", CauseNoRoute, true},
		{"ip6_pkt_prohibit", CauseNoRoute, true},
		{"ip_rcv_finish_core.isra.0", CauseNoRoute, false}, // reverse-path filtering drops there, too
		{"ip6_pkt_drop", CauseNoRoute, false},
		{"neigh_invalidate", CauseNeighbour, true},
		{"nf_hook_slow", CausePolicyDrop, false},
		{"nft_do_chain", CausePolicyDrop, false},
		{"nfqnl_reinject", CausePolicyDrop, false},
		{"do_xdp_generic", CausePolicyDrop, false}, // a packet that cannot be redirected ends there, too
		{"udp_queue_rcv_one_skb", CauseBufferFull, false},
		{"__udp4_lib_rcv", CauseNoListener, false},
		{"tcp_v4_rcv", CauseNoListener, false},
		{"udp_destruct_common", CauseSocketClosed, true},
		{"inet_sock_destruct", CauseSocketClosed, true},
		{"vxlan_xmit", CauseTunnel, false},
		{"veth_xmit", CauseDropped, false},
		{"a_driver_of_its_own", CauseDropped, true},
	} {
		cause, text, sure := functionCause("NOT_SPECIFIED", c.function)
		if cause != c.cause || sure != c.sure {
			t.Errorf("%s: %s, sure %v (%s), want %s, sure %v", c.function, cause, sure, text, c.cause, c.sure)
		}
	}
}

// TestResetThatNobodyTakesIsNotTheCause: a rule that resets sends from behind the translation, and the client's host
// drops that.
func TestResetThatNobodyTakesIsNotTheCause(t *testing.T) {
	drop := on(hop.Drop, nodeNS, 3, "veth1", alive)
	drop.Reason, drop.Route = reason(t, "NETFILTER_DROP"), hop.RouteOn
	stray := hop.Hop{Kind: hop.Drop, Answer: true, NetNS: podNS, IfIndex: 2, Src: alive, Dst: pod, Reason: reason(t,
		"NO_SOCKET")}
	v := world{nodes: []uint32{nodeNS}}.judge().Of(&lookup.Lookup{
		Transport: link.TCP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped,
		Connect: true,
		Hops:    []hop.Hop{sentFrom(podNS, "eth0", vip), on(hop.In, nodeNS, 3, "veth1", vip), drop, stray},
	})
	if v.Where != Node || v.Cause != CausePolicyDrop {
		t.Errorf("judged %s/%s (%s)", v.Where, v.Cause, v.Text)
	}
}

// TestAFrameForOthersIsNotWhereTheQueryCame: a bridge that knows no port for an address sends to all of them.
func TestAFrameForOthersIsNotWhereTheQueryCame(t *testing.T) {
	other, ok := hop.ReasonByName("OTHERHOST")
	if !ok {
		t.Fatal("the running kernel has no reason OTHERHOST")
	}
	leaves, comes := on(hop.Out, nodeNS, 4, "veth4", alive), on(hop.In, farNS, 3, "eth0", alive)
	leaves.SKB, comes.SKB = 7, 7
	leaves.Time, comes.Time = 1, 2
	gone := comes
	gone.Kind, gone.Reason, gone.Time = hop.Drop, other, 3
	l := &lookup.Lookup{
		Transport: link.UDP, Client: pod, Server: alive, Attempts: 1, Ending: lookup.GaveUp,
		Hops: []hop.Hop{on(hop.In, nodeNS, 3, "eth0", alive), leaves, comes, gone},
	}
	last, drop, _ := lastHops(l)
	if last != &l.Hops[1] || drop != nil {
		t.Errorf("came last to %s, dropped %v", place(last), drop)
	}
	j := world{nodes: []uint32{nodeNS}}.judge()
	if v := j.Of(l); v.Where != Node || v.Cause != CauseVanished || v.Certain {
		t.Errorf("judged %s/%s, certain %v: %s", v.Where, v.Cause, v.Certain, v.Text)
	}
	l.Hops = l.Hops[:3]
	if last, _, _ := lastHops(l); last != &l.Hops[2] {
		t.Errorf("came last to %s, want the pod that took it", place(last))
	}
}
