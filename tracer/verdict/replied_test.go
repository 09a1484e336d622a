package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// TestFailureThatTheClientGotIsNoLoss: what the client got and what failed are two things.
func TestFailureThatTheClientGotIsNoLoss(t *testing.T) {
	silent := []*lookup.Upstream{{Server: endpoint("192.168.100.53:53")}}
	for _, c := range []struct {
		name      string
		rcode     uint16
		upstreams []*lookup.Upstream
		source    hop.Endpoint
		where     Where
		cause     Cause
		lost      bool
	}{
		{"NXDOMAIN", dnswire.RcodeNXDomain, nil, vip, Answered, CauseAnswered, false},
		{"SERVFAIL", 2, nil, vip, CoreDNS, CauseServerError, false},
		{"SERVFAIL because an upstream was silent", 2, silent, vip, Upstream, CauseTimeout, false},
		{"from whom it had not asked", dnswire.RcodeSuccess, nil, alive, Client, CauseWrongSource, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := new(Judge).Of(&lookup.Lookup{
				Transport: link.UDP, Client: pod, Server: vip, ClientNetNS: podNS, Attempts: 1, Ending: lookup.Answered,
				AnswerSeen: true, AnswerSource: c.source, Body: dnswire.Body{Rcode: c.rcode}, Upstreams: c.upstreams,
				Hops: []hop.Hop{
					{Kind: hop.Out, Local: true, NetNS: podNS, IfIndex: 2, Src: pod, Dst: vip},
					{Kind: hop.In, Answer: true, NetNS: podNS, IfIndex: 2, Src: c.source, Dst: pod},
				},
			})
			if v.Where != c.where || v.Cause != c.cause || v.Lost() != c.lost {
				t.Errorf("judged %s/%s, lost %v, want %s/%s, lost %v", v.Where, v.Cause, v.Lost(), c.where, c.cause, c.lost)
			}
		})
	}
}
