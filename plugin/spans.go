package dnstrail

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// maxAnswers bounds the answers that a span lists.
const maxAnswers = 16

// seen is what is taken out of the answer's message at once: the message is CoreDNS's. The rest of a query that is over
// nothing changes any more.
type seen struct {
	size      int
	truncated bool
	flags     msgFlags
	lists     otlp.Attributes // of the answers and the extended errors
}

func (q *query) look() (s seen) {
	switch {
	case q.message != nil:
		m := q.message
		s = seen{size: m.Len(), truncated: m.Truncated, flags: flagsOf(m)}
		if opt := m.IsEdns0(); opt != nil {
			var errors []string
			_, hidden := q.d.names.Show(q.name)
			for _, o := range opt.Option {
				if e, ok := o.(*dns.EDNS0_EDE); ok {
					if hidden && e.ExtraText != "" {
						e = &dns.EDNS0_EDE{InfoCode: e.InfoCode} // its text may tell the name
					}
					errors = append(errors, extendedError(e))
				}
			}
			if len(errors) > 0 {
				s.lists = s.lists.Strs(semconv.ResponseExtendedErrors, errors)
			}
		}
		if len(m.Answer) > 0 {
			s.lists = q.appendAnswers(s.lists, m)
		}
	case q.bytes > 0:
		s.size = q.bytes
		s.truncated = q.raw[2]&0x02 != 0
	}
	return s
}

// msgFlags are the flags of a message, in the order of flagNames. 0 stands for a message that was not seen, which is as
// well one without any.
type msgFlags uint8

var flagNames = [...]string{"qr", "aa", "tc", "rd", "ra", "ad", "cd"}

func flagsOf(m *dns.Msg) (f msgFlags) {
	for i, set := range [len(flagNames)]bool{
		m.Response, m.Authoritative, m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.AuthenticatedData,
		m.CheckingDisabled,
	} {
		if set {
			f |= 1 << i
		}
	}
	return f
}

// flagWords are all sets of flags, as dig writes them.
var flagWords = func() (words [1 << len(flagNames)]string) {
	for f := range words {
		var set []string
		for i, name := range flagNames {
			if f&(1<<i) != 0 {
				set = append(set, name)
			}
		}
		words[f] = strings.Join(set, " ")
	}
	return words
}()

// String gives the flags as dig writes them.
func (f msgFlags) String() string { return flagWords[f] }

// extendedError gives an extended DNS error (RFC 8914) in words.
func extendedError(e *dns.EDNS0_EDE) string {
	s, ok := dns.ExtendedErrorCodeToString[e.InfoCode]
	if !ok {
		s = strconv.Itoa(int(e.InfoCode))
	}
	if e.ExtraText != "" {
		s += ": " + strings.ToValidUTF8(e.ExtraText, "\uFFFD")
	}
	return s
}

// appendAnswers appends the addresses and names of the answer section, as far as they may be shown.
func (q *query) appendAnswers(a otlp.Attributes, m *dns.Msg) otlp.Attributes {
	var list [maxAnswers]string
	n := 0
	for _, rr := range m.Answer {
		if n == maxAnswers {
			break
		}
		switch rr := rr.(type) {
		case *dns.A:
			list[n] = rr.A.String()
		case *dns.AAAA:
			list[n] = rr.AAAA.String()
		case *dns.CNAME:
			list[n] = rr.Target
		case *dns.PTR:
			list[n] = rr.Ptr
		case *dns.SRV:
			list[n] = rr.Target
		case *dns.NS:
			list[n] = rr.Ns
		case *dns.MX:
			list[n] = rr.Mx
		default:
			continue
		}
		n++
	}
	shown := q.d.names.ShowAnswers(q.name, list[:n])
	if len(shown) == 0 {
		return a
	}
	return a.Strs(semconv.Answers, shown)
}

// spanWriter writes the spans of queries that are over. It is for one goroutine.
type spanWriter struct {
	otlp.Spans
	rec     *recorder
	q       *query
	clients map[*identity.Client]otlp.Attributes
	failed  failures
	text    [64]byte
}

// failures are the queries that failed below plugin cache, which may answer others with what it keeps of them.
type failures map[failureKey]failure

type failureKey struct {
	name          string // lower case
	qtype, qclass uint16
}

type failure struct {
	at      time.Time
	traceID link.TraceID
	spanID  link.SpanID
}

// Bounds of what is remembered of failures: RFC 2308, section 7.1, lets a failure be cached for five minutes at most.
const (
	maxFailures = 1024
	failureKept = 5 * time.Minute
)

