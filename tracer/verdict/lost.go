package verdict

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// view is a lookup without an answer at the client, and the hops that decide.
type view struct {
	*Judge
	l *lookup.Lookup
	// last is the last hop that the lookup came to, drop the one that ended it, refused the ICMP error about it; the last
	// two may be nil.
	last, drop, refused *hop.Hop
}

// losing is one way in which a lookup gets no answer: when it is that, and what is said then.
type losing struct {
	name string
	is   func(*view) bool
	say  func(*view, *Verdict)
}

// losses are the ways, in the order in which they are tried: what was seen to happen comes before what was not seen to
// go on.
var losses = []losing{
	// What never was a packet, nothing can have happened to.
	{"not sent", func(v *view) bool { return v.l.Unsent != nil }, (*view).sayUnsent},
	// What a socket was handed is nearer to the client than anything that became of packets.
	{"another answer", (*view).gotAnother, (*view).sayAnother},
	// The end of a connection ends what was asked on it, whatever became of single segments before.
	{"connection closed", (*view).closed, (*view).sayClosed},
	// A drop is the kernel's own word.
	{"dropped", func(v *view) bool { return v.drop != nil }, (*view).sayDropped},
	// An ICMP error is somebody else's word for a drop out of sight.
	{"refused", func(v *view) bool { return v.refused != nil }, (*view).sayRefused},
	// From here on nothing more was seen: the stage is the one after the last hop, latest first.
	{"answer on its way", func(v *view) bool { return v.last.Answer }, (*view).sayAnswerVanished},
	{"read", func(v *view) bool { return v.last.Kind == hop.Read }, (*view).sayNoAnswer},
	{"delivered", (*view).delivered, (*view).sayNotRead},
	{"past the translation", (*view).wentPast, (*view).sayWentPast},
	{"not translated", (*view).untranslated, (*view).sayUntranslated},
	{"left the client", (*view).leftClient, (*view).sayLeftClient},
	{"sent to all ports", (*view).flooded, (*view).sayFlooded},
	{"left the node", func(v *view) bool { return v.last.Kind == hop.Out }, (*view).sayLeftNode},
	{"", func(*view) bool { return true }, (*view).sayVanished},
}

// lost judges a lookup without an answer at the client.
func (j *Judge) lost(l *lookup.Lookup) Verdict {
	v := &view{Judge: j, l: l}
	v.last, v.drop, v.refused = lastHops(l)
	out := Verdict{Evidence: j.evidence(l, v.last)}
	for i := range losses {
		if losses[i].is(v) {
			losses[i].say(v, &out)
			break
		}
	}
	if l.Unsent != nil {
		return out
	}
	if l.Connect {
		out.Evidence = append(out.Evidence, "TCP to a DNS port, no query sent yet")
		if len(l.Related) > 0 {
			out.Evidence = append(out.Evidence, "it was opened after a truncated answer")
		}
	}
	if l.EntryOlder && out.Where != Answered {
		out.Evidence = append(out.Evidence, "it was translated by a conntrack entry that is older than this lookup")
	}
	if v.unwatchedPort() {
		out.Evidence = append(out.Evidence, fmt.Sprintf("the query is for port %d behind the service", v.last.Dst.Port))
	}
	return out
}

// unwatchedPort says whether the query was translated to another port than it asked.
func (v *view) unwatchedPort() bool {
	return !v.last.Answer && v.last.Dst.Port != v.l.Server.Port && v.last.Dst.Port != 0
}

// lastHops gives the last hop that the lookup came to, the drop that ended it, and the ICMP error about it, where there
// are such.
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
		case h.Kind == hop.Drop && l.Connect && h.Answer && drop != nil && !drop.Answer:
			// The reset that a firewall's rule sends for what it drops may come untranslated, and then nobody takes it.
		case h.Kind == hop.Drop:
			drop = h
		case h.Answer && h.Kind == hop.Read:
		case h.Kind == hop.In && i > first && forOthers(l, h):
		default:
			last = h
			// What goes on after a drop was not ended by it, unless it is another attempt's packet, or another fragment.
			if drop != nil && h.Answer && !drop.Answer && !l.Connect {
				drop = nil // what was dropped was asked again, or came by another way: it is the answer now
			}
			if drop != nil && (drop.Fragment.Offset == 0 || drop.Attempt != h.Attempt) && (drop.Attempt == h.Attempt ||
				h.Answer) &&
				drop.Answer == h.Answer {
				drop = nil
			}
		}
	}
	if drop != nil && drop == &l.Hops[first] {
		last = drop
	}
	return last, drop, refused
}

