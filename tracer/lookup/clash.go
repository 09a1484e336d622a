package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// unplaced says that a query was dropped before its conntrack entry was in the table.
func unplaced(drop *hop.Hop) bool {
	return drop.Kind == hop.Drop && drop.Tracked && drop.Conntrack.Status&hop.Confirmed == 0 && !drop.Reason.Harmless()
}

// clash says that two conntrack entries cannot be in one table: __nf_conntrack_confirm and nf_ct_resolve_clash in
// net/netfilter/nf_conntrack_core.c. Where both ask the same, newer kernels find a way (nf_ct_resolve_clash_harder),
// and drop nothing.
func clash(a, b *hop.Conntrack) bool {
	return a.ReplySrc == b.ReplySrc && a.ReplyDst == b.ReplyDst || a.OrigSrc == b.OrigSrc && a.OrigDst == b.OrigDst
}

// findClash looks, when a query was dropped before its conntrack entry was in the table, for another query of its
// process and port on its way at that time whose entry stands in the way. Where that one was dropped there, too,
// neither lost a race: a rule dropped both.
func (a *Assembler) findClash(e *entry, drop *hop.Hop) {
	if !unplaced(drop) || e.Process == nil {
		return
	}
	if !e.unplaced {
		e.unplaced = true
		a.unplaced++
	}
	a.besides(e, func(other *entry) bool {
		for i := range other.Hops {
			h := &other.Hops[i]
			if h.NetNS != drop.NetNS || !h.Tracked || h.Answer || !clash(&h.Conntrack, &drop.Conntrack) {
				continue
			}
			if other.unplaced {
				other.Clash = nil
				return true
			}
			e.clashWith(other, h)
			return true
		}
		return false
	})
}

// winsClash looks, when a query passes where another was dropped before its conntrack entry was in the table, whether
// this one's entry stood in the way.
func (a *Assembler) winsClash(e *entry, h *hop.Hop) {
	if a.unplaced == 0 || !h.Tracked || e.Process == nil || e.unplaced {
		return
	}
	a.besides(e, func(loser *entry) bool {
		if !loser.unplaced || loser.Clash != nil {
			return false
		}
		for i := range loser.Hops {
			if drop := &loser.Hops[i]; drop.NetNS == h.NetNS && unplaced(drop) && clash(&h.Conntrack, &drop.Conntrack) {
				loser.clashWith(e, h)
				return true
			}
		}
		return false
	})
}

func (e *entry) clashWith(other *entry, h *hop.Hop) {
	e.Clash = &Clash{Conntrack: h.Conntrack, Type: other.Type, Gap: e.lastQuery - other.lastQuery}
}

// besides gives the lookups in flight of the same process and port, until f says that it was the one.
func (a *Assembler) besides(e *entry, f func(*entry) bool) {
	ring := a.askers.of(asker{e.ClientNetNS, e.Process.PID})
	if ring == nil {
		return
	}
	for _, b := range ring {
		if b != nil && b.lookup != nil && b.lookup != e && b.client == e.Client && f(b.lookup) {
			return
		}
	}
}