// note remembers a query that failed below cache, and gives the one that filled the cache for a query whose failure is
// from there; false where that is not known.
func (f failures) note(q *query) (failure, bool) {
	res := &q.result
	if !semconv.RcodeFails(res.rcode) || res.cache != "hit" && res.cache != "miss" {
		return failure{}, false
	}
	k := failureKey{strings.ToLower(q.name), q.qtype, q.qclass}
	if res.cache == "hit" {
		first, ok := f[k]
		return first, ok && q.begun.Sub(first.at) < failureKept
	}
	if len(f) >= maxFailures {
		clear(f)
	}
	f[k] = failure{q.begun, q.traceID, q.spanID}
	return failure{}, false
}

// maxWriterClients is how many clients a spanWriter remembers the attributes of.
const maxWriterClients = 4096

// write writes the spans of a query.
func (w *spanWriter) write(rec *recorder) {
	w.rec, w.q = rec, rec.q
	defer func() { w.rec, w.q = nil, nil }()
	nodes := rec.nodes
	for _, n := range nodes {
		if n.fwd != nil && n.fwd.probed {
			n.settle(nodes)
		}
	}
	begun := uint64(w.q.begun.UnixNano()) // #nosec G115 -- after 1970
	h := otlp.Head{TraceID: w.q.traceID, Kind: otlp.Internal, Flags: otlp.Sampled | otlp.ParentKnown}
	show := func(n, parent *node) {
		h := h
		h.SpanID, h.Start, h.End = n.id, begun+uint64(n.from),
			begun+uint64(n.to) // #nosec G115 -- times since the query began
		if parent != nil {
			h.Parent = parent.id
		}
		switch n.kind {
		case serverNode:
			w.server(&h)
		case pluginNode:
			w.plugin(&h, n)
		case attemptNode:
			w.attempt(&h, n)
		case lookupNode:
			w.lookup(&h, n)
		}
		w.End()
	}
	show(nodes[0], nil)
	above := nodes[0]
	passed := rec.passed()
	for i := range passed {
		show(&passed[i], above)
		above = &passed[i]
	}
	for _, n := range nodes[1:] {
		if n.kind == hiddenNode {
			continue
		}
		parent := n.shownParent()
		if parent == nodes[0] {
			parent = above
		}
		show(n, parent)
	}
}

func (n *node) shownParent() *node {
	p := n.parent
	for p != nil && p.kind == hiddenNode {
		p = p.parent
	}
	return p
}

// server writes the SERVER span, or the root of a background refresh, but for its end.
func (w *spanWriter) server(h *otlp.Head) {
	q, res := w.q, &w.q.result
	h.Name, h.Kind = semconv.SpanName(q.opcode, q.qtype), otlp.Server
	if q.parent != (link.SpanID{}) {
		h.Parent = q.parent
		h.Flags |= otlp.ParentRemote
	}
	if q.link != nil {
		h.Kind = otlp.Internal
		w.Begin(h)
		w.Link(q.link.traceID, q.link.spanID, otlp.Sampled|otlp.ParentKnown)
		w.EndLink()
	} else {
		w.Begin(h)
		if first, ok := w.failed.note(q); ok {
			w.Link(first.traceID, first.spanID, otlp.Sampled|otlp.ParentKnown)
			w.Str(semconv.FailureCause, semconv.FailedInCache)
			w.EndLink()
		}
		w.Int(semconv.DNSID, int64(q.id))
		w.Str(semconv.NetworkProtocolName, q.proto.String())
		w.addr(semconv.ClientAddress, semconv.ClientPort, q.addr)
		w.Str(semconv.NetworkTransport, q.network())
		if q.addr.Addr().Is4() {
			w.Str(semconv.NetworkType, "ipv4")
		} else if q.addr.IsValid() {
			w.Str(semconv.NetworkType, "ipv6")
		}
		w.Add(w.client(q.client))
	}
	if q.origin == derived {
		w.Int(semconv.LinkVersion, link.Version)
		w.Int(semconv.LinkEpoch, int64(q.epoch))
	}
	shown, _ := q.d.names.Show(q.name)
	w.Str(semconv.QuestionName, shown)
	w.Str(semconv.QuestionType, semconv.TypeName(q.qtype))
	if q.qclass != dns.ClassINET {
		w.Str(semconv.QuestionClass, semconv.ClassName(q.qclass))
	}
	if q.opcode != dns.OpcodeQuery {
		w.Str(semconv.Operation, semconv.OpcodeName(q.opcode))
	}
	if q.size > 0 {
		w.Int(semconv.RequestSize, int64(q.size))
	}
	w.Str(semconv.KeepReason, q.kept.String())
	if q.kept == asAsked {
		w.Str(semconv.AskedReason, q.asked.String())
	}

	w.Bool(semconv.ResponseWritten, res.rcode >= 0 && q.writeErr == nil)
	if res.rcode >= 0 {
		w.Str(semconv.ResponseCode, semconv.RcodeName(res.rcode))
	}
	seen := &w.rec.seen
	if seen.size > 0 {
		w.Int(semconv.ResponseSize, int64(seen.size))
		w.Bool(semconv.ResponseTruncated, seen.truncated)
	}
	if seen.flags != 0 {
		w.Str(semconv.ResponseFlags, seen.flags.String())
	}
	w.Add(seen.lists)
	if res.endedIn != "" {
		w.Str(semconv.AnsweredBy, res.endedIn)
	}
	if res.cache != "" {
		w.Str(semconv.CacheStatus, res.cache)
	}
	if res.forward > 0 {
		w.Double(semconv.ForwardDuration, res.forward.Seconds())
	}
	if res.attempts > 0 {
		w.Double(semconv.UpstreamDuration, res.upstream.Seconds())
		w.Int(semconv.UpstreamAttempts, int64(res.attempts))
	}
	if w.rec.omitted > 0 {
		w.Int(semconv.SpansOmitted, int64(w.rec.omitted))
	}
	if t, text := q.failure(); t != "" {
		w.Str(semconv.ErrorType, t)
		if c := w.rec.failureCause(res); c != "" {
			w.Str(semconv.FailureCause, c)
		}
		w.Error(text)
	}
}

