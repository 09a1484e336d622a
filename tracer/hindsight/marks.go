package hindsight

import (
	"encoding/binary"
	"slices"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
)

// mark is the least that is remembered of a lookup: that it was seen, when, and how far it came.
type mark struct {
	hash  uint64 // of its question
	from  int64  // ns since 1970; 0: there is none
	took  uint32 // µs
	trace uint16 // the end of its trace ID: with the hash it tells whose it is
	pod   bool   // its client is a pod
	facts askback.Facts
}

func (k *mark) to() int64 { return k.from + int64(k.took)*int64(time.Microsecond) }

// ways is how many marks share a place; the first to come makes room. With so many, places fill alike.
const ways = 64

// place is where the marks of some questions are.
type place struct {
	next  int // where the next one goes
	marks [ways]mark
}

// marks outlive the lookups themselves where there are many: with them it is still known that one was seen, when its
// spans cannot be made any more. A mark is found by its question in one place, and takes 24 bytes.
type marks struct {
	places []place
	// reach is the end of the last lookup whose mark made room: all that ended later are here.
	reach int64
	// early counts marks that made room before their time.
	early uint64
	past  time.Duration
}

// newMarks makes as many marks as have room in so many bytes, at least a place of them.
func newMarks(bytes int, past time.Duration) *marks {
	return &marks{places: make([]place, max(1, bytes/int(unsafe.Sizeof(place{})))), past: past}
}

func (m *marks) place(hash uint64) *place { return &m.places[hash%uint64(len(m.places))] }

func (m *marks) add(hash uint64, from, to int64, trace link.TraceID, pod bool, f askback.Facts) {
	p := m.place(hash)
	k := &p.marks[p.next]
	p.next = (p.next + 1) % ways
	if k.from != 0 {
		m.reach = max(m.reach, k.to())
		if to-k.to() < int64(m.past) {
			m.early++
		}
	}
	took := min((to-from+int64(time.Microsecond)-1)/int64(time.Microsecond), 1<<32-1)
	*k = mark{hash, from, uint32(took), lastOf(trace), pod, f} // #nosec G115 -- bounded
}

func lastOf(id link.TraceID) uint16 { return binary.BigEndian.Uint16(id[len(id)-2:]) }

// find gives what was seen of a question between two times, in a lookup of one of the traces, and in one that may be
// another's; 0 if it was not.
func (m *marks) find(hash uint64, from, to int64, traces []link.TraceID) (own, others askback.Facts) {
	p := m.place(hash)
	for i := range p.marks {
		k := &p.marks[i]
		switch {
		case k.hash != hash || k.from == 0 || k.from > to || k.to() < from:
		case slices.ContainsFunc(traces, func(id link.TraceID) bool { return lastOf(id) == k.trace }):
			own |= k.facts
		case !k.pod:
			others |= k.facts
		}
	}
	return own, others
}
