package verdict

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

func TestWhatIsNotSent(t *testing.T) {
	server := hop.Endpoint{Addr: [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 10}, Port: 53}
	for name, c := range map[string]struct {
		unsent  lookup.Unsent
		cause   Cause
		certain bool
	}{
		"connect, no route":      {lookup.Unsent{Connect: true, Error: int(unix.ENETUNREACH)}, CauseNoRoute, true},
		"connect, no port":       {lookup.Unsent{Connect: true, Error: int(unix.EAGAIN)}, CauseNoPort, true},
		"connect, no port, TCP":  {lookup.Unsent{Connect: true, Error: int(unix.EADDRNOTAVAIL)}, CauseNoPort, true},
		"connect, prohibited":    {lookup.Unsent{Connect: true, Error: int(unix.EACCES)}, CauseNoRoute, false},
		"connect, not permitted": {lookup.Unsent{Connect: true, Error: int(unix.EPERM)}, CauseUnsent, false},
		"send, no route":         {lookup.Unsent{Error: int(unix.ENETUNREACH)}, CauseNoRoute, false},
		"send, blackhole":        {lookup.Unsent{Error: int(unix.EINVAL)}, CauseNoRoute, false},
		"closed, port given": {lookup.Unsent{Connect: true, Route: hop.RouteNone, HadPort: true}, CauseNoRoute,
			false},
		"closed, port of its own":    {lookup.Unsent{Connect: true, HadPort: true}, CauseNoRoute, false},
		"closed, past the route":     {lookup.Unsent{Connect: true, Route: hop.RouteOn}, CauseNoPort, false},
		"closed, UDP without a port": {lookup.Unsent{Connect: true, Unbound: true}, CauseUnsent, false},
		"closed, nothing to be told": {lookup.Unsent{Connect: true}, CauseUnsent, false},
	} {
		l := &lookup.Lookup{
			Server: server, ClientNetNS: 1, Ending: lookup.Dropped, Attempts: 1, Unsent: &c.unsent,
			Hops: []hop.Hop{{Time: 1, Kind: hop.Unsent, Local: true, NetNS: 1, Dst: server}},
		}
		v := new(Judge).Of(l)
		if v.Where != Client || v.Cause != c.cause || v.Certain != c.certain || v.Text == "" || !v.Lost() {
			t.Errorf("%s: %+v", name, v)
		}
		if c.unsent.Unbound && strings.Contains(v.Text, "no route") {
			t.Errorf("%s: its route was not looked up: %s", name, v.Text)
		}
	}
}
