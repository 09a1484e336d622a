package model

import (
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// behavior is what a server makes of a query.
type behavior int

const (
	answers behavior = iota
	fails
	refuses
	denies
	truncates
	wrongID
	wrongQuestion
	noQuestion
	silent
	slow
	recursive
	stopped
	hangsUp
	resets
)

// server is a DNS server's process.
type server struct {
	process *hop.Process
	does    []behavior // what it may do, but for answering
	odd     int        // once in so many queries it does so
	up      *network
	busy    time.Duration // longest wait in its socket
	halted  bool          // it reads nothing any more
	read    int64         // when it reads what it has read last: a socket hands out what came first
}

func newServer(d *dice, six family, i int, n *network) *server {
	s := &server{
		process: &hop.Process{PID: uint32(700 + i), Name: "coredns", CgroupID: uint64(70 + i)}, odd: pick(d, 0, 2, 4),
		up:   n.upstream(six, i),
		busy: pick(d, time.Millisecond, time.Millisecond, 300*time.Millisecond),
	}
	all := []behavior{fails, refuses, denies, truncates, wrongID, wrongQuestion, noQuestion, silent, slow, recursive,
		stopped, hangsUp, resets, answers}
	for range 1 + d.n(3) {
		s.does = append(s.does, all[d.n(len(all))])
	}
	return s
}

func (s *server) behavior(d *dice) behavior {
	if s.odd == 0 || !d.one(s.odd) {
		return answers
	}
	return s.does[d.n(len(s.does))]
}

// serverGets takes a query that came to the server's namespace over UDP.
func (w *world) serverGets(p *packet, q *question) {
	s := w.servers[p.net]
	b := s.behavior(w.d)
	if kind, ok := w.upstreams[q]; ok {
		b = kind
	}
	ask := p.askings[0]
	if s.halted || b == stopped {
		s.halted = true
		ask.may(verdict.CoreDNSSocket)
		if p.net.serverNS == beyondNS {
			ask.may(verdict.BetweenNodes)
		}
		return
	}
	s.read = max(s.read, w.now+int64(w.d.span(3*time.Microsecond, s.busy)))
	w.at(s.read, func() {
		src, dst := w.ends(p, masked)
		to := dst.AddrPort()
		if !p.net.backend.Addr().IsLoopback() && !w.d.one(3) {
			to = netip.AddrPortFrom(p.net.unbound, to.Port())
		}
		w.read(p.net.serverNS, src.AddrPort(), to, len(p.payload), s.process)
		w.serve(q, ask, b, func(m *dns.Msg, other bool) {
			if m == nil {
				return
			}
			answer := &packet{
				net: p.net, answer: true, transport: udp, port: p.port, payload: pack(m), process: s.process,
				askings: p.askings, fromOther: other, q: q,
			}
			w.travel(answer, w.fate(answer), func(at int, skb uint64) { w.clientGets(answer, at, skb) })
		})
	})
}

// reply makes the answer to a question.
func reply(q *question, rcode int) *dns.Msg {
	m := new(dns.Msg).SetReply(q.message())
	m.Rcode = rcode
	if rcode != dns.RcodeSuccess {
		return m
	}
	if q.typ == dns.TypeAAAA {
		m.Answer = []dns.RR{&dns.AAAA{Hdr: dns.RR_Header{Name: q.name, Rrtype: q.typ, Class: 1, Ttl: 5},
			AAAA: net.ParseIP("2001:db8::1")}}
	} else {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeA, Class: 1, Ttl: 5},
			A: net.IPv4(192, 0, 2, 1)}}
	}
	return m
}

// serve makes of a query that was read what the server makes of it; done gets its answer, nil where there is none,
// and whether it is one to another question.
func (w *world) serve(q *question, a *asking, b behavior, done func(m *dns.Msg, other bool)) {
	beyond := func() {
		if q.net.serverNS == beyondNS {
			a.may(verdict.BetweenNodes)
		}
	}
	send := func(after time.Duration, m *dns.Msg, other bool) { w.after(after, func() { done(m, other) }) }
	soon := w.d.span(20*time.Microsecond, 20*time.Millisecond)
	rcode := func(code int) {
		a.may(verdict.CoreDNS)
		a.failed = true
		send(soon, reply(q, code), false)
	}
	switch b {
	case fails:
		rcode(dns.RcodeServerFailure)
	case refuses:
		rcode(dns.RcodeRefused)
	case denies:
		send(soon, reply(q, dns.RcodeNameError), false)
	case truncates:
		m := reply(q, dns.RcodeSuccess)
		m.Answer = nil
		m.Truncated = q.transport == udp
		send(soon, m, false)
	case wrongID:
		a.may(verdict.Client)
		m := reply(q, dns.RcodeSuccess)
		m.Id ^= 0x5555
		send(soon, m, true)
	case wrongQuestion:
		a.may(verdict.Client)
		m := reply(q, dns.RcodeSuccess)
		m.Question[0].Qtype = dns.TypeTXT
		send(soon, m, true)
	case noQuestion:
		a.may(verdict.CoreDNS)
		a.failed = true
		m := reply(q, dns.RcodeFormatError)
		m.Question = nil
		send(soon, m, false)
	case silent:
		a.may(verdict.CoreDNS)
		beyond()
		done(nil, false)
	case slow:
		a.may(verdict.CoreDNS)
		beyond()
		send(w.d.span(800*time.Millisecond, 9*time.Second), reply(q, dns.RcodeSuccess), false)
	case recursive:
		w.recurse(q, a, func(rcode int) {
			if rcode < 0 {
				done(nil, false)
				return
			}
			if rcode != dns.RcodeSuccess {
				a.failed = true
			}
			done(reply(q, rcode), false)
		})
	default:
		send(soon, reply(q, dns.RcodeSuccess), false)
	}
}

// recurse lets the server ask its upstream, twice at most; done gets the response code, -1 where the server will say
// nothing.
func (w *world) recurse(q *question, a *asking, done func(rcode int)) {
	s := w.servers[q.net]
	port, id := w.port(), uint16(w.d.n(256))<<8|uint16(w.d.n(256))
	sock := w.socket(s.up, port, s.process, true)
	timeout := w.d.span(300*time.Millisecond, 2*time.Second)
	kind := pick(w.d, answers, answers, fails, silent, slow, wrongID)
	tries, over := 0, false
	finish := func(rcode int) {
		if over {
			return
		}
		over = true
		sock.close()
		done(rcode)
	}
	var attempt func()
	attempt = func() {
		if over {
			return
		}
		if tries == 2 {
			a.may(verdict.Upstream, verdict.CoreDNS)
			finish(pick(w.d, dns.RcodeServerFailure, -1))
			return
		}
		if tries == 1 && w.d.one(2) {
			sock.close()
			port, id = w.port(), id+1
			sock = w.socket(s.up, port, s.process, true)
		}
		u := w.ask(udp, id, q.name, q.typ, s.up, port, s.process)
		u.own = true
		w.upstreams[u] = kind
		tries++
		sock.got = func(m *dns.Msg, _ *network) {
			rcode := m.Rcode
			if m.Id != u.id {
				return
			}
			if rcode != dns.RcodeSuccess {
				a.may(verdict.Upstream)
			}
			w.after(w.d.span(5*time.Microsecond, time.Millisecond), func() { finish(rcode) })
		}
		sock.send(u, len(u.askings) == 0)
		w.after(timeout, attempt)
	}
	w.after(w.d.span(5*time.Microsecond, 300*time.Microsecond), attempt)
}
