package verdict

import (
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// role is what a network namespace is to a lookup. It follows from what is known, never from what was not seen.
type role uint8

const (
	unknown role = iota
	node         // it forwards packets
	end          // a pod's or another host's own: what is addressed to it and arrives is delivered there
)

// role gives the role of a network namespace: by what it was seen to forward, else by whose it is.
func (j *Judge) role(netns uint32) role {
	if j.nodes[netns] {
		return node
	}
	if j.Namespace == nil || netns == 0 {
		return unknown
	}
	switch j.Namespace(netns).Kind {
	case semconv.OwnerNode, semconv.OwnerHost:
		return node
	case semconv.OwnerPod:
		return end
	}
	return unknown // that some process lives there says nothing: a router in a container is one, too
}

// isNode says whether a namespace is known to forward packets.
func (j *Judge) isNode(netns uint32) bool { return j.role(netns) == node }

// reads notes in which namespace a server reads what is sent to an address.
func (j *Judge) reads(to hop.Endpoint, netns uint32) {
	if to.IsZero() || netns == 0 || j.homes[to] == netns {
		return
	}
	if addr := to.AddrPort().Addr(); addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		// Every namespace has these addresses for itself: they say nothing of another one.
		if len(j.ownHomes) >= maxServices {
			clear(j.ownHomes)
		}
		j.ownHomes[ownHome{to, netns}] = true
		return
	}
	if len(j.homes) >= maxServices {
		clear(j.homes)
	}
	j.homes[to] = netns
}

// ownHome is an address that each network namespace has for itself, in one of them.
type ownHome struct {
	at    hop.Endpoint
	netns uint32
}

// delivery says whether a query that arrived at a hop was delivered to a socket there, and whether that is known: the
// packet is on the loopback device, or a server was seen to read there what is sent to that address, or the namespace
// forwards nothing.
func (j *Judge) delivery(l *lookup.Lookup, h *hop.Hop) (delivered, known bool) {
	if h.Kind != hop.In {
		return false, false
	}
	home, seen := j.homes[h.Dst]
	switch {
	case h.Device() == loopback, j.ownHomes[ownHome{h.Dst, h.NetNS}]:
		return true, true
	case seen:
		return home == h.NetNS, true
	case j.role(h.NetNS) == node:
		return false, true
	case h.NetNS == l.ClientNetNS:
		return false, false
	case j.role(h.NetNS) == end:
		// Behind a service address that is not translated there is no socket.
		return h.Dst != l.Server || !j.services[l.Server], true
	}
	// The namespace after the client's own is its node's, mostly.
	return h.NetNS != j.clientNode(l) && h.Dst.Port != 0, false
}

const loopback = "lo"

// endedByServer says whether the end of a connection was seen to come from where the server's socket is: firewalls
// reset in a server's name.
func (j *Judge) endedByServer(l *lookup.Lookup) bool {
	c := l.Close
	if c.NetNS != 0 && c.NetNS == l.ServerNetNS {
		return true
	}
	var query, answer *hop.Hop
	for i := range l.Hops {
		switch h := &l.Hops[i]; {
		case !h.Answer && h.Kind == hop.In:
			query, answer = h, nil
		case h.Answer && h.Kind == hop.Out && answer == nil:
			answer = h
		}
	}
	if query == nil || answer == nil || query.NetNS != answer.NetNS {
		return false
	}
	delivered, known := j.delivery(l, query)
	return delivered && known
}

// bypassed says whether the query left the client's node by a device under which the client's own lies (macvlan,
// ipvlan): it left, and never came in, so that the node's translation did not see it.
func (j *Judge) bypassed(l *lookup.Lookup, last *hop.Hop) bool {
	if last.Kind != hop.Out || l.ClientNetNS == 0 || last.NetNS == l.ClientNetNS {
		return false
	}
	for i := range l.Hops {
		if h := &l.Hops[i]; !h.Answer && h.Attempt == last.Attempt && h.NetNS == last.NetNS && h.Kind == hop.In {
			return false
		}
	}
	return last.NetNS == j.clientNode(l)
}
