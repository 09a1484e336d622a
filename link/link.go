// Package link is the trace link: the rule by which two programs that watch the same DNS lookup from two places, and
// never speak to one another, give it the same trace ID.
//
// The CoreDNS plugin sees a query arrive on a socket; the tracer sees the packet that carries it. Both know the
// client's address and port as CoreDNS's socket sees them, the transport, the DNS ID and the question. From these and
// the time, cut into epochs of eight seconds, both derive
//
//   - the trace ID ([Key.TraceID]),
//   - the span ID of the client's span ([TraceID.ClientSpanID]), the parent of the server's span.
//
// Time is the one input the two sides do not share exactly: a lookup near an epoch boundary has more than one candidate
// trace ID. [Epochs] tells the side that knows more (the tracer) which ones, so that it can send its spans under each.
//
// SPEC.md beside this file is the contract, testdata/vectors.json its test vectors: with the two of them a program in
// another language can join. This package imports nothing of the plugin or the tracer; both import it.
package link

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"github.com/zeebo/xxh3"
)

// Version is the version of the derivation, and the first byte of what is hashed: a change of the rule changes every
// ID.
const Version = 1

// EpochLength is the length of an epoch. Within one, a DNS ID used again for the same question from the same port
// is taken for a retransmission.
const EpochLength = 8 * time.Second

// DefaultGuard is how far apart the clocks of the two sides may be before a lookup near an epoch boundary loses its
// link. It buys tolerance with copies: guard/4s of all lookups are sent under two trace IDs.
const DefaultGuard = 50 * time.Millisecond

// MaxQName is the longest name in wire form, in bytes, the root label included (RFC 1035, section 3.1).
const MaxQName = 255

// Transport is the IP protocol number that carries the query.
type Transport uint8

// The transports whose question both sides can see. Encrypted ones (DoT, DoH, DoQ) have no link: their DNS ID is not on
// the wire.
const (
	TCP Transport = 6
	UDP Transport = 17
)

// String gives the value of OpenTelemetry's network.transport: "udp", "tcp", or "ip-N" for any other protocol number.
func (t Transport) String() string {
	switch t {
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	}
	return fmt.Sprintf("ip-%d", uint8(t))
}

// Epoch is a number of whole [EpochLength]s since 1970-01-01T00:00:00Z.
type Epoch int64

// EpochOf gives the epoch that t lies in.
func EpochOf(t time.Time) Epoch { return EpochOfNanos(t.UnixNano()) }

// EpochOfNanos gives the epoch of a time in nanoseconds since 1970-01-01T00:00:00Z (not before it).
func EpochOfNanos(ns int64) Epoch { return Epoch(ns / int64(EpochLength)) }

// Start gives the first instant of the epoch.
func (e Epoch) Start() time.Time { return time.Unix(0, int64(e)*int64(EpochLength)).UTC() }

// Epochs gives the first and the last epoch in which the other side may have seen a lookup, when this side knows that
// it did so between from and to, and the clocks differ by guard at most. first == last for all but a few lookups.
func Epochs(from, to time.Time, guard time.Duration) (first, last Epoch) {
	if to.Before(from) {
		to = from
	}
	return EpochOf(from.Add(-guard)), EpochOf(to.Add(guard))
}

// Key is what both sides know of one query.
type Key struct {
	Transport Transport
	// Client is the query's source as CoreDNS's socket sees it: after any source translation on the way.
	// An IPv4 address and the same one mapped into IPv6 (::ffff:192.0.2.1) are one client; a zone is ignored.
	Client netip.AddrPort
	// ID is the ID of the DNS header.
	ID uint16
	// QName is the name in wire form, uncompressed, its case kept, the root label included: see [AppendQName].
	QName []byte
	// QType and QClass are those of the question, in host order.
	QType, QClass uint16
}

// keySize is the length of the longest encoded key: version, transport, address, port, ID, name, type, class, epoch.
const keySize = 1 + 1 + 16 + 2 + 2 + MaxQName + 2 + 2 + 8

// Append encodes the key for an epoch as SPEC.md says and appends it to dst: the input of the hash.
func (k *Key) Append(dst []byte, e Epoch) []byte {
	addr := k.Client.Addr().As16()
	dst = append(dst, Version, byte(k.Transport))
	dst = append(dst, addr[:]...)
	dst = binary.BigEndian.AppendUint16(dst, k.Client.Port())
	dst = binary.BigEndian.AppendUint16(dst, k.ID)
	dst = append(dst, k.QName...)
	dst = binary.BigEndian.AppendUint16(dst, k.QType)
	dst = binary.BigEndian.AppendUint16(dst, k.QClass)
	return binary.BigEndian.AppendUint64(dst, uint64(e))
}

