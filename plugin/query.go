package dnstrail

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	ot "github.com/opentracing/opentracing-go"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
)

// query is one query of a client, from the moment it reaches us until it is over. Background work that plugins start
// for it may hold it longer.
type query struct {
	d       *Dnstrail
	request *dns.Msg
	begun   time.Time
	client  *identity.Client
	addr    netip.AddrPort
	server  string // as CoreDNS's own metrics name it: dns://:53
	proto   protocol
	udp     bool

	// The request as it came; plugins may change the message.
	name          string
	qtype, qclass uint16
	id            uint16
	opcode        int
	size          int // bytes; 0 if not measured

	hash    uint64 // of the question, where it is remembered for those who ask
	traceID link.TraceID
	spanID  link.SpanID
	parent  link.SpanID // zero if the SERVER span is the root
	epoch   link.Epoch
	origin  origin
	link    *spanLink // what a background refresh was started by
	reason  reason    // why it is kept whatever comes of it; notKept if that depends
	flags   byte      // W3C trace flags that go upstream

	started atomic.Bool
	closed  atomic.Bool
	hop     atomic.Int32 // index in d.chain of the plugin that the query has got to
	entered enteredTimes // when it got to each plugin; only where that is needed: see enter
	below   atomic.Bool  // our probe behind cache has been passed, and has not returned
	missed  atomic.Bool  // our probe behind cache has been passed
	rec     atomic.Pointer[recorder]

	context queryContext
	writer  queryWriter

	answer
	result
}

// answer is what became of a query.
type answer struct {
	message    *dns.Msg // the first one written
	raw        [4]byte  // the first bytes of an answer that was written as bytes
	bytes      int      // length of an answer that was written as bytes
	messages   int
	writeErr   error
	answeredBy string
}

// origin says where the trace ID comes from.
type origin uint8

const (
	derived   origin = iota // from the query, by package link
	random                  // the question is not visible on the wire, or it is our own background work
	inherited               // from a traceparent that came with the query
)

// protocol is how CoreDNS was asked.
type protocol uint8

const (
	plainDNS protocol = iota
	overTLS
	overHTTPS
	overQUIC
	overGRPC
)

// String gives the value of network.protocol.name.
func (p protocol) String() string {
	return [...]string{"dns", "dot", "doh", "doq", "grpc"}[p]
}

// protocolOf reads the protocol from a server's address, such as tls://:853.
func protocolOf(addr string) protocol {
	if len(addr) < 4 {
		return plainDNS
	}
	switch addr[:4] {
	case "tls:":
		return overTLS
	case "http":
		return overHTTPS
	case "quic":
		return overQUIC
	case "grpc":
		return overGRPC
	}
	return plainDNS
}

// addrPort gives the client's address and whether it came by UDP. Behind a PROXY protocol header it is the client that
// the header names.
func addrPort(a net.Addr) (addr netip.AddrPort, udp bool) {
	if u, ok := a.(interface{ Unwrap() net.Addr }); ok {
		a = u.Unwrap()
	}
	switch a := a.(type) {
	case *net.UDPAddr:
		if a != nil {
			addr, udp = a.AddrPort(), true
		}
	case *net.TCPAddr:
		if a != nil {
			addr = a.AddrPort()
		}
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), udp
}

// begin identifies a query and decides whether it is to be kept whatever comes of it.
func (d *Dnstrail) begin(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) *query {
	q := &query{d: d, request: r, begun: time.Now()}
	question := &r.Question[0]
	q.name, q.qtype, q.qclass, q.id = question.Name, question.Qtype, question.Qclass, r.Id
	q.opcode = r.Opcode
	q.addr, q.udp = addrPort(w.RemoteAddr())
	q.client = d.identify(ctx, q.addr.Addr())
	if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok && s != nil {
		q.server = s.Addr
	}
	q.proto = protocolOf(q.server)

	incoming, ok := d.config.incoming(ctx, q, r)
	if ok {
		q.origin, q.traceID, q.parent = inherited, incoming.TraceID, incoming.SpanID
	} else {
		q.derive()
	}
	q.spanID = newSpanID()
	q.reason = d.keep.atStart(q, ok, incoming.Flags)
	if q.reason != notKept || q.hash != 0 {
		q.size = r.Len()
	}
	if q.reason != notKept {
		q.flags = link.FlagSampled
	}
	return q
}

// derive sets the trace ID by the rule of package link.
func (q *query) derive() {
	if q.proto == plainDNS && q.addr.IsValid() {
		var buf [link.MaxQName]byte
		if name, err := link.AppendQName(buf[:0], q.name); err == nil {
			k := link.Key{Transport: link.TCP, Client: q.addr, ID: q.id, QName: name, QType: q.qtype, QClass: q.qclass}
			if q.udp {
				k.Transport = link.UDP
			}
			q.epoch = link.EpochOf(q.begun)
			q.traceID = k.TraceID(q.epoch)
			if q.d.hindsight != nil {
				q.hash = k.QuestionHash()
			}
			if q.d.config.tracer {
				q.parent = q.traceID.ClientSpanID()
			}
			return
		}
	}
	q.origin, q.traceID = random, newTraceID()
}

