package main

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// fault is one row of the matrix.
type fault struct {
	name string
	// where and cause are what is true.
	where, cause string
	// label is put before the name that is asked: what the upstream does with it, or which zone of CoreDNS it is in.
	label string
	// certainty is what the verdict is to be called, certain or inferred, where it matters.
	certainty string
	// linked says that there is to be one trace alone, with CoreDNS's span below the client's, and CoreDNS to have been asked by the client's node.
	linked bool
	// perNode runs one agent a node, each confined to its node: for what happens where no agent looks.
	perNode bool
	// hostNetwork asks from a process in the client's node's own network, as a pod with hostNetwork does.
	hostNetwork bool
	// overlay is the way of the packets between the nodes.
	overlay lab.Overlay
	// only is 4 or 6 where the fault is of one family, else 0.
	only int
	// wait is how long the client waits for its answer, two seconds if 0; late is how much longer the verdict may take than the client.
	wait, late time.Duration
	// inject makes the fault. The undo may be nil.
	inject func(*scene, family) (lab.Undo, error)
	// ask makes the lookup in another way than with dig, and says which query it was.
	ask func(*scene, family, string) (question, error)
	// tries says that ask may make several, and that nothing is judged before it has ended.
	tries bool
	// buffer is the size of answers that dig says it takes, its own default if 0.
	buffer int
	// tcp asks over TCP.
	tcp bool
	// retried says that it is the client's second try, over TCP after a truncated answer, that is judged.
	retried bool
	// answered says that an answer comes: it is the answer that is wrong.
	answered bool
}

const (
	udp = unix.IPPROTO_UDP
	tcp = unix.IPPROTO_TCP
)

func drop(in func(*scene) *lab.Namespace, r lab.DropRule) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		r.IPv4, r.IPv6 = f.v4(), !f.v4()
		return in(s).Drop(r)
	}
}

// dropAnswers drops CoreDNS's answers, not those of its upstream.
func dropAnswers(in func(*scene) *lab.Namespace) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		return in(s).Drop(lab.DropRule{Hook: lab.Forward, Proto: udp, SrcPort: 53, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)})
	}
}

// dropFragments drops the later fragments of CoreDNS's answers.
func dropFragments(in func(*scene) *lab.Namespace, hook lab.Hook) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, f family) (lab.Undo, error) {
		return in(s).Drop(lab.DropRule{Hook: hook, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), LaterFragments: true})
	}
}

// dropTunnel drops the tunnel's packets, which are IPv4 whatever is in them.
func dropTunnel(in func(*scene) *lab.Namespace, hook lab.Hook) func(*scene, family) (lab.Undo, error) {
	return func(s *scene, _ family) (lab.Undo, error) {
		return in(s).Drop(lab.DropRule{Hook: hook, Proto: udp, DstPort: lab.VXLANPort})
	}
}

func node1(s *scene) *lab.Namespace  { return s.cluster.Node("node-1").Namespace }
func node2(s *scene) *lab.Namespace  { return s.cluster.Node("node-2").Namespace }
func client(s *scene) *lab.Namespace { return s.client.Namespace }
func server(s *scene) *lab.Namespace { return s.cluster.DNS.Namespace }

