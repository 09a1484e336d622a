package main

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// fault is one row of the matrix: how it is made, and what is true of the lookups that are made into it.
type fault struct {
	name string
	// truths are those of the lookups that the client makes, one for each or for several alike; in has those of a setting
	// in which they are others.
	truths []truth
	in     map[setting][]truth
	// not says of each setting that it cannot be made in why.
	not map[setting]string
	// core are the settings in which go test makes it, too.
	core setting
	// label is put before the name that is asked: what the upstream does with it, or which zone of CoreDNS it is in.
	label string
	// linked says that there is to be one trace alone, with CoreDNS's span below the client's, though CoreDNS was asked by
	// another address.
	linked bool
	// hostNetwork asks from a process in the client's node's own network, as a pod with hostNetwork does.
	hostNetwork bool
	// overlay is the way of the packets between the nodes.
	overlay lab.Overlay
	// only is 4 or 6 where the fault is of one family, else 0.
	only int
	// wait is how long the client waits for its answer, two seconds if 0.
	wait time.Duration
	// inject makes the fault. The undo may be nil.
	inject func(*scene, family) (lab.Undo, error)
	// ask makes the lookups in another way than with dig. It may give what is true of them, where that is known only then.
	ask func(*scene, family, string) ([]truth, error)
	// tries says that ask gives what is true, and that nothing is judged before it has ended.
	tries bool
	// reverts says that the lookup gets an answer when the fault is taken back: what was said before that counts.
	reverts bool
	// probes says that CoreDNS's own questions, by which it looks whether an upstream is well, count.
	probes bool
	// buffer is the size of answers that dig says it takes, its own default if 0.
	buffer int
	// tcp asks over TCP.
	tcp bool
}

const (
	udp = unix.IPPROTO_UDP
	tcp = unix.IPPROTO_TCP
)

// one is the truth of one lookup.
func one(where, cause string) []truth { return []truth{{where: where, cause: cause}} }

// certainly is the truth of one lookup, of which it is known.
func certainly(where, cause string) []truth {
	return []truth{{where: where, cause: cause, certain: must}}
}

// unreturned is the truth of one lookup whose answer was lost where no agent looks.
func unreturned(cause string) []truth {
	return []truth{{where: "return-path", cause: cause, certain: mustNot}}
}

// vanished is the truth of one lookup whose query was lost where no agent looks.
var vanished = []truth{{where: "between-nodes", cause: "no-reply-seen", among: "not-seen-further", certain: mustNot}}

var (
	oneNode     = map[setting]string{inTogether: "nothing goes from node to node"}
	sameNode    = map[setting]string{inTogether: "the client's node and CoreDNS's are one: see the row of the other"}
	noTunnel    = map[setting]string{inTogether: "nothing goes through the tunnel"}
	fine        = []truth{answered}
	switchLost  = map[setting][]truth{inApart: vanished}
	switchDrops = certainly("between-nodes", "policy-drop")
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
		return in(s).Drop(lab.DropRule{Hook: lab.Forward, Proto: udp, SrcPort: 53,
			Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)})
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

func clientNode(s *scene) *lab.Namespace { return s.client.Node.Namespace }
func serverNode(s *scene) *lab.Namespace { return s.cluster.DNS.Node.Namespace }
func client(s *scene) *lab.Namespace     { return s.client.Namespace }
func server(s *scene) *lab.Namespace     { return s.cluster.DNS.Namespace }
func underlay(s *scene) *lab.Namespace   { return s.cluster.Underlay }

// matrix is the whole list.
var matrix = slices.Concat(basic, field, rare, hostile)