// newTraceID makes a random trace ID, never zero.
func newTraceID() (id link.TraceID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())   // #nosec G404 -- an ID, not a secret
	binary.BigEndian.PutUint64(id[8:], rand.Uint64()|1) // #nosec G404 -- an ID, no secret
	return id
}

// newSpanID makes a random span ID, never zero.
func newSpanID() (id link.SpanID) {
	for id == (link.SpanID{}) {
		binary.BigEndian.PutUint64(id[:], rand.Uint64()) // #nosec G404 -- an ID, not a secret
	}
	return id
}

// start puts the query between the server and the chain.
func (q *query) start(ctx context.Context, w dns.ResponseWriter) {
	q.context = queryContext{ctx, q}
	q.writer = queryWriter{w, q}
	q.enter(0)
	q.started.Store(true)
}

// serve passes the query down the chain.
func (q *query) serve(r *dns.Msg) (int, error) {
	d := q.d
	d.config.stripTraceparent(r)
	inner := ot.SpanFromContext(q.context.Context)
	if q.reason == notKept && inner == nil {
		return d.Next.ServeDNS(&q.context, &q.writer, r)
	}
	// As plugin.NextOrFailure does it, but for the writer that it adds.
	rec := newRecorder(q, inner)
	q.rec.Store(rec)
	child := rec.root().startChild(d.chain.hops[0].name)
	defer child.Finish()
	return d.Next.ServeDNS(ot.ContextWithSpan(&q.context, child), &q.writer, r)
}

// since gives the time since the query began, in ns, never 0.
func (q *query) since() int64 { return max(1, int64(time.Since(q.begun))) }

// enter notes that the query has got to the plugin at index i; and when, where the query is remembered for those who
// ask, or where a recorder may begin at the plugin.
func (q *query) enter(i int32) {
	q.hop.Store(i)
	if int(i) < len(q.d.chain.hops) && (q.hash != 0 || q.d.chain.hops[i].pass == unsure) {
		q.entered.set(int(i), q.since())
	}
}

// maxEntered is how many plugins of a chain have a time of their own; those behind share the last one's.
const maxEntered = 12

// enteredTimes are when a query got to each plugin of the chain.
type enteredTimes [maxEntered]atomic.Uint32

// enteredUnit is the unit of what is held, in ns: up to 137 s.
const enteredUnit = 32

// set notes a time since the query began, in ns.
func (e *enteredTimes) set(i int, since int64) {
	e[min(i, maxEntered-1)].Store(uint32(min(max(1, since/enteredUnit), 1<<32-1))) // #nosec G115 -- bounded
}

// at gives the time, in ns since the query began; 0 where it is not known.
func (e *enteredTimes) at(i int) int64 { return int64(e[min(i, maxEntered-1)].Load()) * enteredUnit }

// passed gives how many plugins of the chain a query without a recorder has got to; 0 where that is not held.
func (q *query) passed() int {
	if q.hash == 0 {
		return 0
	}
	return min(int(q.hop.Load())+1, len(q.d.chain.hops))
}

// step is called when a plugin asks for the active span. Plugins do so when they pass the query on: see
// [plugin.NextOrFailure].
func (q *query) step() any {
	if rec := q.rec.Load(); rec != nil {
		return rec.anchor
	}
	if q.closed.Load() {
		return nil
	}
	hops := q.d.chain.hops
	i := q.hop.Load()
	if int(i) >= len(hops) {
		return nil
	}
	switch hops[i].pass {
	case once:
		q.enter(i + 1)
		return nil
	case guarded:
		return nil // it may be a background refresh that asks: the probe tells
	}
	return q.record().anchor
}

// record starts a recorder in the middle of the query, at the plugin that it has got to.
func (q *query) record() *recorder {
	rec := newRecorder(q, nil)
	i := int(q.hop.Load())
	if i < len(q.d.chain.hops) && q.d.chain.hops[i].pass == unsure {
		rec.anchor = rec.start(rec.root(), q.d.chain.hops[i].name, pluginNode)
		rec.anchor.from = q.entered.at(i)
	}
	if q.hash != 0 {
		rec.ahead = min(i, len(q.d.chain.hops)) // of the one at i, the recorder is told
	}
	if !q.rec.CompareAndSwap(nil, rec) {
		return q.rec.Load()
	}
	return rec
}

// at gives the name of the plugin that the query has got to.
func (q *query) at() string {
	if rec := q.rec.Load(); rec != nil {
		if name := rec.deepest(); name != "" {
			return name
		}
	}
	if i := int(q.hop.Load()); i < len(q.d.chain.hops) {
		return q.d.chain.hops[i].name
	}
	return ""
}

// writing gives the name of the plugin that is writing the answer now.
func (q *query) writing() string {
	if q.missed.Load() && !q.below.Load() {
		return "cache" // below it the query has failed, and it answers with what it has
	}
	if rec := q.rec.Load(); rec != nil {
		if name := rec.innermost(); name != "" {
			return name
		}
	}
	if i := int(q.hop.Load()); i < len(q.d.chain.hops) {
		return q.d.chain.hops[i].name
	}
	return ""
}

