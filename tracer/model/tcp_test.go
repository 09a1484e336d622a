package model

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// connection is a TCP connection: bytes that come in order and are sent again until they come, or the end gives up.
type connection struct {
	w        *world
	net      *network
	port     uint16
	process  *hop.Process
	server   *server
	opened   bool // the client knows that it has its connection
	failed   bool
	closed   bool // the client's end
	dead     bool // the server's end
	wasReset bool // either end sent a reset
	attempt  *asking
	to       half // the client's bytes
	from     half // the server's
	queries  []*question
	replies  [][]byte // not yet sent
	waiting  int      // queries without an answer
	over     func()
	tries    int
	isn      uint32 // the server's first sequence number
}

// half is one direction.
type half struct {
	c        *connection
	answer   bool
	seq      uint32 // of the next byte to send
	want     uint32 // of the next byte that the other end takes
	held     map[uint32]segment
	bytes    []byte // taken, not yet whole
	messages []mark // where each message ends
	clear    int64  // until when an earlier segment is on its way
	busy     int64  // until when earlier ones are read
	end      uint32 // behind the last byte
	ended    func() // called when all up to there has come
}

type mark struct {
	end     uint32
	asking  *asking
	q       *question
	good    bool
	arrived bool
	handed  bool
}

type segment struct {
	seq  uint32
	data []byte
	at   int // the hop of its arrival
	skb  uint64
}

// overTCP opens a connection and asks for all types of a name at once.
func (w *world) overTCP(n *network, p *hop.Process, name string, id uint16, types []uint16) {
	var ask []ask
	for i, t := range types {
		ask = append(ask, askOf(id+uint16(i), name, t))
	}
	w.connect(n, p, ask, 1, 5*time.Second)
}

type ask struct {
	id   uint16
	name string
	typ  uint16
}

func askOf(id uint16, name string, typ uint16) ask { return ask{id, name, typ} }

// pipelined asks many questions on one connection, in a few sends.
func (w *world) pipelined(n *network, p *hop.Process) {
	var asks []ask
	first := w.id()
	name := w.newName()
	for i := range pick(w.d, 1, 2, 5, 20, 60) {
		asks = append(asks, ask{first + uint16(i), fmt.Sprintf("p%d.%s", i, name), dns.TypeA})
	}
	w.connect(n, p, asks, 1+w.d.n(3), pick(w.d, 300*time.Millisecond, 2*time.Second, 5*time.Second))
}

// connect opens a connection, sends the queries in some sends, and closes it when all answers have come, or when it
// has waited long enough.
func (w *world) connect(n *network, p *hop.Process, asks []ask, sends int, timeout time.Duration) {
	c := &connection{w: w, net: n, port: w.port(), process: p, server: w.servers[n]}
	c.to = half{c: c, seq: uint32(w.d.n(256)) << 24, held: map[uint32]segment{}}
	c.from = half{c: c, answer: true, seq: uint32(w.d.n(256)) << 24, held: map[uint32]segment{}}
	c.attempt = &asking{start: w.now, wheres: map[verdict.Where]bool{}, reasons: map[string]bool{}}
	w.conns = append(w.conns, c)
	c.over = func() {
		per := (len(asks) + sends - 1) / sends
		at := time.Duration(0)
		for len(asks) > 0 {
			k := min(per, len(asks))
			batch := asks[:k]
			asks = asks[k:]
			w.after(at, func() { c.query(batch) })
			at += w.d.span(10*time.Microsecond, 5*time.Millisecond)
		}
	}
	c.isn = c.from.seq
	c.to.want, c.from.want = c.to.seq+1, c.from.seq+1
	c.syn()
	w.after(timeout, func() {
		if c.closed {
			return
		}
		for _, q := range c.queries {
			q.last().may(verdict.Client)
		}
		c.attempt.may(verdict.Client)
		c.close(w.d.one(2))
	})
}

