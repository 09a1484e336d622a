package model

import (
	"container/heap"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

const (
	udp = 17
	tcp = 6
)

// world is a run of events, what happened in it, and what a kernel shows of it.
type world struct {
	d     *dice
	six   family
	now   int64
	queue events
	order int

	shown     []shown
	questions []*question
	sockets   map[netip.AddrPort]map[uint32]*socket
	replied   map[netip.AddrPort]bool // flows that have had an answer, by the client's end
	conns     []*connection
	servers   map[*network]*server
	upstreams map[*question]behavior // what the server beyond makes of each upstream query

	packets  uint64
	resolved int64 // until when packets wait for their neighbor's address
	reuse    bool  // the kernel uses the packets' addresses again soon
	reads    bool  // the kernel shows reads of UDP sockets
	sizes    bool  // and how much was read
	sends    bool  // and sends that returned before the packet left
	faulty   int   // one in so many packets meets a fault, 0 none
	doubling bool
	rough    bool // segments of TCP are lost, too, and sent again, and packets overtake each other
	late     int  // one in so many packets is some milliseconds late on a wire, 0 none
	cpus     int
	shift    uint16 // between a client's port and its translated one
	nextPort uint16
}

// shown is a packet at one place, as the kernel shows it; cpu is where.
type shown struct {
	hop.Packet
	cpu int
}

// question is what one socket asks one server with one ID: the truth of a row, or of several over time.
type question struct {
	transport uint8
	id        uint16
	name      string
	typ       uint16
	net       *network
	port      uint16
	client    hop.Endpoint // as its socket has it
	masked    hop.Endpoint
	process   *hop.Process
	own       bool // a server's
	askings   []*asking
}

// asking is one time that the question is asked, with all that is sent until it is answered well or given up.
type asking struct {
	start    int64
	attempts []*attempt
	wheres   map[verdict.Where]bool // where it may be said to have ended for sure, unless it was answered
	reasons  map[string]bool        // of what the kernel dropped
	handed   []handing              // what the client was handed
	arrived  []handing              // what came to its socket
	failed   bool                   // it was answered by a response code that tells of a failure
	waited   bool                   // it left later than it was sent
}

type attempt struct {
	sent  int64
	shown []int // hops of its query
}

// handing is an answer that the client got.
type handing struct {
	shown int // the hop that shows it, -1 where no hook does
	time  int64
	good  bool // it ends a client's asking: NOERROR or NXDOMAIN
}

func (q *question) last() *asking { return q.askings[len(q.askings)-1] }

func (a *asking) may(w ...verdict.Where) {
	for _, x := range w {
		a.wheres[x] = true
	}
}

// settled gives what the client was handed that ends the asking for good: what tells of a failure, it may ask again
// after.
func (a *asking) settled(of []handing) *handing {
	for i := range of {
		if h := &of[i]; h.good {
			return h
		}
	}
	return nil
}

type event struct {
	at    int64
	order int
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+int64(d), do) }

func (w *world) at(t int64, do func()) {
	w.order++
	heap.Push(&w.queue, event{max(t, w.now), w.order, do})
}

// run lets everything happen.
func (w *world) run() {
	for n := 0; w.queue.Len() > 0 && n < 200000; n++ {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
}

// begin is some time of a day; the epochs of the trace link are eight seconds long.
var begin = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).UnixNano()

func newWorld(d *dice) *world {
	w := &world{
		d: d, six: family(d.one(3)), now: begin + int64(d.span(0, 8*time.Second)),
		sockets: make(map[netip.AddrPort]map[uint32]*socket), replied: make(map[netip.AddrPort]bool),
		servers: make(map[*network]*server), upstreams: make(map[*question]behavior),
		reuse: d.one(2), reads: !d.one(5), sizes: d.one(2), sends: d.one(2), faulty: pick(d, 0, 3, 6, 12), doubling: d.one(5),
		cpus: 1 + d.n(4), shift: pick[uint16](d, 0, 1000), nextPort: 40000,
	}
	return w
}

// translates says whether any address is translated in the world.
func (w *world) translates() bool {
	for n := range w.servers {
		if n.translates() {
			return true
		}
	}
	return false
}