// forOthers says that a frame came to a namespace for which it was not: a bridge sends to all its ports what is for an
// address that it knows no port of.
func forOthers(l *lookup.Lookup, in *hop.Hop) bool {
	for i := range l.Hops {
		if h := &l.Hops[i]; h.Kind == hop.Drop && h.SKB == in.SKB && h.NetNS == in.NetNS && h.Time >= in.Time &&
			h.Reason.String() == "OTHERHOST" {
			return true
		}
	}
	return false
}

// subject is what was lost, as a sentence begins with it.
func (v *view) subject() string {
	switch {
	case v.l.Connect && len(v.l.Related) > 0:
		return "the answer was truncated, and TCP to ask again does not get through: the connection"
	case v.l.Connect:
		return "the TCP connection"
	}
	return "the query"
}

func (v *view) gotAnother() bool {
	m := v.l.Mismatch
	if m == nil || v.drop != nil && v.drop.Time > m.Time && !v.drop.Answer {
		return false
	}
	return m.Arrived || m.Read || v.l.ClientNetNS == 0
}

func (v *view) sayAnother(out *Verdict) {
	l, m := v.l, v.l.Mismatch
	out.Where, out.Cause = Client, CauseUnexpectedAnswer
	// The right answer may have come by a way that is out of sight: then its read would tell. What was asked again
	// since may have met another fate.
	// What has neither its ID nor its question may be an answer to what was asked before.
	out.Certain = (m.Read || m.Arrived && v.ReadsSeen) && !v.askedSince(m.Time) && l.Owed == 0 &&
		(m.ID == l.ID || m.Type == l.Type && strings.EqualFold(string(m.Name), string(l.Name)))
	if m.ID != l.ID {
		out.Text = fmt.Sprintf("what came from %s was no answer to the question: ID 0x%04x was asked, 0x%04x answered",
			m.Source, l.ID, m.ID)
	} else {
		out.Text = fmt.Sprintf("what came from %s was no answer to the question: asked %s %s, answered %s %s", m.Source,
			l.Question(), dnswire.TypeString(l.Type), l.Show(m.Name), dnswire.TypeString(m.Type))
	}
	how := "it was seen on its way to the client"
	switch {
	case m.Read:
		how = "the client read it, and must ignore it (RFC 5452, section 9.1)"
	case m.Arrived:
		how = "it came to the client, who must ignore it (RFC 5452, section 9.1)"
	}
	out.Evidence = append(out.Evidence, how)
}

// askedSince says whether the client sent the query again after a time, in ns since 1970.
func (v *view) askedSince(t int64) bool {
	for i := range v.l.Hops {
		if h := &v.l.Hops[i]; !h.Answer && h.Attempt != 0 && h.Time > t {
			return true
		}
	}
	return false
}

func (v *view) closed() bool {
	c := v.l.Close
	return c != nil && (v.l.Connect || v.l.Ending == lookup.Closed || v.l.Ending == lookup.GaveUp) && (v.drop == nil ||
		v.drop.Answer || v.l.Connect)
}

func (v *view) sayClosed(out *Verdict) {
	l, c := v.l, v.l.Close
	how := "closed"
	if c.Reset {
		how = "reset"
	}
	switch {
	case l.Connect && v.drop != nil:
		v.sayDropped(out)
		if out.Cause == CausePolicyDrop || out.Cause == CauseRejected {
			out.Cause = CauseRefused
			out.Text = fmt.Sprintf("%s was reset at %s by a firewall rule or network policy", v.subject(), at(v.drop))
		}
		return
	case l.Connect:
		out.Where, out.Cause, out.Certain = CoreDNSSocket, CauseRefused, v.endedByServer(l)
		out.Text = fmt.Sprintf("%s was refused: %s answered with a reset", v.subject(), l.Server)
		if !out.Certain {
			out.Text += ", or a firewall did in its name"
		}
		return
	case !c.ByServer:
		out.Where, out.Cause, out.Certain = Client, CauseClientGone, c.Process != nil ||
			c.NetNS != 0 && c.NetNS == l.ClientNetNS
		out.Text = fmt.Sprintf("the client %s the connection before the answer came", how)
		if !out.Certain {
			out.Text += ", or a firewall did in its name"
		}
		return
	}
	out.Where, out.Cause, out.Certain = CoreDNS, CauseClosed, c.Process != nil || v.endedByServer(l)
	out.Text = fmt.Sprintf("the server %s the connection before it answered", how)
	if !out.Certain {
		out.Text += ", or a firewall did in its name"
	}
	if l.AnswerSeen {
		out.Text = fmt.Sprintf("the server %s the connection before its answer was whole: %d messages came", how, l.Messages)
	}
	if up, cause := failedUpstream(l); up != nil {
		out.Where, out.Cause, out.Certain = Upstream, cause, false
		out.Text += fmt.Sprintf(": upstream %s %s", up.Server, upstreamFate(up))
		out.Evidence = append(out.Evidence, upstreamEvidence(l)...)
	}
}

