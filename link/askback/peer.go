package askback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Timeout is how long an answer is waited for; the question is sent again after half of it.
const Timeout = 300 * time.Millisecond

// maxPending bounds the questions that wait for an answer.
const maxPending = 1024

// Result is what became of a question.
type Result uint8

// The results.
const (
	Answered    Result = 1 + iota // an answer came
	Unreachable                   // none came within [Timeout]
	Limited                       // it was not sent: too many wait, or too many were asked of that peer
)

// Options say where a [Peer] listens and who answers.
type Options struct {
	// Listen is the UDP address and port at which questions are taken, and from which they are asked.
	Listen string
	Key    *Key
	// Handle gets each question that is authentic, fresh and within bounds, and gives its answer to reply, once, from any
	// goroutine. It must not wait; what it gets is its own. Nil forgets all.
	Handle func(q Question, reply func(Answer))
	// Panicked, if set, gets what Handle or a callback of Ask panicked with.
	Panicked func(any)
}

// Stats are counts since the start.
type Stats struct {
	Asked       uint64 // questions sent
	Answered    uint64 // of them, answered, by whatever outcome
	Unreachable uint64 // of them, not answered in time
	Limited     uint64 // questions not sent: too many waited, or too many were asked of that peer

	Given     uint64 // answers of ours: seen, or not seen
	Forgotten uint64 // answers of ours: forgotten
	Refused   uint64 // questions beyond the bounds
	Replayed  uint64 // questions that came before, or of another time
	Forged    uint64 // datagrams that no key of ours sealed
	Malformed uint64 // datagrams that no program of this version sends
}

// Peer asks and answers. All its methods may be called from any goroutine.
type Peer struct {
	o    Options
	conn *net.UDPConn
	done chan struct{}

	mu      sync.Mutex
	pending map[nonce]*asking
	asks    map[netip.AddrPort]*bucket
	closed  bool

	asked, answered, unreachable, limited            atomic.Uint64
	given, forgotten, refused, replayed, forged, bad atomic.Uint64
}

// asking is a question that waits. It has the nonces of all times that it was sent.
type asking struct {
	to      netip.AddrPort
	q       Question
	nonces  []nonce
	timer   *time.Timer
	got     func(Result, Answer)
	settled bool
}

// Open listens. Errors are those of the socket.
func Open(o Options) (*Peer, error) {
	addr, err := net.ResolveUDPAddr("udp", o.Listen)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, err
	}
	p := &Peer{o: o, conn: conn, pending: map[nonce]*asking{}, asks: map[netip.AddrPort]*bucket{},
		done: make(chan struct{})}
	go p.serve()
	return p, nil
}

// ParseListen checks what [Options.Listen] is to be: an IP address (or none) and a port.
func ParseListen(s string) error {
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q: want ADDRESS:PORT or :PORT", s)
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q: want an IP address, or none, before the port", s)
		}
	}
	if _, err := net.ResolveUDPAddr("udp", s); err != nil {
		return err
	}
	return nil
}

