package model

import (
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// The stub resolvers. Each is a program that people run, as far as its packets go.

func (w *world) newName() string {
	return fmt.Sprintf("n%d.example.org.", len(w.questions)+w.d.n(200)*1000)
}

func (w *world) id() uint16 { return uint16(w.d.n(256))<<8 | uint16(w.d.n(256)) }

// glibc asks A and AAAA from one connected socket, waits for both for five seconds, and asks again what is open,
// from the same port with the same ID. After a
// truncated answer it closes the socket and asks both over TCP, in one segment.
func (w *world) glibc(n *network, p *hop.Process) {
	name, port := w.newName(), w.port()
	s := w.socket(n, port, p, true)
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	var open []*question
	first := w.id()
	for i, t := range types {
		open = append(open, w.ask(udp, first+uint16(i), name, t, n, port, p))
	}
	tries := 0
	var ask func()
	over := func() { s.close(); tries = 99 }
	s.got = func(m *dns.Msg, _ *network) {
		for i, q := range open {
			if q == nil || q.id != m.Id || len(m.Question) > 0 && m.Question[0].Qtype != q.typ {
				continue
			}
			if m.Truncated {
				over()
				w.after(w.d.span(10*time.Microsecond, time.Millisecond), func() { w.overTCP(n, p, name, first, types) })
				return
			}
			switch {
			case good(m):
				open[i] = nil
			case tries < 2:
				w.after(10*time.Microsecond, ask)
				return
			default:
				over()
				return
			}
		}
		if open[0] == nil && open[1] == nil {
			over()
		}
	}
	ask = func() {
		if tries >= 2 {
			return
		}
		tries++
		mine := tries
		for i, q := range open {
			if q != nil {
				w.after(time.Duration(i)*30*time.Microsecond, func() {
					if s.open && open[i] == q {
						s.send(q, len(q.askings) == 0)
					}
				})
			}
		}
		w.after(5*time.Second, func() {
			switch {
			case mine != tries:
			case tries < 2:
				ask()
			default:
				over()
			}
		})
	}
	ask()
}

// musl asks several servers at once from one unconnected socket, with one ID a question, and asks again after two
// and a half seconds. The first good answer wins.
func (w *world) musl(ns []*network, p *hop.Process) {
	name, port := w.newName(), w.port()
	s := w.socket(ns[0], port, p, false)
	types := []uint16{dns.TypeA, dns.TypeAAAA}[:1+w.d.n(2)]
	first := w.id()
	done := make([]bool, len(types))
	again := make([]int, len(types))
	to := func(i int, n *network) {
		q := w.ask(udp, first+uint16(i), name, types[i], n, port, p)
		s.send(q, len(q.askings) == 0)
	}
	s.got = func(m *dns.Msg, from *network) {
		for i := range types {
			if m.Id != first+uint16(i) || done[i] || len(m.Question) > 0 && m.Question[0].Qtype != types[i] {
				continue
			}
			switch {
			case good(m):
				done[i] = true
			case m.Rcode == dns.RcodeServerFailure && again[i] < 2:
				again[i]++
				i := i
				w.after(20*time.Microsecond, func() {
					if s.open {
						to(i, from)
					}
				})
			}
		}
		for _, d := range done {
			if !d {
				return
			}
		}
		w.after(w.d.span(time.Microsecond, 200*time.Microsecond), s.close)
	}
	ask := func() {
		if !s.open {
			return
		}
		for i := range types {
			if done[i] {
				continue
			}
			for _, n := range ns {
				to(i, n)
			}
		}
	}
	ask()
	w.after(2500*time.Millisecond, ask)
	w.after(5*time.Second, s.close)
}

// simple asks one question at a time: from a port of its own or a fixed one, with a new ID or a fixed one, as often
// as it likes.
func (w *world) simple(n *network, p *hop.Process, times int, fixedPort, fixedID, sameName bool) {
	port, id, name := w.port(), w.id(), w.newName()
	timeout := pick(w.d, 300*time.Millisecond, time.Second, 2*time.Second, 5*time.Second, 6*time.Second)
	tries := 1 + w.d.n(3)
	newPort := w.d.one(2)
	delay := pick(w.d, 0, 0, 0, 5*time.Millisecond, 400*time.Millisecond, 3*time.Second)
	delay = min(delay, timeout/2) // a reader that asks again before it looks reads the answer to an earlier try
	connected := !w.d.one(3)
	var s *socket
	var ask func(k int)
	next := func(k int) {
		if !fixedPort && s != nil {
			s.close()
			s = nil
		}
		if k+1 < times {
			w.after(pick(w.d, 20*time.Microsecond, 10*time.Millisecond, 150*time.Millisecond, 2*time.Second, 9*time.Second,
				30*time.Second), func() { ask(k + 1) })
		} else if s != nil {
			s.close()
		}
	}
	ask = func(k int) {
		if s == nil {
			if k > 0 {
				port = w.port()
			}
			s = w.socket(n, port, p, connected)
			s.delay = delay
		}
		if k > 0 && !fixedID {
			id++
		}
		if k > 0 && !sameName {
			name = w.newName()
		}
		q := w.ask(udp, id, name, dns.TypeA, n, port, p)
		tried, over := 0, false
		var attempt func(fresh bool)
		attempt = func(fresh bool) {
			tried++
			mine := tried
			s.got = func(m *dns.Msg, _ *network) {
				if over || m.Id != q.id || len(m.Question) > 0 && m.Question[0].Qtype != q.typ {
					return
				}
				over = true
				if m.Truncated && w.d.one(2) {
					w.overTCP(n, p, name, w.id(), []uint16{dns.TypeA})
				}
				next(k)
			}
			s.send(q, fresh)
			w.after(timeout, func() {
				if over || mine != tried {
					return
				}
				if tried < tries {
					if newPort && !fixedPort {
						s.close()
						port, id = w.port(), id+7
						s = w.socket(n, port, p, connected)
						s.delay = delay
						q = w.ask(udp, id, name, dns.TypeA, n, port, p)
						attempt(true)
						return
					}
					attempt(false)
					return
				}
				over = true
				next(k)
			})
		}
		attempt(true)
	}
	ask(0)
}
