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
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/plugin/identity"
)

// maxAnswers bounds the answers that a span lists.
const maxAnswers = 16

// finished is a query that is over and is to be sent. Nothing changes it any more, but for the answer's message, which is CoreDNS's: what is
// wanted of that is taken out at once.
type finished struct {
	q    *query
	rec  *recorder
	seen seen
}

// seen is what is taken out of the answer's message.
type seen struct {
	size      int
	truncated bool
	flags     string
	ede       []string
	answers   []string
}

func newFinished(q *query, rec *recorder) *finished {
	f := &finished{q: q, rec: rec}
	switch {
	case q.message != nil:
		m := q.message
		f.seen = seen{size: m.Len(), truncated: m.Truncated, flags: flagsOf(m)}
		if opt := m.IsEdns0(); opt != nil {
			for _, o := range opt.Option {
				if e, ok := o.(*dns.EDNS0_EDE); ok {
					f.seen.ede = append(f.seen.ede, extendedError(e))
				}
			}
		}
		if _, hidden := q.d.names.show(q.name); !hidden {
			f.seen.answers = answersOf(m)
		}
	case q.bytes > 0:
		f.seen.size = q.bytes
		f.seen.truncated = q.raw[2]&0x02 != 0
	}
	return f
}

// flagsOf gives the flags of a message as dig writes them.
func flagsOf(m *dns.Msg) string {
	var b strings.Builder
	for _, f := range [...]struct {
		set  bool
		name string
	}{
		{m.Response, " qr"}, {m.Authoritative, " aa"}, {m.Truncated, " tc"}, {m.RecursionDesired, " rd"},
		{m.RecursionAvailable, " ra"}, {m.AuthenticatedData, " ad"}, {m.CheckingDisabled, " cd"},
	} {
		if f.set {
			b.WriteString(f.name)
		}
	}
	return strings.TrimPrefix(b.String(), " ")
}

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

// answersOf lists the addresses and names of the answer section.
func answersOf(m *dns.Msg) []string {
	var list []string
	for _, rr := range m.Answer {
		if len(list) == maxAnswers {
			break
		}
		switch rr := rr.(type) {
		case *dns.A:
			list = append(list, rr.A.String())
		case *dns.AAAA:
			list = append(list, rr.AAAA.String())
		case *dns.CNAME:
			list = append(list, rr.Target)
		case *dns.PTR:
			list = append(list, rr.Ptr)
		case *dns.SRV:
			list = append(list, rr.Target)
		case *dns.NS:
			list = append(list, rr.Ns)
		case *dns.MX:
			list = append(list, rr.Mx)
		}
	}
	return list
}

// span is a finished span in the SDK's form. The embedded interface is nil: it stands for the SDK's private method.
type span struct {
	sdktrace.ReadOnlySpan
	name       string
	context    trace.SpanContext
	parent     trace.SpanContext
	kind       trace.SpanKind
	start, end time.Time
	attributes []attribute.KeyValue
	links      []sdktrace.Link
	status     sdktrace.Status
	resource   *resource.Resource
}

var scope = instrumentation.Scope{Name: semconv.ScopePlugin, Version: Version, SchemaURL: semconv.SchemaURL}

func (s *span) Name() string                                { return s.name }
func (s *span) SpanContext() trace.SpanContext              { return s.context }
func (s *span) Parent() trace.SpanContext                   { return s.parent }
func (s *span) SpanKind() trace.SpanKind                    { return s.kind }
func (s *span) StartTime() time.Time                        { return s.start }
func (s *span) EndTime() time.Time                          { return s.end }
func (s *span) Attributes() []attribute.KeyValue            { return s.attributes }
func (s *span) Links() []sdktrace.Link                      { return s.links }
func (s *span) Events() []sdktrace.Event                    { return nil }
func (s *span) Status() sdktrace.Status                     { return s.status }
func (s *span) InstrumentationScope() instrumentation.Scope { return scope }
func (s *span) Resource() *resource.Resource                { return s.resource }
func (s *span) DroppedAttributes() int                      { return 0 }
func (s *span) DroppedLinks() int                           { return 0 }
func (s *span) DroppedEvents() int                          { return 0 }
func (s *span) ChildSpanCount() int                         { return 0 }

// InstrumentationLibrary implements sdktrace.ReadOnlySpan.
//
// Deprecated: as in the SDK.
func (s *span) InstrumentationLibrary() instrumentation.Library { return scope }

// appendSpans makes the spans of the query.
func (f *finished) appendSpans(list []sdktrace.ReadOnlySpan, res *resource.Resource) []sdktrace.ReadOnlySpan {
	nodes := f.rec.nodes
	for _, n := range nodes {
		if n.fwd != nil && n.fwd.probed {
			n.settle(nodes)
		}
	}
	made := make([]span, 0, len(nodes))
	for _, n := range nodes {
		if n.kind == hiddenNode {
			continue
		}
		s := span{
			context:  spanContext(f.q.traceID, n.id, false),
			start:    f.q.begun.Add(time.Duration(n.from)),
			end:      f.q.begun.Add(time.Duration(n.to)),
			resource: res,
		}
		if p := n.shownParent(); p != nil {
			s.parent = spanContext(f.q.traceID, p.id, false)
		}
		switch n.kind {
		case serverNode:
			f.server(&s)
		case pluginNode:
			f.plugin(&s, n)
		case attemptNode:
			f.attempt(&s, n)
		case lookupNode:
			f.lookup(&s, n)
		}
		made = append(made, s)
		list = append(list, &made[len(made)-1])
	}
	return list
}