// Addr gives the address at which the peer listens.
func (p *Peer) Addr() netip.AddrPort {
	a := p.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Stats gives the counts.
func (p *Peer) Stats() Stats {
	return Stats{
		Asked: p.asked.Load(), Answered: p.answered.Load(), Unreachable: p.unreachable.Load(), Limited: p.limited.Load(),
		Given: p.given.Load(), Forgotten: p.forgotten.Load(), Refused: p.refused.Load(), Replayed: p.replayed.Load(),
		Forged: p.forged.Load(), Malformed: p.bad.Load(),
	}
}

// Ask asks, and calls got once with what became of it, from another goroutine; a nil got is nobody's wait. It does not
// wait itself.
func (p *Peer) Ask(to netip.AddrPort, q Question, got func(Result, Answer)) {
	a := &asking{to: to, q: q, got: got}
	p.mu.Lock()
	if p.closed || len(p.pending) >= 2*maxPending || !p.may(to, time.Now()) {
		p.mu.Unlock()
		p.limited.Add(1)
		go p.tell(a, Limited, Answer{})
		return
	}
	n := p.hold(a)
	a.timer = time.AfterFunc(Timeout/2, func() { p.again(a) })
	p.mu.Unlock()
	p.asked.Add(1)
	p.send(a, n)
}

// may says whether one more question to an address is within bounds. Callers hold mu.
func (p *Peer) may(to netip.AddrPort, now time.Time) bool {
	b := p.asks[to]
	if b == nil {
		if len(p.asks) >= maxPeers {
			clear(p.asks) // all may ask anew: what is pending is bounded
		}
		b = &bucket{full: askedOfOne, rate: askedOfOne}
		p.asks[to] = b
	}
	return b.take(now)
}

// hold gives a question a nonce under which its answer is known. Callers hold mu.
func (p *Peer) hold(a *asking) nonce {
	var n nonce
	_, _ = rand.Read(n[:]) // never fails: crypto/rand
	a.nonces = append(a.nonces, n)
	p.pending[n] = a
	return n
}

func (p *Peer) send(a *asking, n nonce) {
	var b [Size]byte
	p.o.Key.putQuestion(&b, &a.q, n, time.Now())
	_, _ = p.conn.WriteToUDPAddrPort(b[:], a.to) // what cannot be sent is not answered
}

// again sends a question once more, and then gives it up.
func (p *Peer) again(a *asking) {
	p.mu.Lock()
	if a.settled {
		p.mu.Unlock()
		return
	}
	if len(a.nonces) == 1 {
		n := p.hold(a)
		a.timer.Reset(Timeout / 2)
		p.mu.Unlock()
		p.send(a, n)
		return
	}
	p.settle(a)
	p.mu.Unlock()
	p.unreachable.Add(1)
	p.tell(a, Unreachable, Answer{})
}

// settle ends the wait for a question. Callers hold mu.
func (p *Peer) settle(a *asking) {
	a.settled = true
	for _, n := range a.nonces {
		delete(p.pending, n)
	}
}

func (p *Peer) tell(a *asking, r Result, ans Answer) {
	if a.got == nil {
		return
	}
	defer p.caught()
	a.got(r, ans)
}

func (p *Peer) caught() {
	if x := recover(); x != nil && p.o.Panicked != nil {
		p.o.Panicked(x)
	}
}

// serve reads datagrams until the socket is closed.
func (p *Peer) serve() {
	defer close(p.done)
	var (
		g     = newGuard()
		buf   [Size + 1]byte // a longer datagram shows as one
		d     datagram
		wrong int
		begin time.Time
	)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about a datagram of ours
		}
		switch err := p.o.Key.open(buf[:n], &d); {
		case errors.Is(err, errForm):
			p.bad.Add(1)
		case err != nil:
			p.forged.Add(1)
		default:
			p.take(g, &d, from)
			continue
		}
		if now := time.Now(); now.Sub(begin) >= beat {
			wrong, begin = 0, now
		}
		if wrong++; wrong >= forgedPerBeat {
			time.Sleep(beat - time.Since(begin))
		}
	}
}

func (p *Peer) take(g *guard, d *datagram, from netip.AddrPort) {
	defer p.caught()
	now := time.Now()
	if d.kind == answer {
		p.mu.Lock()
		a := p.pending[d.nonce]
		if a != nil {
			a.timer.Stop()
			p.settle(a)
		}
		p.mu.Unlock()
		if a != nil {
			p.answered.Add(1)
			p.tell(a, Answered, d.answer)
		}
		return
	}
	if !g.fresh(d, now) {
		p.replayed.Add(1)
		return
	}
	s, n := d.secret, d.nonce
	reply := func(ans Answer) {
		switch ans.Outcome {
		case Refused:
			p.refused.Add(1)
		case Forgotten:
			p.forgotten.Add(1)
		default:
			p.given.Add(1)
		}
		var b [Size]byte
		s.putAnswer(&b, &ans, n, time.Now())
		_, _ = p.conn.WriteToUDPAddrPort(b[:], from) // the asker asks again, or does without
	}
	switch {
	case !g.admit(d, from.Addr().Unmap(), now):
		reply(Answer{Outcome: Refused})
	case p.o.Handle == nil:
		reply(Answer{Outcome: Forgotten})
	default:
		p.o.Handle(d.question, reply)
	}
}

// Close stops listening; what waits for an answer gets none. ctx bounds the wait for a handler.
func (p *Peer) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	var left []*asking
	for _, a := range p.pending {
		if !a.settled {
			a.settled = true
			a.timer.Stop()
			left = append(left, a)
		}
	}
	clear(p.pending)
	p.mu.Unlock()
	err := p.conn.Close()
	for _, a := range left {
		p.unreachable.Add(1)
		p.tell(a, Unreachable, Answer{})
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	return err
}
