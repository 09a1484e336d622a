package dnswire

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"

	"github.com/zeebo/xxh3"
)

// questionSeed makes hashes of questions that nobody outside can foresee.
var questionSeed = rand.Uint64() // #nosec G404 -- seeded by Go from the kernel; it guards a table, no secret

// QuestionHash gives a hash of the question: of the name in lower case, type, class and opcode. Another process has
// others.
func (h *Head) QuestionHash() uint64 {
	if h.hash != 0 {
		return h.hash
	}
	var buf [maxName + 6]byte
	b := AppendLower(buf[:0], h.Name)
	b = append(b, byte(h.Type>>8), byte(h.Type), byte(h.Class>>8), byte(h.Class), h.Flags.Opcode())
	return xxh3.HashSeed(b, questionSeed)
}

// Questions reads heads, and remembers the questions that it read last: a message is seen at many places, and only at
// the first of them its question is read. The zero value is ready. It is for one goroutine.
type Questions struct{ slots [questionSlots]question }

// questionSlots is how many questions are remembered: one for each message that is on its way at a time, by its ID.
const questionSlots = 64

// question is one that a standard query or its answer has, as it stands behind the header.
type question struct {
	size       int // bytes of raw; 0 where the slot is empty
	typ, class uint16
	hash       uint64
	raw        [maxName + 5]byte // name, type, class
}

// Parse is [Head.ParseAny].
func (q *Questions) Parse(h *Head, b []byte) error {
	if len(b) < HeaderSize {
		return ErrShort
	}
	s := &q.slots[binary.BigEndian.Uint16(b)%questionSlots]
	flags := Flags(binary.BigEndian.Uint16(b[2:]))
	if end := HeaderSize + s.size; s.size != 0 && len(b) >= end && flags.Opcode() == 0 &&
		binary.BigEndian.Uint16(b[4:]) == 1 && bytes.Equal(b[HeaderSize:end], s.raw[:s.size]) {
		h.ID, h.Flags, h.Questions = binary.BigEndian.Uint16(b), flags, 1
		h.Answers, h.Authority = binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:])
		h.Additional = binary.BigEndian.Uint16(b[10:])
		h.Name, h.Type, h.Class, h.End, h.hash = b[HeaderSize:end-4], s.typ, s.class, end, s.hash
		h.Malformed = false
		return nil
	}
	if err := h.ParseAny(b); err != nil {
		return err
	}
	if h.Questions == 1 && !h.Malformed && h.Flags.Opcode() == 0 {
		h.hash = h.QuestionHash()
		s.typ, s.class, s.hash = h.Type, h.Class, h.hash
		s.size = copy(s.raw[:], b[HeaderSize:h.End])
	}
	return nil
}
