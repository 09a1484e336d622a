// Package export turns lookups and their verdicts into OpenTelemetry spans and sends them by OTLP, never holding up who makes them.
package export

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	mathrand "math/rand/v2"
	"net/netip"
	"strconv"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// builder writes the spans of one lookup. What comes again and again is encoded once.
type builder struct {
	*otlp.Spans // where they go

	ids      *mathrand.ChaCha8
	segments map[verdict.Where]otlp.Attributes
	places   map[placeKey]*place
	epoch    link.Epoch
	ofEpoch  otlp.Attributes
	segs     []verdict.Segment
	hops     []string
	text     [96]byte
}

var (
	copyMark     = otlp.Attributes(nil).Bool(semconv.LinkCopy, true)
	tunnelMark   = otlp.Attributes(nil).Bool(semconv.SegmentTunnel, true)
	inferredMark = otlp.Attributes(nil).Bool(semconv.Inferred, true)
	protocolDNS  = otlp.Attributes(nil).Str(semconv.NetworkProtocolName, "dns")
)

type placeKey struct {
	netns, ifindex uint32
	kind           hop.Kind
	dev            [16]byte
}

// place is where a hop was, as text and as the attributes of a segment that starts or ends there.
type place struct {
	text     string
	from, to otlp.Attributes
}

const maxPlaces = 16384

func newBuilder() *builder {
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails: crypto/rand
	return &builder{
		ids:      mathrand.NewChaCha8(seed),
		segments: make(map[verdict.Where]otlp.Attributes),
		places:   make(map[placeKey]*place),
	}
}

func (b *builder) spanID() (id link.SpanID) {
	for id == (link.SpanID{}) {
		binary.BigEndian.PutUint64(id[:], b.ids.Uint64())
	}
	return id
}

func (b *builder) segment(stage verdict.Where) otlp.Attributes {
	a := b.segments[stage]
	if a == nil {
		a = a.Str(semconv.Segment, string(stage))
		b.segments[stage] = a
	}
	return a
}

func (b *builder) place(h *hop.Hop) *place {
	k := placeKey{h.NetNS, h.IfIndex, h.Kind, h.Dev}
	if p, ok := b.places[k]; ok {
		return p
	}
	if len(b.places) >= maxPlaces {
		clear(b.places)
	}
	p := &place{text: verdict.Place(h)}
	p.from, p.to = p.from.Str(semconv.SegmentFrom, p.text), p.to.Str(semconv.SegmentTo, p.text)
	b.places[k] = p
	return p
}

// derivedIn gives the attributes of a derived trace ID.
func (b *builder) derivedIn(e link.Epoch) otlp.Attributes {
	if b.ofEpoch == nil || b.epoch != e {
		b.epoch = e
		b.ofEpoch = b.ofEpoch[:0].Int(semconv.LinkVersion, link.Version).Int(semconv.LinkEpoch, int64(e))
	}
	return b.ofEpoch
}

// trace says under which trace the spans of a lookup go.
type trace struct {
	traceID  link.TraceID
	parent   link.SpanID // of the topmost span; zero: none
	epoch    link.Epoch
	isCopy   bool
	root     bool // the topmost span is the CLIENT span, with the derived span ID
	upstream bool // the lookup was made by a server for another one

	handshake bool // a TCP connection that was never established
	late      bool // it has the lookup's spans already, which called it lost
}

// spans writes the spans of a lookup to dst.
func (b *builder) spans(dst *otlp.Spans, l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, t trace) {
	b.Spans = dst
	defer func() { b.Spans = nil }()
	if t.late {
		b.late(l, v, t)
		return
	}
	h := otlp.Head{TraceID: t.traceID, Parent: t.parent, Kind: otlp.Internal}
	hasTop := t.root || t.upstream || t.handshake
	if hasTop {
		h.Parent = b.top(l, v, t)
	}
	b.segs = j.Segments(b.segs[:0], l)
	for i := range b.segs {
		s := &b.segs[i]
		h.SpanID, h.Name, h.Start, h.End = b.spanID(), s.Name, uint64(s.From.Time), uint64(s.To.Time)
		b.Begin(&h)
		b.Add(b.segment(s.Stage))
		b.Add(b.place(s.From).from)
		b.Add(b.place(s.To).to)
		if s.To.Tunnel {
			b.Add(tunnelMark)
		}
		if s.To.Kind == hop.Drop {
			reason := s.To.Reason.String()
			b.Str(semconv.DropReason, reason)
			b.Error(reason)
		}
		if s.Stage == verdict.Service && s.To.Tracked {
			b.conntrack(&s.To.Conntrack)
		}
		if t.isCopy {
			b.Add(copyMark)
		}
		if !hasTop && i == len(b.segs)-1 {
			b.verdict(l, v)
		}
		b.End()
	}
	// Without a span at the top the client is out of sight: its own node's agent sends the CLIENT span. What is known here of how the lookup ended stands on the
	// last segment, for whoever joins the trace.
	if !hasTop && len(b.segs) == 0 {
		last := &l.Hops[len(l.Hops)-1]
		h.SpanID, h.Name, h.Start, h.End = b.spanID(), "seen", uint64(last.Time), uint64(last.Time)
		b.Begin(&h)
		b.Add(b.segment(v.Where))
		b.Add(b.place(last).to)
		b.verdict(l, v)
		b.End()
	}
}

