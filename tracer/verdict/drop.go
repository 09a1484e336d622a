package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// dropCauses translates the kernel's reasons; others are CauseDropped with the kernel's own word in the text.
var dropCauses = map[string]struct {
	cause Cause
	text  string
}{
	"NETFILTER_DROP":      {CausePolicyDrop, "dropped by a firewall rule or network policy"},
	"BPF_CGROUP_EGRESS":   {CausePolicyDrop, "dropped by an eBPF policy of its cgroup"},
	"TC_INGRESS":          {CausePolicyDrop, "dropped by a tc filter or eBPF policy on ingress"},
	"TC_EGRESS":           {CausePolicyDrop, "dropped by a tc filter or eBPF policy on egress"},
	"XDP":                 {CausePolicyDrop, "dropped by an XDP program"},
	"SOCKET_FILTER":       {CausePolicyDrop, "dropped by a filter on the socket"},
	"SECURITY_HOOK":       {CausePolicyDrop, "dropped by a security module"},
	"XFRM_POLICY":         {CausePolicyDrop, "dropped by an IPsec policy"},
	"IP_OUTNOROUTES":      {CauseNoRoute, "there is no route"},
	"IP_INNOROUTES":       {CauseNoRoute, "there is no route"},
	"IP_INADDRERRORS":     {CauseNoRoute, "no route for its address, or forwarding is off"},
	"IP_INVALID_DEST":     {CauseNoRoute, "its destination cannot be routed"},
	"IPV6DISABLED":        {CauseNoRoute, "IPv6 is off on the device"},
	"NEIGH_FAILED":        {CauseNeighbour, "the next hop's link-layer address could not be found"},
	"NEIGH_CREATEFAIL":    {CauseNeighbour, "no neighbor entry could be made"},
	"NEIGH_QUEUEFULL":     {CauseNeighbour, "too many packets wait for the next hop's link-layer address"},
	"NEIGH_DEAD":          {CauseNeighbour, "the neighbor entry was removed"},
	"NEIGH_HH_FILLFAIL":   {CauseNeighbour, "the link-layer header could not be made"},
	"IP_RPFILTER":         {CauseRPFilter, "dropped by reverse-path filtering"},
	"IP_LOCAL_SOURCE":     {CauseRPFilter, "its source is an address of the node itself"},
	"PKT_TOO_BIG":         {CauseTooBig, "larger than the next device's MTU"},
	"FRAG_REASM_TIMEOUT":  {CauseFragment, "its other fragments never came"},
	"NO_SOCKET":           {CauseNoListener, "no socket listens there"},
	"SOCKET_RCVBUFF":      {CauseBufferFull, "the socket's receive buffer was full"},
	"PROTO_MEM":           {CauseBufferFull, "the kernel's memory for UDP was used up"},
	"SOCKET_BACKLOG":      {CauseBufferFull, "the socket's backlog was full"},
	"SOCKET_CLOSE":        {CauseSocketClosed, "the socket was closed with the packet unread"},
	"QUEUE_PURGE":         {CauseSocketClosed, "the socket was closed with the packet unread"},
	"QDISC_DROP":          {CauseQueueFull, "dropped by the device's queue"},
	"QDISC_OVERLIMIT":     {CauseQueueFull, "the device's queue was full"},
	"QDISC_CONGESTED":     {CauseQueueFull, "the device's queue was congested"},
	"FULL_RING":           {CauseQueueFull, "the device's ring was full"},
	"UDP_CSUM":            {CauseChecksum, "its checksum was wrong: often a device that was to compute it and did not"},
	"TCP_CSUM":            {CauseChecksum, "its checksum was wrong: often a device that was to compute it and did not"},
	"IP_CSUM":             {CauseChecksum, "the checksum of its IP header was wrong"},
	"SKB_CSUM":            {CauseChecksum, "its checksum could not be computed"},
	"NO_TX_TARGET":        {CauseTunnel, "the tunnel knows no node behind its next hop"},
	"VXLAN_ENTRY_EXISTS":  {CauseTunnel, "its link-layer source belongs to another entry of the tunnel's table"},
	"VXLAN_INVALID_HDR":   {CauseTunnel, "the tunnel's header was invalid"},
	"VXLAN_VNI_NOT_FOUND": {CauseTunnel, "no tunnel device has its network identifier"},
	"MAC_INVALID_SOURCE":  {CauseTunnel, "its link-layer source was invalid"},
	"IP_TUNNEL_ECN":       {CauseTunnel, "its congestion mark and the tunnel's do not go together"},
	"TCP_ABORT_ON_DATA":   {CauseClosed, "the connection had been closed there"},
	"TCP_CLOSE":           {CauseClosed, "the connection had been closed there"},
	"TCP_RESET":           {CauseClosed, "the connection had been reset there"},
	"CPU_BACKLOG":         {CauseQueueFull, "the CPU's backlog of received packets was full"},
}

