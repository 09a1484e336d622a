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
	guesses int   // reads of what was not seen coming, while one of its lookups is held
	astray  int64 // when an answer to none of its lookups was last seen on its way to it, in ns since 1970
	served  int64 // when a server read last what came from here, in ns since 1970; 0 where it did not
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

func (a *Assembler) dropSocket(s *socket) {
	if s.open.n != 0 || s.unread.n != 0 {
		return
	}
	a.sockets.remove(s)
	clear(s.arrived)
	s.arrived, s.guesses, s.astray, s.served = s.arrived[:0], 0, 0, 0
	if len(a.freeSocks) < maxFree {
		a.freeSocks = append(a.freeSocks, s)
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