// late writes the one span that is added to a lookup whose spans have gone out as lost, when its answer comes after all.
func (b *builder) late(l *lookup.Lookup, v *verdict.Verdict, t trace) {
	first, last := len(l.Hops)-1, len(l.Hops)-1
	for i := range l.Hops {
		if l.Hops[i].Answer {
			first = i
			break
		}
	}
	stage := verdict.ReturnPath
	if t.upstream {
		stage = verdict.Upstream
	}
	b.Begin(&otlp.Head{
		TraceID: t.traceID, SpanID: b.spanID(), Parent: t.parent, Name: verdict.LateAnswer, Kind: otlp.Internal,
		Start: uint64(l.Hops[first].Time), End: uint64(l.Hops[last].Time),
	})
	b.Add(b.segment(stage))
	b.Str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode))
	b.Add(b.place(&l.Hops[first]).from)
	b.Add(b.place(&l.Hops[last]).to)
	if !t.upstream && !t.handshake {
		b.verdict(l, v) // in place of the one that went out
	}
	if t.isCopy {
		b.Add(copyMark)
	}
	b.End()
}

// top writes the CLIENT span, or the span of a server's upstream query, and gives its ID.
func (b *builder) top(l *lookup.Lookup, v *verdict.Verdict, t trace) link.SpanID {
	h := otlp.Head{TraceID: t.traceID, Parent: t.parent, Kind: otlp.Internal, Start: uint64(l.Start()), End: uint64(l.End())}
	switch {
	case t.handshake:
		h.SpanID, h.Name = b.spanID(), "TCP after truncation"
	case t.upstream:
		// The plugin sends the CLIENT span of this query; this is the same seen from the network.
		h.SpanID, h.Name = b.spanID(), "upstream on the network"
	default:
		h.SpanID, h.Name, h.Kind = t.traceID.ClientSpanID(), "DNS "+dnswire.TypeString(l.Type), otlp.Client
	}
	b.Begin(&h)
	b.attributes(l, v)
	switch {
	case t.handshake:
		b.Add(inferredMark)
	case t.upstream:
		b.Add(inferredMark)
		b.Add(b.segment(verdict.Upstream))
	default:
		b.Add(b.derivedIn(t.epoch))
	}
	if l.Group != (link.TraceID{}) {
		b.Text(semconv.Group, hex.AppendEncode(b.text[:0], l.Group[:]))
		if l.SearchStep > 0 {
			b.Int(semconv.GroupSearchStep, int64(l.SearchStep))
		}
		if l.AttemptOfGroup > 1 {
			b.Int(semconv.GroupAttempt, int64(l.AttemptOfGroup))
		}
	}
	if t.isCopy {
		b.Add(copyMark)
	}
	for _, r := range l.Related {
		b.Link(r.TraceID, r.SpanID, 0)
		b.Str(semconv.GroupRelation, string(r.Kind))
		b.EndLink()
	}
	if e := ErrorType(l, v); e != "" {
		b.Error(v.Text)
	}
	b.End()
	return h.SpanID
}

// ErrorType gives the value of error.type: the rcode of a server failure, `timeout` or the verdict's cause of a lookup without an answer; "" for an
// answer, NXDOMAIN included.
func ErrorType(l *lookup.Lookup, v *verdict.Verdict) string {
	if l.Ending != lookup.Answered || v.Lost() {
		if v.Cause == verdict.CauseNoReply || v.Cause == verdict.CauseNoAnswer || v.Cause == verdict.CauseVanished {
			return "timeout"
		}
		return string(v.Cause)
	}
	switch l.Body.Rcode {
	case dnswire.RcodeSuccess, dnswire.RcodeNXDomain:
		return ""
	}
	return dnswire.RcodeString(l.Body.Rcode)
}

