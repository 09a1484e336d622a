// Package verdict says how a lookup ended: where, why, on what evidence, and whether that was seen or concluded. It is
// computed here, once, and shown in rows, spans and metrics.
//
// A false "lost" is worse than none: what this node could not see, a verdict says it could not see.
package verdict

import (
	"fmt"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Where is the stage at which a lookup ended: the one after the last hop that was seen.
type Where string

// The stages, in the order in which a lookup passes them: a service address is translated before the node routes the
// packet (netfilter's PREROUTING, or OUTPUT for a process of the node's own). What lies behind the way between the
// nodes is a node again.
const (
	Client        Where = "client"
	PodLink       Where = "pod-link"
	Service       Where = "service"
	Node          Where = "node"
	BetweenNodes  Where = "between-nodes"
	CoreDNSSocket Where = "coredns-socket"
	CoreDNS       Where = "coredns"
	Upstream      Where = "upstream"
	ReturnPath    Where = "return-path"
	Answered      Where = "answered"
)

// Cause is why it ended there, as one of a list of short words.
type Cause string

// The causes.
const (
	CauseAnswered     Cause = "answered"
	CauseCorrected    Cause = "answered-after-all"
	CauseTooLate      Cause = "answer-too-late"
	CausePolicyDrop   Cause = "policy-drop"
	CauseNoRoute      Cause = "no-route"
	CauseNeighbour    Cause = "neighbour-unresolved"
	CauseRPFilter     Cause = "rp-filter"
	CauseTooBig       Cause = "too-big"
	CauseFragment     Cause = "fragment-lost"
	CauseNoListener   Cause = "no-listener"
	CauseBufferFull   Cause = "receive-buffer-full"
	CauseSocketClosed Cause = "socket-closed"
	CauseClientGone   Cause = "client-gone"
	CauseQueueFull    Cause = "queue-full"
	CauseDropped      Cause = "dropped"
	CauseNotRead      Cause = "not-read"
	CauseNoAnswer     Cause = "no-answer"
	CauseRefused      Cause = "refused"
	CauseServerError  Cause = "server-failure"
	CauseTimeout      Cause = "timeout"
	CauseNoReply      Cause = "no-reply-seen"
	CauseVanished     Cause = "not-seen-further"
	CauseUntranslated Cause = "not-translated"
	CauseNoEndpoints  Cause = "no-endpoints"
	CauseDeadEndpoint Cause = "dead-endpoint"
	CauseInsertRace   Cause = "conntrack-insert-race"
	CauseConntrack    Cause = "conntrack-full"
	CauseRejected     Cause = "rejected"
	CauseWrongSource  Cause = "unexpected-source"
	CauseTunnel       Cause = "tunnel"
	CauseChecksum     Cause = "bad-checksum"
	// CauseHopLimit: it went through more routers than it may.
	CauseHopLimit Cause = "hop-limit"
	// CauseUnexpectedAnswer: what came to the client was no answer to its question.
	CauseUnexpectedAnswer Cause = "unexpected-answer"
	// CauseClosed: the server closed the TCP connection before it answered.
	CauseClosed Cause = "closed"
	// CauseNoPort: the client's socket got no local port.
	CauseNoPort Cause = "no-port"
	// CauseUnsent: a connection or send failed before there was a packet, for a reason that no other cause names.
	CauseUnsent Cause = "not-sent"
	// CausePortExhausted: source translation had no free port.
	CausePortExhausted Cause = "port-exhausted"
	CauseEvicted       Cause = "not-watched-to-the-end"
)

// Causes are all of them.
var Causes = []Cause{
	CauseAnswered, CauseCorrected, CauseTooLate, CausePolicyDrop, CauseNoRoute, CauseNeighbour, CauseRPFilter, CauseTooBig,
	CauseFragment, CauseNoListener, CauseBufferFull,
	CauseSocketClosed, CauseClientGone, CauseQueueFull, CauseDropped, CauseNotRead, CauseNoAnswer, CauseRefused,
	CauseServerError, CauseTimeout, CauseNoReply,
	CauseVanished, CauseUntranslated, CauseNoEndpoints, CauseDeadEndpoint, CauseInsertRace, CauseConntrack, CauseRejected,
	CauseWrongSource, CauseTunnel, CauseChecksum, CauseHopLimit, CauseEvicted,
	CauseUnexpectedAnswer, CauseClosed, CausePortExhausted, CauseNoPort, CauseUnsent,
}

// Verdict is how a lookup ended.
type Verdict struct {
	Where Where
	Cause Cause
	// Text is where and why as a sentence without its full stop; "" for an answer as it should be.
	Text string
	// Certain is true where what it says was seen, false where it was concluded.
	Certain bool
	// Evidence is what it rests on: hops, drop reasons, conntrack states.
	Evidence []string
	// Drop is the kernel's reason, where one decided; "" else. DropAt is where that was.
	Drop   string
	DropAt Spot
	// Replied says that the client got an answer, of whatever rcode: what the client got is one thing, and what failed
	// another.
	Replied bool
}

// Lost says that the client got no answer.
func (v *Verdict) Lost() bool { return v.Where != Answered && !v.Replied }

// Judge judges lookups. It remembers what it learns of the network: which namespaces forward packets, and which
// addresses are translated. It is for one goroutine.
type Judge struct {
	// ReadsSeen says that the hooks are attached that see a server read its socket: only then can a query be called
	// unread.
	ReadsSeen bool
	// Namespace tells whose a network namespace is. Nil knows none. It is asked of lost lookups only.
	Namespace func(netns uint32) Owner

	// Conntrack tells how many connections a network namespace tracked soon after a time (ns since 1970) and how many it
	// can; false if that cannot be had. Nil knows none. It is asked of dropped packets that nothing else explains, and
	// again whenever their lookup is judged anew.
	Conntrack func(netns uint32, after int64) (count, limit int, ok bool)

	nodes    map[uint32]bool         // namespaces that forward
	services map[hop.Endpoint]bool   // addresses that were seen translated
	podSide  map[device]bool         // devices of nodes by which packets come from pods
	tracks   map[uint32]bool         // namespaces that track connections of queries they forward
	homes    map[hop.Endpoint]uint32 // in which namespace a server reads what is sent to an address
	ownHomes map[ownHome]bool        // the same, of addresses that every namespace has for itself
	choices  map[chooser]*choices
	known    known
}

type device struct{ netns, ifindex uint32 }

// bounds of what a Judge remembers.
const (
	maxNodes    = 4096
	maxServices = 4096
	maxPodSide  = 16384
)

// clientNode gives the namespace of the node that the client's pod is on: the first one after the pod's own; 0 if it
// was not seen.
func (j *Judge) clientNode(l *lookup.Lookup) uint32 {
	if l.ClientNetNS == 0 {
		return 0
	}
	for i := range l.Hops {
		if h := &l.Hops[i]; isNodeOf(l, h) {
			return h.NetNS
		}
	}
	return 0
}

// isNodeOf says whether a hop is outside the namespace of the lookup's client: the first such one is on its node.
func isNodeOf(l *lookup.Lookup, h *hop.Hop) bool {
	return !h.Answer && h.NetNS != l.ClientNetNS && h.NetNS != 0 && h.Kind != hop.Unreachable
}

// Forwards tells the judge that a network namespace forwards packets: a node's. Others it learns from what it sees them
// forward.
func (j *Judge) Forwards(netns uint32) {
	j.init()
	j.nodes[netns] = true
}

func (j *Judge) init() {
	if j.nodes == nil {
		j.nodes, j.services = make(map[uint32]bool), make(map[hop.Endpoint]bool)
		j.podSide, j.tracks = make(map[device]bool), make(map[uint32]bool)
		j.homes, j.ownHomes = make(map[hop.Endpoint]uint32), make(map[ownHome]bool)
	}
}

// known is what was learned before and is met again at every lookup: it spares the maps, of which most are large. All
// of it stays true.
type known struct {
	pairs    [32]pair         // settled, by device
	services [16]hop.Endpoint // by port and last byte
	choosers [16]struct {
		by chooser
		to *choices
	}
}

// pair is what two neighboring hops in a node were that told nothing new.
type pair struct {
	device
	node            uint32
	answer, tracked bool
}

func (p *pair) slot() uint32 { return p.netns + p.ifindex }

func slotOf(e *hop.Endpoint) int { return int(e.Addr[15]) + int(e.Port) }

// learn notes what the lookup's hops tell of the network.
func (j *Judge) learn(l *lookup.Lookup) {
	j.init()
	j.learnChoice(l)
	if len(l.Hops) > 0 && l.Hops[0].Local && l.Hops[0].Dst != l.Server {
		j.translates(&l.Server) // translated before it had a device
	}
	for i := len(l.Hops) - 1; i > 0; i-- {
		// Who answers from an address, or reads what came to it, has it.
		h := &l.Hops[i]
		if h.Answer {
			if h.Local && h.Kind == hop.Out {
				j.reads(h.Src, h.NetNS)
				break
			}
			continue
		}
		if h.Kind != hop.Read {
			continue
		}
		if b := &l.Hops[i-1]; b.NetNS == h.NetNS && b.Kind == hop.In && !b.Answer {
			j.reads(b.Dst, h.NetNS)
			break
		}
	}
	node, seen := uint32(0), l.ClientNetNS == 0 // the client's node
	for i := range l.Hops {
		b := &l.Hops[i]
		if !seen && isNodeOf(l, b) {
			node, seen = b.NetNS, true
		}
		// What was to be sent on when it was dropped is forwarded, too: its route says so.
		if b.Kind == hop.Drop && b.Route == hop.RouteOn && !b.Answer && !b.Local && b.NetNS != l.ClientNetNS &&
			b.NetNS != 0 && len(j.nodes) < maxNodes {
			j.nodes[b.NetNS] = true
		}
		if i == 0 {
			continue
		}
		a := &l.Hops[i-1]
		if a.NetNS != b.NetNS || a.Answer != b.Answer || a.Kind == hop.Unreachable || b.Kind == hop.Unreachable {
			continue
		}
		// What comes in by one device and leaves by another is forwarded: a pod does not.
		if a.Kind == hop.In && b.Kind == hop.Out && !b.Local && a.IfIndex != b.IfIndex && !j.settled(a, b, node) &&
			len(j.nodes) < maxNodes {
			j.nodes[a.NetNS] = true
			if b.Tracked {
				j.tracks[a.NetNS] = true
			}
			if !a.Answer && a.NetNS == node && len(j.podSide) < maxPodSide {
				j.podSide[device{a.NetNS, a.IfIndex}] = true
			}
		}
		if !a.Answer && a.Dst != b.Dst && a.Kind != hop.Read && b.Kind != hop.Read {
			j.translates(&a.Dst)
		}
	}
}

// translates notes that an address was seen translated.
func (j *Judge) translates(at *hop.Endpoint) {
	k := &j.known.services[slotOf(at)%len(j.known.services)]
	if k.Equal(at) && !at.IsZero() {
		return
	}
	if !j.services[*at] {
		if len(j.services) >= maxServices {
			return
		}
		j.services[*at] = true
	}
	*k = *at
}

// settled says that all is known already that two neighboring hops in a node tell: maps are read here, and written
// rarely.
func (j *Judge) settled(a, b *hop.Hop, node uint32) bool {
	p := pair{device{a.NetNS, a.IfIndex}, node, a.Answer, b.Tracked}
	k := &j.known.pairs[p.slot()%uint32(len(j.known.pairs))]
	if *k == p && p.netns != 0 {
		return true
	}
	if j.nodes[a.NetNS] && (!b.Tracked || j.tracks[a.NetNS]) && (a.Answer || a.NetNS != node || j.podSide[p.device]) {
		*k = p
		return true
	}
	return false
}

// What stands for the device of a hop that has none.
const (
	noDevice     = "no device"
	socketDevice = "socket"
)

// place names a hop: device, direction, namespace.
func place(h *hop.Hop) string {
	dev := h.Device()
	if dev == "" {
		dev = noDevice
	}
	if h.Kind == hop.Read {
		dev = socketDevice
	}
	return fmt.Sprintf("%s %s netns %d", dev, h.Kind, h.NetNS)
}

// Place names a hop as outputs do: device, direction, network namespace; `eth0 out netns 4026532201`.
func Place(h *hop.Hop) string { return place(h) }

// Of judges a lookup.
func (j *Judge) Of(l *lookup.Lookup) Verdict {
	j.learn(l)
	if l.Ending == lookup.Answered {
		return j.answered(l)
	}
	v := j.lost(l)
	if l.Ending == lookup.Evicted {
		v.Cause, v.Certain = CauseEvicted, false
		v.Text = "the tracer's table of lookups in flight was full: not watched to the end"
	}
	if l.AnsweredBefore {
		v.Certain = false
		v.Evidence = append(v.Evidence, "an answer came to the client before it asked again")
	}
	if l.AskedBefore && l.ClientNetNS == 0 {
		v.Certain = false // a client out of sight may take a late answer to its earlier query for one to this
	}
	if l.AnswerUnseen {
		v.Cause, v.Certain = CauseEvicted, false
		v.Text = "some of what the server sent on this connection was not seen: the answer may be among it"
	}
	if l.EventsLost > 0 {
		v.Certain = false
		v.Evidence = append(v.Evidence, eventsLost(l))
	}
	return v
}

func eventsLost(l *lookup.Lookup) string {
	return fmt.Sprintf("%d kernel events were lost meanwhile: hops may be missing", l.EventsLost)
}

func (j *Judge) answered(l *lookup.Lookup) Verdict {
	if l.ClientNetNS != 0 && !l.ReadByClient && l.AnswerSource != l.Server && l.AnswerSource != l.Hops[0].Dst &&
		!l.AnswerSource.IsZero() {
		v := Verdict{Where: Client, Cause: CauseWrongSource, Evidence: []string{"answer from " + l.AnswerSource.String() +
			" at the client"}}
		v.Text = fmt.Sprintf("the answer came from %s, and the client had asked %s: it takes no answer from others",
			l.AnswerSource, l.Server)
		v.Text += whyUntranslated(l, j.clientNode(l), &v)
		return v
	}
	v := Verdict{Where: Answered, Cause: CauseAnswered, Certain: true, Replied: true}
	if l.ReadInferred {
		v.Certain = false
		v.Evidence = append(v.Evidence, "what the client read was not seen coming to it")
	}
	if l.Attempts > 1 && !l.ReadByClient && l.Transport == link.UDP && askedAfterAnswer(l) {
		v.Certain = false
		v.Evidence = append(v.Evidence, "the client sent its query again after the answer had come")
	}
	if m := l.Mismatch; m != nil && l.ReadByClient && !m.Read {
		v.Certain = false
		v.Evidence = append(v.Evidence, "what the client read may have been what was no answer to its question")
	}
	if l.Behind && !l.ReadByClient {
		v.Certain = false
		v.Evidence = append(v.Evidence, "bytes that were sent before the answer were not seen coming to the client")
	}
	if l.EventsLost > 0 && (!l.ReadByClient || l.ReadUnseen || l.ReadAmong || l.AnswerSource != l.Server) {
		// It came to the client; that nobody was there to take it may be what was lost.
		v.Certain = false
		v.Evidence = append(v.Evidence, eventsLost(l))
	}
	if l.Late {
		v.Cause = CauseCorrected
		v.Text = "answered after it had been reported as lost"
	}
	if !semconv.RcodeFails(int(l.Body.Rcode)) {
		return v
	}
	// That it failed is a fact, who is to blame for it is not: a server may ask others by ways that are out of sight.
	rcode := dnswire.RcodeString(l.Body.Rcode)
	v.Evidence, v.Certain = append(v.Evidence, "answer "+rcode), false
	switch l.Body.Rcode {
	case dnswire.RcodeRefused:
		v.Where, v.Cause, v.Text = CoreDNS, CauseRefused, "the server answered REFUSED"
	default:
		v.Where, v.Cause, v.Text = CoreDNS, CauseServerError, "the server answered "+rcode
	}
	if up, cause := failedUpstream(l); up != nil {
		v.Where, v.Cause, v.Certain = Upstream, cause, false
		v.Text = fmt.Sprintf("the server answered %s: upstream %s %s", rcode, up.Server, upstreamFate(up))
		v.Evidence = append(v.Evidence, upstreamEvidence(l)...)
	}
	return v
}

// askedAfterAnswer says whether all answers that were seen came before the query was sent last.
func askedAfterAnswer(l *lookup.Lookup) bool {
	asked, answered := int64(0), int64(0)
	for i := range l.Hops {
		h := &l.Hops[i]
		switch {
		case h.Answer && h.Kind != hop.Drop && h.Kind != hop.Unreachable:
			answered = max(answered, h.Time)
		case !h.Answer && int(h.Attempt) == l.Attempts-1 && asked == 0:
			asked = h.Time
		}
	}
	return answered < asked
}

// failedUpstream gives the last upstream query of a lookup if none of them was answered well.
func failedUpstream(l *lookup.Lookup) (*lookup.Upstream, Cause) {
	var last *lookup.Upstream
	cause := CauseTimeout
	for _, up := range l.Upstreams {
		if up.Answered && !semconv.RcodeFails(int(up.Rcode)) {
			return nil, ""
		}
		last, cause = up, CauseTimeout
		if up.Unsent != nil {
			cause = causeOfUnsent(up.Unsent)
		}
		if up.Answered {
			cause = CauseServerError
			if up.Rcode == dnswire.RcodeRefused {
				cause = CauseRefused
			}
		}
	}
	return last, cause
}

func upstreamFate(up *lookup.Upstream) string {
	switch {
	case up.Mismatch && !up.Answered:
		return "answered another question"
	case up.Answered:
		return "answered " + dnswire.RcodeString(up.Rcode)
	case up.Unsent != nil:
		return "could not be asked: " + whyUnsent(up.Unsent, up.Server)
	case up.Dropped != 0:
		return "was not reached: " + up.Dropped.String()
	}
	return "did not answer"
}

func upstreamEvidence(l *lookup.Lookup) []string {
	var e []string
	for _, up := range l.Upstreams {
		e = append(e, fmt.Sprintf("upstream %s asked after %s: %s", up.Server,
			time.Duration(up.Start-l.Start()).Round(time.Microsecond), upstreamFate(up)))
	}
	return e
}

// Certainty gives the value of dnstrail.verdict.certainty.
func (v *Verdict) Certainty() string {
	if v.Certain {
		return "certain"
	}
	return "inferred"
}
