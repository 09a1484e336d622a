// Package export turns lookups and their verdicts into OpenTelemetry spans and sends them by OTLP, never holding up who makes them.
package export

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	mathrand "math/rand/v2"
	"strconv"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// builder makes the spans of one lookup. Attributes that come again and again are made once: the spans share them, and nobody changes them.
type builder struct {
	ids                  *mathrand.ChaCha8
	segments             map[string]*commonpb.KeyValue
	places               map[placeKey]string
	copyMark, tunnelMark *commonpb.KeyValue
	epoch                link.Epoch
	epochKV              *commonpb.KeyValue
	segs                 []verdict.Segment
}

type placeKey struct {
	netns, ifindex uint32
	kind           hop.Kind
	dev            [16]byte
}

const maxPlaces = 16384

func newBuilder() *builder {
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails: crypto/rand
	return &builder{
		ids:      mathrand.NewChaCha8(seed),
		segments: make(map[string]*commonpb.KeyValue),
		places:   make(map[placeKey]string),
		copyMark: boolean(semconv.LinkCopy, true), tunnelMark: boolean(semconv.SegmentTunnel, true),
	}
}

func (b *builder) spanID() []byte {
	id := make([]byte, 8)
	for {
		if n := b.ids.Uint64(); n != 0 {
			binary.BigEndian.PutUint64(id, n)
			return id
		}
	}
}

func (b *builder) segment(stage verdict.Where) *commonpb.KeyValue {
	kv := b.segments[string(stage)]
	if kv == nil {
		kv = str(semconv.Segment, string(stage))
		b.segments[string(stage)] = kv
	}
	return kv
}

func (b *builder) place(h *hop.Hop) string {
	k := placeKey{h.NetNS, h.IfIndex, h.Kind, h.Dev}
	if s, ok := b.places[k]; ok {
		return s
	}
	if len(b.places) >= maxPlaces {
		clear(b.places)
	}
	s := verdict.Place(h)
	b.places[k] = s
	return s
}

func (b *builder) epochOf(e link.Epoch) *commonpb.KeyValue {
	if b.epochKV == nil || b.epoch != e {
		b.epoch, b.epochKV = e, integer(semconv.LinkEpoch, int64(e))
	}
	return b.epochKV
}

// trace says under which trace the spans of a lookup go.
type trace struct {
	traceID  link.TraceID
	parent   []byte // of the topmost span
	epoch    link.Epoch
	isCopy   bool
	root     bool // the topmost span is the CLIENT span, with the derived span ID
	upstream bool // the lookup was made by a server for another one

	handshake bool // a TCP connection that was never established
	late      bool // it has the lookup's spans already, which called it lost
}

// spans appends the spans of a lookup.
func (b *builder) spans(dst []*tracepb.Span, l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, t trace) []*tracepb.Span {
	if t.late {
		return append(dst, b.late(l, v, t))
	}
	traceID := t.traceID[:]
	parent := t.parent
	if t.root || t.upstream || t.handshake {
		top := b.top(l, v, t)
		top.TraceId = traceID
		dst = append(dst, top)
		parent = top.SpanId
	}
	b.segs = j.Segments(b.segs[:0], l)
	for i := range b.segs {
		s := &b.segs[i]
		span := &tracepb.Span{
			TraceId:           traceID,
			SpanId:            b.spanID(),
			ParentSpanId:      parent,
			Name:              s.Name,
			Kind:              tracepb.Span_SPAN_KIND_INTERNAL,
			StartTimeUnixNano: uint64(s.From.Time),
			EndTimeUnixNano:   uint64(s.To.Time),
			Attributes:        make([]*commonpb.KeyValue, 0, 6),
		}
		span.Attributes = append(span.Attributes, b.segment(s.Stage), str(semconv.SegmentFrom, b.place(s.From)), str(semconv.SegmentTo, b.place(s.To)))
		if s.To.Tunnel {
			span.Attributes = append(span.Attributes, b.tunnelMark)
		}
		if s.To.Kind == hop.Drop {
			span.Attributes = append(span.Attributes, str(semconv.DropReason, s.To.Reason.String()))
			span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: s.To.Reason.String()}
		}
		if s.Stage == verdict.Service && s.To.Tracked {
			span.Attributes = appendConntrack(span.Attributes, &s.To.Conntrack)
		}
		if t.isCopy {
			span.Attributes = append(span.Attributes, b.copyMark)
		}
		dst = append(dst, span)
	}
	if !t.root && !t.upstream && !t.handshake {
		// The client is out of sight: its own node's agent sends the CLIENT span. What is known here of how the lookup ended stands on the last
		// segment, for whoever joins the trace.
		if len(b.segs) == 0 {
			last := &l.Hops[len(l.Hops)-1]
			dst = append(dst, &tracepb.Span{
				TraceId: traceID, SpanId: b.spanID(), ParentSpanId: parent, Name: "seen", Kind: tracepb.Span_SPAN_KIND_INTERNAL,
				StartTimeUnixNano: uint64(last.Time), EndTimeUnixNano: uint64(last.Time),
				Attributes: []*commonpb.KeyValue{b.segment(v.Where), str(semconv.SegmentTo, b.place(last))},
			})
		}
		end := dst[len(dst)-1]
		end.Attributes = appendVerdict(end.Attributes, l, v)
	}
	return dst
}

