package lookup

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// DNS over TCP (RFC 7766): a stream of messages, each behind its length; several may share a segment, one may span several. Every hop shows every segment
// again. The first hop that shows bytes not seen before feeds them to the stream, which finds the messages in them; at every hop, a message has passed when its last
// byte has.

// Bounds of what is kept of streams.
const (
	maxStreams     = 8192
	streamIdle     = 30 * time.Second
	maxMessages    = 32        // of one direction, the newest; older ones are no longer told apart
	maxMessageKept = 4096      // bytes of one message
	maxPartial     = 1<<16 + 1 // bytes of a message not yet whole: its length has 16 bits
)

// TCP's flags.
const (
	tcpFIN = 1 << 0
	tcpSYN = 1 << 1
	tcpRST = 1 << 2
	tcpACK = 1 << 4
)

// streams are the connections in sight, by the client's end.
type streams struct {
	conns map[hop.Endpoint]*conn
	swept int64
}

// conn is one connection.
type conn struct {
	seen    int64
	query   stream
	answer  stream
	connect *Lookup // the handshake, while it lasts: see connect.go
	serial  uint64  // of connect: a lookup that was let go is used again
}

// stream is one direction of a connection.
type stream struct {
	synced   bool
	next     uint32 // the sequence number of the next byte to take
	partial  []byte // the start of a message that is not whole, its length included
	missing  int    // bytes of that message that went by without being captured
	from     uint32 // where it started
	messages []message
}

// message is where in a stream a message lies.
type message struct {
	start, end uint32 // sequence numbers, end exclusive
	head       dnswire.Head
	data       []byte // without the length, at most maxMessageKept bytes
	size       int
}

// addTCP takes a hop of one segment.
func (a *Assembler) addTCP(p *hop.Packet) {
	toServer := a.toServer(p)
	end := p.Dst
	if toServer {
		end = p.Src
	}
	if p.Tracked && p.Conntrack.ReplyDst == end {
		end = p.Conntrack.OrigSrc // translated on the way
	}
	c := a.conn(end, p.Time)
	s := &c.answer
	if toServer {
		s = &c.query
	}
	a.handshake(c, p, toServer)
	seq := p.Seq
	if p.TCPFlags&tcpSYN != 0 {
		if !s.synced || seq+1 != s.next {
			*s = stream{synced: true, next: seq + 1, messages: s.messages[:0]}
		}
		seq++
	}
	if p.PayloadLen > 0 {
		s.feed(seq, p.Payload, p.PayloadLen)
		a.passed(s, p, seq, toServer)
	}
	if p.TCPFlags&tcpRST != 0 && p.Kind != hop.Drop && c.connect == nil {
		delete(a.streams.conns, end)
	}
}

// toServer says whether a segment goes from the client to the server: to a DNS port.
func (a *Assembler) toServer(p *hop.Packet) bool {
	return slices.Contains(a.o.Ports, p.Dst.Port)
}

func (a *Assembler) conn(end hop.Endpoint, now int64) *conn {
	st := &a.streams
	if st.conns == nil {
		st.conns = make(map[hop.Endpoint]*conn)
	}
	c := st.conns[end]
	if c == nil {
		if len(st.conns) >= maxStreams || now-st.swept > int64(streamIdle) {
			a.sweepStreams(now)
		}
		c = &conn{}
		st.conns[end] = c
	}
	c.seen = now
	return c
}

// sweepStreams forgets connections that were idle, and any of them if that is not enough.
func (a *Assembler) sweepStreams(now int64) {
	st := &a.streams
	st.swept = now
	for k, c := range st.conns {
		if now-c.seen > int64(streamIdle) {
			delete(st.conns, k)
		}
	}
	for k := range st.conns {
		if len(st.conns) < maxStreams {
			break
		}
		a.stats.StreamsCut++
		delete(st.conns, k)
	}
}

