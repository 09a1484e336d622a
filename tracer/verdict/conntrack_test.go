package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// function gives an address in a kernel function.
func function(t *testing.T, name string) uint64 {
	t.Helper()
	address := hop.AddressOf(name)
	if address == 0 {
		t.Skipf("this kernel does not show where %s is", name)
	}
	return address + 1
}

func TestInsertRaceIsToldFromARule(t *testing.T) {
	for _, c := range []struct {
		name, function string
		clash          bool
		status         hop.ConntrackStatus
		device         uint32
		where          Where
		cause          Cause
		certain        bool
	}{
		{"the other entry was seen", hookFunction, true, hop.DstNAT, 9, Service, CauseInsertRace, true},
		{"the other entry was not seen", hookFunction, false, hop.DstNAT, 9, Service, CauseInsertRace, false},
		{"a rule on the way out", ruleFunction, true, hop.DstNAT, 9, Node, CausePolicyDrop, true},
		{"a connection that is known", hookFunction, true, hop.DstNAT | hop.Confirmed, 9, Node, CausePolicyDrop, true},
		{"still at the device by which it came", hookFunction, true, hop.DstNAT, 3, Node, CausePolicyDrop, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ct := hop.Conntrack{OrigSrc: pod, OrigDst: vip, ReplySrc: alive, ReplyDst: pod, Status: c.status}
			l := &lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Dropped, Paired: true,
				Hops: []hop.Hop{
					{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, SKB: 1, Src: pod, Dst: vip},
					{Kind: hop.Drop, NetNS: nodeNS, IfIndex: c.device, SKB: 1, Src: pod, Dst: alive, Tracked: true, Conntrack: ct, Reason: reason(t, "NETFILTER_DROP"), Location: function(t, c.function)},
				},
			}
			if c.clash {
				l.Clash = &lookup.Clash{Conntrack: ct, Type: 28, Gap: -4000}
			}
			var j Judge
			j.Forwards(nodeNS)
			if v := j.Of(l); v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s), want %s/%s, certain %v", v.Where, v.Cause, v.Certain, v.Text, c.where, c.cause, c.certain)
			}
		})
	}
}