// late makes the one span that is added to a lookup whose spans have gone out as lost, when its answer comes after all.
func (b *builder) late(l *lookup.Lookup, v *verdict.Verdict, t trace) *tracepb.Span {
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
	a := []*commonpb.KeyValue{
		b.segment(stage), str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode)),
		str(semconv.SegmentFrom, b.place(&l.Hops[first])), str(semconv.SegmentTo, b.place(&l.Hops[last])),
	}
	if !t.upstream && !t.handshake {
		a = appendVerdict(a, l, v) // in place of the one that went out
	}
	if t.isCopy {
		a = append(a, b.copyMark)
	}
	return &tracepb.Span{
		TraceId: t.traceID[:], SpanId: b.spanID(), ParentSpanId: t.parent, Name: verdict.LateAnswer, Kind: tracepb.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: uint64(l.Hops[first].Time), EndTimeUnixNano: uint64(l.Hops[last].Time), Attributes: a,
	}
}

// top makes the CLIENT span, or the span of a server's upstream query.
func (b *builder) top(l *lookup.Lookup, v *verdict.Verdict, t trace) *tracepb.Span {
	span := &tracepb.Span{
		ParentSpanId:      t.parent,
		Name:              "DNS " + dnswire.TypeString(l.Type),
		Kind:              tracepb.Span_SPAN_KIND_CLIENT,
		StartTimeUnixNano: uint64(l.Start()),
		EndTimeUnixNano:   uint64(l.End()),
		Attributes:        b.attributes(l, v),
	}
	switch {
	case t.handshake:
		span.Kind = tracepb.Span_SPAN_KIND_INTERNAL
		span.Name = "TCP after truncation"
		span.SpanId = b.spanID()
		span.Attributes = append(span.Attributes, boolean(semconv.Inferred, true))
	case t.upstream:
		// The plugin sends the CLIENT span of this query; this is the same seen from the network.
		span.Kind = tracepb.Span_SPAN_KIND_INTERNAL
		span.Name = "upstream on the network"
		span.SpanId = b.spanID()
		span.Attributes = append(span.Attributes, boolean(semconv.Inferred, true), b.segment(verdict.Upstream))
	default:
		id := t.traceID.ClientSpanID()
		span.SpanId = id[:]
		span.Attributes = append(span.Attributes, integer(semconv.LinkVersion, link.Version), b.epochOf(t.epoch))
	}
	if l.Group != (link.TraceID{}) {
		span.Attributes = append(span.Attributes, str(semconv.Group, l.Group.String()))
		if l.SearchStep > 0 {
			span.Attributes = append(span.Attributes, integer(semconv.GroupSearchStep, int64(l.SearchStep)))
		}
		if l.AttemptOfGroup > 1 {
			span.Attributes = append(span.Attributes, integer(semconv.GroupAttempt, int64(l.AttemptOfGroup)))
		}
	}
	for _, r := range l.Related {
		span.Links = append(span.Links, &tracepb.Span_Link{
			TraceId: bytes.Clone(r.TraceID[:]), SpanId: bytes.Clone(r.SpanID[:]),
			Attributes: []*commonpb.KeyValue{str(semconv.GroupRelation, string(r.Kind))},
		})
	}
	if t.isCopy {
		span.Attributes = append(span.Attributes, b.copyMark)
	}
	if e := ErrorType(l, v); e != "" {
		span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: v.Text}
	}
	return span
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