// DropCause gives the cause and the words for the kernel's name of a drop reason.
func DropCause(reason string) (Cause, string) {
	if c, ok := dropCauses[reason]; ok {
		return c.cause, fmt.Sprintf("%s (%s)", c.text, reason)
	}
	return CauseDropped, "dropped by the kernel, " + reason
}

// class is a family of kernel functions that drop for one cause. Kernels give no reason for some drops, and before 5.17
// for none; a kernel may split or rename a function, and its family keeps the name's start.
type class struct {
	names []string // starts of names; ends, where they begin with *
	cause Cause
	text  string
	// several says that the functions drop for other causes, too: this is the likeliest.
	several bool
}

// classes are looked at in this order: the first that fits is it.
var classes = []class{
	{[]string{"br_nf_pre_routing_finish"}, CauseNoRoute, "there is no route", true},
	{[]string{"ip6_pkt_prohibit"}, CauseNoRoute, "the route prohibits it", false},
	{[]string{"dst_discard", "dst_blackhole"}, CauseNoRoute, "the route is a black hole", false},
	{[]string{"ip_error", "ip6_pkt_discard"}, CauseNoRoute, "there is no route, or forwarding is off", false},
	{[]string{"ip_rcv_finish", "ip_route_input", "ip6_pkt_", "ip6_rcv_finish", "ip6_route_input", "ip6_forward",
		"ip_forward"}, CauseNoRoute,
		"there is no route, or forwarding is off", true},
	{[]string{"neigh_", "__neigh_", "arp_", "ndisc_"}, CauseNeighbour,
		"the next hop's link-layer address could not be found", false},
	{[]string{"do_xdp_generic", "netif_receive_generic_xdp", "bpf_prog_run_generic_xdp"}, CausePolicyDrop,
		"dropped by an XDP program", true},
	{[]string{"nf_", "nfqnl_", "nft_", "ipt_", "ip6t_", "xt_", "arpt_", "ebt_"}, CausePolicyDrop,
		"dropped by a firewall rule or network policy", true},
	{[]string{"tcf_", "cls_", "sch_handle_", "tcx_", "bpf_"}, CausePolicyDrop,
		"dropped by a tc filter or eBPF program", true},
	{[]string{"xfrm", "__xfrm"}, CausePolicyDrop, "dropped by IPsec", true},
	{[]string{"udp_queue_rcv", "udpv6_queue_rcv", "__udp_enqueue", "__udp_queue_rcv", "sock_queue_rcv"}, CauseBufferFull,
		"the socket's receive buffer was full", true},
	{[]string{"__udp4_lib_rcv", "__udp6_lib_rcv", "udp_rcv", "udpv6_rcv", "tcp_v4_rcv", "tcp_v6_rcv"}, CauseNoListener,
		"no socket listens there", true},
	{[]string{"*_destruct", "*_destruct_sock", "*_destruct_common", "skb_queue_purge", "__skb_queue_purge", "udp_destroy",
		"udp_v4_destroy", "udpv6_destroy"},
		CauseSocketClosed, "the socket was closed with the packet unread", false},
	{[]string{"vxlan_", "geneve_", "ip_tunnel_", "ip6_tnl_", "ip6_tunnel_", "iptunnel_", "ipip_", "gre_", "sit_",
		"udp_tunnel_"}, CauseTunnel,
		"the tunnel could not take it", true},
	{[]string{"ip_defrag", "ip_frag", "ip6_frag", "inet_frag", "nf_ct_frag"}, CauseFragment,
		"its fragments were not put together", true},
	{[]string{"pfifo_", "fq_", "sch_", "qdisc_", "__qdisc", "__dev_xmit_skb", "enqueue_to_backlog"}, CauseQueueFull,
		"dropped by the device's queue", true},
	{[]string{"veth_xmit", "macvlan_", "ipvlan_", "dev_hard_start_xmit", "__dev_queue_xmit", "validate_xmit"},
		CauseDropped,
		"the device could not send it: it, or its other end, is down or gone", true},
}