// basic is what can happen to a lookup in one place after the other.
var basic = []fault{
	{name: "no fault", truths: fine, core: everywhere},
	{name: "no fault, TCP", truths: fine, tcp: true, core: inHost | inApart},
	{name: "answered through masquerade", truths: fine, inject: masquerade, linked: true, core: inHost | inApart},

	// The query on its way.
	{
		name: "drop on local output of the client", truths: certainly("client", "policy-drop"), core: inHost | inApart,
		inject: drop(client, lab.DropRule{Hook: lab.Output, Proto: udp, DstPort: 53}),
	},
	{
		name: "policy drop in forward, client's node", truths: certainly("node", "policy-drop"), core: everywhere,
		inject: drop(clientNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name:   "policy drop in forward, CoreDNS's node",
		truths: certainly("node", "policy-drop"), core: inHost | inApart, not: sameNode,
		inject: drop(serverNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name: "drop on input in the CoreDNS pod", truths: certainly("coredns-socket", "policy-drop"), core: inHost | inApart,
		inject: drop(server, lab.DropRule{Hook: lab.Input, Proto: udp, DstPort: 53}),
	},
	{
		name: "firewall between the nodes, UDP 53 only", truths: switchDrops, in: switchLost, not: oneNode, core: inApart,
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(
				lab.DropRule{Hook: lab.Switched, Proto: udp, DstPort: 53, Dst: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)})
		},
	},
	{
		name: "firewall between the nodes, answers only", truths: certainly("return-path", "policy-drop"),
		in: map[setting][]truth{inApart: unreturned("not-seen-further")}, not: oneNode, core: inApart,
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(
				lab.DropRule{Hook: lab.Switched, Proto: udp, SrcPort: 53, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6)})
		},
	},
	{
		name: "no route to the pods of the other node", not: oneNode, core: inHost, inject: noRoute,
		truths: []truth{{where: "node", cause: "no-route", certain: mustOver4}},
	},
	{
		name: "neighbor unresolved, at the client", truths: certainly("client", "neighbour-unresolved"), core: inHost,
		inject: deadNeighbourInPod, wait: 4 * time.Second,
	},
	{
		name: "neighbor unresolved, at the client's node", truths: certainly("node", "neighbour-unresolved"), core: inHost,
		inject: deadNeighbourOnNode, wait: 4 * time.Second, not: oneNode,
	},
	{name: "service without endpoints (reject)", truths: one("service", "no-endpoints"), core: inHost,
		inject: noEndpoints},
	{name: "service without any rule", truths: one("service", "not-translated"), core: inHost, inject: noRules},
	{name: "stale endpoint", truths: one("service", "dead-endpoint"), core: inHost, inject: staleEndpoint,
		wait: 4 * time.Second},
	{name: "connection tracking full", truths: certainly("service", "conntrack-full"), core: inHost,
		inject: conntrackFull},
	{
		name: "drop in the raw table, client's node", truths: certainly("node", "policy-drop"), core: inHost,
		inject: drop(clientNode, lab.DropRule{Hook: lab.Raw, Proto: udp, DstPort: 53}),
	},
	{
		name: "parallel A and AAAA, insert race", truths: []truth{raceTruth}, core: inHost, wait: raceLimit,
		inject: insertRace, ask: askParallel, tries: true,
	},

	// The server.
	{name: "CoreDNS not listening", truths: certainly("coredns-socket", "no-listener"), core: inHost,
		inject: notListening},
	{
		name: "CoreDNS stopped (SIGSTOP)", truths: one("coredns-socket", "not-read"), core: inHost | inApart,
		inject: stopped, reverts: true,
	},
	{
		name:   "CoreDNS continued, the client had given up",
		truths: certainly("client", "answer-too-late"), core: inHost, wait: continueAfter,
		inject: stopped, ask: giveUpAndContinue,
	},
	{name: "CoreDNS's receive buffer full", truths: certainly("coredns-socket", "receive-buffer-full"), core: inHost,
		inject: bufferFull, reverts: true},
	{name: "query dropped inside CoreDNS (acl drop)", truths: one("coredns", "no-answer"), core: inHost | inApart,
		label: "acl-drop"},
	{name: "query dropped inside CoreDNS (erratic)", truths: one("coredns", "no-answer"), core: inHost, label: "erratic"},
	// CoreDNS fails after two seconds: a client that waits as long may have that answer in its socket when it gives up.
	{name: "upstream silent", truths: one("upstream", "timeout"), core: inHost, label: "silent", wait: time.Second},
	{name: "upstream refuses", truths: []truth{{where: "upstream", cause: "refused", result: "REFUSED"}}, core: inHost,
		label: "refused"},
	{name: "upstream fails (SERVFAIL)", truths: []truth{{where: "upstream", cause: "server-failure", result: "SERVFAIL"}},
		core: inHost, label: "servfail"},
	{name: "upstream answers with a wrong ID", truths: one("upstream", "timeout"), core: inHost, label: "wrong-id"},

	// The answer on its way.
	{name: "answer dropped on CoreDNS's node", truths: certainly("return-path", "policy-drop"), core: inHost | inApart,
		inject: dropAnswers(serverNode)},
	{name: "answer dropped on the client's node", truths: certainly("return-path", "policy-drop"), core: inHost,
		not: sameNode, inject: dropAnswers(clientNode)},
	{name: "answer later than the client waited", truths: certainly("client", "answer-too-late"), core: inHost,
		label: "delay-1500ms", wait: time.Second},
	{name: "client's socket gone", truths: one("client", "client-gone"), core: inHost, label: "delay-300ms",
		ask: askAndClose},
	{
		name:   "large answer dropped, small ones pass",
		truths: certainly("return-path", "policy-drop"), core: inApart, label: "size-1100", not: oneNode,
		in: map[setting][]truth{inApart: unreturned("not-seen-further")},
		inject: func(s *scene, f family) (lab.Undo, error) {
			return s.cluster.Underlay.Drop(
				lab.DropRule{Hook: lab.Switched, Proto: udp, Src: pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), MinLength: 600})
		},
	},
	{name: "no fault, answer in fragments", truths: fine, core: inHost, label: "size-4000", buffer: 4096},
	{
		name:   "a fragment of the answer dropped, switch",
		truths: certainly("return-path", "fragment-lost"), core: inHost | inApart, label: "size-4000", buffer: 4096,
		in: map[setting][]truth{inApart: unreturned("fragment-lost")}, not: oneNode,
		inject: dropFragments(underlay, lab.Switched),
	},
	{
		name:   "a fragment of the answer dropped, node",
		truths: certainly("return-path", "fragment-lost"), core: inHost, label: "size-4000", buffer: 4096,
		inject: dropFragments(clientNode, lab.Prerouting),
	},
	{
		name:   "answer in fragments, dropped whole",
		truths: certainly("return-path", "policy-drop"), core: inHost, label: "size-4000", buffer: 4096,
		inject: dropAnswers(clientNode),
	},
	{
		name: "truncated answer, TCP 53 blocked", core: inHost, label: "tc", wait: 3 * time.Second,
		// The TCP query never was sent: the store knows of it only in the trace of the answer that did not fit, and what
		// became of it is what became of the lookup.
		truths: []truth{
			{where: "node", cause: "policy-drop", transport: "tcp", by: onlyObserve},
			{where: "answered", cause: "answered", transport: "udp", by: onlyObserve},
			{where: "node", cause: "policy-drop", by: onlyStore},
		},
		inject: drop(clientNode, lab.DropRule{Hook: lab.Forward, Proto: tcp, DstPort: 53}),
	},
	{name: "reply from an address that was not asked", truths: certainly("client", "unexpected-source"), core: inHost,
		ask: askOddServer},

	// From the host network.
	{name: "host network: no fault", truths: fine, core: inHost | inApart, hostNetwork: true},
	{name: "host network: no fault, TCP", truths: fine, core: inHost, tcp: true, hostNetwork: true},
	{
		name:   "host network: drop on local output",
		truths: certainly("client", "policy-drop"), core: inHost, hostNetwork: true,
		inject: drop(clientNode, lab.DropRule{Hook: lab.Output, Proto: udp, DstPort: 53}),
	},
	{
		name:   "host network: policy drop, CoreDNS's node",
		truths: certainly("node", "policy-drop"), core: inHost, hostNetwork: true, not: oneNode,
		inject: drop(serverNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{name: "host network: service without endpoints", truths: one("service", "no-endpoints"), core: inHost,
		hostNetwork: true, inject: noEndpoints},
	{
		name:   "host network: answer dropped on input",
		truths: certainly("return-path", "policy-drop"), core: inHost, hostNetwork: true,
		inject: drop(clientNode, lab.DropRule{Hook: lab.Input, Proto: udp, SrcPort: 53}),
	},
	{name: "host network: client's socket gone", truths: one("client", "client-gone"), core: inHost, label: "delay-300ms",
		hostNetwork: true, ask: askOnNodeAndClose},

	// Through an overlay.
	{name: "no fault, through VXLAN", truths: fine, core: inHost, not: noTunnel, overlay: lab.VXLAN},
	{
		name:   "VXLAN: policy drop in forward, CoreDNS's node",
		truths: certainly("node", "policy-drop"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: drop(serverNode, lab.DropRule{Hook: lab.Forward, Proto: udp, DstPort: 53}),
	},
	{
		name:   "VXLAN: its packets dropped, leaving",
		truths: certainly("node", "policy-drop"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: dropTunnel(clientNode, lab.Output),
	},
	{
		name:   "VXLAN: its packets dropped, arriving",
		truths: certainly("node", "policy-drop"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: dropTunnel(serverNode, lab.Input),
	},
	{
		name:   "VXLAN: its packets dropped, coming back",
		truths: certainly("return-path", "policy-drop"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: dropTunnel(serverNode, lab.Output),
	},
	{
		name:   "VXLAN: the device on CoreDNS's node is gone",
		truths: one("node", "tunnel"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: func(s *scene, _ family) (lab.Undo, error) { return s.cluster.DNS.Node.WithoutVXLAN() },
	},
	{
		name:   "VXLAN: does not know CoreDNS's node",
		truths: one("node", "tunnel"), core: inHost, not: noTunnel, overlay: lab.VXLAN,
		inject: func(s *scene, _ family) (lab.Undo, error) {
			return s.client.Node.ForgetNode(s.cluster.DNS.Node)
		},
	},
	{
		name: "VXLAN: firewall between the nodes, its port only", truths: switchDrops, in: switchLost, core: inApart,
		not: noTunnel, overlay: lab.VXLAN,
		inject: dropTunnel(underlay, lab.Switched),
	},
}