func (c *connection) syn() {
	if c.opened || c.closed || c.failed || c.tries > 2 {
		return
	}
	w := c.w
	p := &packet{net: c.net, transport: tcp, port: c.port, seq: c.to.seq, flags: flagSYN, process: c.process,
		askings: []*asking{c.attempt}, kernel: c.tries > 0}
	c.tries++
	w.travel(p, w.fate(p), func(_ int, _ uint64) {
		if c.server.odd > 0 && contains(c.server.does, stopped) && w.d.one(3) {
			// Nobody listens there.
			c.attempt.may(verdict.CoreDNSSocket, verdict.CoreDNS)
			r := &packet{net: c.net, answer: true, transport: tcp, port: c.port, flags: flagRST | flagACK, kernel: true,
				askings: []*asking{c.attempt}}
			w.travel(r, fate{}, func(int, uint64) { c.failed = !c.opened })
			return
		}
		r := &packet{net: c.net, answer: true, transport: tcp, port: c.port, seq: c.isn, flags: flagSYN | flagACK,
			kernel: true, askings: []*asking{c.attempt}}
		w.travel(r, w.fate(r), func(int, uint64) {
			if c.opened || c.closed || c.net.strict {
				return
			}
			c.opened = true
			c.to.seq++
			c.from.seq++
			c.over()
		})
	})
	w.after(time.Second<<(c.tries-1), c.syn)
}

func contains(bs []behavior, b behavior) bool {
	return slices.Contains(bs, b)
}

// query sends queries in one call.
func (c *connection) query(asks []ask) {
	if c.closed || c.dead {
		return
	}
	w := c.w
	var b []byte
	for _, x := range asks {
		q := w.ask(tcp, x.id, x.name, x.typ, c.net, c.port, c.process)
		q.askings = append(q.askings, &asking{start: w.now, wheres: map[verdict.Where]bool{}, reasons: map[string]bool{}})
		c.queries = append(c.queries, q)
		c.waiting++
		b = append(b, prefixed(pack(q.message()))...)
		c.to.messages = append(c.to.messages, mark{end: c.to.seq + uint32(len(b)), q: q, asking: q.last()})
	}
	c.to.send(b)
}

// send sends bytes, in segments.
func (h *half) send(b []byte) {
	d := h.c.w.d
	for len(b) > 0 {
		n := min(len(b), 1400)
		switch d.n(6) {
		case 0:
			n = min(len(b), 2)
		case 1:
			n = min(len(b), 1+d.n(100))
		}
		h.transmit(segment{seq: h.seq, data: b[:n]}, 0)
		h.seq += uint32(n)
		b = b[n:]
	}
}

// transmit sends a segment, and again until it has come.
func (h *half) transmit(s segment, tries int) {
	c, w := h.c, h.c.w
	spurious := tries == 1 && w.rough && w.d.one(8) // the acknowledgement was lost, or came late
	if tries > 0 && int32(h.want-s.seq) > 0 && !spurious || tries > 4 || !h.answer && c.closed || h.answer && c.wasReset {
		return
	}
	p := &packet{
		net: c.net, answer: h.answer, transport: tcp, port: c.port, payload: s.data, seq: s.seq, flags: flagACK,
		process: c.process,
		kernel:  tries > 0 || w.d.one(5),
	}
	if h.answer {
		p.process = c.server.process
	}
	end := s.seq + uint32(len(s.data))
	for i := range h.messages {
		m := &h.messages[i]
		if int32(m.end-s.seq) > 0 && int32(end-m.end) >= 0 {
			p.askings = append(p.askings, m.asking)
			if !h.answer {
				t := &attempt{sent: w.now}
				m.asking.attempts = append(m.asking.attempts, t)
				p.attempts = append(p.attempts, t)
			}
		} else if int32(m.end-s.seq) > 0 && (i == 0 || int32(end-h.messages[i-1].end) > 0) {
			p.askings = append(p.askings, m.asking) // a part of it
		}
	}
	go_ := func() {
		h.clear = w.travel(p, w.segmentFate(p), func(at int, skb uint64) {
			s := s
			s.at, s.skb = at, skb
			h.arrive(s)
		})
	}
	if h.clear <= w.now || w.rough && w.d.one(2) { // the one after it does not wait for it to come
		go_()
	} else {
		t := h.clear
		h.clear += int64(time.Microsecond)
		w.at(t, go_)
	}
	w.after(200*time.Millisecond<<tries, func() { h.transmit(s, tries+1) })
}