// fits says whether a function is of the class. A compiler adds what stands behind a dot.
func (c *class) fits(function string) bool {
	function, _, _ = strings.Cut(function, ".")
	return slices.ContainsFunc(c.names, func(name string) bool {
		if end, ok := strings.CutPrefix(name, "*"); ok {
			return strings.HasSuffix(function, end)
		}
		return strings.HasPrefix(function, name)
	})
}

// dropCause gives the cause of a drop and the words for it: by the kernel's reason, or else by the function that
// dropped. An unknown one keeps its name. It is not sure where that function drops for other causes, too.
func dropCause(drop *hop.Hop) (cause Cause, text string, sure bool) {
	function := ""
	if drop.Location != 0 {
		function = hop.FunctionAt(drop.Location)
	}
	return causeIn(drop.Reason.String(), function, drop.TTL)
}

// causeIn gives what [dropCause] does, by the kernel's word for the reason, the function that dropped ("" if unknown),
// and the packet's hop limit (0 if unknown).
func causeIn(reason, function string, limit uint8) (cause Cause, text string, sure bool) {
	cause, text = DropCause(reason)
	if cause == CauseTunnel && strings.HasPrefix(function, "br_") {
		// Bridges and tunnels share reasons.
		return CauseDropped, fmt.Sprintf("the bridge does not take it, or has no port for it (%s in %s)", reason, function),
			true
	}
	if cause != CauseDropped {
		return cause, text, true
	}
	if spent, sure := hopsSpent(limit, reason, function); spent {
		return CauseHopLimit, fmt.Sprintf("it had gone through as many routers as it may: a routing loop, or a sender that "+
			"wants no more (hop limit 1, %s)", reason), sure
	}
	if function == "" {
		return cause, text, true
	}
	return functionCause(reason, function)
}

// hopsSpent says whether a packet with a hop limit was dropped because no router may pass it on. Kernels without
// reasons drop for others, too, in the function that forwards; the one with reasons has one for every bad header.
func hopsSpent(limit uint8, reason, function string) (spent, sure bool) {
	forwards := strings.HasPrefix(function, "ip_forward") || strings.HasPrefix(function, "ip6_forward")
	badHeader := reason == "IP_INHDR"
	return limit == 1 && (badHeader || forwards) && (forwards || function == ""), badHeader && forwards
}

// functionCause gives what [dropCause] does, by the kernel's word for the reason and the function that dropped.
func functionCause(reason, function string) (cause Cause, text string, sure bool) {
	for i := range classes {
		if c := &classes[i]; c.fits(function) {
			return c.cause, fmt.Sprintf("%s (%s in %s)", c.text, reason, function), !c.several
		}
	}
	cause, text = DropCause(reason)
	return cause, text + " in " + function, true
}

