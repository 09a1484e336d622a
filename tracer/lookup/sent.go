package lookup

import (
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// A packet may leave later than it was sent, and in the context of another process: one that waits for its neighbor's
// address leaves when that is known. The kernel side tells of every send that returned before the packet had left: who
// sent, and when.

const (
	maxSenders = 4096
	maxSends   = 8          // of one socket
	sendWait   = int64(5e9) // ns that a packet waits for its neighbor at most: the kernel gives up after three seconds
	sameSend   = int64(50e6)
)

// port is a socket by its port: one that is bound to no address has none to be known by.
type port struct {
	netns uint32
	port  uint16
	proto uint8
}

// sender is who has sent from a port.
type sender struct {
	process *hop.Process
	times   [maxSends]int64 // of sends whose packet has not been seen, oldest first
	n       int
	seen    int64
}

type senders struct {
	by map[port]*sender
}

// addSent takes a send that has returned.
func (a *Assembler) addSent(p *hop.Packet) {
	if p.Process == nil {
		return
	}
	if s := a.clientSocket(p); s != nil && s.sentLately(p) {
		return // the packet has left, on another CPU
	}
	x := a.senders.of(port{p.NetNS, p.Src.Port, p.Transport}, p.Time)
	if x.process != p.Process {
		*x = sender{process: p.Process}
	}
	x.seen = p.Time
	if x.n == maxSends {
		copy(x.times[:], x.times[1:])
		x.n--
	}
	x.times[x.n] = p.Time
	x.n++
}

// clientSocket finds the socket that sent.
func (a *Assembler) clientSocket(p *hop.Packet) *socket {
	if s := a.sockets.get(socketID{p.Src, p.Transport}); s != nil {
		return s
	}
	if x := a.addresses[p.NetNS]; x != nil && unspecified(p.Src.Addr) {
		for i := range min(x.n, len(x.last)) {
			if s := a.sockets.get(socketID{hop.Endpoint{Addr: x.last[i], Port: p.Src.Port}, p.Transport}); s != nil {
				return s
			}
		}
	}
	return nil
}

// sentLately says whether the last packet of the socket was sent by the same process just before.
func (s *socket) sentLately(p *hop.Packet) bool {
	l := s.open.last
	if l == nil {
		return false
	}
	e := l.e
	return e.Process != nil && e.Process.PID == p.Process.PID && p.Time-e.lastQuery < sameSend
}

func (s *senders) of(at port, now int64) *sender {
	x := s.by[at]
	if x != nil && now-x.seen <= sendWait {
		return x
	}
	if s.by == nil {
		s.by = make(map[port]*sender)
	}
	if len(s.by) >= maxSenders {
		for k, old := range s.by {
			if now-old.seen > sendWait {
				delete(s.by, k)
			}
		}
		if len(s.by) >= maxSenders {
			clear(s.by)
		}
	}
	x = &sender{}
	s.by[at] = x
	return x
}

// sentBy takes the process and the time of a lookup's send from what its port has sent before the packet left.
func (a *Assembler) sentBy(e *entry) {
	if len(a.senders.by) == 0 {
		return
	}
	at := port{e.ClientNetNS, e.Client.Port, uint8(e.Transport)}
	x := a.senders.by[at]
	if x == nil || x.n == 0 {
		return
	}
	sent := x.times[0]
	if sent > e.lastQuery || e.lastQuery-sent > sendWait {
		delete(a.senders.by, at)
		return
	}
	copy(x.times[:], x.times[1:])
	x.n--
	e.Process, e.Sent = x.process, sent
	if x.n == 0 {
		delete(a.senders.by, at)
	}
}
