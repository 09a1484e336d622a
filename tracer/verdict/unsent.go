package verdict

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// sayUnsent judges a lookup that ended before there was a packet. That it did was seen. Why is certain where connect(2)
// said so by an error that means one thing: that of a send may be an earlier packet's, to whatever port.
func (v *view) sayUnsent(out *Verdict) {
	l, u := v.l, v.l.Unsent
	out.Where, out.Cause = Client, causeOfUnsent(u)
	switch unix.Errno(u.Error) { // #nosec G115 -- a positive errno
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EAGAIN, unix.EADDRNOTAVAIL:
		out.Certain = u.Connect
	}
	what := "the query was not sent"
	if u.Connect {
		what = "the socket could not be connected to " + l.Server.String()
	}
	out.Text = what + ": " + whyUnsent(u, l.Server)
	call := "a send"
	if u.Connect {
		call = "connect(2)"
	}
	seen := fmt.Sprintf("%s failed in netns %d", call, l.ClientNetNS)
	if u.Error != 0 {
		seen += fmt.Sprintf(": %s (%v)", unix.ErrnoName(unix.Errno(u.Error)), unix.Errno(u.Error))
	} else {
		seen += ": the socket was closed unconnected; the error itself was not seen"
	}
	out.Evidence = []string{seen, "no packet left"}
	if len(l.Name) == 0 {
		out.Evidence = append(out.Evidence, "what was to be asked is not known")
	}
}

// causeOfUnsent gives the cause of what was not sent.
func causeOfUnsent(u *lookup.Unsent) Cause {
	switch unix.Errno(u.Error) { // #nosec G115 -- a positive errno
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES:
		// A route of the kind unreachable gives EHOSTUNREACH, prohibit EACCES, blackhole EINVAL (fib_props).
		return CauseNoRoute
	case unix.EAGAIN, unix.EADDRNOTAVAIL:
		return CauseNoPort
	case 0:
		switch {
		case u.Route == hop.RouteOn:
			return CauseNoPort
		case u.Route == hop.RouteNone || u.HadPort:
			return CauseNoRoute
		}
	}
	return CauseUnsent
}

// refusedAtCgroup is what stands beside each reason that is concluded of a socket that a program at its cgroup may have
// kept from being connected, as some data paths do for a service without endpoints.
const refusedAtCgroup = "or a program at the process's cgroup refused it"

// whyUnsent gives the reason in words.
func whyUnsent(u *lookup.Unsent, server hop.Endpoint) string {
	to := server.AddrPort().Addr()
	switch e := unix.Errno(u.Error); e { // #nosec G115 -- a positive errno
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		return fmt.Sprintf("there is no route to %s", to)
	case unix.EACCES:
		return fmt.Sprintf("the route to %s prohibits it", to)
	case unix.EINVAL:
		return fmt.Sprintf("the route to %s is a blackhole", to)
	case unix.EAGAIN, unix.EADDRNOTAVAIL:
		return "no local port is free"
	case unix.EPERM:
		return "a firewall's rule or a program at the process's cgroup does not permit it"
	case 0:
		switch {
		case u.Route == hop.RouteOn:
			return "no local port is free"
		case u.Route == hop.RouteNone:
			return fmt.Sprintf("there is no route to %s", to)
		case u.HadPort:
			return fmt.Sprintf("there is no route to %s, %s", to, refusedAtCgroup)
		case u.Unbound:
			return "no local port is free, " + refusedAtCgroup
		}
		return fmt.Sprintf("there is no route to %s, no local port is free, %s", to, refusedAtCgroup)
	default:
		return e.Error()
	}
}
