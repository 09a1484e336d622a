package main

// rare is what networks and clients do now and then, of kinds that nobody reported.
var rare = []fault{
	// Lost, and mended by who sends it again.
	{name: "TCP: the query's segment lost, sent again", truths: fine, ask: askLostSegment(true)},
	{name: "TCP: the answer's segment lost, sent again", truths: fine, ask: askLostSegment(false)},
	{name: "TCP of several paths (MPTCP)", truths: fine, ask: askMultipath},

	// Lost for causes of the network.
	{
		name: "answer larger than a device takes", label: "size-1400", buffer: 4096, not: oneNode, inject: smallDevice,
		truths: certainly("return-path", "too-big"),
	},
	{
		name: "hop limit too low", ask: askNear, not: map[setting]string{inTogether: "no router is on the way"},
		truths: []truth{{where: "node", cause: "hop-limit", text: []string{"hop limit"},
			unsaid: []string{"network policy", "no endpoints"}}},
	},
	{
		name: "a wrong checksum", ask: askCorrupt,
		truths: certainly("coredns-socket", "bad-checksum"),
	},
	{
		name: "queue of the node's device full", not: oneNode, inject: fullQueue,
		truths: certainly("node", "queue-full"),
	},
	{
		name: "device of CoreDNS's pod is down", inject: deadDevice,
		truths: []truth{{where: "node", cause: "*", unsaid: []string{"network policy", "tunnel"}}},
	},

	// Policies of a cgroup.
	{
		name: "dropped by the cgroup's policy", inject: cgroupPolicy(false), ask: digAt(service, false),
		truths: certainly("client", "policy-drop"),
	},
	{
		name: "answer dropped by the cgroup's policy", inject: cgroupPolicy(true),
		truths: certainly("return-path", "policy-drop"),
	},

	// Ways to send and to read.
	{name: "peeked at, then read", truths: fine, ask: askPeek(true)},
	{name: "peeked at, never read", truths: fine, ask: askPeek(false)},
	{name: "two answers read in one call", truths: many(2), ask: askBatch},
}
