package verdict

import (
	"fmt"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// lost judges a lookup without an answer at the client.
func (j *Judge) lost(l *lookup.Lookup) Verdict {
	last, drop, refused := lastHops(l)
	switch {
	case drop != nil:
		return j.dropped(l, last, drop, refused)
	case refused != nil:
		return j.refused(l, last, refused)
	}
	v := Verdict{Evidence: j.evidence(l, last)}
	if l.Handshake != 0 {
		v.Evidence = append(v.Evidence, "the TCP handshake after a truncated answer; no query was sent")
	}
	switch {
	case l.Handshake != 0 && last.Answer && l.Ending == lookup.Dropped:
		v.Where, v.Cause, v.Certain = CoreDNSSocket, CauseRefused, true
		v.Text = "the answer was truncated, and the server refused the TCP connection"
	case last.Answer:
		v.Where, v.Cause = ReturnPath, CauseVanished
		v.Text = "the answer was sent, and last seen " + j.spot(l, last)
		if text, more := j.fragmentLost(l, last); text != "" {
			v.Cause, v.Text = CauseFragment, text
			v.Evidence = append(v.Evidence, more...)
		}
	case last.Kind == hop.Read:
		v.Where, v.Cause, v.Certain = CoreDNS, CauseNoAnswer, true
		v.Text = processName(last.Process, "the server") + " read the query and never answered"
		if up, cause := failedUpstream(l); up != nil {
			v.Where, v.Cause, v.Certain = Upstream, cause, false
			v.Text = fmt.Sprintf("the server read the query and never answered: upstream %s %s", up.Server, upstreamFate(up))
			v.Evidence = append(v.Evidence, upstreamEvidence(l)...)
		}
	case last.Kind == hop.In && last.NetNS != l.ClientNetNS && !j.isNode(last.NetNS):
		v.Where, v.Cause, v.Certain = CoreDNSSocket, CauseNotRead, j.ReadsSeen
		v.Text = "delivered to the server's socket and never read: the server is stopped or overloaded"
		if !j.ReadsSeen {
			v.Where, v.Cause = CoreDNS, CauseNoAnswer
			v.Text = "delivered to the server, which never answered"
		}
	case j.services[l.Server] && last.Dst == l.Server && last.NetNS != l.ClientNetNS:
		v.Where, v.Cause = Service, CauseUntranslated
		v.Text = fmt.Sprintf("the service address %s was not translated to a server's", l.Server)
	case last.Kind == hop.Out && last.NetNS == l.ClientNetNS && !j.isNode(last.NetNS):
		v.Where, v.Cause = PodLink, CauseVanished
		v.Text = "left the client and was not seen at the node"
	case last.Kind == hop.Out:
		v.Where, v.Cause = BetweenNodes, CauseNoReply
		v.Text = fmt.Sprintf("left this node at %s towards %s%s, and nothing came back; what lies beyond is not watched here", last.Device(), last.Dst, inside(last))
	default:
		v.Where, v.Cause = Node, CauseVanished
		v.Text = "last seen " + j.spot(l, last)
	}
	return v
}

// lastHops gives the last hop that the lookup came to, the drop that ended it, and the ICMP error about it, where there are such.
func lastHops(l *lookup.Lookup) (last, drop, refused *hop.Hop) {
	first := 0 // an ICMP error that the sender's own firewall wrote comes before the drop it is about
	for first < len(l.Hops)-1 && l.Hops[first].Kind == hop.Unreachable {
		first++
	}
	last = &l.Hops[first]
	for i := range l.Hops {
		h := &l.Hops[i]
		switch {
		case h.Kind == hop.Drop && h.Reason.Harmless():
		case h.Kind == hop.Unreachable:
			if !h.Answer && refused == nil {
				refused = h // the first place it was seen is nearest to who sent it
			}
		case h.Kind == hop.Drop:
			drop = h
		case h.Answer && h.Kind == hop.Read:
		default:
			last = h
			// What goes on after a drop was not ended by it, unless it is another attempt's packet, or another fragment.
			if drop != nil && (drop.Fragment.Offset == 0 || drop.Attempt != h.Attempt) && (drop.Attempt == h.Attempt || h.Answer) && drop.Answer == h.Answer {
				drop = nil
			}
		}
	}
	if drop != nil && drop == &l.Hops[first] {
		last = drop
	}
	return last, drop, refused
}

// refused judges a query that an ICMP error answered, and whose drop was not seen: it was refused out of sight, or by a socket's host.
func (j *Judge) refused(l *lookup.Lookup, last, icmp *hop.Hop) Verdict {
	sender := hop.Endpoint{Addr: icmp.ICMPSender}.AddrPort().Addr()
	v := Verdict{Certain: true, Evidence: append([]string{fmt.Sprintf("ICMP %s from %s, seen %s", icmpName(icmp.ICMP), sender, j.spot(l, icmp))}, j.evidence(l, last)...)}
	target := last.Dst.AddrPort().Addr()
	switch {
	case sender == target && portUnreachable(icmp.ICMP):
		v.Where, v.Cause = CoreDNSSocket, CauseNoListener
		v.Text = fmt.Sprintf("%s answered that nothing listens on its port %d", sender, last.Dst.Port)
	case last.Dst == l.Server && j.services[l.Server]:
		v.Where, v.Cause, v.Certain = Service, CauseNoEndpoints, false
		v.Text = fmt.Sprintf("the service address %s was rejected (%s): it has no endpoints", l.Server, icmpName(icmp.ICMP))
	case last.Kind == hop.Out && last.NetNS != l.ClientNetNS:
		v.Where, v.Cause = BetweenNodes, CauseRejected
		v.Text = fmt.Sprintf("%s answered %s", sender, icmpName(icmp.ICMP))
	default:
		v.Where, v.Cause = Node, CauseRejected
		v.Text = fmt.Sprintf("%s answered %s", sender, icmpName(icmp.ICMP))
	}
	return v
}

// portUnreachable: RFC 792 type 3 code 3, RFC 4443 type 1 code 4.
func portUnreachable(icmp uint16) bool { return icmp == 3<<8|3 || icmp == 1<<8|4 }

func icmpName(icmp uint16) string {
	switch icmp {
	case 3<<8 | 0, 1<<8 | 0:
		return "network unreachable"
	case 3<<8 | 1, 1<<8 | 3:
		return "host unreachable"
	case 3<<8 | 3, 1<<8 | 4:
		return "port unreachable"
	case 3<<8 | 4:
		return "fragmentation needed"
	case 3<<8 | 9, 3<<8 | 10, 3<<8 | 13, 1<<8 | 1:
		return "administratively prohibited"
	}
	return fmt.Sprintf("unreachable, type %d code %d", icmp>>8, icmp&0xff)
}

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
	"CPU_BACKLOG":         {CauseQueueFull, "the CPU's backlog of received packets was full"},
}

