// Package export turns lookups and their verdicts into OpenTelemetry spans and sends them by OTLP, never holding up who
// makes them.
package export

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"

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

	client   netip.AddrPort                   // of the lookup whose spans are written; invalid where it is not known
	owner    func(netns uint32) verdict.Owner // nil: none is known
	asked    string                           // why somebody asked for the lookup; "" where nobody did
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
	correctsMark = otlp.Attributes(nil).Bool(semconv.VerdictCorrection, true)
	inferredMark = otlp.Attributes(nil).Bool(semconv.Inferred, true)
	serverMark   = otlp.Attributes(nil).Bool(semconv.ServerQuery, true)
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

func newBuilder(owner func(netns uint32) verdict.Owner) *builder {
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails: crypto/rand
	return &builder{
		owner:    owner,
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
	spot := verdict.SpotOf(h)
	p := &place{text: verdict.Place(h), from: fromKeys.attributes(spot), to: toKeys.attributes(spot)}
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

// endKeys are the names of the attributes of one end of a segment.
type endKeys struct{ device, event, netns, ownerKind, ownerName string }

var (
	fromKeys = endKeys{
		semconv.SegmentFromDevice, semconv.SegmentFromEvent, semconv.SegmentFromNetNS,
		semconv.SegmentFromOwnerKind, semconv.SegmentFromOwnerName,
	}
	toKeys = endKeys{
		semconv.SegmentToDevice, semconv.SegmentToEvent, semconv.SegmentToNetNS,
		semconv.SegmentToOwnerKind, semconv.SegmentToOwnerName,
	}
)

// attributes gives those of a place, but for its owner: owners change, and what is given here is kept.
func (k *endKeys) attributes(s verdict.Spot) otlp.Attributes {
	var a otlp.Attributes
	if s.Device != "" {
		a = a.Str(k.device, s.Device)
	}
	return a.Str(k.event, s.Event).Int(k.netns, int64(s.NetNS))
}

// ways are the attributes of a segment that tell whose way it is of.
var ways = [...]otlp.Attributes{
	verdict.OfQuery:  otlp.Attributes(nil).Str(semconv.SegmentWay, semconv.WayQuery),
	verdict.OfAnswer: otlp.Attributes(nil).Str(semconv.SegmentWay, semconv.WayAnswer),
	verdict.OfTurn:   otlp.Attributes(nil).Str(semconv.SegmentWay, semconv.WayTurn),
}

// end writes one end of a segment. Whose its network namespace is matters where something failed, and costs a look at
// /proc: of an answered lookup it is not asked.
func (b *builder) end(k *endKeys, h *hop.Hop, v *verdict.Verdict) {
	p := b.place(h)
	if k == &fromKeys {
		b.Add(p.from)
	} else {
		b.Add(p.to)
	}
	if b.owner == nil || v.Where == verdict.Answered {
		return
	}
	if o := b.owner(h.NetNS); o.Kind != "" {
		b.Str(k.ownerKind, string(o.Kind))
		b.Str(k.ownerName, o.Name)
	}
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
	late      bool // it has the lookup's spans already: those of a report that was final
	beside    bool // it has the client span of the same question to another server
	bare      bool // the segments stand in the trace of the lookup served

	own link.TraceID // with upstream: the trace of the query itself; zero: there is none

	twins []link.TraceID // of the same lookup in other epochs
}

// below says that the client is out of sight: the segments stand right below the span that its own node's agent sends.
func (t *trace) below() bool { return !t.root && !t.upstream && !t.handshake }

// away says that, besides, nothing has been sent of it: the last segment has the verdict.
func (t *trace) away() bool { return t.below() && !t.late }

// spans writes the spans of a lookup to dst.
func (b *builder) spans(dst *otlp.Spans, l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, t trace) {
	b.Spans = dst
	defer func() { b.Spans = nil }()
	if t.late {
		b.late(l, v, j, t)
		return
	}
	h := otlp.Head{TraceID: t.traceID, Parent: t.parent, Kind: otlp.Internal}
	if !t.away() {
		h.Parent = b.top(l, v, t)
	}
	if t.bare {
		return
	}
	b.ways(&h, l, v, j, t, 0)
	// Without a span at the top the client is out of sight: its own node's agent sends the CLIENT span. What is known here
	// of how the lookup ended stands on the last segment, for whoever joins the trace.
	if t.away() && len(b.segs) == 0 {
		last := &l.Hops[len(l.Hops)-1]
		h.SpanID, h.Name, h.Start, h.End = b.spanID(), "seen", uint64(last.Time), uint64(last.Time)
		b.Begin(&h)
		b.Add(b.segment(v.Where))
		b.end(&toKeys, last, v)
		b.addr(semconv.ServerAddress, semconv.ServerPort, l.Server.AddrPort())
		b.verdict(v)
		b.End()
	}
}

// late writes what came of a lookup whose spans have gone out: a span that says so, and the segments since.
func (b *builder) late(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, t trace) {
	news := l.News()
	h := otlp.Head{
		TraceID: t.traceID, SpanID: b.spanID(), Parent: t.parent, Name: verdict.SeenLater, Kind: otlp.Internal,
		Start: uint64(l.End()), End: uint64(l.End()),
	}
	if len(news) > 0 {
		h.Start = uint64(news[0].Time)
	}
	stage, answered := verdict.ReturnPath, slices.ContainsFunc(news, isAnswer)
	switch {
	case l.AskedSince():
		h.Name = verdict.AskedAgain
	case answered:
		h.Name = verdict.LateAnswer
		h.Start = uint64(news[slices.IndexFunc(news, isAnswer)].Time)
	}
	switch {
	case t.upstream:
		stage = verdict.Upstream
	case !answered && v.Where != verdict.Answered:
		stage = v.Where
	}
	b.Begin(&h)
	b.Add(b.segment(stage))
	if l.AnswerSeen {
		b.Str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode))
	}
	b.Int(semconv.Attempts, int64(l.AttemptsBefore+l.Attempts))
	b.addr(semconv.ServerAddress, semconv.ServerPort, l.Server.AddrPort())
	if h.Name == verdict.LateAnswer {
		b.end(&fromKeys, &news[slices.IndexFunc(news, isAnswer)], v)
		b.end(&toKeys, &news[len(news)-1], v)
	}
	if !t.upstream && !t.handshake {
		b.verdict(v)
		b.drop(v)
		b.Add(correctsMark)
		if e := ErrorType(l, v); e != "" {
			b.Str(semconv.ErrorType, e)
			b.Error(v.Text)
		}
	}
	if t.isCopy {
		b.Add(copyMark)
	}
	b.End()
	if t.bare || len(news) == 0 {
		return
	}
	if !t.below() {
		h.Parent = h.SpanID
	}
	b.ways(&h, l, v, j, t, news[0].Time)
}

