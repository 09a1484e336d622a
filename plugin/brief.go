package dnstrail

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// What an answer lists is remembered as bytes, without an allocation: its message is CoreDNS's, and is gone when
// somebody asks.

// maxLists bounds the bytes of what one answer lists; what has no room is left out.
const maxLists = 512

// The kinds of what is listed. The first two are followed by 4 and 16 bytes, a name by its length in a byte and its
// text, an extended error by its code in two bytes, a length in a byte and its text.
const (
	listedV4 byte = iota
	listedV6
	listedName
	listedError
)

// appendLists appends the addresses and names that a message lists, in the order of [query.appendAnswers], and its
// extended errors.
func appendLists(dst []byte, m *dns.Msg) []byte {
	n := 0
	for _, rr := range m.Answer {
		if n == maxAnswers {
			break
		}
		before := len(dst)
		switch rr := rr.(type) {
		case *dns.A:
			if v4 := rr.A.To4(); v4 != nil {
				dst = append(append(dst, listedV4), v4...)
			}
		case *dns.AAAA:
			if len(rr.AAAA) == 16 {
				dst = append(append(dst, listedV6), rr.AAAA...)
			}
		case *dns.CNAME:
			dst = appendText(append(dst, listedName), rr.Target)
		case *dns.PTR:
			dst = appendText(append(dst, listedName), rr.Ptr)
		case *dns.SRV:
			dst = appendText(append(dst, listedName), rr.Target)
		case *dns.NS:
			dst = appendText(append(dst, listedName), rr.Ns)
		case *dns.MX:
			dst = appendText(append(dst, listedName), rr.Mx)
		default:
			continue
		}
		if len(dst) > maxLists {
			return dst[:before]
		}
		n++
	}
	opt := m.IsEdns0()
	if opt == nil {
		return dst
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			before := len(dst)
			dst = appendText(binary.BigEndian.AppendUint16(append(dst, listedError), e.InfoCode), e.ExtraText)
			if len(dst) > maxLists {
				return dst[:before]
			}
		}
	}
	return dst
}

// appendText appends a text with its length before it; of a text of more than 255 bytes, the first 255.
func appendText(dst []byte, text string) []byte {
	text = text[:min(len(text), 255)]
	return append(append(dst, byte(len(text))), text...) // #nosec G115 -- bounded
}

// listed gives the attributes of what [appendLists] has appended, as [query.look] gives them.
func (q *query) listed(b []byte) (a otlp.Attributes) {
	var answers, errors []string
	_, hidden := q.d.names.Show(q.name)
	text := func() string {
		n := int(b[0])
		s := string(b[1 : 1+n])
		b = b[1+n:]
		return s
	}
	for len(b) > 0 {
		kind := b[0]
		switch b = b[1:]; kind {
		case listedV4:
			answers = append(answers, netip.AddrFrom4([4]byte(b)).String())
			b = b[4:]
		case listedV6:
			v6 := netip.AddrFrom16([16]byte(b))
			answers = append(answers, v6.Unmap().String()) // as net.IP has it
			b = b[16:]
		case listedName:
			answers = append(answers, text())
		case listedError:
			e := dns.EDNS0_EDE{InfoCode: binary.BigEndian.Uint16(b)}
			b = b[2:]
			if e.ExtraText = text(); hidden {
				e.ExtraText = "" // it may tell the name
			}
			errors = append(errors, extendedError(&e))
		}
	}
	if len(errors) > 0 {
		a = a.Strs(semconv.ResponseExtendedErrors, errors)
	}
	if shown := q.d.names.ShowAnswers(q.name, answers); len(shown) > 0 {
		a = a.Strs(semconv.Answers, shown)
	}
	return a
}

// sizeOf gives the length of a message in bytes, as [dns.Msg.Len] does. Of the answers that come most, with nothing but
// addresses of the name that was asked for, it does without that one's allocations.
func sizeOf(m *dns.Msg) int {
	if !m.Compress || len(m.Question) != 1 || len(m.Question[0].Name) < 2 || len(m.Ns) > 0 || len(m.Extra) > 1 {
		return m.Len()
	}
	name := m.Question[0].Name
	n := (&dns.Msg{Question: m.Question}).Len()
	for _, rr := range m.Answer {
		if rr == nil || rr.Header().Name != name {
			return m.Len()
		}
		switch rr := rr.(type) {
		case *dns.A:
			n += fixedSize + min(4, len(rr.A))
		case *dns.AAAA:
			n += fixedSize + min(16, len(rr.AAAA))
		default:
			return m.Len()
		}
	}
	for _, rr := range m.Extra {
		if _, ok := rr.(*dns.OPT); !ok {
			return m.Len()
		}
		n += dns.Len(rr)
	}
	return n
}

// fixedSize is the size of a record before its data, in bytes: a pointer to its name, type, class, TTL and length
// (RFC 1035, sections 4.1.3 and 4.1.4).
const fixedSize = 2 + 2 + 2 + 4 + 2

// ring holds what was put into it last, as far as there is room.
type ring struct {
	bytes []byte
	end   uint64 // how many bytes were ever put, those included that were passed over at the end of the room
}

// put puts b, which has room in the ring, and gives its place.
func (r *ring) put(b []byte) (at uint64) {
	size := uint64(len(r.bytes))
	if left := size - r.end%size; uint64(len(b)) > left {
		r.end += left
	}
	at = r.end
	copy(r.bytes[at%size:], b)
	r.end += uint64(len(b))
	return at
}

// get gives the n bytes that were put at a place, nil if others have taken it. They are the ring's own.
func (r *ring) get(at uint64, n int) []byte {
	size := uint64(len(r.bytes))
	if n == 0 || r.end-at > size {
		return nil
	}
	return r.bytes[at%size:][:n]
}

// cacheStatus is what [query.cacheStatus] gives, in a byte.
type cacheStatus uint8

var cacheStatuses = [...]string{"", "hit", "stale", "miss", "prefetch"}

func cacheStatusOf(s string) cacheStatus {
	return cacheStatus(max(0, slices.Index(cacheStatuses[:], s))) // #nosec G115 -- five
}

// String gives the status as it was.
func (c cacheStatus) String() string { return cacheStatuses[c] }