func (w *world) port() uint16 {
	w.nextPort++
	return w.nextPort
}

// ask makes a question; asking the same again on the same socket gives the same one.
func (w *world) ask(transport uint8, id uint16, name string, typ uint16, n *network, port uint16,
	p *hop.Process) *question {
	for _, q := range w.questions {
		if q.transport == transport && q.id == id && q.name == name && q.typ == typ && q.net == n && q.port == port {
			return q
		}
	}
	q := &question{transport: transport, id: id, name: name, typ: typ, net: n, port: port, process: p}
	q.client = hop.EndpointOf(netip.AddrPortFrom(n.client, port))
	q.masked = q.client
	if n.mask.IsValid() {
		q.masked = hop.EndpointOf(netip.AddrPortFrom(n.mask, port+w.shift))
	}
	w.questions = append(w.questions, q)
	return q
}

// try notes that a question is sent, once more or for the first time.
func (q *question) try(now int64, fresh bool) (*asking, *attempt) {
	if len(q.askings) == 0 || fresh {
		q.askings = append(q.askings, &asking{start: now, wheres: make(map[verdict.Where]bool),
			reasons: make(map[string]bool)})
	}
	a := q.last()
	t := &attempt{sent: now}
	a.attempts = append(a.attempts, t)
	return a, t
}

func (q *question) message() *dns.Msg {
	m := new(dns.Msg).SetQuestion(q.name, q.typ)
	m.Id = q.id
	return m
}

func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err) // names and records are this package's own
	}
	return b
}

// packet is one packet on its way.
type packet struct {
	net       *network
	answer    bool
	transport uint8
	port      uint16 // the client's
	payload   []byte
	seq       uint32
	flags     uint8
	kernel    bool // the kernel sends it of itself: no process is seen
	process   *hop.Process
	attempts  []*attempt // whose query it carries
	askings   []*asking  // whose query or answer it carries
	fromOther bool
	q         *question // what a UDP answer answers
}

// answers gives the askings that an answer ends which comes to its socket now. A client takes an answer to what it
// asked before for one to what it asks, where both have one ID and one question.
func (p *packet) answers() []*asking {
	if p.q == nil || slices.Contains(p.askings, p.q.last()) {
		return p.askings
	}
	return append(slices.Clone(p.askings), p.q.last())
}

