package verdict

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Spot is a place in parts, as outputs show it.
type Spot struct {
	Device string // "socket" of a read, "no device" of a packet that had none
	Kind   string // the direction, or what happened: see [hop.Kind]
	NetNS  uint32 // inode number of the network namespace
}

// ParsePlace reads what [Place] wrote; ok is false of anything else.
func ParsePlace(place string) (s Spot, ok bool) {
	rest, inum, ok := strings.Cut(place, " netns ")
	if !ok {
		return Spot{}, false
	}
	n, err := strconv.ParseUint(inum, 10, 32)
	i := strings.LastIndexByte(rest, ' ')
	if err != nil || i <= 0 {
		return Spot{}, false
	}
	return Spot{Device: rest[:i], Kind: rest[i+1:], NetNS: uint32(n)}, true
}

// spot tells a hop's place as evidence does: "arriving at cbr0 on node node-1".
func (j *Judge) spot(l *lookup.Lookup, h *hop.Hop) string {
	return spot(h.Device(), h.Kind.String(), j.whose(l, h.NetNS))
}

// whose tells where a network namespace is: by its owner's name, else by its number, which the attributes have in any case.
func (j *Judge) whose(l *lookup.Lookup, netns uint32) string {
	if j.Namespace != nil {
		if on := j.Namespace(netns); on != "" {
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

// DroppedAt is the evidence of a drop. The place is as [Place] writes it; whose tells whose network namespace that is, "on node node-1".
func DroppedAt(place, whose, reason string) string {
	s, ok := ParsePlace(place)
	if !ok {
		return fmt.Sprintf("dropped at %s: %s", place, reason)
	}
	if s.Device == noDevice {
		s.Device = ""
	}
	return fmt.Sprintf("dropped %s: %s", spot(s.Device, hop.Drop.String(), whose), reason)
}

var droppedAt = regexp.MustCompile(`^dropped (?:at \S+ )?(?:on|in) ((?:node|host|pod) [^\s,:]+)`)

// DroppedBy gives whose network namespace a verdict's evidence says that the drop was in: "node node-1", "pod shop/cart-1"; "" if it does not say, or knows no name.
func DroppedBy(evidence []string) string {
	for _, e := range evidence {
		if m := droppedAt.FindStringSubmatch(e); m != nil {
			return m[1]
		}
	}
	return ""
}