// segmentFate rolls what becomes of a segment on its way: a lost one is sent again. A socket that is there drops none
// for want of a socket, and no process asks for that of the host's rules.
func (w *world) segmentFate(p *packet) fate {
	if !w.rough {
		return fate{}
	}
	f := w.fate(p)
	if f.fault != nil && (f.reason == "NO_SOCKET" || f.fault.after < 0) {
		return fate{}
	}
	return f
}

// abort lets the client's kernel drop a segment of answers that comes after the client has closed its end
// (tcp_rcv_state_process).
func (h *half) abort(s segment) {
	c, w := h.c, h.c.w
	last := &c.net.back[len(c.net.back)-1]
	p := &packet{net: c.net, answer: true, transport: tcp, port: c.port, payload: s.data, seq: s.seq, flags: flagACK}
	i := w.show(hop.Drop, p, w.now, s.skb, last.view, untracked, last.ns, last.dev, w.d.n(w.cpus))
	why := "TCP_ABORT_ON_DATA"
	if c.wasReset {
		why = "NO_SOCKET"
	}
	w.shown[i].Reason, w.shown[i].Route = reason(why), hop.RouteLocal
	for i := range h.messages {
		a := h.messages[i].asking
		a.may(verdict.Client, verdict.ReturnPath)
		a.reasons[why] = true
	}
}

// unread notes that the server will not read what has come.
func (h *half) unread() {
	for i := range h.messages {
		h.messages[i].asking.may(verdict.CoreDNSSocket, verdict.CoreDNS)
	}
}

// arrive takes a segment at the other end.
func (h *half) arrive(s segment) {
	c, w := h.c, h.c.w
	if h.answer && c.closed || !h.answer && c.dead {
		if !h.answer {
			h.unread()
			return
		}
		h.abort(s)
		return
	}
	if int32(s.seq-h.want) > 0 {
		h.held[s.seq] = s
		return
	}
	for {
		end := s.seq + uint32(len(s.data))
		if int32(end-h.want) <= 0 {
			return
		}
		data := s.data[int(h.want-s.seq):]
		h.want = end
		h.bytes = append(h.bytes, data...)
		for i := range h.messages {
			m := &h.messages[i]
			if int32(h.want-m.end) >= 0 && !m.arrived && h.answer {
				m.arrived = true
				m.asking.arrived = append(m.asking.arrived, handing{s.at, w.now, m.good})
			}
		}
		seg := s
		h.busy = max(h.busy, w.now) + int64(w.d.span(2*time.Microsecond, 200*time.Microsecond))
		w.at(h.busy, func() { h.read(seg) })
		if h.ended != nil && h.want == h.end {
			h.ended()
		}
		next, ok := h.held[h.want]
		if !ok {
			return
		}
		delete(h.held, h.want)
		s = next
	}
}