// DropCause gives the cause and the words for the kernel's name of a drop reason.
func DropCause(reason string) (Cause, string) {
	if c, ok := dropCauses[reason]; ok {
		return c.cause, fmt.Sprintf("%s (%s)", c.text, reason)
	}
	return CauseDropped, "dropped by the kernel, " + reason
}

// functionCauses tells causes by the kernel function that dropped, for drops without a reason: most of IPv6's.
var functionCauses = map[string]struct {
	cause Cause
	text  string
}{
	"ip6_pkt_drop":         {CauseNoRoute, "there is no route"},
	"ip6_pkt_discard":      {CauseNoRoute, "there is no route"},
	"ip6_pkt_discard_out":  {CauseNoRoute, "there is no route"},
	"ip6_pkt_prohibit":     {CauseNoRoute, "the route prohibits it"},
	"ip6_pkt_prohibit_out": {CauseNoRoute, "the route prohibits it"},
	"dst_discard_out":      {CauseNoRoute, "the route is a black hole"},
	"neigh_invalidate":     {CauseNeighbour, "the next hop's link-layer address could not be found"},
	"ndisc_error_report":   {CauseNeighbour, "the next hop's link-layer address could not be found"},

	// A bridge with br_netfilter routes what it has translated, and drops what has no route.
	"br_nf_pre_routing_finish_ipv6": {CauseNoRoute, "there is no route"},
	"br_nf_pre_routing_finish":      {CauseNoRoute, "there is no route"},
}

// dropCause gives the cause of a drop and the words for it: by the kernel's reason, or else by the function that dropped.
func dropCause(drop *hop.Hop) (Cause, string) {
	cause, text := DropCause(drop.Reason.String())
	if cause != CauseDropped || drop.Location == 0 {
		return cause, text
	}
	function := hop.FunctionAt(drop.Location)
	if c, ok := functionCauses[function]; ok {
		return c.cause, fmt.Sprintf("%s (%s in %s)", c.text, drop.Reason, function)
	}
	if function != "" {
		text += " in " + function
	}
	return cause, text
}

