package verdict

import (
	"strconv"
	"strings"
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
