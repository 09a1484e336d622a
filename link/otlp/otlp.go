// Package otlp writes spans in OTLP's wire form (opentelemetry/proto/trace/v1/trace.proto) straight from what is known
// of them.
//
// OpenTelemetry's exporters make three messages of protobuf for each attribute, measure each of them by reflection, and
// write them; for a DNS query that is answered in some microseconds this costs several times the answer. Here nothing
// stands in between: [Spans] is the one buffer, and it is used again. Transport stays OpenTelemetry's: [Spans.Message]
// gives the message that an otlptrace.Client is given, in which the spans ride as fields that the message does not
// know; protobuf writes such fields as they are (ProtoReflect().SetUnknown), so that on the wire nothing differs from
// spans that were made as messages.
//
// Keys are to be UTF-8. Any other string that is not, which protobuf refuses together with all that is sent with it, is
// mended: see [strings.ToValidUTF8].
package otlp

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// Kind is the kind of a span.
type Kind = tracepb.Span_SpanKind

// The kinds that are used.
const (
	Internal = tracepb.Span_SPAN_KIND_INTERNAL
	Server   = tracepb.Span_SPAN_KIND_SERVER
	Client   = tracepb.Span_SPAN_KIND_CLIENT
)

// Flags of a span and of a link: those of W3C Trace Context in the lowest eight bits, and what is known of where the
// parent is.
const (
	Sampled = 0x01
	// whether the parent is in another process is known: see ParentRemote
	ParentKnown   = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
	ParentRemote  = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	statusIsError = int32(tracepb.Status_STATUS_CODE_ERROR)
)

// Head is what every span has.
type Head struct {
	TraceID    [16]byte
	SpanID     [8]byte
	Parent     [8]byte // zero: none
	Name       string
	Kind       Kind
	Start, End uint64 // ns since 1970
	Flags      uint32
}

// Spans are encoded spans of one resource and one scope. The zero value is empty. It is for one goroutine.
//
// A span is written by [Spans.Begin], its attributes, links and status in any order, and [Spans.End].
type Spans struct {
	buf   []byte
	count int
	span  int // where the length of the span under way goes
	link  int // the same of a link; 0 if none is under way
}

// Mark is a place between two spans.
type Mark struct{ bytes, spans int }

// Len gives the number of spans.
func (s *Spans) Len() int { return s.count }

// Size gives the length of the encoded spans in bytes.
func (s *Spans) Size() int { return len(s.buf) }

// Room gives the memory that s takes, in bytes.
func (s *Spans) Room() int { return cap(s.buf) }

// Mark gives the place after the last span that has ended.
func (s *Spans) Mark() Mark { return Mark{len(s.buf), s.count} }

// Cut takes away what was written after m, a span under way included. Cut(Mark{}) empties s, and keeps its memory.
func (s *Spans) Cut(m Mark) { s.buf, s.count, s.link = s.buf[:m.bytes], m.spans, 0 }

// Swap puts other bytes in place of the spans' own, and gives those: for who keeps them in a smaller form while they
// wait. Nothing else may be called until they are back.
func (s *Spans) Swap(bytes []byte) []byte {
	own := s.buf
	s.buf = bytes
	return own
}

// Fields of the messages, as they stand on the wire: number<<3 | type.
const (
	varint  = byte(protowire.VarintType)
	fixed64 = byte(protowire.Fixed64Type)
	length  = byte(protowire.BytesType)
	fixed32 = byte(protowire.Fixed32Type)

	scopeSpansSpan = 2<<3 | length

	spanTraceID   = 1<<3 | length
	spanID        = 2<<3 | length
	spanParent    = 4<<3 | length
	spanName      = 5<<3 | length
	spanKind      = 6<<3 | varint
	spanStart     = 7<<3 | fixed64
	spanEnd       = 8<<3 | fixed64
	spanAttribute = 9<<3 | length
	spanLink      = 13<<3 | length
	spanStatus    = 15<<3 | length
	spanFlags     = 16<<3 | uint64(protowire.Fixed32Type) // two bytes

	linkTraceID   = 1<<3 | length
	linkSpanID    = 2<<3 | length
	linkAttribute = 4<<3 | length
	linkFlags     = 6<<3 | fixed32

	statusMessage = 2<<3 | length
	statusCode    = 3<<3 | varint

	keyValueKey   = 1<<3 | length
	keyValueValue = 2<<3 | length

	anyString = 1<<3 | length
	anyBool   = 2<<3 | varint
	anyInt    = 3<<3 | varint
	anyDouble = 4<<3 | fixed64
	anyArray  = 5<<3 | length

	arrayValue = 1<<3 | length
)

