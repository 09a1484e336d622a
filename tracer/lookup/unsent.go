package lookup

import (
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// addUnsent takes a connection or a send that failed before there was a packet: a lookup that ends as it begins. What
// it was to ask, nobody has seen.
func (a *Assembler) addUnsent(p *hop.Packet) {
	if !p.Connect && a.clientSocket(p) != nil {
		return // the socket has sent before: the error may be what became of that
	}
	a.makeRoom()
	e := a.alloc()
	e.Transport = link.Transport(p.Transport)
	e.Unsent = &Unsent{Error: p.Error, Connect: p.Connect, Route: p.Route, HadPort: p.Src.Port != 0}
	e.Unsent.Unbound = e.Transport == link.UDP && p.Connect && !e.Unsent.HadPort
	if e.Transport == link.TCP && p.Dst.AddrPort().Addr().Is4() {
		e.Unsent.HadPort = p.Route != hop.RouteOn // its port would have been the last that it lacked
	}
	e.Connect = e.Transport == link.TCP
	e.Client, e.Translated, e.Server = p.Src, p.Src, p.Dst
	e.Process, e.ClientNetNS = p.Process, p.NetNS
	e.Attempts, e.lastQuery = 1, p.Time
	a.afterTruncation(e, p)
	e.lossesBefore = a.lossesBefore(p.Time)
	a.findServed(e, p.NetNS)
	if e.Own && e.Serves == nil {
		a.discard(e) // a server's own, of no lookup that is known: it asks whether its upstream is well
		return
	}
	if e.serving != nil {
		e.serving.Unsent = e.Unsent
	}
	a.stats.Lookups++
	a.ages.push(&e.age)
	a.owners.add(e)
	a.keep(e, &p.Hop)
	e.Ending = Dropped
	a.finish(e)
}

// discard gives back a lookup that was begun and is none.
func (a *Assembler) discard(e *entry) {
	e.serial = 0
	if len(a.free) < maxFree {
		a.free = append(a.free, e)
	}
}