// feed takes the bytes of a segment that were not seen before and finds the messages in them. size is that of the whole segment, of which data was captured.
func (s *stream) feed(seq uint32, data []byte, size int) {
	if !s.synced {
		// The connection is older than the tracer: a segment that starts with a message starts the stream.
		if len(data) < 2+dnswire.HeaderSize {
			return
		}
		n := int(binary.BigEndian.Uint16(data))
		if _, err := dnswire.ParseHead(data[2:min(2+n, len(data))]); err != nil {
			return
		}
		s.synced, s.next = true, seq
	}
	skip := int(int32(s.next - seq))
	switch {
	case skip >= size:
		return // seen before, at another hop
	case skip < 0:
		return // something is missing in between: the next hop shows this segment again, after that one
	}
	at := s.next
	s.next = seq + uint32(size)
	captured := data[min(skip, len(data)):]
	lost := size - skip - len(captured)
	for len(captured) > 0 {
		n := s.take(captured, at)
		captured, at = captured[n:], at+uint32(n)
	}
	if lost > 0 {
		s.skip(lost, at)
	}
}

// take adds bytes to the message in the making, as many as belong to it, and gives how many those were.
func (s *stream) take(data []byte, at uint32) int {
	if len(s.partial) == 0 {
		s.from = at
	}
	want := 2
	if len(s.partial) >= 2 {
		want += int(binary.BigEndian.Uint16(s.partial)) - s.missing
	} else if len(s.partial)+len(data) >= 2 {
		var prefix [2]byte
		copy(prefix[copy(prefix[:], s.partial):], data)
		want += int(binary.BigEndian.Uint16(prefix[:]))
	}
	n := min(want-len(s.partial), len(data))
	if n <= 0 {
		s.whole(at)
		return 0
	}
	s.partial = append(s.partial, data[:n]...)
	if len(s.partial) >= 2 && len(s.partial)+s.missing == 2+int(binary.BigEndian.Uint16(s.partial)) {
		s.whole(at + uint32(n))
	}
	return n
}

// skip steps over bytes that went by without being captured. If they reach beyond the message in the making, the boundaries of those that follow are lost.
func (s *stream) skip(n int, at uint32) {
	if len(s.partial) < 2 {
		s.lose()
		return
	}
	rest := 2 + int(binary.BigEndian.Uint16(s.partial)) - len(s.partial) - s.missing
	s.missing += min(n, rest)
	if n >= rest {
		s.whole(at + uint32(rest))
	}
	if n > rest {
		s.lose()
	}
}

// lose gives up the boundaries: the stream starts anew with a segment that starts with a message.
func (s *stream) lose() { s.synced, s.partial, s.missing = false, s.partial[:0], 0 }

// whole ends the message in the making.
func (s *stream) whole(end uint32) {
	size := len(s.partial) + s.missing - 2
	data := s.partial[min(2, len(s.partial)):]
	data = slices.Clone(data[:min(len(data), maxMessageKept)])
	s.partial, s.missing = s.partial[:0], 0
	head, err := dnswire.ParseHead(data)
	if err != nil {
		if size > 0 {
			s.lose() // what was taken for a length was none
		}
		return
	}
	if len(s.messages) == maxMessages {
		s.messages = slices.Delete(s.messages, 0, 1)
	}
	s.messages = append(s.messages, message{start: s.from, end: end, head: head, data: data, size: size})
}

// passed adds the hop to every message whose last byte is in the segment; a drop, to every message it tore.
func (a *Assembler) passed(s *stream, p *hop.Packet, seq uint32, toServer bool) {
	end := seq + uint32(p.PayloadLen)
	for i := range s.messages {
		m := &s.messages[i]
		whole := int32(m.end-seq) > 0 && int32(end-m.end) >= 0
		torn := p.Kind == hop.Drop && int32(m.end-seq) > 0 && int32(end-m.start) > 0
		if !whole && !torn || m.head.Flags.Response() == toServer {
			continue
		}
		q := *p
		q.Head, q.HasHead, q.Answer = m.head, true, !toServer
		q.PayloadLen = m.size
		q.Partial = int32(seq-m.start) > 0
		a.addMessage(&q, m.data)
	}
}