// Begin begins a span.
func (s *Spans) Begin(h *Head) {
	b := slices.Grow(s.buf, 512)
	s.span, s.link = len(b)+1, 0
	// The length takes two bytes nearly always.
	b = append(b, scopeSpansSpan, 0, 0, spanTraceID, byte(len(h.TraceID)))
	b = append(b, h.TraceID[:]...)
	b = append(b, spanID, byte(len(h.SpanID)))
	b = append(b, h.SpanID[:]...)
	if h.Parent != [8]byte{} {
		b = append(b, spanParent, byte(len(h.Parent)))
		b = append(b, h.Parent[:]...)
	}
	b = appendString(b, spanName, valid(h.Name))
	b = append(b, spanKind, byte(h.Kind), spanStart)
	b = binary.LittleEndian.AppendUint64(b, h.Start)
	b = append(b, spanEnd)
	b = binary.LittleEndian.AppendUint64(b, h.End)
	if h.Flags != 0 {
		b = binary.LittleEndian.AppendUint32(protowire.AppendVarint(b, spanFlags), h.Flags)
	}
	s.buf = b
}

// End ends the span.
func (s *Spans) End() {
	s.endLink()
	s.buf = closeAt(s.buf, s.span, 2)
	s.count++
}

// Link adds a link to a span; the attributes that follow are the link's, until the next link, [Spans.Error] or
// [Spans.EndLink].
func (s *Spans) Link(traceID [16]byte, span [8]byte, flags uint32) {
	s.endLink()
	b := append(s.buf, spanLink)
	s.link = len(b)
	b = append(b, 0, linkTraceID, byte(len(traceID)))
	b = append(b, traceID[:]...)
	b = append(b, linkSpanID, byte(len(span)))
	b = append(b, span[:]...)
	if flags != 0 {
		b = binary.LittleEndian.AppendUint32(append(b, linkFlags), flags)
	}
	s.buf = b
}

// EndLink ends the link under way: attributes are the span's again.
func (s *Spans) EndLink() { s.endLink() }

func (s *Spans) endLink() {
	if s.link != 0 {
		s.buf = closeAt(s.buf, s.link, 1)
		s.link = 0
	}
}

// Error sets the span's status to error. It is to be called once at most.
func (s *Spans) Error(message string) {
	s.endLink()
	b := append(s.buf, spanStatus)
	at := len(b)
	b = append(b, 0)
	if message != "" {
		b = appendString(b, statusMessage, valid(message))
	}
	b = append(b, statusCode, byte(statusIsError))
	s.buf = closeAt(b, at, 1)
}

// closeAt writes the length of what stands behind the room that was left for it at b[at:at+room], and makes that room
// larger or smaller if need be.
func closeAt(b []byte, at, room int) []byte {
	n := len(b) - at - room
	need := protowire.SizeVarint(uint64(n)) // #nosec G115 -- a length
	switch {
	case need > room:
		var more [10]byte
		b = append(b, more[:need-room]...)
		copy(b[at+need:], b[at+room:])
	case need < room:
		copy(b[at+need:], b[at+room:])
		b = b[:len(b)-(room-need)]
	}
	protowire.AppendVarint(b[:at], uint64(n)) // #nosec G115 -- a length
	return b
}

// Attributes are encoded attributes of a span, apart from any: what many spans carry is encoded once.
type Attributes []byte

// Add adds attributes to the span.
func (s *Spans) Add(a Attributes) { s.buf = append(s.buf, a...) }

// attribute is the tag of an attribute of what is under way.
func (s *Spans) attribute() byte {
	if s.link != 0 {
		return linkAttribute
	}
	return spanAttribute
}

// Str adds an attribute of type string.
func (s *Spans) Str(key, value string) { s.buf = appendStr(s.buf, s.attribute(), key, value) }

// Text adds an attribute of type string, given as bytes.
func (s *Spans) Text(key string, value []byte) {
	if !utf8.Valid(value) {
		value = bytes.ToValidUTF8(value, []byte("\uFFFD"))
	}
	b := appendKey(s.buf, s.attribute(), key, sized(len(value)))
	s.buf = append(appendLength(append(b, anyString), len(value)), value...)
}

// Int adds an attribute of type int.
func (s *Spans) Int(key string, value int64) { s.buf = appendInt(s.buf, s.attribute(), key, value) }

// Bool adds an attribute of type boolean.
func (s *Spans) Bool(key string, value bool) { s.buf = appendBool(s.buf, s.attribute(), key, value) }