// atSocket says whether a cause is one that a socket's own namespace has.
func atSocket(c Cause) bool {
	return c == CauseNoListener || c == CauseBufferFull || c == CauseSocketClosed || c == CauseClosed
}

// sayDropped judges a lookup whose packet the kernel dropped.
func (v *view) sayDropped(out *Verdict) {
	l, drop := v.l, v.drop
	reason := drop.Reason.String()
	cause, text, sure := dropCause(drop)
	out.Certain, out.Drop, out.DropAt, out.Cause = sure, reason, SpotOf(drop), cause
	if v.Namespace != nil {
		out.DropAt.Owner = v.Namespace(drop.NetNS)
	}
	out.Evidence = append([]string{out.DropAt.Evidence(v.whose(l, drop.NetNS), reason)}, out.Evidence...)
	if v.refused != nil {
		from := hop.Endpoint{Addr: v.refused.ICMPSender}.AddrPort().Addr()
		out.Evidence = append(out.Evidence, fmt.Sprintf("ICMP %s from %s", icmpName(v.refused.ICMP), from))
	}
	out.Certain = out.Certain && v.allDropped()
	atClient := l.ClientNetNS != 0 && drop.NetNS == l.ClientNetNS
	if drop.Tunnel && out.Cause == CauseNoListener {
		out.Cause, text = CauseTunnel, fmt.Sprintf("no tunnel device takes it (%s)", reason)
	}
	if drop.Fragment.Offset != 0 {
		out.Cause = CauseFragment
		text = fmt.Sprintf("a later fragment of it, bytes %d to %d of %d, %s", drop.Fragment.Offset,
			int(drop.Fragment.Offset)+int(drop.Fragment.Bytes)-1, datagram(l, drop), text)
	}
	if drop.Answer {
		// Of several earlier askings with this ID one may have been unanswered still: this may be its answer.
		out.Certain = out.Certain && l.AttemptsBefore < 2 && l.Owed == 0 && !goesOnAfter(l, drop)
		out.Where = ReturnPath
		out.Text = fmt.Sprintf("the answer was lost at %s%s: %s", at(drop), inside(drop), text)
		if atClient && (out.Cause == CauseNoListener || out.Cause == CauseSocketClosed || out.Cause == CauseClosed) {
			v.nobodyTook(out)
		}
		return
	}
	out.Text = fmt.Sprintf("%s was lost at %s%s: %s", v.subject(), at(drop), inside(drop), text)
	out.Where = v.stageOf(out.Cause, atClient)
	out.Certain = out.Certain && v.stageKnown(out.Where, out.Cause)
	if drop.Tunnel {
		return
	}
	switch out.Where {
	case CoreDNSSocket:
		v.wrongHome(out, text)
		if l.Transport == link.TCP && !l.Connect && out.Cause == CauseNoListener && out.Where == CoreDNSSocket {
			// What was asked on it had a connection once: a listener is of no use to it.
			out.Cause = CauseClosed
			out.Text = fmt.Sprintf("the query was lost at %s%s: there is no such connection any more (%s)", at(drop),
				inside(drop), reason)
		}
	case Node, Client, BetweenNodes:
		v.service(out, text)
	}
}

// goesOnAfter says whether another packet, of an answer or of a query, was seen on its way after an answer was dropped:
// what became of it is not known.
func goesOnAfter(l *lookup.Lookup, drop *hop.Hop) bool {
	for i := len(l.Hops) - 1; i >= 0; i-- {
		h := &l.Hops[i]
		if h.Time <= drop.Time {
			break
		}
		if (h.Kind == hop.In || h.Kind == hop.Out) && h.SKB != drop.SKB && !sameDatagram(h, drop) {
			return true
		}
	}
	return false
}

// sameDatagram says whether two packets are fragments of one datagram: without one of them the others are nothing.
func sameDatagram(a, b *hop.Hop) bool {
	return a.Answer == b.Answer && a.Fragment.Bytes != 0 && b.Fragment.Bytes != 0 && a.Fragment.ID == b.Fragment.ID
}

