package link

import (
	"errors"
	"fmt"
)

// OptionTraceparent is the EDNS option code that PowerDNS uses by default for TRACEPARENT
// (draft-edns-otel-trace-ids): from the range for local and experimental use (RFC 6891, section 9).
const OptionTraceparent = 65500

// The lengths of the option's data that have been in use: the newest has everything, the older ones end after the span
// ID or after the trace ID.
const (
	TraceparentSize        = 27 // version, reserved, trace ID, span ID, flags
	traceparentNoFlags     = 26
	traceparentTraceIDOnly = 18
)

// FlagSampled is the W3C trace flag of a sampled trace.
const FlagSampled = 0x01

// Traceparent is the content of an EDNS TRACEPARENT option.
type Traceparent struct {
	TraceID TraceID
	SpanID  SpanID // zero if the option had none
	Flags   byte   // W3C trace flags; FlagSampled if the option had none
}

// Append appends the option's data in its 27-byte form to dst.
func (t Traceparent) Append(dst []byte) []byte {
	dst = append(dst, 0, 0)
	dst = append(dst, t.TraceID[:]...)
	dst = append(dst, t.SpanID[:]...)
	return append(dst, t.Flags)
}

// ErrTraceparent says that the data of a TRACEPARENT option is none of the known forms.
var ErrTraceparent = errors.New("EDNS TRACEPARENT")

// ParseTraceparent reads the data of an EDNS TRACEPARENT option: 27 bytes, or one of the older forms of 26 bytes (no
// flags) and 18 bytes (trace ID alone). A form without flags counts as sampled: its sender asked for a trace. The
// reserved byte is ignored. An error wraps [ErrTraceparent]: another length, a version other than 0, an all-zero trace
// ID, or an all-zero span ID where there is one.
func ParseTraceparent(b []byte) (Traceparent, error) {
	switch len(b) {
	case TraceparentSize, traceparentNoFlags, traceparentTraceIDOnly:
	default:
		return Traceparent{}, fmt.Errorf("%w: %d bytes, want 27, 26 or 18", ErrTraceparent, len(b))
	}
	if b[0] != 0 {
		return Traceparent{}, fmt.Errorf("%w: version %d, want 0", ErrTraceparent, b[0])
	}
	t := Traceparent{TraceID: TraceID(b[2:18]), Flags: FlagSampled}
	if t.TraceID == (TraceID{}) {
		return Traceparent{}, fmt.Errorf("%w: trace ID is zero", ErrTraceparent)
	}
	if len(b) >= traceparentNoFlags {
		t.SpanID = SpanID(b[18:26])
		if t.SpanID == (SpanID{}) {
			return Traceparent{}, fmt.Errorf("%w: span ID is zero", ErrTraceparent)
		}
	}
	if len(b) == TraceparentSize {
		t.Flags = b[26]
	}
	return t, nil
}
