// Package dnswire reads DNS messages as they are found in packets: cut off, lying about their lengths, compressed in
// loops.
//
// It is the one parser of DNS that the tracer has: bounded, without allocation for what every hop needs ([ParseHead]),
// and fuzzed. Nothing here trusts a length that the message states.
package dnswire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderSize is the size of the DNS header in bytes (RFC 1035, section 4.1.1).
const HeaderSize = 12

// maxName is the longest name in wire form (RFC 1035, section 3.1).
const maxName = 255

// ErrMessage says that the bytes are not a DNS message that this package can read; what wraps it says why.
var ErrMessage = errors.New("not a DNS message")

// ErrShort says that the message goes on beyond the bytes at hand. It is an [ErrMessage], too.
var ErrShort = fmt.Errorf("%w: cut off", ErrMessage)

var (
	errName     = fmt.Errorf("%w: bad name", ErrMessage)
	errQuestion = fmt.Errorf("%w: more than one question", ErrMessage)
	errOpcode   = fmt.Errorf("%w: not a query", ErrMessage)
)

// Flags is the second 16-bit word of the header.
type Flags uint16

// Response says whether QR is set.
func (f Flags) Response() bool { return f&0x8000 != 0 }

// Opcode is the kind of query: 0 for a standard one.
func (f Flags) Opcode() uint8 { return uint8(f>>11) & 0xf }

// Truncated says whether TC is set.
func (f Flags) Truncated() bool { return f&0x0200 != 0 }

// RecursionDesired says whether RD is set.
func (f Flags) RecursionDesired() bool { return f&0x0100 != 0 }

// Rcode is the lower four bits of the response code.
func (f Flags) Rcode() uint16 { return uint16(f & 0xf) }

// Head is a message's header and question: what every hop of a lookup is told apart by.
type Head struct {
	ID    uint16
	Flags Flags
	// Questions, Answers, Authority and Additional are the counts as the header states them.
	Questions, Answers, Authority, Additional uint16
	// Name is the question's name in wire form, its case kept, the root label included: a view of the message. Empty
	// without a question.
	Name        []byte
	Type, Class uint16
	// End is the offset at which the answer section starts.
	End int
	// Malformed says that the question could not be read: then there is no name. See [Head.ParseAny].
	Malformed bool

	hash uint64 // of the question, as [Questions] has found it; 0 where it was not
}

// ParseHead reads the header and the question of a DNS message. It does not allocate. An error wraps [ErrMessage]: less
// than a header, more than one question (nobody sends it), an opcode other than query, notify and update, a name that
// is compressed, too long or cut off. A response without a question is allowed: servers answer FORMERR so.
func ParseHead(b []byte) (h Head, err error) {
	if err := h.Parse(b); err != nil {
		return Head{}, err
	}
	return h, nil
}

// Parse is [ParseHead] in place; after an error h is of no use.
func (h *Head) Parse(b []byte) error {
	if len(b) < HeaderSize {
		return ErrShort
	}
	h.ID, h.Flags = binary.BigEndian.Uint16(b), Flags(binary.BigEndian.Uint16(b[2:]))
	h.Questions, h.Answers = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	h.Authority, h.Additional = binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
	h.Name, h.Type, h.Class, h.End, h.hash = nil, 0, 0, HeaderSize, 0
	switch h.Flags.Opcode() {
	case 0, 4, 5:
	default:
		return errOpcode
	}
	if h.Questions > 1 {
		return errQuestion
	}
	if h.Questions == 0 {
		if !h.Flags.Response() {
			return errQuestion
		}
		return nil
	}
	n, err := nameLength(b[HeaderSize:])
	if err != nil {
		return err
	}
	end := HeaderSize + n
	if len(b) < end+4 {
		return ErrShort
	}
	h.Name = b[HeaderSize:end]
	h.Type = binary.BigEndian.Uint16(b[end:])
	h.Class = binary.BigEndian.Uint16(b[end+2:])
	h.End = end + 4
	return nil
}

// ParseAny is [Head.Parse] of what comes to a DNS port: any opcode, any number of questions, of which the first is
// read, and a question that cannot be read. Only less than a header is an error, which wraps [ErrShort].
func (h *Head) ParseAny(b []byte) error {
	err := h.Parse(b)
	if err == nil {
		h.Malformed = false
		return nil
	}
	if len(b) < HeaderSize {
		return err
	}
	h.Name, h.Type, h.Class, h.End, h.Malformed = nil, 0, 0, HeaderSize, false
	if h.Questions == 0 {
		return nil
	}
	n, err := nameLength(b[HeaderSize:])
	if end := HeaderSize + n; err == nil && len(b) >= end+4 {
		h.Name = b[HeaderSize:end]
		h.Type, h.Class = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
		h.End = end + 4
		return nil
	}
	h.Malformed = true
	return nil
}

// nameLength gives the length of the uncompressed name that b starts with. A question's name has nothing before it to
// point to.
func nameLength(b []byte) (int, error) {
	for i := 0; i < len(b); {
		l := int(b[i])
		switch {
		case l == 0:
			return i + 1, nil
		case l > 63:
			return 0, errName
		}
		i += l + 1
		if i >= maxName {
			return 0, errName
		}
	}
	return 0, ErrShort
}

// EqualName says whether two names in wire form are the same name: case does not matter (RFC 1035, section 2.3.3).
func EqualName(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	if bytes.Equal(a, b) { // nearly always
		return true
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// AppendLower appends a wire-form name in lower case. Length bytes are 63 at most, below every letter.
func AppendLower(dst, name []byte) []byte {
	n := len(dst)
	dst = append(dst, name...)
	b := dst[n:]
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, lowerEight(binary.LittleEndian.Uint64(b)))
		b = b[8:]
	}
	for i, c := range b {
		b[i] = lower(c)
	}
	return dst
}

// lowerEight is [lower] of eight bytes at once. Each sum sets a byte's highest bit where its lower seven are beyond
// what it asks for, and never carries into the next byte.
func lowerEight(x uint64) uint64 {
	const ones = 0x0101010101010101
	seven := x & (0x7f * ones)
	fromA, beyondZ := seven+(0x80-'A')*ones, seven+(0x7f-'Z')*ones
	upper := fromA &^ beyondZ &^ x & (0x80 * ones)
	return x | upper>>2 // 0x20, by which the cases differ
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// NameString gives a name in wire form in presentation form (RFC 1035, section 5.1), with its final dot and its case,
// escaped as miekg/dns does. What is not a name gives what could be read of it.
func NameString(wire []byte) string {
	var buf [4 * maxName]byte
	return string(appendText(buf[:0], wire))
}

func appendText(dst, wire []byte) []byte {
	for i := 0; i < len(wire); {
		l := int(wire[i])
		i++
		if l == 0 {
			if len(dst) == 0 {
				return append(dst, '.')
			}
			return dst
		}
		if l > 63 {
			return dst
		}
		for _, c := range wire[i:min(i+l, len(wire))] {
			switch {
			case c == '.' || c == '(' || c == ')' || c == ';' || c == ' ' || c == '@' || c == '\'' || c == '"' || c == '\\':
				dst = append(dst, '\\', c)
			case c < ' ' || c > '~':
				dst = append(dst, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			default:
				dst = append(dst, c)
			}
		}
		dst = append(dst, '.')
		i += l
	}
	return dst
}