// Double adds an attribute of type double.
func (s *Spans) Double(key string, value float64) {
	s.buf = appendDouble(s.buf, s.attribute(), key, value)
}

// Strs adds an attribute of type string[].
func (s *Spans) Strs(key string, values []string) {
	s.buf = appendStrs(s.buf, s.attribute(), key, values)
}

// Str appends an attribute of type string.
func (a Attributes) Str(key, value string) Attributes {
	return appendStr(a, spanAttribute, key, value)
}

// Int appends an attribute of type int.
func (a Attributes) Int(key string, value int64) Attributes {
	return appendInt(a, spanAttribute, key, value)
}

// Bool appends an attribute of type boolean.
func (a Attributes) Bool(key string, value bool) Attributes {
	return appendBool(a, spanAttribute, key, value)
}

// Double appends an attribute of type double.
func (a Attributes) Double(key string, value float64) Attributes {
	return appendDouble(a, spanAttribute, key, value)
}

// Strs appends an attribute of type string[].
func (a Attributes) Strs(key string, values []string) Attributes {
	return appendStrs(a, spanAttribute, key, values)
}

// An attribute is a KeyValue of a key and an AnyValue. The sizes are known beforehand, so that nothing is moved.

func appendStr(b []byte, tag byte, key, value string) []byte {
	value = valid(value)
	b = appendKey(b, tag, key, sized(len(value)))
	return appendString(b, anyString, value)
}

func appendInt(b []byte, tag byte, key string, value int64) []byte {
	b = appendKey(b, tag, key,
		1+protowire.SizeVarint(uint64(value))) // #nosec G115 -- negative numbers are ten bytes on the wire
	return protowire.AppendVarint(append(b, anyInt), uint64(value)) // #nosec G115
}

func appendBool(b []byte, tag byte, key string, value bool) []byte {
	return append(appendKey(b, tag, key, 2), anyBool, byte(protowire.EncodeBool(value)))
}

func appendDouble(b []byte, tag byte, key string, value float64) []byte {
	b = append(appendKey(b, tag, key, 1+8), anyDouble)
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(value))
}

func appendStrs(b []byte, tag byte, key string, values []string) []byte {
	size := 0 // of the ArrayValue
	for _, v := range values {
		size += sized(sized(len(valid(v))))
	}
	b = appendKey(b, tag, key, sized(size))
	b = appendLength(append(b, anyArray), size)
	for _, v := range values {
		v = valid(v)
		b = appendLength(append(b, arrayValue), sized(len(v)))
		b = appendString(b, anyString, v)
	}
	return b
}

// appendKey appends the tag and the key of an attribute, and the head of its value, which is size bytes long. It makes
// room for the value, too.
func appendKey(b []byte, tag byte, key string, size int) []byte {
	all := sized(len(key)) + sized(size)
	b = slices.Grow(b, sized(all))
	if all < 0x80 { // and so are the two in it
		b = append(b, tag, byte(all), keyValueKey, byte(len(key)))
		b = append(b, key...)
		return append(b, keyValueValue, byte(size))
	}
	b = appendLength(append(b, tag), all)
	b = appendString(b, keyValueKey, key)
	return appendLength(append(b, keyValueValue), size)
}

// sized gives the size of a field of n bytes: its tag, its length and itself.
func sized(n int) int {
	if n < 0x80 {
		return n + 2
	}
	return 1 + protowire.SizeBytes(n)
}

func appendLength(b []byte, n int) []byte {
	if n < 0x80 {
		return append(b, byte(n)) // #nosec G115 -- below 0x80
	}
	return protowire.AppendVarint(b, uint64(n)) // #nosec G115 -- a length
}

func appendString(b []byte, tag byte, s string) []byte {
	if len(s) < 0x80 {
		return append(append(b, tag, byte(len(s))), s...)
	}
	return append(protowire.AppendVarint(append(b, tag), uint64(len(s))), s...)
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Message gives the spans as an otlptrace.Client takes them. It shares memory with s: until the client has come back, s
// must not be changed.
func (s *Spans) Message(resource *resourcepb.Resource, scope *commonpb.InstrumentationScope,
	schemaURL string) *tracepb.ResourceSpans {
	spans := &tracepb.ScopeSpans{Scope: scope, SchemaUrl: schemaURL}
	spans.ProtoReflect().SetUnknown(s.buf)
	return &tracepb.ResourceSpans{Resource: resource, ScopeSpans: []*tracepb.ScopeSpans{spans}, SchemaUrl: schemaURL}
}
