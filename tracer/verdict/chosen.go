package verdict

import (
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// A service address is translated anew for each new connection, to an endpoint that the service has then. So the newest
// translations tell which endpoints it has, and that an old connection leads to one which it has no more.

// chooser is who translates: a node, for a service address.
type chooser struct {
	netns   uint32
	service hop.Endpoint
}

// choices are the endpoints of the newest translations for new connections, as a ring.
type choices struct {
	last [8]hop.Endpoint
	n    int // how many there were
}

// learnChoice notes to which endpoint a new connection was translated.
func (j *Judge) learnChoice(l *lookup.Lookup) {
	if l.EntryOlder || l.Again || l.Revision > 0 {
		return
	}
	by, to := translatedBy(l)
	if by == 0 {
		return
	}
	near := &j.known.choosers[(int(by)+slotOf(&l.Server))%len(j.known.choosers)]
	if near.by.netns != by || !near.by.service.Equal(&l.Server) {
		k := chooser{by, l.Server}
		c := j.choices[k]
		if c == nil {
			if len(j.choices) >= maxServices {
				return
			}
			if j.choices == nil {
				j.choices = make(map[chooser]*choices)
			}
			c = &choices{}
			j.choices[k] = c
		}
		near.by, near.to = k, c
	}
	c := near.to
	c.last[c.n%len(c.last)] = to
	c.n++
}

// translatedBy gives the namespace in which a query's destination was translated, and to what; 0 where it was not seen.
func translatedBy(l *lookup.Lookup) (netns uint32, to hop.Endpoint) {
	for i := range l.Hops {
		if h := &l.Hops[i]; !h.Answer && h.Kind != hop.Read && h.Kind != hop.Unreachable && h.Dst != l.Server {
			return h.NetNS, h.Dst
		}
	}
	return 0, to
}

// elsewhere gives how many of the newest connections to the lookup's service were translated to others, since the last
// that was translated to the lookup's endpoint.
func (j *Judge) elsewhere(l *lookup.Lookup) int {
	by, to := translatedBy(l)
	c := j.choices[chooser{by, l.Server}]
	if c == nil {
		return 0
	}
	n := 0
	for n < min(c.n, len(c.last)) && c.last[(c.n-1-n)%len(c.last)] != to {
		n++
	}
	return n
}

// enough is how many new connections in a row go to others where an endpoint is one no more. Fewer may be chance where
// there are several endpoints.
const enough = 3

// leftBehind says whether only an old conntrack entry leads to an endpoint, and new connections go to others.
func (v *view) leftBehind(endpoint hop.Endpoint) bool {
	return v.l.EntryOlder && endpoint != v.l.Server && v.elsewhere(v.l) >= enough
}