// sayRefused judges a query that an ICMP error answered, and whose drop was not seen: it was refused out of sight, or
// by a socket's host. Which of
// both is never certain: a firewall's rejection looks the same.
func (v *view) sayRefused(out *Verdict) {
	l, last, icmp := v.l, v.last, v.refused
	sender := hop.Endpoint{Addr: icmp.ICMPSender}.AddrPort().Addr()
	out.Evidence = append([]string{fmt.Sprintf("ICMP %s from %s, seen %s", icmpName(icmp.ICMP), sender, v.spot(l, icmp))},
		out.Evidence...)
	target := last.Dst.AddrPort().Addr()
	switch {
	case sender == target && portUnreachable(icmp.ICMP) && v.leftBehind(last.Dst):
		v.sayDeadEndpoint(out, last.Dst, "new connections go to others, and it answered that nothing listens there")
	case sender == target && portUnreachable(icmp.ICMP):
		out.Where, out.Cause = CoreDNSSocket, CauseNoListener
		out.Text = fmt.Sprintf("%s answered that nothing listens on its port %d", sender, last.Dst.Port)
	case last.Dst == l.Server && v.services[l.Server] && portUnreachable(icmp.ICMP):
		out.Where, out.Cause = Service, CauseNoEndpoints
		out.Text = fmt.Sprintf("the service address %s was rejected (%s): it has no endpoints", l.Server, icmpName(icmp.ICMP))
	case l.EntryOlder && last.Dst != l.Server:
		v.sayDeadEndpoint(out, last.Dst, "ICMP "+icmpName(icmp.ICMP)+" came back")
	case last.Kind == hop.Out && last.NetNS != l.ClientNetNS:
		out.Where, out.Cause = BetweenNodes, CauseRejected
		out.Text = fmt.Sprintf("%s answered %s", sender, icmpName(icmp.ICMP))
	default:
		out.Where, out.Cause = Node, CauseRejected
		out.Text = fmt.Sprintf("%s answered %s", sender, icmpName(icmp.ICMP))
	}
}

// sayDeadEndpoint judges a query that was translated to an address which serves no DNS any more.
func (v *view) sayDeadEndpoint(out *Verdict, to hop.Endpoint, why string) {
	out.Where, out.Cause, out.Certain = Service, CauseDeadEndpoint, false
	by := "was translated to"
	if v.l.EntryOlder {
		by = "was translated, by a conntrack entry that is older than this lookup, to"
	}
	out.Text = fmt.Sprintf("the service address %s %s %s, which is no endpoint any more: %s", v.l.Server, by, to, why)
}

func (v *view) sayAnswerVanished(out *Verdict) {
	out.Where, out.Cause = ReturnPath, CauseVanished
	out.Text = "the answer was sent, and last seen " + v.spot(v.l, v.last)
	if text, more := v.fragmentLost(v.l, v.last); text != "" {
		out.Cause, out.Text = CauseFragment, text
		out.Evidence = append(out.Evidence, more...)
	}
}

// sayNoAnswer judges a query that the server has read. That no answer left until now is a fact, that none ever will is
// not.
func (v *view) sayNoAnswer(out *Verdict) {
	out.Where, out.Cause = CoreDNS, CauseNoAnswer
	out.Text = processName(v.last.Process, "the server") + " read the query and has not answered"
	if up, cause := failedUpstream(v.l); up != nil {
		out.Where, out.Cause = Upstream, cause
		out.Text = fmt.Sprintf("the server read the query and has not answered: upstream %s %s", up.Server, upstreamFate(up))
		out.Evidence = append(out.Evidence, upstreamEvidence(v.l)...)
	}
}

