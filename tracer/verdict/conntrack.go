package verdict

import (
	"fmt"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Where netfilter drops a packet tells who decided. From Linux 6.7 on a rule of nf_tables drops in ruleFunction itself
// (NF_DROP_REASON in nft_do_chain); what else is asked at a hook, connection tracking among them, gives NF_DROP back to
// hookFunction, which drops. So do the rules of ip_tables, and on older kernels all rules.
const (
	hookFunction = "nf_hook_slow"
	ruleFunction = "nft_do_chain"
)

// byRule says that a rule of nf_tables, and nothing else, dropped the packet.
func byRule(drop *hop.Hop) bool {
	return drop.Location != 0 && strings.HasPrefix(hop.FunctionAt(drop.Location), ruleFunction)
}

// unplaced says whether a packet was dropped when its new conntrack entry was to be put into the table, after all
// rules, on its way out of the node, and by no rule of nf_tables.
func unplaced(l *lookup.Lookup, drop *hop.Hop) bool {
	if !drop.Tracked || drop.Conntrack.Status&hop.Confirmed != 0 {
		return false
	}
	for i := range l.Hops {
		if h := &l.Hops[i]; h.SKB == drop.SKB && h.Kind == hop.In && h.NetNS == drop.NetNS && h.IfIndex == drop.IfIndex {
			return false // still at the device it came in by: not on its way out
		}
	}
	return !byRule(drop)
}

// raceEvidence is what an insert race rests on.
func raceEvidence(l *lookup.Lookup, drop *hop.Hop) []string {
	where := "on its way out of " + at(drop) + ", its conntrack entry not yet in the table"
	if f := hop.FunctionAt(drop.Location); f != "" {
		where += " (" + f + ")"
	}
	e := []string{where}
	c := l.Clash
	gap, order := time.Duration(c.Gap), "before"
	if gap < 0 {
		gap, order = -gap, "after"
	}
	way := "the same reply direction"
	if c.Conntrack.OrigSrc == drop.Conntrack.OrigSrc && c.Conntrack.OrigDst == drop.Conntrack.OrigDst {
		way = "the same original direction"
	}
	return append(e, fmt.Sprintf("the other query of the same port, %s, sent %s %s it: conntrack %s, %s",
		dnswire.TypeString(c.Type), gap.Round(time.Microsecond), order, c.Conntrack.String(), way))
}

// conntrackFull says whether a packet without a conntrack entry was dropped because there was no room for one, and
// writes the verdict if so. By the time that the table is read, connections may have ended: then a table that is nearly
// full was probably full.
func (j *Judge) conntrackFull(l *lookup.Lookup, drop *hop.Hop, v *Verdict) bool {
	known := false
	if j.Conntrack != nil {
		var count, limit int
		if count, limit, known = j.Conntrack(drop.NetNS, drop.Time); known {
			v.Evidence = append(v.Evidence, fmt.Sprintf("conntrack held %d of %d connections then, %s", count, limit,
				j.whose(l, drop.NetNS)))
			if limit == 0 || count < limit-limit/10 {
				return false
			}
			if count >= limit {
				v.Where, v.Cause, v.Certain = Service, CauseConntrack, true
				v.Text = fmt.Sprintf("the query was lost at %s: the conntrack table is full (%s)", at(drop), drop.Reason)
				return true
			}
		}
	}
	if !known && (!j.tracks[drop.NetNS] || drop.NetNS == l.ClientNetNS) {
		return false
	}
	v.Where, v.Cause, v.Certain = Service, CauseConntrack, false
	v.Text = fmt.Sprintf("the query was lost at %s before it had a conntrack entry: the conntrack table is full, or a "+
		"rule in the raw table dropped it (%s)", at(drop), drop.Reason)
	return true
}
