package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// socketID is a client's end.
type socketID struct {
	end   hop.Endpoint
	proto uint8
}

// socket is a client's end, as seen from one side of a source translation, and what is under way from it.
type socket struct {
	id      socketID
	open    list // the lookups held that begin at this end, oldest first
	unread  list // queries delivered, not seen read by a server
	arrived []arrival
	guesses int     // reads of what was not seen coming, while one of its lookups is held
	astray  int64   // when an answer to none of its lookups was last seen on its way to it, in ns since 1970
	idle    bool    // it is in the queue of those, until its turn comes
	until   int64   // when that is, in ns since 1970
	behind  *socket // in that queue
	netns   uint32  // where answers came to it
	read    int64   // when its client read last, in ns since 1970; 0 where that was not seen
	served  int64   // when a server read last what came from here, in ns since 1970; 0 where it did not
	hash    uint64
	chain   *socket // in the table
}

// arrival is an answer that came to a client's network namespace and was not seen read: a socket hands out what it got
// in the order in which that came.
type arrival struct {
	time     int64 // ns since 1970
	skb      uint64
	src      hop.Endpoint
	size     int
	e        *entry
	id       uint16
	question uint64 // hash of it
	rcode    uint16
	serial   uint64    // of e: an entry that was let go is used again
	mismatch *Mismatch // where it is no answer to a question of e
}

// of gives the lookup that the answer came for; nil if it was let go.
func (x *arrival) of() *entry {
	if x.e == nil || x.e.serial != x.serial {
		return nil
	}
	return x.e
}

// maxArrived bounds the answers that one socket has not read.
const maxArrived = 16

func (a *Assembler) socketOf(id socketID) *socket {
	s := a.sockets.get(id)
	if s != nil {
		return s
	}
	if n := len(a.freeSocks); n > 0 {
		s = a.freeSocks[n-1]
		a.freeSocks = a.freeSocks[:n-1]
	} else {
		s = &socket{}
	}
	s.id = id
	a.sockets.put(s)
	return s
}

// dropSocket lets go of a socket that nothing is under way from. What it has not read stays in it: where answers wait
// there to be read in sight, it is kept until they can be thought read or closed away.
func (a *Assembler) dropSocket(s *socket) {
	switch {
	case s.idle || s.used():
	case len(s.arrived) > 0 && a.readsAt(s.netns):
		a.idle.push(s, a.waitsUntil(s))
		if a.idle.n > maxIdle {
			if first := a.idle.pop(); !first.used() {
				a.forgetSocket(first)
			}
		}
	default:
		a.forgetSocket(s)
	}
}

// used says whether anything is under way from the socket.
func (s *socket) used() bool { return s.open.n != 0 || s.unread.n != 0 }

func (a *Assembler) forgetSocket(s *socket) {
	a.sockets.remove(s)
	clear(s.arrived)
	s.arrived, s.guesses, s.astray, s.read, s.served, s.netns = s.arrived[:0], 0, 0, 0, 0, 0
	if len(a.freeSocks) < maxFree {
		a.freeSocks = append(a.freeSocks, s)
	}
}

// idleSockets are the sockets that nothing is under way from, and that have not read what came to them; and, until
// their turn comes, those of which that is true no more.
type idleSockets struct {
	first, last *socket
	n           int
}

// maxIdle bounds the idle sockets.
const maxIdle = 4096

func (q *idleSockets) push(s *socket, until int64) {
	if q.last != nil {
		q.last.behind = s
	} else {
		q.first = s
	}
	q.last, s.idle, s.until = s, true, until
	q.n++
}

// pop takes the first from the queue.
func (q *idleSockets) pop() *socket {
	s := q.first
	q.first = s.behind
	if q.first == nil {
		q.last = nil
	}
	q.n--
	s.behind, s.idle = nil, false
	return s
}

// waitsUntil gives until when a socket's reader may come, in ns since 1970.
func (a *Assembler) waitsUntil(s *socket) int64 {
	last := s.read
	for i := range s.arrived {
		last = max(last, s.arrived[i].time)
	}
	return last + int64(a.o.Linger+a.o.GiveUp)
}

// sweepIdle lets go of the idle sockets whose readers did not come in the time that a client waits for an answer.
func (a *Assembler) sweepIdle(now int64) {
	for a.idle.first != nil && a.idle.first.until <= now {
		s := a.idle.pop()
		switch {
		case s.used():
		case a.waitsUntil(s) <= now:
			a.forgetSocket(s)
		default:
			a.dropSocket(s) // it has read something meanwhile
		}
	}
}

// joinSocket puts a lookup to its client's socket; to another one when more is known of where it begins.
func (a *Assembler) joinSocket(e *entry) {
	id := socketID{e.Client, uint8(e.Transport)}
	if e.socket != nil {
		if e.socket.id == id {
			return
		}
		a.leaveSocket(e)
	}
	e.socket = a.socketOf(id)
	e.socket.open.push(&e.open)
}

func (a *Assembler) leaveSocket(e *entry) {
	if e.socket == nil {
		return
	}
	e.socket.open.remove(&e.open)
	a.dropSocket(e.socket)
	e.socket = nil
}

// addresses are those that the clients of a network namespace had last: a socket that is bound to no address is read
// without one.
type addresses struct {
	last     [8][16]byte
	n        int
	arrivals bool // answers were seen arriving there
	unread   int  // answers in a row that were waited for in vain to be read
}

// maxAddressed bounds the namespaces whose clients' addresses are remembered.
const maxAddressed = 8192

func (a *Assembler) addressOf(netns uint32, addr [16]byte) {
	x := a.addresses[netns]
	if x == nil {
		if len(a.addresses) >= maxAddressed {
			clear(a.addresses)
		}
		x = &addresses{}
		a.addresses[netns] = x
	}
	for i := range min(x.n, len(x.last)) {
		if x.last[i] == addr {
			return
		}
	}
	x.last[x.n%len(x.last)] = addr
	x.n++
}

// readingSocket finds the client's socket that was read. A socket that is bound to no address has one of its
// namespace's.
func (a *Assembler) readingSocket(p *hop.Packet) *socket {
	if s := a.sockets.get(socketID{p.Dst, p.Transport}); s != nil {
		return s
	}
	if !unspecified(p.Dst.Addr) {
		return nil
	}
	x := a.addresses[p.NetNS]
	if x == nil {
		return nil
	}
	var found *socket
	for i := range min(x.n, len(x.last)) {
		s := a.sockets.get(socketID{hop.Endpoint{Addr: x.last[i], Port: p.Dst.Port}, p.Transport})
		if s == nil {
			continue
		}
		if s.awaits(p.Src) {
			return s
		}
		found = s
	}
	return found
}

// awaits says whether a lookup of the socket has asked a server and is not read.
func (s *socket) awaits(server hop.Endpoint) bool {
	n := 0
	for l := s.open.last; l != nil && n < maxByID; l, n = l.prev, n+1 {
		if !l.e.ReadByClient && l.e.goes(server) {
			return true
		}
	}
	return false
}

// unspecified says whether an address is 0.0.0.0 or ::, which a socket that is bound to none has.
func unspecified(addr [16]byte) bool {
	return addr == [16]byte{} || addr == [16]byte{10: 0xff, 11: 0xff}
}