const (
	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

func (w *world) ends(p *packet, v view) (src, dst hop.Endpoint) {
	n := p.net
	client, server := netip.AddrPortFrom(n.client, p.port), n.asked
	if v == masked && n.mask.IsValid() {
		client = netip.AddrPortFrom(n.mask, p.port+w.shift)
	}
	if v != asSent {
		server = n.backend
	}
	if p.answer {
		client, server = server, client
	}
	return hop.EndpointOf(client), hop.EndpointOf(server)
}

// show makes the hop of a packet at a place, and gives its index.
func (w *world) show(kind hop.Kind, p *packet, at int64, skb uint64, v view, ct entry, ns uint32, dev string,
	cpu int) int {
	var x shown
	x.cpu = cpu
	x.Time, x.SKB, x.Kind, x.NetNS, x.Answer = at, skb, kind, ns, p.answer
	x.Transport = p.transport
	if dev != "" {
		x.IfIndex = w.ifindex(dev)
		copy(x.Dev[:], dev)
	}
	x.Src, x.Dst = w.ends(p, v)
	x.PayloadLen, x.Payload = len(p.payload), p.payload
	x.Seq, x.TCPFlags = p.seq, p.flags
	if ct != untracked {
		x.Tracked = true
		x.Conntrack = w.conntrack(p, v, ct)
	}
	if p.transport == udp && kind != hop.Read {
		if err := x.Head.ParseAny(p.payload); err == nil {
			x.HasHead = true
		}
	}
	if p.transport == tcp {
		x.Answer = false // nothing says so of a segment
	}
	w.shown = append(w.shown, x)
	i := len(w.shown) - 1
	if !p.answer && kind != hop.Unreachable {
		for _, a := range p.attempts {
			a.shown = append(a.shown, i)
		}
	}
	return i
}

func (w *world) ifindex(dev string) uint32 {
	n := uint32(2)
	for _, c := range []byte(dev) {
		n = n*31 + uint32(c)
	}
	return n%1000 + 2
}

func (w *world) conntrack(p *packet, v view, e entry) (c hop.Conntrack) {
	q := *p
	q.answer = false
	src, dst := w.ends(&q, v)
	c.OrigSrc, c.OrigDst = src, dst
	c.ReplySrc, c.ReplyDst = dst, src
	c.Status = hop.Confirmed
	if e == translating {
		c.OrigSrc, c.OrigDst = w.ends(&q, asSent)
		c.ReplyDst, c.ReplySrc = w.ends(&q, masked)
		if p.net.asked != p.net.backend {
			c.Status |= hop.DstNAT
		}
		if p.net.mask.IsValid() {
			c.Status |= hop.SrcNAT
		}
	}
	if p.answer || w.replied[c.OrigSrc.AddrPort()] {
		c.Status |= hop.SeenReply
	}
	if p.answer {
		w.replied[c.OrigSrc.AddrPort()] = true
	}
	return c
}

func (w *world) skb() uint64 {
	w.packets++
	if w.reuse {
		return 0xffff888000000000 + w.packets%512*0x100
	}
	return 0xffff888000000000 + w.packets*0x100
}

// fate is what becomes of a packet on its way.
type fate struct {
	fault  *fault
	reason string
	lostOn int // index of the step that it never comes to by its wire; 0: none
	twice  int // index of the step from which on there are two of it; 0: none
}

// fates rolls what becomes of a packet.
func (w *world) fate(p *packet) (f fate) {
	way, faults := p.net.fwd, p.net.faults
	if p.answer {
		way, faults = p.net.back, p.net.backFaults
	}
	if w.doubling && w.d.one(4) {
		for i, s := range way {
			if s.crosses && !s.hidden {
				f.twice = i
			}
		}
	}
	if w.faulty == 0 || !w.d.one(w.faulty) {
		return f
	}
	if w.d.one(3) {
		for i, s := range way {
			if s.crosses {
				f.lostOn = i
				return f
			}
		}
	}
	x := &faults[w.d.n(len(faults))]
	f.fault, f.reason = x, pick(w.d, x.reasons...)
	return f
}

func gap(d *dice) int64 { return int64(d.span(2*time.Microsecond, 60*time.Microsecond)) }

// travel sends a packet on its way; arrived is called when it has come to the other end's namespace, and gets the
// hop of its arrival, -1 where none shows it.
func (w *world) travel(p *packet, f fate, arrived func(at int, skb uint64)) int64 {
	way := p.net.fwd
	if p.answer {
		way = p.net.back
	}
	return w.pass(p, f, way, 0, w.now, w.skb(), w.d.n(w.cpus), arrived)
}

func (w *world) pass(p *packet, f fate, way []step, from int, t int64, skb uint64, cpu int, arrived func(int,
	uint64)) int64 {
	if f.fault != nil && f.fault.after < 0 {
		w.drop(p, f, t, skb, cpu, 64)
		return t
	}
	at, ttl := -1, uint8(64)
	for i := range way {
		if way[i].routed && i < from {
			ttl--
		}
	}
	for i := from; i < len(way); i++ {
		s := &way[i]
		if i > 0 || p.kernel {
			t += gap(w.d) // within the call that sends it, the packet comes to its first device
		}
		if s.crosses && i > from {
			if f.lostOn == i {
				for _, a := range p.askings {
					if p.answer {
						a.may(verdict.ReturnPath)
						if way[0].ns == beyondNS {
							a.may(verdict.BetweenNodes)
						}
					} else {
						a.may(verdict.BetweenNodes)
					}
				}
				return t
			}
			t += int64(w.d.span(20*time.Microsecond, 2*time.Millisecond))
			if w.late > 0 && w.d.one(w.late) {
				t += int64(w.d.span(time.Millisecond, 30*time.Millisecond)) // what is sent after it overtakes it
			}
			skb, cpu = w.skb(), w.d.n(w.cpus)
			if f.twice == i {
				f.twice = 0
				w.pass(p, f, way, i, t+int64(w.d.span(time.Microsecond, 30*time.Millisecond)), w.skb(), w.d.n(w.cpus), arrived)
			}
		}
		if s.routed {
			ttl--
		}
		at = -1
		if !s.hidden {
			at = w.show(s.kind, p, t, skb, s.view, s.ct, s.ns, s.dev, cpu)
			x := &w.shown[at]
			x.Tunnel, x.TTL = s.tunnel, ttl
			if s.new {
				x.Conntrack.Status &^= hop.Confirmed
			}
			if s.tunnel {
				x.Tracked, x.Conntrack = false, hop.Conntrack{}
			}
			if s.local && !p.kernel {
				x.Local, x.Process = true, p.process
			}
		}
		if f.fault != nil && f.fault.after == i {
			w.drop(p, f, t+gap(w.d), skb, cpu, ttl)
			return t
		}
	}
	t += gap(w.d)
	w.at(t, func() { arrived(at, skb) })
	return t
}

// drop lets the kernel drop a packet.
func (w *world) drop(p *packet, f fate, t int64, skb uint64, cpu int, ttl uint8) {
	x := f.fault
	i := w.show(hop.Drop, p, t, skb, x.view, x.ct, x.ns, x.dev, cpu)
	h := &w.shown[i]
	h.Reason, h.Route, h.TTL = reason(f.reason), x.route, ttl
	h.Conntrack.Status &^= hop.Confirmed
	if x.local && !p.kernel {
		h.Local, h.Process = true, p.process
	}
	for _, a := range p.askings {
		a.may(x.wheres...)
		a.reasons[f.reason] = true
	}
	if x.icmp && f.reason == "NO_SOCKET" && !p.answer && p.transport == udp {
		w.unreachable(p, t)
	}
}

func reason(name string) hop.Reason {
	r, ok := hop.ReasonByName(name)
	if !ok {
		panic("the running kernel has no drop reason " + name)
	}
	return r
}

// unreachable sends an ICMP error back to the client. What it quotes is translated with it.
func (w *world) unreachable(p *packet, t int64) {
	sender := hop.EndpointOf(p.net.backend).Addr
	for i := range p.net.back {
		s := &p.net.back[i]
		t += gap(w.d)
		if s.hidden || s.tunnel {
			continue
		}
		at := w.show(hop.Unreachable, p, t, w.packets, s.view, untracked, s.ns, s.dev, 0)
		h := &w.shown[at]
		h.ICMP, h.ICMPSender = 3<<8|3, sender
		if w.six {
			h.ICMP = 1<<8 | 4
		}
	}
}

// read shows that a UDP socket was read.
func (w *world) read(ns uint32, from, to netip.AddrPort, size int, p *hop.Process) int {
	if !w.reads {
		return -1
	}
	var x shown
	x.Time, x.Kind, x.NetNS, x.Transport, x.Process = w.now, hop.Read, ns, udp, p
	x.Src, x.Dst = hop.EndpointOf(from), hop.EndpointOf(to)
	if w.sizes {
		x.PayloadLen = size
	}
	x.cpu = w.d.n(w.cpus)
	w.shown = append(w.shown, x)
	return len(w.shown) - 1
}

// socket is a client's UDP socket.
type socket struct {
	w         *world
	net       *network // the first it asks: its namespace and address
	port      uint16
	connected bool
	open      bool
	used      bool // something was sent
	process   *hop.Process
	delay     time.Duration // from an arrival to its read
	busy      int64         // until when it reads what came before
	unread    []*inbox
	got       func(m *dns.Msg, from *network)
}

type inbox struct {
	p    *packet
	skb  uint64
	done bool
}

func (w *world) socket(n *network, port uint16, p *hop.Process, connected bool) *socket {
	s := &socket{w: w, net: n, port: port, connected: connected, open: true, process: p}
	k := netip.AddrPortFrom(n.client, port)
	if w.sockets[k] == nil {
		w.sockets[k] = make(map[uint32]*socket)
	}
	w.sockets[k][n.clientNS] = s
	return s
}

// send sends a question's query.
func (s *socket) send(q *question, fresh bool) {
	w := s.w
	a, t := q.try(w.now, fresh)
	p := &packet{
		net: q.net, transport: udp, port: s.port, payload: pack(q.message()), process: s.process,
		attempts: []*attempt{t}, askings: []*asking{a},
	}
	f := w.fate(p)
	go_ := func() { w.travel(p, f, func(int, uint64) { w.serverGets(p, q) }) }
	if w.d.one(30) && w.resolved < w.now && !s.used && len(a.attempts) == 1 && len(q.askings) == 1 {
		w.resolved = w.now + int64(w.d.span(time.Millisecond, 900*time.Millisecond))
	}
	s.used = true
	if w.resolved > w.now && !q.net.client.IsLoopback() && q.net.name != "redirected" {
		f = fate{}
		// It waits for its neighbor's address, and leaves in another's context.
		a.waited = true
		t.sent = w.now
		if w.sends {
			var x shown
			x.Time, x.Kind, x.NetNS, x.Transport, x.Process = w.now, hop.Sent, q.net.clientNS, udp, s.process
			x.Src = q.client
			w.shown = append(w.shown, x)
		}
		p.process = &hop.Process{PID: 9, Name: "ksoftirqd/0"}
		w.at(w.resolved, go_)
		return
	}
	go_()
}

// gets takes an answer that came to the client's namespace.
func (w *world) clientGets(p *packet, at int, skb uint64) {
	var s *socket
	if m := w.sockets[netip.AddrPortFrom(p.net.client, p.port)]; m != nil {
		s = m[p.net.clientNS]
	}
	last := &p.net.back[len(p.net.back)-1]
	if s == nil || !s.open || p.net.strict {
		for _, a := range p.askings {
			a.may(verdict.Client, verdict.ReturnPath)
			if w.now > a.start+int64(time.Second) {
				a.may(verdict.CoreDNS, verdict.Upstream) // it was slow
			}
			a.reasons["NO_SOCKET"] = true
		}
		i := w.show(hop.Drop, p, w.now, skb, last.view, last.ct, last.ns, last.dev, 0)
		w.shown[i].Reason, w.shown[i].Route = reason("NO_SOCKET"), hop.RouteLocal
		return
	}
	var m dns.Msg
	if m.Unpack(p.payload) != nil {
		return
	}
	mine := !p.fromOther
	if mine {
		for _, a := range p.answers() {
			a.arrived = append(a.arrived, handing{at, w.now, good(&m)})
		}
	}
	b := &inbox{p: p, skb: skb}
	s.unread = append(s.unread, b)
	s.busy = max(w.now, s.busy) + int64(s.delay) + gap(w.d)
	w.at(s.busy, func() {
		if b.done {
			return
		}
		b.done = true
		s.unread = slices.DeleteFunc(s.unread, func(x *inbox) bool { return x == b })
		from, to := p.net.asked, netip.AddrPortFrom(p.net.client, s.port)
		if !s.connected {
			to = netip.AddrPortFrom(p.net.unbound, s.port)
		}
		if p.net.strict {
			from = p.net.backend
		}
		i := w.read(p.net.clientNS, from, to, len(p.payload), s.process)
		if mine {
			for _, a := range p.answers() {
				a.handed = append(a.handed, handing{i, w.now, good(&m)})
			}
		}
		if s.got != nil {
			s.got(&m, p.net)
		}
	})
}

func good(m *dns.Msg) bool { return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError }

// close closes a socket; what it has not read, the kernel drops.
func (s *socket) close() {
	if !s.open {
		return
	}
	s.open = false
	w := s.w
	for _, b := range s.unread {
		b.done = true
		last := &b.p.net.back[len(b.p.net.back)-1]
		i := w.show(hop.Drop, b.p, w.now, b.skb, last.view, untracked, 0, "", 0)
		w.shown[i].Reason, w.shown[i].Route = reason("SOCKET_CLOSE"), hop.RouteLocal
		for _, a := range b.p.askings {
			a.may(verdict.Client, verdict.ReturnPath, verdict.CoreDNS, verdict.Upstream)
			a.reasons["SOCKET_CLOSE"] = true
		}
	}
	s.unread = nil
}

// prefixed gives a message behind its length (RFC 7766).
func prefixed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}