var matrix = []fault{
	{name: "no fault", where: "answered", cause: "answered", answered: true},
	{name: "no fault, TCP", where: "answered", cause: "answered", tcp: true, answered: true},

	{name: "answered through masquerade", where: "answered", cause: "answered", inject: masquerade, linked: true, answered: true},
	{name: "answered through masquerade, agents apart", where: "answered", cause: "answered", inject: masquerade, linked: true, answered: true, perNode: true, late: 2 * time.Second},
	{
		name: "drop on local output of the client", where: "client", cause: "policy-drop",
		inject: drop(client, lab.DropRule{Hook: lab.Output, Proto: udp, DstPort: 53}),
	},
	{
		name: "policy drop in forward, client's node", where: "node", cause: "policy-drop",
		inject: drop(node1, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name: "policy drop in forward, CoreDNS's node", where: "node", cause: "policy-drop",
		inject: drop(node2, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name: "drop on input in the CoreDNS pod", where: "coredns-socket", cause: "policy-drop",
		inject: drop(server, lab.DropRule{Hook: lab.Input, Proto: udp, DstPort: 53}),
	},
	{
		name: "firewall between the nodes, UDP 53 only", where: "between-nodes", cause: "no-reply-seen", perNode: true, late: 5 * time.Second,
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(lab.DropRule{Hook: lab.Switched, Proto: udp, DstPort: 53, Dst: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)})
		},
	},
	{name: "no route to the pods of the other node", where: "node", cause: "no-route", inject: noRoute},
	{name: "neighbor unresolved, at the client", where: "client", cause: "neighbour-unresolved", inject: deadNeighbourInPod, wait: 4 * time.Second},
	{name: "neighbor unresolved, at the client's node", where: "node", cause: "neighbour-unresolved", inject: deadNeighbourOnNode, wait: 4 * time.Second},
	{name: "service without endpoints (reject)", where: "service", cause: "no-endpoints", inject: noEndpoints},
	{name: "service without any rule", where: "service", cause: "not-translated", inject: noRules, late: 5 * time.Second},
	{name: "stale endpoint", where: "service", cause: "dead-endpoint", inject: staleEndpoint, wait: 4 * time.Second, late: 2 * time.Second},
	{name: "CoreDNS not listening", where: "coredns-socket", cause: "no-listener", inject: notListening},
	{name: "CoreDNS stopped (SIGSTOP)", where: "coredns-socket", cause: "not-read", inject: stopped, late: 5 * time.Second},
	{
		name: "CoreDNS continued, the client had given up", where: "client", cause: "answer-too-late", wait: continueAfter, late: 2 * time.Second,
		inject: stopped, ask: giveUpAndContinue, certainty: "certain",
	},
	{name: "CoreDNS's receive buffer full", where: "coredns-socket", cause: "receive-buffer-full", inject: bufferFull},
	{name: "query dropped inside CoreDNS (acl drop)", where: "coredns", cause: "no-answer", label: "acl-drop", late: 5 * time.Second},
	{name: "query dropped inside CoreDNS (erratic)", where: "coredns", cause: "no-answer", label: "erratic", late: 5 * time.Second},
	{name: "upstream silent", where: "upstream", cause: "timeout", label: "silent", late: 5 * time.Second},
	{name: "upstream refuses", where: "upstream", cause: "refused", label: "refused", answered: true},
	{name: "upstream fails (SERVFAIL)", where: "upstream", cause: "server-failure", label: "servfail", answered: true},
	{name: "upstream answers with a wrong ID", where: "upstream", cause: "timeout", label: "wrong-id", late: 5 * time.Second},
	{
		name: "answer dropped on CoreDNS's node", where: "return-path", cause: "policy-drop",
		inject: dropAnswers(node2),
	},
	{
		name: "answer dropped on the client's node", where: "return-path", cause: "policy-drop",
		inject: dropAnswers(node1),
	},
	{name: "answer later than the client waited", where: "client", cause: "answer-too-late", label: "delay-1500ms", wait: time.Second, late: 2 * time.Second},
	{name: "client's socket gone", where: "client", cause: "client-gone", label: "delay-300ms", ask: askAndClose},
	{
		name: "large answer dropped, small ones pass", where: "return-path", cause: "not-seen-further", label: "size-1100", perNode: true, late: 5 * time.Second,
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(lab.DropRule{Hook: lab.Switched, Proto: udp, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), MinLength: 600})
		},
	},
	{name: "no fault, answer in fragments", where: "answered", cause: "answered", label: "size-4000", buffer: 4096, answered: true},
	{
		name: "a fragment of the answer dropped, switch", where: "return-path", cause: "fragment-lost", label: "size-4000", buffer: 4096, certainty: "certain",
		inject: dropFragments(func(s *scene) *lab.Namespace { return s.cluster.Underlay }, lab.Switched),
	},
	{
		name: "a fragment of the answer dropped, node", where: "return-path", cause: "fragment-lost", label: "size-4000", buffer: 4096, certainty: "certain",
		inject: dropFragments(node1, lab.Prerouting),
	},
	{
		name: "answer in fragments, dropped whole", where: "return-path", cause: "policy-drop", label: "size-4000", buffer: 4096, certainty: "certain",
		inject: dropAnswers(node1),
	},
	{
		name: "a fragment of the answer lost, unseen", where: "return-path", cause: "fragment-lost", label: "size-4000", buffer: 4096, certainty: "inferred", perNode: true, late: 5 * time.Second,
		inject: dropFragments(func(s *scene) *lab.Namespace { return s.cluster.Underlay }, lab.Switched),
	},
	{
		name: "truncated answer, TCP 53 blocked", where: "node", cause: "policy-drop", label: "tc", retried: true,
		inject: drop(node1, lab.DropRule{Hook: lab.Forward, Proto: tcp, DstPort: 53}),
	},
	{name: "connection tracking full", where: "service", cause: "conntrack-full", certainty: "certain", inject: conntrackFull},
	{
		name: "drop in the raw table, client's node", where: "node", cause: "policy-drop", certainty: "certain",
		inject: drop(node1, lab.DropRule{Hook: lab.Raw, Proto: udp, DstPort: 53}),
	},
	{
		name: "parallel A and AAAA, insert race", where: "service", cause: "conntrack-insert-race", wait: raceLimit,
		inject: insertRace, ask: askParallel, tries: true, certainty: "certain",
	},
	{name: "reply from an address that was not asked", where: "client", cause: "unexpected-source", ask: askOddServer},

	{name: "host network: no fault", where: "answered", cause: "answered", answered: true, hostNetwork: true},
	{name: "host network: no fault, TCP", where: "answered", cause: "answered", tcp: true, answered: true, hostNetwork: true},
	{
		name: "host network: drop on local output", where: "client", cause: "policy-drop", hostNetwork: true,
		inject: drop(node1, lab.DropRule{Hook: lab.Output, Proto: udp, DstPort: 53}),
	},
	{
		name: "host network: policy drop, CoreDNS's node", where: "node", cause: "policy-drop", hostNetwork: true,
		inject: drop(node2, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{name: "host network: service without endpoints", where: "service", cause: "no-endpoints", hostNetwork: true, inject: noEndpoints},
	{
		name: "host network: answer dropped on input", where: "return-path", cause: "policy-drop", hostNetwork: true,
		inject: drop(node1, lab.DropRule{Hook: lab.Input, Proto: udp, SrcPort: 53}),
	},
	{name: "host network: client's socket gone", where: "client", cause: "client-gone", label: "delay-300ms", hostNetwork: true, ask: askOnNodeAndClose},

	{name: "no fault, through VXLAN", where: "answered", cause: "answered", answered: true, overlay: lab.VXLAN},
	{
		name: "VXLAN: policy drop in forward, CoreDNS's node", where: "node", cause: "policy-drop", overlay: lab.VXLAN,
		inject: drop(node2, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name: "VXLAN: its packets dropped, leaving", where: "node", cause: "policy-drop", overlay: lab.VXLAN,
		inject: dropTunnel(node1, lab.Output),
	},
	{
		name: "VXLAN: its packets dropped, arriving", where: "node", cause: "policy-drop", overlay: lab.VXLAN,
		inject: dropTunnel(node2, lab.Input),
	},
	{
		name: "VXLAN: its packets dropped, coming back", where: "return-path", cause: "policy-drop", overlay: lab.VXLAN,
		inject: dropTunnel(node2, lab.Output),
	},
	{
		name: "VXLAN: the device on CoreDNS's node is gone", where: "node", cause: "tunnel", overlay: lab.VXLAN,
		inject: func(s *scene, _ family) (lab.Undo, error) { return s.cluster.Node("node-2").WithoutVXLAN() },
	},
	{
		name: "VXLAN: does not know CoreDNS's node", where: "node", cause: "tunnel", overlay: lab.VXLAN,
		inject: func(s *scene, _ family) (lab.Undo, error) {
			return s.cluster.Node("node-1").ForgetNode(s.cluster.Node("node-2"))
		},
	},
	{
		name: "VXLAN: firewall between the nodes, its port only", where: "between-nodes", cause: "no-reply-seen", perNode: true, overlay: lab.VXLAN, late: 5 * time.Second,
		inject: dropTunnel(func(s *scene) *lab.Namespace { return s.cluster.Underlay }, lab.Switched),
	},
}
