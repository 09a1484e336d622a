package verdict

import (
	"fmt"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Spot is a place in parts, as outputs show it.
type Spot struct {
	Device string // "" of a packet that had none, "socket" of a read
	Event  string // what happened there: see [hop.Kind]
	NetNS  uint32 // inode number of the network namespace
	Owner  Owner  // of the network namespace
}

// SpotOf gives a hop's place, without its owner.
func SpotOf(h *hop.Hop) Spot {
	s := Spot{Device: h.Device(), Event: h.Kind.String(), NetNS: h.NetNS}
	if h.Kind == hop.Read {
		s.Device = socketDevice
	}
	return s
}

// OwnerKind is what has a network namespace for its own, in the words of [semconv.SegmentToOwnerKind].
type OwnerKind string

// Owner is whose a network namespace is; the zero value is one that nobody knows.
type Owner struct {
	Kind OwnerKind
	Name string // of a pod namespace/pod
}

// String gives the owner so that it can stand after "in" or "on": "pod shop/cart-1", "node node-1".
func (o Owner) String() string {
	switch o.Kind {
	case "":
		return ""
	case semconv.OwnerNamed:
		return "network namespace " + o.Name
	case semconv.OwnerProcess:
		return "the network namespace of " + o.Name
	}
	return string(o.Kind) + " " + o.Name
}

// On tells where somebody is who is in the namespace: "in pod shop/cart-1", "on node node-1"; "" if it is not known.
func (o Owner) On() string {
	switch o.Kind {
	case "":
		return ""
	case semconv.OwnerNode, semconv.OwnerHost:
		return "on " + o.String()
	}
	return "in " + o.String()
}

// spot tells a hop's place as evidence does: "arriving at cbr0 on node node-1".
func (j *Judge) spot(l *lookup.Lookup, h *hop.Hop) string {
	return spot(h.Device(), h.Kind.String(), j.whose(l, h.NetNS))
}

// whose tells where a network namespace is: by its owner's name, else by its number, which the attributes have in any
// case.
func (j *Judge) whose(l *lookup.Lookup, netns uint32) string {
	if j.Namespace != nil {
		if on := j.Namespace(netns).On(); on != "" {
			return on
		}
	}
	switch netns {
	case 0:
		return "in an unknown network namespace"
	case l.ClientNetNS:
		return fmt.Sprintf("in the client's network namespace (%d)", netns)
	case l.ServerNetNS:
		return fmt.Sprintf("in the server's network namespace (%d)", netns)
	}
	return fmt.Sprintf("in network namespace %d", netns)
}

func spot(device, kind, whose string) string {
	switch {
	case kind == hop.Read.String():
		return "read from a socket " + whose
	case device == "":
		return whose + ", before it came to a device"
	case kind == hop.Out.String():
		return "leaving by " + device + " " + whose
	case kind == hop.In.String():
		return "arriving at " + device + " " + whose
	}
	return "at " + device + " " + whose
}

// Evidence is what a drop there is told as. whose tells where its network namespace is, "on node node-1".
func (s Spot) Evidence(whose, reason string) string {
	return fmt.Sprintf("dropped %s: %s", spot(s.Device, hop.Drop.String(), whose), reason)
}