// failureCause says what the failure of a query comes from; "" if that is not known.
func (rec *recorder) failureCause(res *result) string {
	if res.cache == "hit" {
		return semconv.FailedInCache
	}
	var last *attempt // those before it failed: else forward would not have gone on
	for _, n := range rec.nodes {
		switch {
		case n.fwd != nil && n.fwd.full:
			return semconv.FailedByLimit
		case n.kind == attemptNode:
			last = n.att
		}
	}
	if last != nil && !res.panicked && (last.errorType != "" || last.rcode >= 0 && semconv.RcodeFails(last.rcode)) {
		return semconv.FailedByUpstream
	}
	return ""
}

// network gives the value of network.transport.
func (q *query) network() string {
	if q.udp {
		return "udp"
	}
	return "tcp"
}

// failure says why the query failed; "" if it did not.
func (q *query) failure() (errorType, text string) {
	res := &q.result
	switch {
	case res.panicked:
		return "panic", "plugin " + res.endedIn + " panicked"
	case q.writeErr != nil:
		return "write_error", q.writeErr.Error()
	case res.rcode < 0:
		return "no_answer", "no answer was written; the query ended in plugin " + res.endedIn
	case semconv.RcodeFails(res.rcode):
		if res.err != nil {
			return semconv.RcodeName(res.rcode), res.err.Error()
		}
		return semconv.RcodeName(res.rcode), ""
	}
	return "", ""
}

func (w *spanWriter) addr(address, port string, ap netip.AddrPort) {
	if ap.IsValid() {
		w.Text(address, ap.Addr().WithZone("").AppendTo(w.text[:0]))
		w.Int(port, int64(ap.Port()))
	}
}

// client gives the attributes that say who asked.
func (w *spanWriter) client(c *identity.Client) otlp.Attributes {
	if a, ok := w.clients[c]; ok {
		return a
	}
	a := otlp.Attributes(nil).Str(semconv.ClientKind, c.Kind().String())
	for _, f := range [...]struct{ name, value string }{
		{semconv.ClientNamespaceName, c.Namespace()},
		{semconv.ClientPodName, c.Pod()},
		{semconv.ClientPodUID, c.UID()},
		{semconv.ClientWorkloadKind, c.WorkloadKind()},
		{semconv.ClientWorkloadName, c.Workload()},
		{semconv.ClientNodeName, c.Node()},
		{semconv.ClientServiceAccount, c.ServiceAccount()},
	} {
		if f.value != "" {
			a = a.Str(f.name, f.value)
		}
	}
	for k, v := range c.Labels() {
		a = a.Str(semconv.ClientLabelPrefix+strings.ToValidUTF8(k, "\uFFFD"), v)
	}
	if len(w.clients) >= maxWriterClients {
		clear(w.clients)
	}
	w.clients[c] = a
	return a
}