func (n *node) shownParent() *node {
	p := n.parent
	for p != nil && p.kind == hiddenNode {
		p = p.parent
	}
	return p
}

func spanContext(t link.TraceID, s link.SpanID, remote bool) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(t), SpanID: trace.SpanID(s), TraceFlags: trace.FlagsSampled, Remote: remote,
	})
}

// spanName names the span of a query: by its type, as far as that has a name, because the names asked are without number.
func spanName(qtype uint16) string {
	if t, ok := dns.TypeToString[qtype]; ok {
		return "DNS " + t
	}
	return "DNS"
}

func typeName(qtype uint16) string { return dns.Type(qtype).String() }

func rcodeName(rcode int) string {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return strconv.Itoa(rcode)
}

// server makes the SERVER span, or the root of a background refresh.
func (f *finished) server(s *span) {
	q, res := f.q, &f.q.result
	s.name = spanName(q.qtype)
	s.kind = trace.SpanKindServer
	if q.parent != (link.SpanID{}) {
		s.parent = spanContext(q.traceID, q.parent, true)
	}
	a := make([]attribute.KeyValue, 0, 40)
	if q.link != nil {
		s.kind = trace.SpanKindInternal
		s.links = []sdktrace.Link{{SpanContext: spanContext(q.link.traceID, q.link.spanID, false)}}
	} else {
		a = append(a,
			attribute.Int(semconv.DNSID, int(q.id)),
			attribute.String(semconv.NetworkProtocolName, q.proto.String()))
		a = appendAddr(a, semconv.ClientAddress, semconv.ClientPort, q.addr)
		a = append(a, attribute.String(semconv.NetworkTransport, q.network()))
		if q.addr.Addr().Is4() {
			a = append(a, attribute.String(semconv.NetworkType, "ipv4"))
		} else if q.addr.IsValid() {
			a = append(a, attribute.String(semconv.NetworkType, "ipv6"))
		}
		a = appendClient(a, q.client)
	}
	if q.origin == derived {
		a = append(a, attribute.Int(semconv.LinkVersion, link.Version), attribute.Int64(semconv.LinkEpoch, int64(q.epoch)))
	}
	shown, _ := q.d.names.show(q.name)
	a = append(a, attribute.String(semconv.QuestionName, shown), attribute.String(semconv.QuestionType, typeName(q.qtype)))
	if q.qclass != dns.ClassINET {
		a = append(a, attribute.String(semconv.QuestionClass, dns.Class(q.qclass).String()))
	}
	if q.size > 0 {
		a = append(a, attribute.Int(semconv.RequestSize, q.size))
	}
	a = append(a, attribute.String(semconv.KeepReason, q.kept.String()))

	a = append(a, attribute.Bool(semconv.ResponseWritten, res.rcode >= 0 && q.writeErr == nil))
	if res.rcode >= 0 {
		a = append(a, attribute.String(semconv.ResponseCode, rcodeName(res.rcode)))
	}
	if f.seen.size > 0 {
		a = append(a, attribute.Int(semconv.ResponseSize, f.seen.size), attribute.Bool(semconv.ResponseTruncated, f.seen.truncated))
	}
	if f.seen.flags != "" {
		a = append(a, attribute.String(semconv.ResponseFlags, f.seen.flags))
	}
	if len(f.seen.ede) > 0 {
		a = append(a, attribute.StringSlice(semconv.ResponseExtendedErrors, f.seen.ede))
	}
	if len(f.seen.answers) > 0 {
		a = append(a, attribute.StringSlice(semconv.Answers, f.seen.answers))
	}
	if res.endedIn != "" {
		a = append(a, attribute.String(semconv.AnsweredBy, res.endedIn))
	}
	if res.cache != "" {
		a = append(a, attribute.String(semconv.CacheStatus, res.cache))
	}
	if res.forward > 0 {
		a = append(a, attribute.Float64(semconv.ForwardDuration, res.forward.Seconds()))
	}
	if res.attempts > 0 {
		a = append(a,
			attribute.Float64(semconv.UpstreamDuration, res.upstream.Seconds()),
			attribute.Int(semconv.UpstreamAttempts, res.attempts))
	}
	if f.rec.omitted > 0 {
		a = append(a, attribute.Int(semconv.SpansOmitted, f.rec.omitted))
	}
	if t, text := f.failure(); t != "" {
		a = append(a, attribute.String(semconv.ErrorType, t))
		s.status = sdktrace.Status{Code: codes.Error, Description: text}
	}
	s.attributes = a
}

