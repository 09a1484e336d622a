package verdict

import (
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// TestEndpointThatIsNoneAnyMore: an old entry leads to a pod that serves no DNS; whether it still is an endpoint, new
// connections tell.
func TestEndpointThatIsNoneAnyMore(t *testing.T) {
	const oldNS = 7
	through := func(to hop.Endpoint, older bool, end hop.Hop, ending lookup.Ending) *lookup.Lookup {
		return &lookup.Lookup{
			Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, EntryOlder: older, Ending: ending,
			Hops: []hop.Hop{
				{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip},
				{Kind: hop.In, NetNS: nodeNS, IfIndex: 3, Src: pod, Dst: vip},
				{Kind: hop.Out, NetNS: nodeNS, IfIndex: 4, Src: pod, Dst: to, Tracked: true}, end,
			},
		}
	}
	read := hop.Hop{Kind: hop.Read, NetNS: farNS, Src: pod, Dst: alive}
	noSocket := hop.Hop{Kind: hop.Drop, NetNS: oldNS, IfIndex: 2, Src: pod, Dst: dead, Reason: reason(t, "NO_SOCKET")}
	icmp := hop.Hop{Kind: hop.Unreachable, NetNS: nodeNS, IfIndex: 4, ICMP: 3<<8 | 3, ICMPSender: dead.Addr}
	for _, c := range []struct {
		name    string
		to      []hop.Endpoint // of new connections before
		older   bool
		end     hop.Hop
		where   Where
		cause   Cause
		certain bool
	}{
		{
			"new connections go to others", []hop.Endpoint{dead, alive, alive, alive}, true, noSocket,
			Service, CauseDeadEndpoint, false,
		},
		{"told by ICMP alone", []hop.Endpoint{alive, alive, alive}, true, icmp, Service, CauseDeadEndpoint, false},
		{"two are chance", []hop.Endpoint{dead, alive, alive}, true, noSocket, CoreDNSSocket, CauseNoListener, false},
		{"one of several", []hop.Endpoint{alive, alive, alive, dead}, true, noSocket, CoreDNSSocket, CauseNoListener, false},
		{"a new entry", []hop.Endpoint{alive, alive, alive}, false, noSocket, CoreDNSSocket, CauseNoListener, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var j Judge
			for _, to := range c.to {
				j.Of(through(to, false, read, lookup.Answered))
			}
			v := j.Of(through(dead, c.older, c.end, lookup.Dropped))
			if v.Where != c.where || v.Cause != c.cause || v.Certain != c.certain {
				t.Errorf("judged %s/%s, certain %v (%s)", v.Where, v.Cause, v.Certain, v.Text)
			}
			if v.Cause == CauseDeadEndpoint && !strings.Contains(v.Text, "older than this lookup") {
				t.Errorf("%q does not name the old entry", v.Text)
			}
		})
	}
}
