package lookup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/miekg/dns"
)

// stream of n queries behind their lengths, and where each ends.
func queries(t testing.TB, n int) ([]byte, []int) {
	t.Helper()
	var b []byte
	var ends []int
	for i := range n {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("name-%d.example.org.", i), dns.TypeA)
		m.Id = uint16(i)
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(q)))
		b = append(b, q...)
		ends = append(ends, len(b))
	}
	return b, ends
}

func TestMessagesAreFoundInSegments(t *testing.T) {
	const first = 0xfffffff0 // sequence numbers wrap
	b, ends := queries(t, 5)
	type segment struct{ from, to, captured int }
	whole := func(cuts ...int) []segment {
		var s []segment
		at := 0
		for _, c := range append(cuts, len(b)) {
			s = append(s, segment{at, c, c - at})
			at = c
		}
		return s
	}
	bytewise := make([]int, 0, len(b))
	for i := 1; i < len(b); i++ {
		bytewise = append(bytewise, i)
	}
	twice := append(whole(ends[0]), whole(ends[0])...)
	gap := whole(ends[0], ends[1], ends[2])
	for _, c := range []struct {
		name     string
		segments []segment
		want     []int // the messages found
	}{
		{"all in one", whole(), []int{0, 1, 2, 3, 4}},
		{"one each", whole(ends...)[:5], []int{0, 1, 2, 3, 4}},
		{"cut in a length", whole(ends[0] + 1), []int{0, 1, 2, 3, 4}},
		{"cut in a message", whole(ends[0]+20, ends[2]+9), []int{0, 1, 2, 3, 4}},
		{"byte by byte", whole(bytewise...), []int{0, 1, 2, 3, 4}},
		{"each hop shows them again", twice, []int{0, 1, 2, 3, 4}},
		{"one overtakes another; the next hop shows it again", []segment{gap[0], gap[2], gap[1], gap[2], gap[3]},
			[]int{0, 1, 2, 3, 4}},
		{"the question of the last message is not captured", []segment{{0, len(b), len(b) - 5}}, []int{0, 1, 2, 3}},
		{"messages are not captured: those after them are found again", []segment{{0, ends[2], ends[0] + 30}, gap[3]},
			[]int{0, 3, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := uint32(first)
			s := stream{synced: true, next: start}
			for _, g := range c.segments {
				s.feed(start+uint32(g.from), b[g.from:g.from+g.captured], g.to-g.from, 0)
			}
			if len(s.messages) != len(c.want) {
				t.Fatalf("%d messages, want %d", len(s.messages), len(c.want))
			}
			for i, want := range c.want {
				if m := s.messages[i]; int(m.head.ID) != want || m.end-start != uint32(ends[want]) {
					t.Errorf("message %d has ID %d and ends at %d, want %d and %d", i, m.head.ID, m.end-start, want, ends[want])
				}
			}
		})
	}
}

func TestAStreamThatIsOlderThanTheTracerIsTakenUp(t *testing.T) {
	b, ends := queries(t, 3)
	var s stream
	s.feed(1000, b[:ends[0]-10], ends[0]-10, 0)
	if len(s.messages) != 0 {
		t.Fatal("half a message was taken for one")
	}
	s = stream{}
	s.feed(5000, b[ends[0]+7:ends[1]], ends[1]-ends[0]-7, 0)
	if s.synced {
		t.Fatal("started in the middle of a message")
	}
	s.feed(5000+uint32(ends[1]), b[ends[1]:], len(b)-ends[1], 0)
	if len(s.messages) != 1 || s.messages[0].head.ID != 2 {
		t.Errorf("%d messages", len(s.messages))
	}
}

func FuzzStream(f *testing.F) {
	b, _ := queries(f, 3)
	f.Add(b, []byte{10, 40, 7})
	f.Add(bytes.Repeat([]byte{0}, 70), []byte{1})
	f.Add([]byte{0xff, 0xff, 0, 0, 1}, []byte{3, 255})
	f.Fuzz(func(t *testing.T, b, cuts []byte) {
		s := stream{synced: true}
		at := 0
		for _, c := range cuts {
			n := min(int(c), len(b)-at)
			if n <= 0 {
				break
			}
			captured := n
			if c&1 != 0 {
				captured = n / 2
			}
			s.feed(uint32(at), b[at:at+captured], n, 0)
			at += n
			if len(s.partial) > maxPartial || len(s.messages) > maxMessages {
				t.Fatalf("holds %d bytes and %d messages", len(s.partial), len(s.messages))
			}
		}
	})
}