func (j *Judge) dropped(l *lookup.Lookup, last, drop, refused *hop.Hop) Verdict {
	reason := drop.Reason.String()
	cause, text := dropCause(drop)
	v := Verdict{Certain: true, Drop: reason, Cause: cause, Evidence: append([]string{DroppedAt(place(drop), j.whose(l, drop.NetNS), reason)}, j.evidence(l, last)...)}
	if refused != nil {
		v.Evidence = append(v.Evidence, fmt.Sprintf("ICMP %s from %s", icmpName(refused.ICMP), hop.Endpoint{Addr: refused.ICMPSender}.AddrPort().Addr()))
	}
	atClient := l.ClientNetNS != 0 && drop.NetNS == l.ClientNetNS
	if drop.Tunnel && v.Cause == CauseNoListener {
		v.Cause, text = CauseTunnel, fmt.Sprintf("no tunnel device takes it (%s)", reason)
	}
	if drop.Fragment.Offset != 0 {
		v.Cause = CauseFragment
		text = fmt.Sprintf("a later fragment of it, bytes %d to %d of %d, %s", drop.Fragment.Offset, int(drop.Fragment.Offset)+int(drop.Fragment.Bytes)-1, datagram(l, drop), text)
	}
	if drop.Answer {
		v.Where = ReturnPath
		v.Text = fmt.Sprintf("the answer was lost at %s%s: %s", at(drop), inside(drop), text)
		if atClient && (v.Cause == CauseNoListener || v.Cause == CauseSocketClosed) {
			nobodyTook(l, drop, &v)
		}
		return v
	}
	switch {
	case atClient && (drop.IfIndex == 0 || last == drop || drop.SKB == last.SKB && last.Local && v.Cause != CauseNeighbour):
		v.Where = Client
	case atClient:
		v.Where = PodLink
	case j.bridgedBetween(l, last, drop):
		v.Where = BetweenNodes
	case drop.Tunnel:
		v.Where = Node
		v.Text = fmt.Sprintf("the query was lost at %s%s: %s", at(drop), inside(drop), text)
		return v
	case j.isNode(drop.NetNS) || passedOn(l, drop) || drop.IfIndex != last.IfIndex:
		v.Where = Node
	case l.ServerNetNS != 0 && drop.NetNS != l.ServerNetNS && drop.NetNS != 0:
		v.Where = Node
	case l.ClientNetNS != 0 && drop.NetNS == j.clientNode(l) && v.Cause != CauseNoListener && v.Cause != CauseBufferFull && drop.Dst == l.Server && j.services[l.Server]:
		v.Where = Node
	default:
		v.Where = CoreDNSSocket
	}
	v.Text = fmt.Sprintf("the query was lost at %s: %s", at(drop), text)
	if l.Handshake != 0 {
		v.Text = fmt.Sprintf("the answer was truncated, and TCP to ask again does not get through: lost at %s: %s", at(drop), text)
	}
	if v.Where == Node || v.Where == Client || v.Where == BetweenNodes {
		j.service(l, drop, refused, &v, text)
	}
	return v
}

// impatient is how long a client waits at least: an answer that comes after that and finds no socket was too late.
const impatient = 900 * time.Millisecond

// nobodyTook judges an answer that came to the client's namespace and found no socket that takes it.
func nobodyTook(l *lookup.Lookup, drop *hop.Hop, v *Verdict) {
	waited := time.Duration(drop.Time - l.Start()).Round(time.Millisecond)
	v.Where, v.Cause = Client, CauseClientGone
	v.Text = fmt.Sprintf("the answer came after %s, and the client's socket was gone (%s)", waited, drop.Reason)
	up, cause := failedUpstream(l)
	switch {
	case drop.Src != l.Server:
		v.Cause = CauseWrongSource
		v.Text = fmt.Sprintf("an answer came from %s, but the client had asked %s: its socket does not take it (%s)", drop.Src, l.Server, drop.Reason)
	case up != nil:
		v.Where, v.Cause, v.Certain = Upstream, cause, false
		v.Text += fmt.Sprintf(": upstream %s %s", up.Server, upstreamFate(up))
		v.Evidence = append(v.Evidence, upstreamEvidence(l)...)
	case waited >= impatient:
		v.Cause = CauseTooLate
	}
}

// passedUntranslated says whether a node sent the query on to the service's own address before it was dropped.
func (j *Judge) passedUntranslated(l *lookup.Lookup, drop *hop.Hop) bool {
	for i := range l.Hops {
		h := &l.Hops[i]
		if h.Kind == hop.Out && !h.Answer && !h.Local && h.Attempt == drop.Attempt && h.Dst == l.Server && h.NetNS != l.ClientNetNS && j.isNode(h.NetNS) {
			return true
		}
	}
	return false
}