// allDropped says whether the kernel dropped what was seen of every attempt: what became of one that went on is not
// known.
func (v *view) allDropped() bool {
	if v.l.Attempts == 1 {
		return true
	}
	var dropped [256]bool
	n := 0
	for i := range v.l.Hops {
		h := &v.l.Hops[i]
		if h.Kind == hop.Drop && !h.Reason.Harmless() && !dropped[h.Attempt] {
			dropped[h.Attempt] = true
			n++
		}
	}
	return n >= v.l.Attempts
}

// stageOf gives the stage at which a query was dropped for a cause.
func (v *view) stageOf(cause Cause, atClient bool) Where {
	l, last, drop := v.l, v.last, v.drop
	home, seen := v.homes[drop.Dst]
	untranslated := drop.Dst == l.Server && v.services[l.Server]
	switch {
	case !atClient && v.bridgedBetween(l, last, drop):
		return BetweenNodes
	case drop.Tunnel:
		return Node
	// What a socket's namespace drops for its socket has come to where it was going, whoever else lives there.
	case atSocket(cause) && (!untranslated || !v.isNode(drop.NetNS) || seen && home == drop.NetNS):
		return CoreDNSSocket
	case atClient && drop.Route == hop.RouteLocal && drop.Device() == loopback:
		return CoreDNSSocket // a firewall before the server of the client's own namespace
	case atClient && (drop.IfIndex == 0 || last == drop || drop.SKB == last.SKB && last.Local && cause != CauseNeighbour):
		return Client
	case atClient && cause == CauseNoRoute && !v.isNode(drop.NetNS):
		return Client
	case atClient:
		return PodLink
	case drop.Route == hop.RouteLocal && !untranslated:
		return CoreDNSSocket // its route led to a socket there
	case v.isNode(drop.NetNS) || passedOn(l, drop) || drop.IfIndex != last.IfIndex:
		return Node
	case drop.Route == hop.RouteOn:
		return Node
	case l.ServerNetNS != 0 && drop.NetNS != l.ServerNetNS && drop.NetNS != 0:
		return Node
	case seen && home != drop.NetNS:
		return Node
	case l.ClientNetNS != 0 && drop.NetNS == v.clientNode(l) && untranslated:
		return Node
	}
	return CoreDNSSocket
}

// stageKnown says whether the namespace of a drop is known to be what its stage takes it for.
func (v *view) stageKnown(stage Where, cause Cause) bool {
	l, drop := v.l, v.drop
	switch stage {
	case Node:
		return drop.Tunnel || drop.Route == hop.RouteOn || v.isNode(drop.NetNS) || passedOn(l, drop)
	case CoreDNSSocket:
		home, seen := v.homes[drop.Dst]
		// An address of a node's own may be a service's, which IPVS translates where a firewall filters what is local.
		local := drop.Route == hop.RouteLocal &&
			(cause != CausePolicyDrop || drop.Dst != l.Server || drop.NetNS == l.ClientNetNS)
		return atSocket(cause) || local || seen && home == drop.NetNS ||
			drop.NetNS != 0 && drop.NetNS == l.ServerNetNS || v.role(drop.NetNS) == end
	}
	return true
}

// wrongHome finds out whether a query that no socket took came to a place that is no server's any more: its endpoint's
// address is another's now, or new connections go to others while an old entry leads there.
func (v *view) wrongHome(out *Verdict, text string) {
	drop := v.drop
	if out.Cause != CauseNoListener || drop.Dst == v.l.Server && v.l.ClientNetNS != 0 {
		return
	}
	whose := v.whose(v.l, drop.NetNS)
	home, seen := v.homes[drop.Dst]
	switch {
	case drop.Dst == v.l.Server && (!seen || home == drop.NetNS):
	case drop.Dst == v.l.Server:
		// Whether the client asked for that address or a service's was translated to it, its own node knows.
		out.Where, out.Cause, out.Certain = Service, CauseDeadEndpoint, false
		out.Text = fmt.Sprintf("the query came for %s, which is no endpoint any more: that address is another's now, %s: %s",
			drop.Dst, whose, text)
	case seen && home != drop.NetNS:
		v.sayDeadEndpoint(out, drop.Dst, "that address is another's now, "+whose+": "+text)
	case v.leftBehind(drop.Dst):
		v.sayDeadEndpoint(out, drop.Dst, "new connections go to others, and "+whose+", "+text)
	case v.l.EntryOlder:
		out.Certain = false // it may have been an endpoint once
	}
}

