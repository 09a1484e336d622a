package lookup

import (
	"fmt"
	"strings"
)

// Leftover names what is still held of lookups though none is in flight, and how much; "" where nothing is. It is what
// a leak would show as; connections, and what is remembered of lookups that were reported, are not counted.
func (a *Assembler) Leftover() string {
	if a.ages.n > 0 {
		return ""
	}
	timers, working := 0, 0
	for i := range a.wheel.lists {
		timers += a.wheel.lists[i].n
	}
	for _, l := range a.servers.working {
		working += l.n
	}
	var s []string
	for _, x := range []struct {
		name string
		n    int
	}{
		{"table", a.table.n}, {"sockets", a.sockets.n}, {"questions", len(a.questions)},
		{"fragments", len(a.fragments)}, {"owners", len(a.owners.by)}, {"bytes", a.owners.bytes}, {"timers", timers},
		{"working", working}, {"unplaced", a.unplaced},
	} {
		if x.n != 0 {
			s = append(s, fmt.Sprintf("%s %d", x.name, x.n))
		}
	}
	return strings.Join(s, ", ")
}
