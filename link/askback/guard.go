package askback

import (
	"net/netip"
	"time"
)

// Bounds of what questions can cause.
const (
	// Window is how far a question's time may be from the asked's clock: what is older is a replay, or its clock is wrong.
	Window = 30 * time.Second
	// perPeer and overall are the questions a second that are answered of one address and of all, and as many at once.
	perPeer = 200
	overall = 2000
	// askedOfOne is the questions a second that one peer is asked, and as many at once: half of what it answers.
	askedOfOne = perPeer / 2
	// maxPeers bounds the addresses that are told apart, and maxNonces the questions remembered: as many as can be
	// answered in a window.
	maxPeers  = 4096
	maxNonces = overall * 2 * int(Window/time.Second)
	// forgedPerBeat is how many datagrams that are not authentic are looked at in a beat; then nothing is read until its
	// end. So a flood costs a bounded share of a CPU, and what is asked meanwhile may go unheard.
	forgedPerBeat = 1000
	beat          = 100 * time.Millisecond
)

// guard decides which authentic questions are answered. It is for one goroutine.
type guard struct {
	peers map[netip.Addr]*bucket
	all   bucket
	// now and then are the nonces of this window and the one before.
	now, then map[nonce]struct{}
	turned    time.Time
}

type bucket struct {
	full, rate float64 // questions, and questions a second
	left       float64
	at         time.Time
}

func (b *bucket) take(now time.Time) bool {
	if b.at.IsZero() {
		b.left = b.full
	} else {
		b.left = min(b.full, b.left+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

func newGuard() *guard {
	return &guard{
		peers: map[netip.Addr]*bucket{}, all: bucket{full: overall, rate: overall},
		now: map[nonce]struct{}{}, then: map[nonce]struct{}{},
	}
}

// fresh says whether a question is none that came before. What it says of a time is by this host's clock.
func (g *guard) fresh(d *datagram, now time.Time) bool {
	if age := now.Sub(time.Unix(0, d.time)); age > Window || age < -Window {
		return false
	}
	// A nonce is remembered for two windows at least: a question may be one window ahead, and stays valid for one more.
	if now.Sub(g.turned) >= 2*Window {
		g.then, g.now, g.turned = g.now, map[nonce]struct{}{}, now
	}
	if _, ok := g.now[d.nonce]; ok {
		return false
	}
	if _, ok := g.then[d.nonce]; ok {
		return false
	}
	return true
}

// admit says whether a fresh question of an address is within bounds, and remembers it.
func (g *guard) admit(d *datagram, from netip.Addr, now time.Time) bool {
	p := g.peers[from]
	if p == nil {
		if len(g.peers) >= maxPeers {
			g.forget(now)
		}
		if len(g.peers) >= maxPeers {
			return false
		}
		p = &bucket{full: perPeer, rate: perPeer}
		g.peers[from] = p
	}
	if len(g.now) >= maxNonces || !p.take(now) || !g.all.take(now) {
		return false
	}
	g.now[d.nonce] = struct{}{}
	return true
}

// forget forgets addresses that could ask all they may at once again.
func (g *guard) forget(now time.Time) {
	for a, p := range g.peers {
		if now.Sub(p.at) > time.Second {
			delete(g.peers, a)
		}
	}
}