// nobodyTook judges an answer that came to the client's namespace and found no socket that takes it.
func (v *view) nobodyTook(out *Verdict) {
	l, drop := v.l, v.drop
	waited := time.Duration(drop.Time - l.Start()).Round(time.Millisecond)
	closedUnread := out.Cause == CauseSocketClosed
	out.Where, out.Cause = Client, CauseClientGone
	out.Text = fmt.Sprintf("the answer came after %s, and the client's socket was gone (%s)", waited, drop.Reason)
	if closedUnread {
		out.Text = fmt.Sprintf("the answer was in the client's socket, and the client closed it unread (%s)",
			drop.Reason)
	}
	// It had its answer, and did not want it: glibc closes its socket so when the answer for the other family was
	// truncated. That is no outage.
	// So it had where an answer came before it asked again.
	out.Replied = (closedUnread || l.GivenUp || l.AnsweredBefore) && (drop.Src == l.Server ||
		translatesBack(drop, l.Server))
	if l.GivenUp && !closedUnread {
		out.Text += ": another answer to it was truncated, and it asks over TCP"
	}
	up, cause := failedUpstream(l)
	switch {
	case drop.Src != l.Server && !translatesBack(drop, l.Server):
		out.Cause = CauseWrongSource
		out.Text = fmt.Sprintf("an answer came from %s, but the client had asked %s: its socket does not take it (%s)",
			drop.Src, l.Server, drop.Reason)
		out.Text += v.whyUntranslated(out)
	case up != nil:
		out.Where, out.Cause, out.Certain = Upstream, cause, false
		out.Text += fmt.Sprintf(": upstream %s %s", up.Server, upstreamFate(up))
		out.Evidence = append(out.Evidence, upstreamEvidence(l)...)
	case waited >= impatient && !closedUnread:
		out.Cause = CauseTooLate
	}
}

// translatesBack tells whether the kernel makes an answer one of the server that was asked before any socket gets it:
// the namespace of the socket itself translated the query (Istio, Docker), and its entry holds for the answer.
func translatesBack(answer *hop.Hop, asked hop.Endpoint) bool {
	c := &answer.Conntrack
	return answer.Tracked && c.ReplySrc == answer.Src && c.ReplyDst == answer.Dst && c.OrigDst == asked
}

// impatient is how long a client waits at least: an answer that comes after that and finds no socket was too late.
const impatient = 900 * time.Millisecond

// whyUntranslated says why an answer was not translated back, where that was seen, as a clause behind the text.
func (v *view) whyUntranslated(out *Verdict) string {
	return whyUntranslated(v.l, v.clientNode(v.l), out)
}