// service finds out whether a drop on a node was the service translation's: its reject rule, a dead endpoint, or connection tracking.
func (j *Judge) service(l *lookup.Lookup, drop, refused *hop.Hop, v *Verdict, text string) {
	translated := drop.Dst != l.Server
	switch {
	case v.Cause == CausePolicyDrop && refused != nil && !translated:
		v.Where, v.Cause, v.Certain = Service, CauseNoEndpoints, j.services[l.Server]
		v.Text = fmt.Sprintf("the service address %s was rejected (%s): it has no endpoints", l.Server, icmpName(refused.ICMP))
	case v.Cause == CausePolicyDrop && refused != nil:
		v.Cause = CauseRejected
		v.Text = fmt.Sprintf("the query was rejected at %s by a firewall rule or network policy (%s)", at(drop), icmpName(refused.ICMP))
	case v.Cause == CausePolicyDrop && l.Clash != nil && unplaced(l, drop):
		v.Where, v.Cause = Service, CauseInsertRace
		v.Text = fmt.Sprintf("the query was lost at %s: its conntrack entry clashed with that of another query sent at the same time from the same port (%s)", at(drop), drop.Reason)
		v.Certain = hop.FunctionAt(drop.Location) == hookFunction
		v.Evidence = append(v.Evidence, raceEvidence(l, drop)...)
	case v.Cause == CausePolicyDrop && unplaced(l, drop) && hop.FunctionAt(drop.Location) == hookFunction:
		v.Certain = false
		v.Evidence = append(v.Evidence, "dropped on its way out of "+at(drop)+" by no rule of nf_tables: by one of ip_tables, or because its conntrack entry clashed with another's")
	case v.Cause == CausePolicyDrop && !drop.Tracked && !byRule(drop) && j.conntrackFull(l, drop, v):
	case !translated && j.services[l.Server] && (v.Cause == CauseNoRoute || v.Cause == CauseNeighbour || j.passedUntranslated(l, drop)) && drop.NetNS != l.ClientNetNS:
		v.Where, v.Cause, v.Certain = Service, CauseUntranslated, false
		v.Text = fmt.Sprintf("the service address %s was not translated to a server's, and the query lost at %s (%s)", l.Server, at(drop), drop.Reason)
	case v.Cause == CauseNeighbour && translated && (drop.NetNS != j.clientNode(l) || j.podSide[device{drop.NetNS, drop.IfIndex}]):
		v.Where, v.Cause = Service, CauseDeadEndpoint
		v.Text = fmt.Sprintf("the service address %s was translated to %s, and nobody has that address: %s", l.Server, drop.Dst, text)
	}
}

// bridgedBetween says whether a drop was neither on the client's node nor routed where it happened (its hop limit was not lowered): a switch between the nodes.
func (j *Judge) bridgedBetween(l *lookup.Lookup, last, drop *hop.Hop) bool {
	return l.ClientNetNS != 0 && drop.NetNS == last.NetNS && drop.NetNS != j.clientNode(l) && drop.IfIndex != last.IfIndex &&
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

func at(h *hop.Hop) string {
	if d := h.Device(); d != "" {
		return d
	}
	return "its sender"
}

// inside says that a packet was in another one: rules for the tunnel's own addresses and port act on it there.
func inside(h *hop.Hop) string {
	if h.Tunnel {
		return ", inside a tunnel's packet"
	}
	return ""
}

func processName(p *hop.Process, otherwise string) string {
	if p == nil || p.Name == "" {
		return otherwise
	}
	return fmt.Sprintf("%s (pid %d)", p.Name, p.PID)
}

// evidence is what every verdict of a lost lookup rests on: the last hop, and the connection-tracking entry it had.
func (j *Judge) evidence(l *lookup.Lookup, last *hop.Hop) []string {
	e := []string{"last seen " + j.spot(l, last)}
	var ct *hop.Conntrack
	for i := range l.Hops {
		if l.Hops[i].Tracked {
			ct = &l.Hops[i].Conntrack
		}
	}
	if ct != nil {
		e = append(e, "conntrack "+ct.String())
	}
	var devs []string
	for i := range l.Hops {
		switch h := &l.Hops[i]; {
		case h.Kind == hop.Read:
			devs = append(devs, "socket")
		case h.Kind != hop.Drop && h.Device() != "":
			devs = append(devs, h.Device())
		}
	}
	attempts := "1 attempt"
	if l.Attempts != 1 {
		attempts = fmt.Sprintf("%d attempts", l.Attempts)
	}
	if len(devs) > 0 {
		attempts += "; seen at " + strings.Join(devs, ", ")
	}
	return append(e, attempts)
}