// TraceID derives the trace ID of the query in an epoch: XXH3-128 of the encoded key, big-endian; never zero. It does
// not allocate.
func (k *Key) TraceID(e Epoch) TraceID {
	var buf [keySize]byte
	h := xxh3.Hash128(k.Append(buf[:0], e))
	var id TraceID
	binary.BigEndian.PutUint64(id[:8], h.Hi)
	binary.BigEndian.PutUint64(id[8:], h.Lo)
	if id == (TraceID{}) {
		id[15] = 1 // W3C Trace Context: an all-zero trace ID is invalid
	}
	return id
}

// QuestionHash gives what names the question wherever its packets are seen, whatever was translated on the way: XXH3-64
// of version, ID, name, type and class, as HINDSIGHT.md says. It does not allocate.
func (k *Key) QuestionHash() uint64 {
	var buf [keySize]byte
	b := append(buf[:0], Version)
	b = binary.BigEndian.AppendUint16(b, k.ID)
	b = append(b, k.QName...)
	b = binary.BigEndian.AppendUint16(b, k.QType)
	return xxh3.Hash(binary.BigEndian.AppendUint16(b, k.QClass))
}

// TraceID is a W3C trace ID; it converts to OpenTelemetry's trace.TraceID.
type TraceID [16]byte

// String gives the ID as 32 lower-case hexadecimal digits.
func (t TraceID) String() string { return hex.EncodeToString(t[:]) }

// ClientSpanID derives the span ID of the client's span: XXH3-64 of the trace ID followed by "client", big-endian;
// never zero. The tracer gives it to its CLIENT span, the plugin takes it for the parent of its SERVER span.
func (t TraceID) ClientSpanID() SpanID {
	var buf [len(t) + len("client")]byte
	copy(buf[copy(buf[:], t[:]):], "client")
	var id SpanID
	binary.BigEndian.PutUint64(id[:], xxh3.Hash(buf[:]))
	if id == (SpanID{}) {
		id[7] = 1
	}
	return id
}

// SpanID is a W3C parent ID; it converts to OpenTelemetry's trace.SpanID.
type SpanID [8]byte

// String gives the ID as 16 lower-case hexadecimal digits.
func (s SpanID) String() string { return hex.EncodeToString(s[:]) }

// ErrName says that a name in presentation form has no wire form: a label over 63 bytes, over 255 in all, or a broken
// escape.
var ErrName = errors.New("not a domain name")

// AppendQName appends the uncompressed wire form of a name in presentation form (RFC 1035, section 5.1, as miekg/dns
// writes it: \DDD and \X escapes) to dst; case and every byte are kept, so that what one side reads from the packet and
// the other from an unpacked message are the same bytes. A missing final dot is supplied. It does not allocate if dst
// has room for [MaxQName] bytes more. An error wraps [ErrName], and dst is returned as it was.
func AppendQName(dst []byte, name string) ([]byte, error) {
	if name == "" || !dns.IsFqdn(name) {
		name += "."
	}
	n := len(dst)
	if out, ok := appendPlain(dst, name); ok {
		return out, nil
	}
	var buf [MaxQName + 1]byte
	end, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	if err != nil || end > MaxQName {
		return dst[:n], fmt.Errorf("%q: %w", name, ErrName)
	}
	return append(dst, buf[:end]...), nil
}

// appendPlain is [AppendQName] for a name with its final dot and without escapes, which nearly every name is. It gives
// false for any other name, and for one that is no domain name.
func appendPlain(dst []byte, name string) (_ []byte, ok bool) {
	if name == "" || len(name) >= MaxQName {
		return dst, false
	}
	n := len(dst)
	dst = append(dst, 0)
	dst = append(dst, name...)
	wire := dst[n:]
	start := 0 // of the label: where its length goes
	for i := 1; i < len(wire); i++ {
		switch wire[i] {
		case '.':
			length := i - start - 1
			if length < 1 || length > 63 {
				return dst[:n], false
			}
			wire[start] = byte(length)
			start = i
		case '\\':
			return dst[:n], false
		}
	}
	if start != len(wire)-1 {
		return dst[:n], false
	}
	wire[start] = 0
	return dst, true
}