func whyUntranslated(l *lookup.Lookup, node uint32, out *Verdict) string {
	sent := int64(0)
	translatedAt := uint32(0)
	for i := range l.Hops {
		h := &l.Hops[i]
		switch {
		case !h.Answer && sent == 0:
			sent = h.Time
		case !h.Answer && h.Tracked && h.Conntrack.Status&hop.DstNAT != 0:
			translatedAt = h.NetNS
		}
	}
	for i := range l.Hops {
		h := &l.Hops[i]
		if !h.Answer || translatedAt == 0 || h.NetNS != translatedAt || h.Kind == hop.In {
			continue
		}
		switch {
		case h.Tracked && h.Conntrack.OrigSrc == h.Src:
			after := time.Duration(h.Time - sent).Round(time.Millisecond)
			out.Evidence = append(out.Evidence,
				fmt.Sprintf("after %s conntrack took the answer for a new connection, %s: there was no entry of the query",
					after, h.Conntrack.String()))
			return ": the query's conntrack entry was not found for it: expired, deleted, or of another zone"
		case !h.Tracked && h.NetNS == node && !routed(l, h):
			out.Evidence = append(out.Evidence, "the answer crossed "+at(h)+" as a frame of a bridge, past connection "+
				"tracking: bridge-nf-call-iptables is off")
			return ": it came over the bridge, past the translation (bridge-nf-call-iptables)"
		}
	}
	return ""
}

// routed says whether the hop limit was lowered where a hop left: a bridge leaves it.
func routed(l *lookup.Lookup, out *hop.Hop) bool {
	for i := range l.Hops {
		if h := &l.Hops[i]; h.Answer && h.Kind == hop.In && h.NetNS == out.NetNS && h.SKB == out.SKB {
			return h.TTL != out.TTL
		}
	}
	return false
}

// passedUntranslated says whether a node sent the query on to the service's own address before it was dropped.
func (v *view) passedUntranslated() bool {
	l := v.l
	for i := range l.Hops {
		h := &l.Hops[i]
		if h.Kind == hop.Out && !h.Answer && !h.Local && h.Attempt == v.drop.Attempt && h.Dst == l.Server &&
			h.NetNS != l.ClientNetNS && v.isNode(h.NetNS) {
			return true
		}
	}
	return false
}

// service finds out whether a drop on a node was the service translation's: its reject rule, a dead endpoint, or
// connection tracking.
func (v *view) service(out *Verdict, text string) {
	l, drop, refused := v.l, v.drop, v.refused
	translated := drop.Dst != l.Server
	service := v.services[l.Server]
	unplacedDrop := out.Cause == CausePolicyDrop && unplaced(l, drop)
	var rejects, known bool
	if refused != nil {
		rejects, known = v.rejectsForItself()
	}
	switch {
	case out.Cause == CausePolicyDrop && refused != nil && !translated && !rejects:
		// Kube-proxy rejects so for a service without endpoints, and so may a firewall where nothing translates.
		out.Where, out.Cause, out.Certain = Service, CauseNoEndpoints, false
		out.Text = fmt.Sprintf("the service address %s was rejected (%s): it has no endpoints", l.Server,
			icmpName(refused.ICMP))
	case out.Cause == CausePolicyDrop && refused != nil:
		out.Cause, out.Certain = CauseRejected, out.Certain && (translated || known)
		out.Text = fmt.Sprintf("the query was rejected at %s by a firewall rule or network policy (%s)", at(drop),
			icmpName(refused.ICMP))
	case out.Cause == CausePolicyDrop && !translated && service && drop.Tracked && drop.Route == hop.RouteOn &&
		v.translates(drop.NetNS):
		// A firewall's rules come after the translation (netfilter's forward and output hooks): what meets them untranslated
		// has no endpoint here.
		out.Where, out.Cause, out.Certain = Service, CauseNoEndpoints, false
		out.Text = fmt.Sprintf("the service address %s was dropped untranslated at %s %s: the service has no local "+
			"endpoints there (internalTrafficPolicy: Local); "+
			"elsewhere it is translated (%s)", l.Server, at(drop), v.whose(l, drop.NetNS), drop.Reason)
	case unplacedDrop && l.Clash != nil:
		out.Where, out.Cause = Service, CauseInsertRace
		out.Text = fmt.Sprintf("the query was lost at %s: its conntrack entry clashed with that of another query sent at "+
			"the same time from the same port (%s)",
			at(drop), drop.Reason)
		out.Certain = hop.FunctionAt(drop.Location) == hookFunction
		out.Evidence = append(out.Evidence, raceEvidence(l, drop)...)
	case unplacedDrop && l.Holder != nil:
		out.Where, out.Cause, out.Certain = Node, CausePortExhausted, false
		out.Text = fmt.Sprintf("the query was lost at %s: no source port was left for its masquerade: %s is taken by %s (%s)",
			at(drop), l.Holder.Source, l.Holder.Client, drop.Reason)
	case unplacedDrop && hop.FunctionAt(drop.Location) == hookFunction:
		out.Certain = false
		out.Evidence = append(out.Evidence, "dropped on its way out of "+at(drop)+
			" by no rule of nf_tables: by one of ip_tables, or because its conntrack entry clashed with another's")
	case out.Cause == CausePolicyDrop && !drop.Tracked && !byRule(drop) && v.conntrackFull(l, drop, out):
	case !translated && service && (out.Cause == CauseNoRoute || out.Cause == CauseNeighbour || v.passedUntranslated()) &&
		drop.NetNS != l.ClientNetNS:
		out.Where, out.Cause, out.Certain = Service, CauseUntranslated, false
		out.Text = fmt.Sprintf("the service address %s was not translated to a server's, and the query lost at %s (%s)",
			l.Server, at(drop), drop.Reason)
	case translated && out.Cause == CauseNeighbour && (drop.NetNS != v.clientNode(l) ||
		v.podSide[device{drop.NetNS, drop.IfIndex}]):
		v.sayDeadEndpoint(out, drop.Dst, "nobody has that address: "+text)
	case translated && out.Cause == CauseNoRoute && l.EntryOlder:
		v.sayDeadEndpoint(out, drop.Dst, text)
	case !translated && service && atSocket(out.Cause):
		out.Where, out.Cause, out.Certain = Service, CauseUntranslated, false
		out.Text = fmt.Sprintf("the service address %s was not translated at %s %s, whose own it is (%s)", l.Server, at(drop),
			v.whose(l, drop.NetNS), drop.Reason)
	}
}