// queryKey is the key under which a context holds the query.
type queryKey struct{}

// queryContext is the context of a query: it holds the query and counts its steps down the chain.
type queryContext struct {
	context.Context
	q *query
}

// spanKey is the key under which opentracing keeps the active span.
var spanKey = func() any {
	var c keyCatcher
	ot.SpanFromContext(&c)
	return c.key
}()

type keyCatcher struct {
	context.Context
	key any
}

func (c *keyCatcher) Value(key any) any { c.key = key; return nil }

// Value implements context.Context.
func (c *queryContext) Value(key any) any {
	if key == spanKey {
		return c.q.step()
	}
	if _, ok := key.(queryKey); ok {
		return c.q
	}
	return c.Context.Value(key)
}

// queryWriter notes what is written. What it hides of the writer below (a connection's state, for instance) plugins do
// not see without us either: plugin.NextOrFailure wraps the writer at each step.
type queryWriter struct {
	dns.ResponseWriter
	q *query
}

// WriteMsg implements dns.ResponseWriter.
func (w *queryWriter) WriteMsg(m *dns.Msg) error {
	a := &w.q.answer
	first := a.messages == 0 && !w.q.closed.Load()
	if first {
		a.answeredBy = w.q.writing()
		a.message = m
	}
	err := w.ResponseWriter.WriteMsg(m)
	if first {
		a.messages++
		a.writeErr = err
	}
	return err
}

// Write implements dns.ResponseWriter.
func (w *queryWriter) Write(b []byte) (int, error) {
	a := &w.q.answer
	first := a.messages == 0 && !w.q.closed.Load()
	if first {
		a.answeredBy = w.q.writing()
		a.bytes = len(b)
		copy(a.raw[:], b)
	}
	n, err := w.ResponseWriter.Write(b)
	if first {
		a.messages++
		a.writeErr = err
	}
	return n, err
}

// result is how a query ended.
type result struct {
	kept     reason         // why the trace is kept; only where it is
	asked    askback.Reason // why somebody asked for it; only where that is why it is kept
	rcode    int            // -1: nothing was answered
	err      error
	panicked bool
	total    time.Duration
	forward  time.Duration
	upstream time.Duration
	attempts int
	endedIn  string // the plugin that answered or, without an answer, that the query ended in; "" if that is not known
	cache    string
}

// finish closes the record of a query; the chain returned rcode and err, or has panicked.
func (q *query) finish(rcode int, err error, panicked bool) {
	defer func() {
		if p := recover(); p != nil {
			ownPanic("finishing a record", p)
		}
	}()
	q.closed.Store(true)
	res := &q.result
	*res = result{rcode: -1, err: err, panicked: panicked, total: time.Since(q.begun), endedIn: q.answeredBy}
	switch {
	case panicked:
		res.rcode = dns.RcodeServerFailure // the server writes it; see Server.ServeDNS
	case q.message != nil:
		res.rcode = q.message.Rcode
	case q.bytes >= len(q.raw):
		res.rcode = int(q.raw[3] & 0x0f)
	case !plugin.ClientWrite(rcode):
		res.rcode = rcode // the server writes it
	}
	if q.messages == 0 {
		res.endedIn = q.at()
	}
	rec := q.rec.Load()
	if rec != nil {
		rec.close(res)
	}
	res.cache = q.cacheStatus(res)
	reason := q.d.keep.atEnd(q, res)
	h := q.d.hindsight
	if q.hash == 0 || q.link != nil {
		h = nil
	}
	if h != nil && reason == notKept {
		if res.asked = h.wants(q); res.asked != 0 {
			reason = asAsked
		}
	}
	kept := false
	if reason != notKept && q.d.exporter != nil {
		q.kept = reason
		if rec == nil {
			rec = newRecorder(q, nil)
			rec.ahead = q.passed()
			rec.close(res)
		}
		kept = q.d.exporter.offer(q, rec)
	} else {
		countNotKept(reason)
	}
	if q.link == nil {
		q.d.observe(q, kept)
	}
	if h != nil {
		if kept || reason == asAsked {
			rec = nil // the exporter's, or nobody's
		}
		h.remember(q, rec, kept)
		h.about(q)
	}
}

// cacheStatus says what plugin cache did: "hit", "stale", "miss", or "" where it was not asked.
func (q *query) cacheStatus(res *result) string {
	switch {
	case q.link != nil:
		return "prefetch"
	case q.messages > 0 && res.endedIn == "cache":
		if q.message != nil && staleAnswer(q.message) {
			return "stale"
		}
		return "hit"
	case q.missed.Load():
		return "miss"
	}
	return ""
}

// staleAnswer says whether an answer from the cache has outlived its TTL: cache then gives a TTL of 0, and never
// otherwise.
func staleAnswer(m *dns.Msg) bool {
	records := 0
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			records++
			if rr.Header().Ttl != 0 {
				return false
			}
		}
	}
	return records > 0
}

func ownPanic(doing string, p any) {
	countPanic()
	log.Errorf("panic in dnstrail while %s, the query is not affected: %s", doing, fmt.Sprint(p))
}