// plugin writes the span of a plugin passed, but for its end.
func (w *spanWriter) plugin(h *otlp.Head, n *node) {
	h.Name = n.name
	w.Begin(h)
	w.Str(semconv.PluginName, n.name)
	if n.fwd == nil || !n.fwd.probed {
		return
	}
	switch {
	case n.fwd.full:
		w.Str(semconv.ErrorType, semconv.FailedByLimit)
		w.Error(n.fwd.err.Error())
	case n.fwd.err != nil:
		w.Str(semconv.ErrorType, errorType(n.fwd.err))
		w.Error(n.fwd.err.Error())
	case n.fwd.rcode >= 0:
		w.Str(semconv.ResponseCode, semconv.RcodeName(n.fwd.rcode))
	}
}

// attempt writes the span of an upstream attempt, but for its end.
func (w *spanWriter) attempt(h *otlp.Head, n *node) {
	at := n.att
	h.Name, h.Kind = semconv.SpanName(w.q.opcode, w.q.qtype), otlp.Client
	if f := at.forward; f != nil && f.name != "" {
		h.Name = semconv.SpanName(w.q.opcode, f.qtype)
		w.Begin(h)
		shown, _ := w.q.d.names.Show(f.name)
		w.Str(semconv.QuestionName, shown)
		w.Str(semconv.QuestionType, semconv.TypeName(f.qtype))
	} else {
		w.Begin(h)
	}
	if peer, err := netip.ParseAddrPort(at.peer); err == nil {
		w.addr(semconv.NetworkPeerAddress, semconv.NetworkPeerPort, peer)
		w.addr(semconv.ServerAddress, semconv.ServerPort, peer)
	} else if host, port := hostPort(at.peer); host != "" {
		w.Str(semconv.ServerAddress, host)
		if port > 0 {
			w.Int(semconv.ServerPort, int64(port))
		}
	}
	if at.transport != "" {
		w.Str(semconv.NetworkTransport, at.transport)
	}
	if p := upstreamProtocol(at.protocol()); p != "" {
		w.Str(semconv.NetworkProtocolName, p)
	}
	if c := at.connection(); c != "" {
		w.Str(semconv.UpstreamConnection, c)
	}
	if at.truncated {
		w.Bool(semconv.ResponseTruncated, true)
	}
	switch {
	case at.errorType != "":
		w.Str(semconv.ErrorType, at.errorType)
		w.Error(at.message)
	case at.rcode >= 0:
		w.Str(semconv.ResponseCode, semconv.RcodeName(at.rcode))
		if semconv.RcodeFails(at.rcode) {
			w.Str(semconv.ErrorType, semconv.RcodeName(at.rcode))
			w.Error("")
		}
	}
}

// hostPort reads the host and the port of an upstream that is not an address: a name, or the URL of a DoH server.
func hostPort(peer string) (host string, port int) {
	if u, err := url.Parse(peer); err == nil && u.Host != "" {
		peer = u.Host
	}
	host, p, err := net.SplitHostPort(peer)
	if err != nil {
		return peer, 0
	}
	port, _ = strconv.Atoi(p)
	return host, port
}

// upstreamProtocol gives the value of network.protocol.name for CoreDNS's name of a transport; "" if that is not known.
func upstreamProtocol(t string) string {
	switch t {
	case transport.DNS:
		return plainDNS.String()
	case transport.TLS:
		return overTLS.String()
	case transport.HTTPS:
		return overHTTPS.String()
	case transport.QUIC:
		return overQUIC.String()
	case transport.GRPC:
		return overGRPC.String()
	}
	return ""
}

// lookup writes the span of a look-up that a plugin made through the server, but for its end.
func (w *spanWriter) lookup(h *otlp.Head, n *node) {
	h.Name = "lookup"
	w.Begin(h)
	if n.look == nil {
		return
	}
	shown, _ := w.q.d.names.Show(n.look.name)
	w.Str(semconv.QuestionName, shown)
	w.Str(semconv.QuestionType, semconv.TypeName(n.look.qtype))
	if n.look.rcode >= 0 {
		w.Str(semconv.ResponseCode, semconv.RcodeName(n.look.rcode))
	}
	if n.look.err != nil {
		w.Str(semconv.ErrorType, errorType(n.look.err))
		w.Error(n.look.err.Error())
	}
}
