package dnswire

import (
	"encoding/binary"
	"net/netip"
)

// The types that this package reads into.
const (
	TypeA     = 1
	TypeCNAME = 5
	TypeAAAA  = 28
	TypeOPT   = 41
	TypeNS    = 2
	TypeSOA   = 6
	TypeIXFR  = 251
	TypeAXFR  = 252
)

// Rcodes that a caller must know; extended ones have more than four bits.
const (
	RcodeSuccess  = 0
	RcodeFormErr  = 1
	RcodeServFail = 2
	RcodeNXDomain = 3
	RcodeNotImp   = 4
	RcodeRefused  = 5
)

// maxAnswers bounds what is read of an answer section: nobody reads more in a row or a span.
const maxAnswers = 32

// maxPointers bounds the jumps of one compressed name: a message of 64 KiB has no use for more, and a loop ends.
const maxPointers = 64

// optionEDE is the EDNS option Extended DNS Error (RFC 8914).
const optionEDE = 15

// Body is what stands behind the question.
type Body struct {
	// Rcode is the whole response code, the extended bits of OPT included (RFC 6891, section 6.1.3).
	Rcode uint16
	// Answers are the addresses and CNAME targets of the answer section, in order, at most 32.
	Answers []string
	// HasEDNS says whether there was an OPT record; UDPSize and DO are its own.
	HasEDNS bool
	UDPSize uint16
	DO      bool
	// EDE is the info code of an Extended DNS Error, -1 without one; EDEText its text.
	EDE     int
	EDEText string
	// Complete is false where the message was cut off: records may be missing.
	Complete bool
}

// ParseBody reads the records of a message whose head is h. A message that is cut off or broken gives what was read up
// to there, with Complete false: in a packet that is no error.
func ParseBody(b []byte, h Head) Body {
	body := Body{Rcode: h.Flags.Rcode(), EDE: -1}
	off := h.End
	total := int(h.Answers) + int(h.Authority) + int(h.Additional)
	for i := range total {
		rr, next, ok := record(b, off)
		if !ok {
			return body
		}
		off = next
		switch {
		case rr.typ == TypeOPT && i >= int(h.Answers)+int(h.Authority):
			body.HasEDNS = true
			body.UDPSize = rr.class
			body.DO = rr.ttl&0x8000 != 0
			body.Rcode |= uint16(rr.ttl>>24) << 4
			body.options(rr.data)
		case i < int(h.Answers) && len(body.Answers) < maxAnswers:
			body.answer(b, rr)
		}
	}
	body.Complete = true
	return body
}

func (body *Body) answer(b []byte, rr rr) {
	switch {
	case rr.typ == TypeA && len(rr.data) == 4, rr.typ == TypeAAAA && len(rr.data) == 16:
		a, _ := netip.AddrFromSlice(rr.data)
		body.Answers = append(body.Answers, a.String())
	case rr.typ == TypeCNAME:
		var buf [maxName]byte
		if name, _, ok := expand(buf[:0], b, rr.offset); ok {
			body.Answers = append(body.Answers, NameString(name))
		}
	}
}

func (body *Body) options(data []byte) {
	for len(data) >= 4 {
		code, n := binary.BigEndian.Uint16(data), int(binary.BigEndian.Uint16(data[2:]))
		if len(data) < 4+n {
			return
		}
		if code == optionEDE && n >= 2 {
			body.EDE = int(binary.BigEndian.Uint16(data[4:]))
			body.EDEText = string(data[6 : 4+n])
		}
		data = data[4+n:]
	}
}

// rr is one resource record; data is a view, offset its place in the message.
type rr struct {
	typ, class uint16
	ttl        uint32
	data       []byte
	offset     int
}

func record(b []byte, off int) (rr, int, bool) {
	off, ok := skipName(b, off)
	if !ok || len(b)-off < 10 {
		return rr{}, 0, false
	}
	r := rr{typ: binary.BigEndian.Uint16(b[off:]), class: binary.BigEndian.Uint16(b[off+2:]),
		ttl: binary.BigEndian.Uint32(b[off+4:]), offset: off + 10}
	n := int(binary.BigEndian.Uint16(b[off+8:]))
	if len(b)-r.offset < n {
		return rr{}, 0, false
	}
	r.data = b[r.offset : r.offset+n]
	return r, r.offset + n, true
}

// skipName steps over a name, compressed or not.
func skipName(b []byte, off int) (int, bool) {
	for n := 0; off < len(b) && n < maxName; {
		l := int(b[off])
		switch {
		case l == 0:
			return off + 1, true
		case l >= 0xc0:
			return off + 2, off+2 <= len(b)
		case l > 63:
			return 0, false
		}
		off += l + 1
		n += l + 1
	}
	return 0, false
}

// expand appends the name at off in wire form, its pointers followed (RFC 1035, section 4.1.4), at most maxPointers of
// them.
func expand(dst, b []byte, off int) ([]byte, int, bool) {
	for jumps := 0; off < len(b); {
		l := int(b[off])
		switch {
		case l == 0:
			return append(dst, 0), off + 1, true
		case l >= 0xc0:
			if jumps++; jumps > maxPointers || off+2 > len(b) {
				return dst, 0, false
			}
			off = (l&0x3f)<<8 | int(b[off+1])
			continue
		case l > 63 || off+1+l > len(b) || len(dst)+l+2 > maxName:
			return dst, 0, false
		}
		dst = append(dst, b[off:off+1+l]...)
		off += 1 + l
	}
	return dst, 0, false
}

// CountSOA counts the SOA records of a message's answer section: a zone transfer begins and ends with one (RFC 5936,
// section 2.2). A message that is cut off gives what was read up to there.
func CountSOA(b []byte, h Head) int {
	n, off := 0, h.End
	for range int(h.Answers) {
		rr, next, ok := record(b, off)
		if !ok {
			break
		}
		if rr.typ == TypeSOA {
			n++
		}
		off = next
	}
	return n
}
