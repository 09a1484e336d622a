package main

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// many is the truth of so many lookups without a fault.
func many(count int) []truth {
	t := answered
	t.count = count
	return []truth{t}
}

// unseen is the truth of one lookup that was lost at a server whose arrivals nobody sees: the place may be told, but
// not for certain.
var unseen = []truth{{where: "coredns-socket|node|between-nodes|return-path", cause: "*", certain: mustNot}}

// oddly is the truth of an odd message that the server answers so.
func oddly(result string) []truth {
	return []truth{{where: "answered|coredns|upstream", cause: "*", result: result}}
}

// silentBehind is the truth of one lookup of a server that asks CoreDNS, whose upstream is silent. The agent on the
// client's node sees either the server's query unanswered or, later, its failure; CoreDNS knows what that comes from.
var silentBehind = []truth{
	{where: "upstream", cause: "timeout|server-failure", by: onlyObserve},
	{where: "upstream", cause: "timeout", text: []string{"192.168.100.53"}, by: onlyStore},
}

// failedBehind is that of a client which waits for the failure.
func failedBehind(cause string) []truth {
	return []truth{
		{where: "upstream", cause: "server-failure", result: "SERVFAIL", by: onlyObserve},
		{where: "upstream", cause: cause, result: "SERVFAIL", text: []string{"192.168.100.53"}, by: onlyStore},
	}
}

// noWay is the truth of one lookup of which no packet was made, for want of a route.
var noWay = []truth{{where: "client", cause: "no-route", blank: true}}

var (
	leavesNode = map[setting]string{inTogether: "nothing leaves the node"}
	oneBridge  = map[setting]string{inHost: "client and CoreDNS are on two bridges",
		inApart: "client and CoreDNS are on two bridges"}
	hasOne = map[setting]string{inTogether: "the node has an endpoint: CoreDNS"}
)