// network gives the value of network.transport.
func (q *query) network() string {
	if q.udp {
		return "udp"
	}
	return "tcp"
}

// failure says why the query failed; "" if it did not.
func (f *finished) failure() (errorType, text string) {
	res := &f.q.result
	switch {
	case res.panicked:
		return "panic", "plugin " + res.endedIn + " panicked"
	case f.q.writeErr != nil:
		return "write_error", f.q.writeErr.Error()
	case res.rcode < 0:
		return "no_answer", "no answer was written; the query ended in plugin " + res.endedIn
	case failedRcode(res.rcode):
		if res.err != nil {
			return rcodeName(res.rcode), res.err.Error()
		}
		return rcodeName(res.rcode), ""
	}
	return "", ""
}

func appendAddr(a []attribute.KeyValue, address, port string, ap netip.AddrPort) []attribute.KeyValue {
	if !ap.IsValid() {
		return a
	}
	return append(a, attribute.String(address, ap.Addr().WithZone("").String()), attribute.Int(port, int(ap.Port())))
}

// appendClient says who asked.
func appendClient(a []attribute.KeyValue, c *identity.Client) []attribute.KeyValue {
	a = append(a, attribute.String(semconv.ClientKind, c.Kind().String()))
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
			a = append(a, attribute.String(f.name, strings.ToValidUTF8(f.value, "\uFFFD")))
		}
	}
	for k, v := range c.Labels() {
		a = append(a, attribute.String(semconv.ClientLabelPrefix+strings.ToValidUTF8(k, "\uFFFD"), strings.ToValidUTF8(v, "\uFFFD")))
	}
	return a
}

// plugin makes the span of a plugin passed.
func (f *finished) plugin(s *span, n *node) {
	s.name = n.name
	s.kind = trace.SpanKindInternal
	s.attributes = []attribute.KeyValue{attribute.String(semconv.PluginName, n.name)}
	if n.fwd == nil || !n.fwd.probed {
		return
	}
	switch {
	case n.fwd.err != nil:
		t := errorType(n.fwd.err)
		s.attributes = append(s.attributes, attribute.String(semconv.ErrorType, t))
		s.status = sdktrace.Status{Code: codes.Error, Description: n.fwd.err.Error()}
	case n.fwd.rcode >= 0:
		s.attributes = append(s.attributes, attribute.String(semconv.ResponseCode, rcodeName(n.fwd.rcode)))
	}
}

// attempt makes the span of an upstream attempt.
func (f *finished) attempt(s *span, n *node) {
	at := n.att
	s.name = spanName(f.q.qtype)
	s.kind = trace.SpanKindClient
	a := make([]attribute.KeyValue, 0, 10)
	if peer, err := netip.ParseAddrPort(at.peer); err == nil {
		a = appendAddr(a, semconv.NetworkPeerAddress, semconv.NetworkPeerPort, peer)
		a = appendAddr(a, semconv.ServerAddress, semconv.ServerPort, peer)
	} else if host, port := hostPort(at.peer); host != "" {
		a = append(a, attribute.String(semconv.ServerAddress, host))
		if port > 0 {
			a = append(a, attribute.Int(semconv.ServerPort, port))
		}
	}
	if at.transport != "" {
		a = append(a, attribute.String(semconv.NetworkTransport, at.transport))
	}
	if p := upstreamProtocol(at.protocol()); p != "" {
		a = append(a, attribute.String(semconv.NetworkProtocolName, p))
	}
	if c := at.connection(); c != "" {
		a = append(a, attribute.String(semconv.UpstreamConnection, c))
	}
	if at.truncated {
		a = append(a, attribute.Bool(semconv.ResponseTruncated, true))
	}
	switch {
	case at.errorType != "":
		a = append(a, attribute.String(semconv.ErrorType, at.errorType))
		s.status = sdktrace.Status{Code: codes.Error, Description: at.message}
	case at.rcode >= 0:
		a = append(a, attribute.String(semconv.ResponseCode, rcodeName(at.rcode)))
		if failedRcode(at.rcode) {
			a = append(a, attribute.String(semconv.ErrorType, rcodeName(at.rcode)))
			s.status = sdktrace.Status{Code: codes.Error}
		}
	}
	s.attributes = a
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

// lookup makes the span of a look-up that a plugin made through the server.
func (f *finished) lookup(s *span, n *node) {
	s.name = "lookup"
	s.kind = trace.SpanKindInternal
	if n.look == nil {
		return
	}
	shown, _ := f.q.d.names.show(n.look.name)
	s.attributes = []attribute.KeyValue{
		attribute.String(semconv.QuestionName, shown),
		attribute.String(semconv.QuestionType, typeName(n.look.qtype)),
	}
	if n.look.rcode >= 0 {
		s.attributes = append(s.attributes, attribute.String(semconv.ResponseCode, rcodeName(n.look.rcode)))
	}
	if n.look.err != nil {
		s.attributes = append(s.attributes, attribute.String(semconv.ErrorType, errorType(n.look.err)))
		s.status = sdktrace.Status{Code: codes.Error, Description: n.look.err.Error()}
	}
}