func (v *view) delivered() bool {
	delivered, _ := v.delivery(v.l, v.last)
	return delivered
}

func (v *view) sayNotRead(out *Verdict) {
	_, known := v.delivery(v.l, v.last)
	if v.l.Connect {
		out.Where, out.Cause = CoreDNSSocket, CauseNotRead
		out.Text = "the TCP connection was asked for at the server, which has not accepted it"
		return
	}
	out.Where, out.Cause = CoreDNSSocket, CauseNotRead
	out.Certain = v.ReadsSeen && known && !v.l.ReadBeside && v.l.AheadAt == 0 && !partDropped(v.l)
	if v.l.AheadAt != 0 {
		out.Evidence = append(out.Evidence, "bytes that were sent before the query were not seen coming to the server")
	}
	out.Text = "delivered to the server's socket and not read: the server is stopped or overloaded"
	if !v.ReadsSeen {
		out.Where, out.Cause = CoreDNS, CauseNoAnswer
		out.Text = "delivered to the server, which has not answered"
	}
}

// partDropped says whether the kernel once dropped a segment of the query: what came of it need not be all.
func partDropped(l *lookup.Lookup) bool {
	return l.Transport == link.TCP && slices.ContainsFunc(l.Hops, func(h hop.Hop) bool {
		return h.Kind == hop.Drop && !h.Answer && !h.Reason.Harmless()
	})
}

func (v *view) wentPast() bool {
	return v.last.Dst == v.l.Server && v.bypassed(v.l, v.last) && v.services[v.l.Server]
}

func (v *view) sayWentPast(out *Verdict) {
	out.Where, out.Cause = Service, CauseUntranslated
	out.Text = fmt.Sprintf("the query left %s by %s, the parent of the client's own device, past the translation "+
		"there: the service address %s was not translated",
		v.whose(v.l, v.last.NetNS), v.last.Device(), v.l.Server)
}

func (v *view) untranslated() bool {
	return v.services[v.l.Server] && v.last.Dst == v.l.Server && v.last.NetNS != v.l.ClientNetNS
}

func (v *view) sayUntranslated(out *Verdict) {
	out.Where, out.Cause = Service, CauseUntranslated
	out.Text = fmt.Sprintf("the service address %s was not translated to a server's", v.l.Server)
}

func (v *view) leftClient() bool {
	return v.last.Kind == hop.Out && v.last.NetNS == v.l.ClientNetNS && !v.isNode(v.last.NetNS)
}

func (v *view) sayLeftClient(out *Verdict) {
	out.Where, out.Cause = PodLink, CauseVanished
	out.Text = "left the client and was not seen at the node"
}

// flooded says that a bridge sent the query to all its ports, and who saw it there it was not for.
func (v *view) flooded() bool {
	return v.last.Kind == hop.Out && slices.ContainsFunc(v.l.Hops, func(h hop.Hop) bool {
		return h.Kind == hop.In && h.SKB != 0 && h.NetNS != v.last.NetNS && h.Time >= v.last.Time && forOthers(v.l, &h)
	})
}

func (v *view) sayFlooded(out *Verdict) {
	out.Where, out.Cause = Node, CauseVanished
	out.Text = fmt.Sprintf("a bridge sent the query to all its ports, last at %s: it knew none for %s, and nobody there "+
		"took it", at(v.last), v.last.Dst)
}

func (v *view) sayLeftNode(out *Verdict) {
	out.Where, out.Cause = BetweenNodes, CauseNoReply
	past := ""
	if v.bypassed(v.l, v.last) {
		past = ", the parent of the client's own device,"
	}
	out.Text = fmt.Sprintf("left this node at %s%s towards %s%s, and nothing came back; what lies beyond is not "+
		"watched here",
		v.last.Device(), past, v.last.Dst, inside(v.last))
}

func (v *view) sayVanished(out *Verdict) {
	out.Where, out.Cause = Node, CauseVanished
	out.Text = "last seen " + v.spot(v.l, v.last)
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
	if n := l.AttemptsBefore + l.Attempts; n != 1 {
		attempts = fmt.Sprintf("%d attempts", n)
	}
	if len(devs) > 0 {
		attempts += "; seen at " + strings.Join(devs, ", ")
	}
	return append(e, attempts)
}