// rejectsForItself says whether what rejected the query was no part of a service's translation: that is on nodes, and
// says that the port is unreachable (kube-proxy's REJECT, and what stands in for it). Known is false where that is only
// likely: another node has passed the query on, and that is where a service's address is translated.
func (v *view) rejectsForItself() (yes, known bool) {
	dst := v.drop.Dst
	home, seen := v.homes[dst]
	if !portUnreachable(v.refused.ICMP) || v.role(v.drop.NetNS) == end || seen && home != v.drop.NetNS {
		return true, true
	}
	return v.l.ClientNetNS == 0 && !v.services[dst], false
}

// translates says whether a namespace is one that translates service addresses: a node's.
func (v *view) translates(netns uint32) bool { return v.isNode(netns) || v.tracks[netns] }

// bridgedBetween says whether a drop was neither on the client's node nor routed where it happened (its hop limit was
// not lowered): a switch between the nodes.
func (j *Judge) bridgedBetween(l *lookup.Lookup, last, drop *hop.Hop) bool {
	return l.ClientNetNS != 0 && drop.NetNS == last.NetNS && drop.NetNS != j.clientNode(l) &&
		drop.IfIndex != last.IfIndex &&
		last.Kind == hop.In && drop.TTL == last.TTL && drop.TTL != 0 && !drop.Tracked
}

// passedOn says whether the namespace of a drop passes queries on: it was to be routed, not delivered.
func passedOn(l *lookup.Lookup, drop *hop.Hop) bool {
	switch drop.Reason.String() {
	case "NO_SOCKET", "SOCKET_RCVBUFF", "SOCKET_CLOSE", "QUEUE_PURGE", "SOCKET_FILTER", "UDP_CSUM", "PROTO_MEM":
		return false
	}
	for i := range l.Hops {
		if h := &l.Hops[i]; h.NetNS == drop.NetNS && h.Kind == hop.Out && !h.Local {
			return true
		}
	}
	return false
}