func (b *builder) attributes(l *lookup.Lookup, v *verdict.Verdict) {
	client := l.Client.AddrPort()
	network := "ipv6"
	if client.Addr().Is4() {
		network = "ipv4"
	}
	b.Str(semconv.QuestionName, l.Question())
	b.Str(semconv.QuestionType, dnswire.TypeString(l.Type))
	b.Int(semconv.DNSID, int64(l.ID))
	b.addr(semconv.ClientAddress, semconv.ClientPort, client)
	b.addr(semconv.ServerAddress, semconv.ServerPort, l.Server.AddrPort())
	b.Str(semconv.NetworkTransport, l.Transport.String())
	b.Str(semconv.NetworkType, network)
	b.Add(protocolDNS)
	b.Int(semconv.Attempts, int64(l.Attempts))
	b.Int(semconv.RequestSize, int64(l.QuerySize))
	b.verdict(l, v)
	if l.Class != 1 {
		b.Str(semconv.QuestionClass, dnswire.ClassString(l.Class))
	}
	if l.AnswerSeen {
		b.Str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode))
		b.Int(semconv.ResponseSize, int64(l.AnswerSize))
		if len(l.Body.Answers) > 0 {
			b.Strs(semconv.Answers, l.Body.Answers)
		}
		if l.Flags.Truncated() {
			b.Bool(semconv.ResponseTruncated, true)
		}
		b.addr(semconv.NetworkPeerAddress, semconv.NetworkPeerPort, l.AnsweredBy.AddrPort())
	}
	if p := l.Process; p != nil {
		b.Int(semconv.ProcessPID, int64(p.PID))
		b.Str(semconv.ProcessExecutableName, p.Name)
	}
	if v.Drop != "" {
		b.Str(semconv.DropReason, v.Drop)
	}
	if e := ErrorType(l, v); e != "" {
		b.Str(semconv.ErrorType, e)
	}
	b.hops = b.hops[:0]
	var ct *hop.Conntrack
	for i := range l.Hops {
		b.hops = append(b.hops, b.place(&l.Hops[i]).text)
		if l.Hops[i].Tracked && (ct == nil || l.Hops[i].Conntrack.Status&(hop.SrcNAT|hop.DstNAT) != 0) {
			ct = &l.Hops[i].Conntrack
		}
	}
	b.Strs(semconv.Hops, b.hops)
	if ct != nil {
		b.conntrack(ct)
	}
	if l.EventsLost > 0 {
		b.Int(semconv.HopsLost, int64(l.EventsLost))
	}
}

func (b *builder) addr(address, port string, ap netip.AddrPort) {
	b.Text(address, ap.Addr().AppendTo(b.text[:0]))
	b.Int(port, int64(ap.Port()))
}

func (b *builder) verdict(l *lookup.Lookup, v *verdict.Verdict) {
	b.Str(semconv.VerdictWhere, string(v.Where))
	b.Str(semconv.VerdictCause, string(v.Cause))
	b.Str(semconv.VerdictCertainty, v.Certainty())
	b.Bool(semconv.VerdictAnswered, l.Ending == lookup.Answered)
	if v.Text != "" {
		b.Str(semconv.VerdictText, v.Text)
	}
	if len(v.Evidence) > 0 {
		b.Strs(semconv.VerdictEvidence, v.Evidence)
	}
}

func (b *builder) conntrack(ct *hop.Conntrack) {
	b.Text(semconv.ConntrackOriginal, appendTuple(b.text[:0], ct.OrigSrc, ct.OrigDst))
	b.Text(semconv.ConntrackReply, appendTuple(b.text[:0], ct.ReplySrc, ct.ReplyDst))
	b.Str(semconv.ConntrackStatus, ct.Status.String())
}

func appendTuple(dst []byte, from, to hop.Endpoint) []byte {
	dst = append(from.AddrPort().AppendTo(dst), '>')
	return to.AddrPort().AppendTo(dst)
}

// Ratio is a share of traces to keep, by trace ID, with OpenTelemetry's TraceIDRatioBased rule: the plugin keeps the same ones.
type Ratio struct{ bound uint64 }

// ParseRatio reads a share of 0 to 1.
func ParseRatio(s string) (Ratio, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		return Ratio{}, &strconv.NumError{Func: "sample ratio", Num: s, Err: errRatio}
	}
	return NewRatio(f), nil
}

// NewRatio gives the rule for a share of 0 to 1.
func NewRatio(f float64) Ratio { return Ratio{uint64(f * (1 << 63))} }

// Keeps says whether a trace is kept.
func (r Ratio) Keeps(id link.TraceID) bool {
	return binary.BigEndian.Uint64(id[8:])>>1 < r.bound
}
