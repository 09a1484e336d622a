package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// findClash looks, when a query was dropped before its conntrack entry was in the table, for another query of its process and port on its way at that
// time whose entry differs in what was asked and is the same in what is expected back.
func (a *Assembler) findClash(l *Lookup, drop *hop.Hop) {
	if !drop.Tracked || drop.Conntrack.Status&hop.Confirmed != 0 || l.Process == nil {
		return
	}
	ring := a.askers.recent[asker{l.ClientNetNS, l.Process.PID}]
	if ring == nil {
		return
	}
	for _, b := range ring {
		if b == nil || b.lookup == nil || b.lookup == l || b.client != l.Client {
			continue
		}
		for i := range b.lookup.Hops {
			h := &b.lookup.Hops[i]
			if h.Tracked && h.NetNS == drop.NetNS && clash(&h.Conntrack, &drop.Conntrack) {
				l.Clash = &Clash{Conntrack: h.Conntrack, Type: b.typ, Gap: l.lastQuery - b.lookup.lastQuery}
				return
			}
		}
	}
}

// clash says that two conntrack entries cannot be in one table: nf_ct_resolve_clash in net/netfilter/nf_conntrack_core.c.
func clash(a, b *hop.Conntrack) bool {
	return a.ReplySrc == b.ReplySrc && a.ReplyDst == b.ReplyDst && (a.OrigSrc != b.OrigSrc || a.OrigDst != b.OrigDst)
}