func (b *builder) attributes(l *lookup.Lookup, v *verdict.Verdict) []*commonpb.KeyValue {
	a := make([]*commonpb.KeyValue, 0, 32)
	client, server := l.Client.AddrPort(), l.Server.AddrPort()
	network := "ipv6"
	if client.Addr().Is4() {
		network = "ipv4"
	}
	a = append(a,
		str(semconv.QuestionName, l.Question()),
		str(semconv.QuestionType, dnswire.TypeString(l.Type)),
		integer(semconv.DNSID, int64(l.ID)),
		str(semconv.ClientAddress, client.Addr().String()),
		integer(semconv.ClientPort, int64(client.Port())),
		str(semconv.ServerAddress, server.Addr().String()),
		integer(semconv.ServerPort, int64(server.Port())),
		str(semconv.NetworkTransport, l.Transport.String()),
		str(semconv.NetworkType, network),
		str(semconv.NetworkProtocolName, "dns"),
		integer(semconv.Attempts, int64(l.Attempts)),
		integer(semconv.RequestSize, int64(l.QuerySize)),
	)
	a = appendVerdict(a, l, v)
	if l.Class != 1 {
		a = append(a, str(semconv.QuestionClass, dnswire.ClassString(l.Class)))
	}
	if l.AnswerSeen {
		a = append(a, str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode)), integer(semconv.ResponseSize, int64(l.AnswerSize)))
		if len(l.Body.Answers) > 0 {
			a = append(a, strs(semconv.Answers, l.Body.Answers))
		}
		if l.Flags.Truncated() {
			a = append(a, boolean(semconv.ResponseTruncated, true))
		}
		peer := l.AnsweredBy.AddrPort()
		a = append(a, str(semconv.NetworkPeerAddress, peer.Addr().String()), integer(semconv.NetworkPeerPort, int64(peer.Port())))
	}
	if p := l.Process; p != nil {
		a = append(a, integer(semconv.ProcessPID, int64(p.PID)), str(semconv.ProcessExecutableName, p.Name))
	}
	if v.Drop != "" {
		a = append(a, str(semconv.DropReason, v.Drop))
	}
	if e := ErrorType(l, v); e != "" {
		a = append(a, str(semconv.ErrorType, e))
	}
	hops := make([]string, len(l.Hops))
	var ct *hop.Conntrack
	for i := range l.Hops {
		hops[i] = b.place(&l.Hops[i])
		if l.Hops[i].Tracked && (ct == nil || l.Hops[i].Conntrack.Status&(hop.SrcNAT|hop.DstNAT) != 0) {
			ct = &l.Hops[i].Conntrack
		}
	}
	a = append(a, strs(semconv.Hops, hops))
	if ct != nil {
		a = appendConntrack(a, ct)
	}
	if l.EventsLost > 0 {
		a = append(a, integer(semconv.HopsLost, int64(l.EventsLost)))
	}
	return a
}

func appendVerdict(a []*commonpb.KeyValue, l *lookup.Lookup, v *verdict.Verdict) []*commonpb.KeyValue {
	a = append(a,
		str(semconv.VerdictWhere, string(v.Where)),
		str(semconv.VerdictCause, string(v.Cause)),
		str(semconv.VerdictCertainty, v.Certainty()),
		boolean(semconv.VerdictAnswered, l.Ending == lookup.Answered))
	if v.Text != "" {
		a = append(a, str(semconv.VerdictText, v.Text))
	}
	if len(v.Evidence) > 0 {
		a = append(a, strs(semconv.VerdictEvidence, v.Evidence))
	}
	return a
}

func appendConntrack(a []*commonpb.KeyValue, ct *hop.Conntrack) []*commonpb.KeyValue {
	return append(a,
		str(semconv.ConntrackOriginal, tuple(ct.OrigSrc, ct.OrigDst)),
		str(semconv.ConntrackReply, tuple(ct.ReplySrc, ct.ReplyDst)),
		str(semconv.ConntrackStatus, ct.Status.String()))
}

func tuple(src, dst hop.Endpoint) string {
	b := make([]byte, 0, 96)
	b = src.AddrPort().AppendTo(b)
	b = append(b, '>')
	return string(dst.AddrPort().AppendTo(b))
}

// An attribute is three messages of protobuf; made together, they are one allocation.

func str(key, value string) *commonpb.KeyValue {
	var a struct {
		kv    commonpb.KeyValue
		value commonpb.AnyValue
		str   commonpb.AnyValue_StringValue
	}
	a.str.StringValue = value
	a.value.Value = &a.str
	a.kv.Key, a.kv.Value = key, &a.value
	return &a.kv
}

func integer(key string, value int64) *commonpb.KeyValue {
	var a struct {
		kv    commonpb.KeyValue
		value commonpb.AnyValue
		num   commonpb.AnyValue_IntValue
	}
	a.num.IntValue = value
	a.value.Value = &a.num
	a.kv.Key, a.kv.Value = key, &a.value
	return &a.kv
}

func boolean(key string, value bool) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: value}}}
}

func strs(key string, values []string) *commonpb.KeyValue {
	type item struct {
		value commonpb.AnyValue
		str   commonpb.AnyValue_StringValue
	}
	items := make([]item, len(values))
	list := &commonpb.ArrayValue{Values: make([]*commonpb.AnyValue, len(values))}
	for i, v := range values {
		items[i].str.StringValue = v
		items[i].value.Value = &items[i].str
		list.Values[i] = &items[i].value
	}
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: list}}}
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