func isAnswer(h hop.Hop) bool { return h.Answer && h.Kind != hop.Unreachable }

// ways writes the segments that end at or after a time, in ns since 1970, below the parent that h names.
func (b *builder) ways(
	h *otlp.Head, l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, t trace, from int64,
) {
	b.segs = j.Segments(b.segs[:0], l)
	b.segs = slices.DeleteFunc(b.segs, func(s verdict.Segment) bool { return s.To.Time < from })
	for i := range b.segs {
		s := &b.segs[i]
		h.SpanID, h.Name, h.Start, h.End = b.spanID(), s.Name, uint64(s.From.Time), uint64(s.To.Time)
		b.Begin(h)
		b.Add(b.segment(s.Stage))
		b.Add(ways[s.Way])
		b.end(&fromKeys, s.From, v)
		b.end(&toKeys, s.To, v)
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
		if t.below() {
			b.addr(semconv.ServerAddress, semconv.ServerPort, l.Server.AddrPort()) // no span above tells which server
		}
		if t.away() && i == len(b.segs)-1 {
			b.verdict(v)
		}
		b.End()
	}
}

// top writes the CLIENT span, or the span of a server's upstream query, and gives its ID.
func (b *builder) top(l *lookup.Lookup, v *verdict.Verdict, t trace) link.SpanID {
	h := otlp.Head{TraceID: t.traceID, Parent: t.parent, Kind: otlp.Internal, Start: uint64(l.Start()),
		End: uint64(l.End())}
	switch {
	case t.handshake:
		h.SpanID, h.Name = b.spanID(), "TCP after truncation"
	case t.upstream:
		// The plugin sends the CLIENT span of this query; this is the same seen from the network.
		h.SpanID, h.Name = b.spanID(), "upstream on the network"
	default:
		h.SpanID, h.Name, h.Kind = t.traceID.ClientSpanID(), semconv.SpanName(int(l.Opcode), l.Type), otlp.Client
		if t.beside {
			h.SpanID = b.spanID()
		}
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
		if l.Own || l.Serves != nil {
			b.Add(serverMark)
		}
		if l.Serves != nil {
			b.Text(semconv.ServedTraceID, hex.AppendEncode(b.text[:0], l.Serves.TraceID[:]))
		}
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
	switch {
	case t.own != link.TraceID{}:
		b.served(t.own, t.own.ClientSpanID(), semconv.ServedBy)
	case l.Serves != nil && h.Kind == otlp.Client:
		b.served(l.Serves.TraceID, l.Serves.SpanID, semconv.Serves)
	}
	for _, twin := range t.twins {
		b.Link(twin, twin.ClientSpanID(), 0)
		b.Bool(semconv.LinkCopy, true)
		b.EndLink()
	}
	if e := ErrorType(l, v); e != "" {
		b.Error(v.Text)
	}
	b.End()
	return h.SpanID
}

// served links a server's own query with the lookup that it was made to answer.
func (b *builder) served(id link.TraceID, span link.SpanID, relation string) {
	b.Link(id, span, 0)
	b.Str(semconv.ServedRelation, relation)
	b.EndLink()
}

// ErrorType gives the value of error.type: the rcode of a server failure, `timeout` or the verdict's cause of a lookup
// without an answer; "" for an answer, NXDOMAIN included.
func ErrorType(l *lookup.Lookup, v *verdict.Verdict) string {
	if v.Lost() {
		if v.Cause == verdict.CauseNoReply || v.Cause == verdict.CauseNoAnswer || v.Cause == verdict.CauseVanished {
			return "timeout"
		}
		return string(v.Cause)
	}
	if !semconv.RcodeFails(int(l.Body.Rcode)) {
		return ""
	}
	return dnswire.RcodeString(l.Body.Rcode)
}

// ErrorLabel gives what [ErrorType] does as the value of a metric's label: of rcodes without a name, of which a server
// may send thousands, it gives [semconv.OtherRcode].
func ErrorLabel(l *lookup.Lookup, v *verdict.Verdict) string {
	e := ErrorType(l, v)
	if l.Ending == lookup.Answered && !v.Lost() && e != "" {
		return semconv.RcodeLabel(int(l.Body.Rcode))
	}
	return e
}

func (b *builder) attributes(l *lookup.Lookup, v *verdict.Verdict) {
	network := "ipv6"
	if l.Server.AddrPort().Addr().Is4() {
		network = "ipv4"
	}
	b.Str(semconv.QuestionName, l.Question())
	if l.HasQuestion() {
		b.Str(semconv.QuestionType, dnswire.TypeString(l.Type))
	}
	b.Int(semconv.DNSID, int64(l.ID))
	if b.client.IsValid() {
		b.addr(semconv.ClientAddress, semconv.ClientPort, b.client)
	}
	b.addr(semconv.ServerAddress, semconv.ServerPort, l.Server.AddrPort())
	b.Str(semconv.NetworkTransport, l.Transport.String())
	b.Str(semconv.NetworkType, network)
	b.Add(protocolDNS)
	b.Int(semconv.Attempts, int64(l.Attempts))
	b.Int(semconv.RequestSize, int64(l.QuerySize))
	b.verdict(v)
	if l.Class != 1 && l.HasQuestion() {
		b.Str(semconv.QuestionClass, dnswire.ClassString(l.Class))
	}
	if l.Opcode != 0 {
		b.Str(semconv.Operation, dnswire.OpcodeString(l.Opcode))
	}
	if l.AnswerSeen {
		b.Str(semconv.ResponseCode, dnswire.RcodeString(l.Body.Rcode))
		b.Int(semconv.ResponseSize, int64(l.AnswerSize))
		if answers := l.Answers(); len(answers) > 0 {
			b.Strs(semconv.Answers, answers)
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
	b.drop(v)
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
	if l.EntryOlder {
		b.Bool(semconv.ConntrackOlder, true)
	}
	if l.EventsLost > 0 {
		b.Int(semconv.HopsLost, int64(l.EventsLost))
	}
}

// drop writes why and where the kernel dropped what ended a lookup.
func (b *builder) drop(v *verdict.Verdict) {
	if v.Drop == "" {
		return
	}
	b.Str(semconv.DropReason, v.Drop)
	if v.DropAt.Device != "" {
		b.Str(semconv.DropDevice, v.DropAt.Device)
	}
	b.Int(semconv.DropNetNS, int64(v.DropAt.NetNS))
	if o := v.DropAt.Owner; o.Kind != "" {
		b.Str(semconv.DropOwnerKind, string(o.Kind))
		b.Str(semconv.DropOwnerName, o.Name)
	}
}

func (b *builder) addr(address, port string, ap netip.AddrPort) {
	b.Text(address, ap.Addr().AppendTo(b.text[:0]))
	b.Int(port, int64(ap.Port()))
}

func (b *builder) verdict(v *verdict.Verdict) {
	b.Str(semconv.VerdictWhere, string(v.Where))
	b.Str(semconv.VerdictCause, string(v.Cause))
	b.Str(semconv.VerdictCertainty, v.Certainty())
	b.Bool(semconv.VerdictAnswered, !v.Lost())
	if b.asked != "" {
		b.Str(semconv.KeepReason, semconv.KeptAsAsked)
		b.Str(semconv.AskedReason, b.asked)
	}
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
	b.addr(semconv.TranslatedAddress, semconv.TranslatedPort, ct.ReplySrc.AddrPort())
}

func appendTuple(dst []byte, from, to hop.Endpoint) []byte {
	dst = append(from.AddrPort().AppendTo(dst), '>')
	return to.AddrPort().AppendTo(dst)
}