// field is what people met: each case made from a public report, and what is of the same kind.
var field = []fault{
	// Packets that come to a pod by a way that no hook on devices sees.
	{name: "answer by bpf_redirect_peer", truths: fine, inject: redirectAnswers, ask: digAt(dnsPod, true)},
	{name: "answer by bpf_redirect_peer, TCP", truths: fine, inject: redirectAnswers, ask: digAt(dnsPod, true, "+tcp")},
	{name: "query by bpf_redirect_peer", truths: fine, inject: redirectQueries, ask: digAt(dnsPod, true)},
	{
		name: "query by bpf_redirect_peer, CoreDNS stopped", truths: unseen, reverts: true,
		inject: and(redirectQueries, stopped), ask: digAt(dnsPod, false),
	},
	{
		name: "both ways by bpf_redirect_peer", truths: fine, inject: and(redirectQueries, redirectAnswers),
		ask: digAt(dnsPod, true),
	},
	{name: "macvlan in the pod, server on the LAN", truths: fine, inject: withMacvlan(upstreamOf),
		ask: digAt(theUpstream, true)},
	{
		name: "macvlan in the pod, service address", inject: withMacvlan(func(f family) netip.Addr { return f.vip }),
		truths: []truth{{where: "service|between-nodes", cause: "*", text: []string{"eth0"},
			unsaid: []string{"kube-proxy has no rules"}}},
	},
	{name: "IPv6 destination options", truths: fine, only: 6, ask: askWithExtensionHeader},
	{name: "drop in XDP, CoreDNS's node", truths: []truth{{where: "node", cause: "*", text: []string{"XDP"}}},
		not: sameNode, inject: xdpDrop},
	{name: "drop by a tc program", truths: []truth{{where: "node|service", cause: "*", text: []string{"TC_"}}},
		inject: tcDrop},

	// Answers that are none.
	{
		name: "CoreDNS answers another question", label: "other-question",
		truths: []truth{{where: "client", cause: "unexpected-answer", certain: must, text: []string{"TXT"}}},
	},
	{
		name: "the server asked answers another question", label: "wrong-question", ask: digAt(theUpstream, false),
		truths: []truth{{where: "client", cause: "unexpected-answer", certain: must, text: []string{"not-asked.example"}}},
	},
	{
		name: "the server asked answers with another ID", label: "wrong-id", ask: digAt(theUpstream, false),
		truths: []truth{{where: "client", cause: "unexpected-answer", certain: must, text: []string{"ID"}}},
	},

	// NodeLocal DNSCache, asked by a pod and by the node itself.
	{name: "NodeLocal DNSCache: no fault", truths: fine, inject: withNodeLocal(noMore), ask: digAt(localCache, true)},
	{name: "NodeLocal DNSCache: no fault, from the node", truths: fine, inject: withNodeLocal(noMore),
		ask: nodeDigAt(localCache, true)},
	{name: "NodeLocal DNSCache stopped", truths: certainly("coredns-socket", "not-read"), reverts: true,
		inject: withNodeLocal(halted), ask: digAt(localCache, false)},
	{name: "NodeLocal DNSCache stopped, from the node", truths: certainly("coredns-socket", "not-read"), reverts: true,
		inject: withNodeLocal(halted), ask: nodeDigAt(localCache, false)},
	{name: "NodeLocal DNSCache killed", truths: certainly("coredns-socket", "no-listener"), inject: withNodeLocal(killed),
		ask: digAt(localCache, false)},
	{name: "NodeLocal DNSCache killed, from the node", truths: certainly("coredns-socket", "no-listener"),
		inject: withNodeLocal(killed), ask: nodeDigAt(localCache, false)},
	{name: "NodeLocal DNSCache full", truths: certainly("coredns-socket", "receive-buffer-full"), reverts: true,
		inject: withNodeLocal(cacheFull), ask: digAt(localCache, false)},
	{name: "NodeLocal DNSCache full, from the node", truths: certainly("coredns-socket", "receive-buffer-full"),
		reverts: true, inject: withNodeLocal(cacheFull), ask: nodeDigAt(localCache, false)},
	{
		name: "NodeLocal DNSCache: its TCP dropped", wait: 4 * time.Second, reverts: true,
		inject: withNodeLocal(func(s *scene, f family, _ *lab.Process) (lab.Undo, error) {
			return s.client.Node.Rules("inet", "chain c { type filter hook output priority 0; tcp dport 53 drop; }")
		}), ask: digAt(localCache, false, "+time=4"),
		truths: []truth{{where: "upstream", cause: "timeout", text: []string{"10.96.0.10"}}},
	},

	// TCP.
	{
		name: "TCP that never connects: dropped", truths: certainly("node", "policy-drop"),
		ask:    handshake(2500 * time.Millisecond),
		inject: drop(clientNode, lab.DropRule{Hook: lab.Forward, Proto: tcp, DstPort: 53}),
	},
	{name: "TCP that never connects: reset by a rule", truths: one("node", "refused|policy-drop"),
		ask: handshake(answerTime), inject: rejectTCP},
	{name: "TCP that never connects: no listener", truths: certainly("coredns-socket", "refused|no-listener"),
		ask: handshake(answerTime), inject: notListening},
	{name: "TCP that never connects: service of UDP alone", truths: one("service", "not-translated"),
		ask: handshake(2500 * time.Millisecond), inject: onlyUDP},
	{name: "TCP: reset after the query", truths: certainly("coredns", "closed"), ask: askIdleTCP,
		inject: listenTCP(reset)},
	{name: "TCP: closed after the query", truths: certainly("coredns", "closed"), ask: askIdleTCP,
		inject: listenTCP(finish)},
	{name: "TCP: 2 queries in one piece", truths: many(2), ask: askPipelined(2)},
	{name: "TCP: 64 queries in one piece", truths: many(64), ask: askPipelined(64)},
	{name: "TCP: 200 queries in one piece", truths: many(200), ask: askPipelined(200)},
	{
		// A server answers one after the other, and this may take it longer than a lookup is waited for: then the last of
		// them are called lost, and corrected.
		name: "TCP: 2000 queries in one piece", ask: askPipelined(2000), only: 4, wait: pipelineTime,
		truths: []truth{{count: 2000, where: "answered", cause: "answered|answered-after-all"}},
	},
	{name: "TCP: 30 queries in one piece, large answers", truths: many(30), label: "size-1500", ask: askPipelined(30)},
	{name: "TCP: half closed", truths: fine, ask: askHalfClosed},
	{name: "TCP: a byte at a time", truths: fine, ask: askSplit},
	{
		name: "TCP: closed by the client after its query", truths: certainly("client", "client-gone"),
		ask: askAndHangUp(finish),
	},
	{
		name: "TCP: reset by the client after its query", truths: certainly("client", "client-gone"),
		ask: askAndHangUp(reset),
	},
	{name: "TCP: sent again after the give-up", truths: certainly("node", "policy-drop"), wait: 15 * time.Second,
		ask: askRetransmitted},

	// The service's translation.
	{
		name: "no local endpoint (internalTrafficPolicy)", not: hasOne, inject: noLocalEndpoint,
		truths: []truth{{where: "service", cause: "no-endpoints", text: []string{"local"},
			unsaid: []string{"network policy"}}},
	},
	{
		name: "no local endpoint, from the node", not: hasOne, inject: noLocalEndpoint, hostNetwork: true,
		truths: []truth{{where: "service", cause: "no-endpoints", text: []string{"local"},
			unsaid: []string{"network policy"}}},
	},
	{name: "old conntrack entry: blackhole route", truths: nil, tries: true, wait: 20 * time.Second,
		ask: askOld(deadRoute("blackhole"), noWords)},
	{name: "old conntrack entry: unreachable route", truths: nil, tries: true, wait: 20 * time.Second,
		ask: askOld(deadRoute("unreachable"), noWords)},
	{name: "old conntrack entry: prohibit route", truths: nil, tries: true, wait: 20 * time.Second,
		ask: askOld(deadRoute("prohibit"), noWords)},
	{
		name: "old conntrack entry: another pod's address now", truths: nil, tries: true, wait: 20 * time.Second,
		ask: askOld(moveAddress, theOdd),
	},
	{
		name: "old conntrack entry: its pod serves no DNS any more", truths: nil, tries: true, wait: 20 * time.Second,
		ask: askOld(nothingMore, theIdle),
	},
	{
		name: "masquerade without a free port", not: leavesNode, inject: onePort, ask: askTwice(theClient),
		truths: []truth{named("first"), {name: "second", where: "node|service", cause: "port-exhausted",
			text: []string{"40000"}, unsaid: []string{"network policy"}}},
	},
	{
		name: "masquerade without a free port, another pod", not: leavesNode, inject: onePort, ask: askTwice(thePeer),
		truths: []truth{named("first"), {name: "second", where: "node|service", cause: "port-exhausted",
			text: []string{"40000"}, unsaid: []string{"network policy"}}},
	},
	{
		name: "conntrack entry expired before the answer", label: "delay-2500ms", inject: shortConntrack,
		ask: digAt(service, false, "+time=4"), wait: 4 * time.Second,
		truths: []truth{{where: "client", cause: "unexpected-source", text: []string{"expire"}}},
	},
	{
		name: "bridge without netfilter", not: oneBridge, inject: noBridgeFilter,
		truths: []truth{{where: "client", cause: "unexpected-source", certain: must, advice: []string{"bridge-nf-call"}}},
	},
	{name: "CoreDNS on port 5353: no fault", truths: fine, inject: servicePort},
	{
		name: "CoreDNS on port 5353: drop, client's node", truths: []truth{{where: "node", cause: "policy-drop",
			text: []string{"5353"}}},
		inject: and(servicePort, drop(clientNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 5353})),
	},
	{
		name: "CoreDNS on port 5353: drop, CoreDNS's node", truths: []truth{{where: "node", cause: "policy-drop",
			text: []string{"5353"}}}, not: sameNode,
		inject: and(servicePort, drop(serverNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 5353})),
	},

	// A proxy in the pod.
	{name: "redirected in the pod: no fault", truths: fine, inject: withProxy(nil)},
	{
		name: "redirected in the pod: proxy stopped", truths: []truth{{where: "coredns-socket", cause: "not-read",
			text: []string{"15053"}}}, reverts: true,
		inject: withProxy(halted),
	},
	{name: "redirected in the pod: upstream silent", truths: silentBehind, label: "silent", inject: withProxy(nil)},

	// One socket, several servers.
	{
		name: "two servers at once: one drops", label: "delay-50ms.acl-drop", inject: withSecond(forwards, nil),
		ask: askAllServers(bothServers, 2, 6*time.Second), wait: 10 * time.Second,
		truths: []truth{{count: 2, where: "answered", cause: "answered"}, {count: 2, where: "coredns", cause: "no-answer"}},
	},
	{
		name: "two servers at once: one fails", label: "delay-300ms.servfail-here",
		inject: withSecond(forwards, nil), ask: askAllServers(bothServers, 4, 0),
		truths: []truth{{count: 2, where: "answered", cause: "answered"},
			{count: 2, where: "coredns", cause: "server-failure", result: "SERVFAIL"}},
	},
	{
		name: "two servers at once: one says NXDOMAIN", label: "delay-300ms.nxdomain-here",
		inject: withSecond(forwards, nil), ask: askAllServers(bothServers, 2, 0),
		truths: []truth{{count: 2, where: "answered", cause: "answered", result: "NXDOMAIN"},
			{count: 2, where: "client", cause: "client-gone|answer-too-late"}},
	},

	// Real programs.
	{
		name: "glibc, a truncated answer for each family", only: 4, label: "tc", ask: askGlibc, wait: 4 * time.Second,
		// It closes its socket when the first answer was truncated, and asks over TCP: the other answer may find none.
		truths: []truth{
			{count: 2, transport: "udp", where: "answered|client", cause: "answered|client-gone", result: "NOERROR"},
			{count: 2, transport: "tcp", where: "answered", cause: "answered"},
		},
	},
	{name: "dnsmasq in the pod: no fault", truths: fine, inject: withDnsmasq, ask: digAt(loopback, true)},
	{
		name: "dnsmasq in the pod: upstream silent", label: "silent", inject: withDnsmasq, ask: digAt(loopback, false),
		truths: silentBehind,
	},
	{
		name: "dnsmasq in the pod: upstream silent, the client waits", label: "silent", inject: withDnsmasq,
		ask: digAt(loopback, true, "+time=8"), wait: 8 * time.Second, truths: failedBehind("timeout"),
	},
	{
		name: "dnsmasq in the pod: upstream fails", label: "servfail", inject: withDnsmasq, ask: digAt(loopback, true),
		truths: failedBehind("server-failure"),
	},
	{name: "a label at a time: no fault", truths: fine, inject: withUnbound, ask: below(digAt(secondServer, true))},
	{
		name: "a label at a time: upstream silent", label: "silent", truths: one("upstream", "timeout"), inject: withUnbound,
		ask: below(digAt(secondServer, false, "+time=4")), wait: 4 * time.Second,
	},
	{name: "behind a load balancer (PROXY protocol)", truths: fine, inject: withProxyProtocol, ask: askProxied},
	{name: "behind a load balancer (PROXY protocol), TCP", truths: fine, inject: withProxyProtocol,
		ask: askProxiedTCP(2, true)},
	{name: "behind a load balancer (PROXY protocol), TCP, a byte at a time", truths: fine, inject: withProxyProtocol,
		ask: askProxiedTCP(2, false)},
	// A line that comes in pieces CoreDNS does not take: it closes the connection.
	{name: "behind a load balancer (PROXY protocol, version 1)", truths: fine, inject: withProxyProtocol,
		ask: askProxiedTCP(1, true)},
	{
		name: "CoreDNS's health checks of a dead upstream", label: "dead-upstream", ask: askProbed, wait: 14 * time.Second,
		truths: []truth{{where: "upstream", cause: "timeout|neighbour-unresolved", text: []string{"192.168.100.201"}}},
	},

	// One port for all.
	{
		name: "asked again after REFUSED, from the same port with the same ID", label: "refused", wait: 12 * time.Second,
		truths: []truth{{where: "upstream", cause: "refused", result: "REFUSED", attempts: 2}},
		ask:    inOneEpoch(askFixed(service, 5002, 2, func(int) uint16 { return 2 }, 2500*time.Millisecond)),
	},
	{
		name: "one port, a new ID each time", truths: many(8),
		ask: askFixed(service, 5000, 8, func(i int) uint16 { return uint16(i + 1) }, 100*time.Millisecond),
	},
	{
		name: "one port and one ID", truths: []truth{{where: "answered", cause: "answered",
			attempts: 8}}, wait: 12 * time.Second,
		ask: inOneEpoch(askFixed(service, 5001, 8, func(int) uint16 { return 1 }, 300*time.Millisecond)),
	},
	{
		name: "asked again as long as the give-up later", truths: []truth{{where: "answered",
			cause: "answered|answered-after-all", attempts: 2}}, wait: 17 * time.Second,
		ask: inOneEpoch(askAfterGiveUp),
	},

	// What the client sees and does.
	{
		name: "query that waited for a neighbor", only: 4, truths: []truth{{where: "answered", cause: "answered",
			process: "dig", atLeast: 300 * time.Millisecond}},
		ask: askSlowNeighbor, wait: 5 * time.Second,
	},
	{name: "no packet: no route, connected", truths: noWay, inject: noPodRoute, ask: askInVain},
	{name: "no packet: no route", truths: noWay, inject: noPodRoute, ask: sendInVain},
	{name: "no packet: unreachable route", truths: noWay, inject: podRoute("unreachable"), ask: sendInVain},
	{name: "no packet: blackhole route", truths: noWay, inject: podRoute("blackhole"), ask: sendInVain},
	{name: "no packet: prohibit route", truths: noWay, inject: podRoute("prohibit"), ask: sendInVain},
	{
		// A program at the process's cgroup may have refused it as well: connect(2) tells, and that is out of sight.
		name: "no packet: no local port", inject: noPort, ask: askInVain,
		truths: []truth{{where: "client", cause: "not-sent|no-port", blank: true, text: []string{"no local port is free"},
			unsaid: []string{"no route"}}},
	},
	{name: "unread query of a server that is killed", truths: one("coredns-socket", "not-read"), ask: askUnread,
		wait: 12 * time.Second},

	// Odd messages.
	{name: "odd: no question", truths: oddly("FORMERR"),
		ask: askOdd(odd(func(m *dns.Msg) { m.Question = nil; withCookie(m) }))},
	{name: "odd: two questions", truths: oddly("FORMERR"),
		ask: askOdd(odd(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }))},
	{name: "odd: cut short", truths: oddly("FORMERR"), ask: askOdd(cutShort)},
	{name: "odd: opcode STATUS", truths: oddly("NOTIMP"), ask: askOdd(opcode(dns.OpcodeStatus, dns.TypeA))},
	{name: "odd: opcode IQUERY", truths: oddly("NOTIMP"), ask: askOdd(opcode(dns.OpcodeIQuery, dns.TypeA))},
	{name: "odd: opcode of stateful operations", truths: oddly("NOTIMP"), ask: askOdd(opcode(6, dns.TypeA))},
	{name: "odd: opcode UPDATE", truths: oddly("NOTIMP"), ask: askOdd(opcode(dns.OpcodeUpdate, dns.TypeSOA))},
	{name: "odd: opcode NOTIFY", truths: oddly("NOERROR|NOTIMP|REFUSED|SERVFAIL"),
		ask: askOdd(opcode(dns.OpcodeNotify, dns.TypeSOA))},
	{
		name: "odd: EDNS version 3", truths: oddly("BADVERS"),
		ask: askOdd(odd(func(m *dns.Msg) { m.SetEdns0(dns.DefaultMsgSize, false); m.IsEdns0().SetVersion(3) })),
	},
	{name: "odd: class CHAOS", truths: oddly("NOERROR|NXDOMAIN|REFUSED|NOTIMP"),
		ask: askOdd(odd(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }))},

	// What is legal and rare.
	{name: "mixed case in the name", truths: fine, ask: askMixedCase},
	{name: "IPv6 socket, service over IPv4", truths: fine, only: 4, ask: askOverBoth},
	{name: "from port 53", truths: many(2), ask: askFixed(service, 53, 2, func(i int) uint16 { return uint16(i + 1) },
		100*time.Millisecond)},
	{
		name: "the same asked twice at once", ask: inOneEpoch(askTwiceAtOnce), wait: 12 * time.Second,
		truths: []truth{{where: "answered", cause: "answered", attempts: 2}},
	},
	{
		name: "dropped, asked again from the same port", ask: inOneEpoch(askAfterDrop(true)), wait: 12 * time.Second,
		truths: []truth{{where: "answered", cause: "answered|answered-after-all", attempts: 2}},
	},
	{
		name: "dropped, asked again from another port", ask: askAfterDrop(false), wait: 5 * time.Second,
		truths: []truth{answered, {where: "node", cause: "policy-drop", certain: must}},
	},
	{
		name: "a server that is not there, then the next", ask: askNextServer, wait: 5 * time.Second,
		truths: []truth{answered, {where: "coredns-socket", cause: "no-listener"}},
	},
	{
		name: "rejected in forward, client's node", inject: rejects(clientNode, "forward", ""), ask: askRejected,
		truths: []truth{{where: "node", cause: "rejected|policy-drop", certain: must, unsaid: []string{"no endpoints"}}},
	},
	{
		name: "rejected in forward, CoreDNS's node", inject: rejects(serverNode, "forward",
			""), ask: askRejected, not: sameNode,
		// The agent there is sure where it has seen a server read what is sent to that address: else it may be a service's.
		in:     map[setting][]truth{inApart: {{where: "node", cause: "rejected", unsaid: []string{"no endpoints"}}}},
		truths: []truth{{where: "node", cause: "rejected|policy-drop", certain: must, unsaid: []string{"no endpoints"}}},
	},
	{
		name: "rejected as prohibited on local output", inject: rejects(client, "output",
			"admin-prohibited"), ask: askRejected,
		truths: []truth{{where: "client", cause: "rejected|policy-drop", certain: must, unsaid: []string{"no endpoints"}}},
	},
	{
		name: "rejected on input in the CoreDNS pod", inject: rejects(server, "input", ""), ask: askRejected,
		truths: []truth{{where: "coredns-socket", cause: "rejected|policy-drop"}},
	},
	{name: "NodeLocal DNSCache, untracked: no fault", truths: fine, inject: withNodeLocal(untracked),
		ask: digAt(localCache, true)},
	{
		name: "NodeLocal DNSCache: the upstream silent", label: "silent", inject: withNodeLocal(noMore),
		ask:    digAt(localCache, true, "+time=8"),
		wait:   8 * time.Second,
		truths: []truth{{where: "upstream", cause: "timeout", result: "SERVFAIL"}},
	},
	{
		name: "conntrack entry deleted before the answer", label: "delay-1000ms", ask: forgetMeanwhile, wait: 5 * time.Second,
		truths: []truth{{where: "client", cause: "unexpected-source", text: []string{"deleted"}}},
	},
	{
		name: "CoreDNS's node filters by the reverse path", only: 4, not: sameNode, inject: asymmetric,
		truths: certainly("node", "rp-filter"),
	},
	{
		name: "TCP: large answers lost between the nodes", label: "size-4000", not: oneNode,
		ask:    digAt(service, false, "+tcp"),
		truths: certainly("return-path", "policy-drop"), in: map[setting][]truth{inApart: unreturned("not-seen-further")},
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(
				lab.DropRule{Hook: lab.Switched, Proto: tcp, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), MinLength: 600})
		},
	},
	{
		name: "TCP: closed before the query", truths: one("coredns-socket", "closed"), ask: askClosedTCP,
		wait: 5 * time.Second,
	},
	{
		name: "CoreDNS's pod asks the service, and itself", truths: fine, ask: askItself,
		not: map[setting]string{inApart: "the agent that is asked by its socket is that of the other node"},
	},
	{name: "two CoreDNS on one port, one stopped", tries: true, reverts: true, inject: twoOnOnePort, ask: askOneOfTwo,
		wait: 40 * time.Second},

	// What the server does.
	{name: "forward at its limit", label: "delay-1500ms.limit", wait: 5 * time.Second, ask: askAtLimit, truths: []truth{
		named("first"), {name: "more", count: 3, where: "coredns", cause: "refused", result: "REFUSED", by: onlyObserve},
		{name: "more", count: 3, where: "coredns", cause: "refused", result: "REFUSED", text: []string{"limit"},
			by: onlyStore},
	}},
	{name: "cached failure", wait: 4 * time.Second, ask: askCachedFailure, truths: []truth{
		{where: "upstream", cause: "server-failure", result: "SERVFAIL"},
		{where: "coredns", cause: "server-failure", result: "SERVFAIL", by: onlyObserve},
		{where: "coredns", cause: "server-failure", result: "SERVFAIL", text: []string{"cache"}, by: onlyStore},
	}},
	{
		name: "CoreDNS without CPU for a while", inject: stopped, ask: askMeanwhile, wait: 4 * time.Second,
		truths: []truth{{where: "answered", cause: "answered", mostly: "DNS server's socket", atLeast: noCPU / 2}},
	},
	{name: "upstream silent, the client waits", label: "silent", ask: digAt(service, true, "+time=8"),
		wait: 8 * time.Second, truths: []truth{
			{where: "upstream", cause: "timeout", result: "SERVFAIL", text: []string{"192.168.100.53"}},
		}},
	{name: "renamed for the upstream: no fault", label: "renamed", truths: fine},
	{name: "renamed for the upstream: silent", label: "renamed-silent", ask: digAt(service, true, "+time=8"),
		wait: 8 * time.Second, truths: []truth{
			{where: "upstream", cause: "timeout", result: "SERVFAIL", text: []string{"192.168.100.53"}},
		}},
	{name: "renamed for the upstream: fails", label: "renamed-servfail",
		truths: []truth{{where: "upstream", cause: "server-failure", result: "SERVFAIL"}}},
	{name: "CNAME whose target's server is silent", label: "alias", ask: digAt(service, true, "+time=8"),
		wait: 8 * time.Second, truths: []truth{
			{where: "upstream|answered", cause: "timeout|answered", result: "SERVFAIL|NOERROR"},
		}},
	{name: "upstream that nobody is, the client gone", label: "dead-upstream", ask: digAt(service, false, "+time=1"),
		truths: []truth{
			{where: "upstream", cause: "timeout|neighbour-unresolved|dead-endpoint", text: []string{"192.168.100.201"}},
		}},
	{name: "upstream without a route", label: "no-route", inject: noServerRoute, ask: digAt(service, true, "+time=8"),
		wait: 8 * time.Second, truths: []truth{
			// No packet leaves: CoreDNS alone knows.
			{where: "coredns|upstream", cause: "*", result: "SERVFAIL", certain: mustNot, by: onlyObserve},
			{where: "upstream", cause: "*", result: "SERVFAIL", text: []string{"192.0.2.53"}, by: onlyStore},
		}},
}

// named is the truth of a lookup without a fault, of a name.
func named(name string) truth {
	t := answered
	t.name = name
	return t
}
