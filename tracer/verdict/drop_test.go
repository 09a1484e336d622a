package verdict

import (
	"testing"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

func TestCauseOfADrop(t *testing.T) {
	for _, c := range []struct {
		name, reason, function string
		limit                  uint8
		want                   Cause
		sure                   bool
	}{
		{"hop limit used up", "IP_INHDR", "ip_forward", 1, CauseHopLimit, true},
		{"hop limit used up, IPv6", "IP_INHDR", "ip6_forward", 1, CauseHopLimit, true},
		{"a kernel without reasons", "NOT_SPECIFIED", "ip_forward", 1, CauseHopLimit, false},
		{"a function without a name", "IP_INHDR", "", 1, CauseHopLimit, false},
		{"a bad header, hop limit 1", "IP_INHDR", "ip_rcv_core", 1, CauseDropped, true},
		{"a bad header", "IP_INHDR", "ip_rcv_core", 64, CauseDropped, true},
		{"not forwarded for another cause", "NOT_SPECIFIED", "ip_forward", 64, CauseNoRoute, false},
		{"a rule, hop limit 1", "NETFILTER_DROP", "nft_do_chain", 1, CausePolicyDrop, true},
		{"a tunnel without a target", "NO_TX_TARGET", "vxlan_xmit", 64, CauseTunnel, true},
		{"a bridge without a port", "NO_TX_TARGET", "br_flood", 64, CauseDropped, true},
		{"a bridge that does not take the source", "MAC_INVALID_SOURCE", "br_handle_frame", 64, CauseDropped, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, text, sure := causeIn(c.reason, c.function, c.limit); got != c.want || sure != c.sure {
				t.Errorf("%s (%s), sure %v; want %s, %v", got, text, sure, c.want, c.sure)
			}
		})
	}
}

// A fragment that goes on after another was dropped tells nothing new; another answer's, or a whole packet, may be what
// the client got.
func TestGoesOnAfterADroppedAnswer(t *testing.T) {
	drop := hop.Hop{Time: 10, Kind: hop.Drop, Answer: true, SKB: 1, Fragment: hop.Fragment{ID: 7, Offset: 1480, Bytes: 20}}
	for _, tt := range []struct {
		name  string
		after hop.Hop
		want  bool
	}{
		{"the first fragment", hop.Hop{Fragment: hop.Fragment{ID: 7, Bytes: 1480}}, false},
		{"another answer's fragment", hop.Hop{Fragment: hop.Fragment{ID: 8, Bytes: 1480}}, true},
		{"a whole answer", hop.Hop{}, true},
	} {
		h := tt.after
		h.Time, h.Kind, h.Answer, h.SKB = 20, hop.In, true, 2
		if got := goesOnAfter(&lookup.Lookup{Hops: []hop.Hop{drop, h}}, &drop); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