// read lets the other end's program read a segment.
func (h *half) read(s segment) {
	c, w := h.c, h.c.w
	if h.answer && c.closed || !h.answer && c.dead {
		if !h.answer {
			h.unread()
		}
		if h.answer {
			for i := range h.messages {
				h.messages[i].asking.may(verdict.Client)
			}
		}
		return
	}
	p := &packet{net: c.net, answer: h.answer, transport: tcp, port: c.port, payload: s.data, seq: s.seq, flags: flagACK}
	way := c.net.fwd
	if h.answer {
		way = c.net.back
	}
	last := &way[len(way)-1]
	at := w.show(hop.Read, p, w.now, w.skb(), last.view, untracked, last.ns, "", w.d.n(w.cpus))
	end := s.seq + uint32(len(s.data))
	for i := range h.messages {
		m := &h.messages[i]
		if m.handed || int32(end-m.end) < 0 {
			continue
		}
		m.handed = true
		if h.answer {
			m.asking.handed = append(m.asking.handed, handing{at, w.now, m.good})
			c.waiting--
		}
	}
	if h.answer {
		if c.waiting == 0 {
			w.after(w.d.span(5*time.Microsecond, 500*time.Microsecond), func() {
				if c.waiting == 0 {
					c.close(false)
				}
			})
		}
		return
	}
	for len(h.bytes) >= 2 {
		n := 2 + int(binary.BigEndian.Uint16(h.bytes))
		if len(h.bytes) < n {
			return
		}
		var m dns.Msg
		if err := m.Unpack(h.bytes[2:n]); err == nil {
			c.serve(&m)
		}
		h.bytes = h.bytes[n:]
	}
}

// serve lets the server work on a query.
func (c *connection) serve(m *dns.Msg) {
	w := c.w
	var q *question
	for _, x := range c.queries {
		if x.id == m.Id && x.name == m.Question[0].Name && x.typ == m.Question[0].Qtype {
			q = x
		}
	}
	b := c.server.behavior(w.d)
	switch b {
	case hangsUp, resets:
		for _, x := range c.queries {
			x.last().may(verdict.CoreDNS)
		}
		c.hangUp(b == resets)
		return
	case stopped:
		b = silent
	}
	w.serve(q, q.last(), b, func(m *dns.Msg, other bool) {
		if m == nil || c.dead || c.closed {
			if m != nil && c.closed {
				q.last().may(verdict.Client)
			}
			return
		}
		data := prefixed(pack(m))
		if !other {
			c.from.messages = append(c.from.messages, mark{end: c.from.seq + uint32(len(flat(c.replies))+len(data)), q: q,
				asking: q.last(), good: good(m)})
		}
		c.replies = append(c.replies, data)
		if len(c.replies) > 1 {
			return
		}
		w.after(pick(w.d, 0, 0, time.Millisecond, 5*time.Millisecond), func() {
			b := flat(c.replies)
			c.replies = nil
			if len(b) > 0 && !c.dead {
				c.from.send(b)
			}
		})
	})
}

func flat(bs [][]byte) []byte {
	var out []byte
	for _, b := range bs {
		out = append(out, b...)
	}
	return out
}

// hangUp lets the server close the connection without an answer.
func (c *connection) hangUp(reset bool) {
	if c.dead {
		return
	}
	c.dead = true
	p := &packet{net: c.net, answer: true, transport: tcp, port: c.port, seq: c.from.seq, flags: flagFIN | flagACK,
		process: c.server.process}
	if reset {
		p.flags = flagRST
	}
	c.wasReset = reset
	c.w.travel(p, fate{}, func(int, uint64) {
		if c.from.want == p.seq {
			c.close(false)
			return
		}
		// Its turn comes behind what is still on its way. A reset that comes before its turn, the client's kernel asks for
		// once more (RFC 5961, section 3.2).
		c.from.end, c.from.ended = p.seq, func() { c.close(false) }
		if reset {
			c.w.after(3*time.Millisecond, func() { c.close(false) })
		}
	})
}

// close lets the client close the connection.
func (c *connection) close(reset bool) {
	if c.closed {
		return
	}
	c.closed = true
	for _, q := range c.queries {
		if a := q.last(); a.settled2() == nil {
			a.may(verdict.Client)
		}
	}
	if !c.opened {
		return
	}
	p := &packet{net: c.net, transport: tcp, port: c.port, seq: c.to.seq, flags: flagFIN | flagACK, process: c.process}
	if reset {
		p.flags = flagRST
		c.wasReset = true
	}
	c.w.travel(p, fate{}, func(int, uint64) {})
}

func (a *asking) settled2() *handing {
	if len(a.attempts) == 0 {
		return nil
	}
	return a.settled(a.handed)
}
