package lookup

import (
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// The segments of a stream may be seen out of order: the network lost one before it came into sight, and only that one
// is sent again; or the records of two CPUs come the other way round. What comes before its turn waits until what is
// missing has come. What never comes was lost by the kernel side: then the stream goes on behind it, with a segment
// that starts with a message.

const (
	// gapWait is how long is waited for missing bytes, in ns: TCP sends again after 200 ms, and then after 400.
	gapWait = int64(time.Second)
	synWait = int64(5 * time.Millisecond) // for the record of a SYN
	maxHeld = 1024                        // packets held of one stream: a few hops of each segment of a window
	// maxHeldInAll bounds the packets held of all streams, each of 4 KiB at most.
	maxHeldInAll = 8192
)

// held is what came before its turn in one stream.
type held struct {
	c        *conn
	s        *stream
	toServer bool
	since    int64 // ns since 1970
	packets  []early
}

// early is a packet that waits for its turn; its payload is kept of the first hop of a segment only.
type early struct {
	hop.Packet
	seq uint32
}

// early says whether bytes are missing before a sequence number.
func (s *stream) early(seq uint32) bool { return int32(s.next-seq) < 0 }

// fresh says whether nothing is known of the stream yet: its SYN may come late from another CPU.
func (s *stream) fresh() bool { return !s.synced && s.since == 0 }

// waits says whether a segment is to wait for what comes before it.
func (s *stream) waits(seq uint32) bool { return s.fresh() || s.synced && s.early(seq) }

// wait gives how long is waited for what is missing, in ns.
func (s *stream) wait() int64 {
	if s.fresh() {
		return synWait
	}
	return gapWait
}

// hold keeps a segment, or a read of one, that comes before its turn. False: it is to be taken now.
func (a *Assembler) hold(c *conn, s *stream, p *hop.Packet, seq uint32, toServer bool) bool {
	if !s.waits(seq) {
		return false
	}
	st := &a.streams
	if h := s.held; h != nil && (len(h.packets) >= maxHeld || p.Time-h.since >= s.wait()) || st.held >= maxHeldInAll {
		a.skipGap(c, s, toServer)
		if !s.waits(seq) {
			return false
		}
	}
	h := s.held
	if h == nil {
		h = &held{c: c, s: s, toServer: toServer, since: p.Time}
		s.held = h
		st.gaps = append(st.gaps, h)
	}
	e := early{*p, seq}
	i, _ := slices.BinarySearchFunc(h.packets, seq, func(x early, seq uint32) int {
		if int32(x.seq-seq) <= 0 {
			return -1
		}
		return 1
	})
	if h.shows(i, seq, p.PayloadLen) {
		e.Payload = nil // an earlier hop has shown it
	} else {
		e.Payload = slices.Clone(p.Payload)
	}
	h.packets = slices.Insert(h.packets, i, e)
	st.held++
	return true
}

// shows says whether one of the packets before a place is of a segment that begins at seq, and has as many bytes
// captured as one of that size. A read has none, and stands where the segment behind it begins.
func (h *held) shows(i int, seq uint32, size int) bool {
	for i--; i >= 0 && h.packets[i].seq == seq; i-- {
		if x := &h.packets[i]; x.Kind != hop.Read && x.PayloadLen >= size {
			return true
		}
	}
	return false
}

// inTurn takes what is held of a stream as far as nothing is missing before it.
func (a *Assembler) inTurn(h *held) {
	n := 0
	for n < len(h.packets) && h.s.synced && !h.s.early(h.packets[n].seq) {
		a.takeEarly(h, &h.packets[n])
		n++
	}
	if n == len(h.packets) {
		a.streams.unhold(h.s)
		return
	}
	if n > 0 {
		a.streams.held -= n
		h.packets = slices.Delete(h.packets, 0, n)
		h.since = h.packets[0].Time // something else is missing
	}
}

func (a *Assembler) takeEarly(h *held, e *early) {
	if e.Kind == hop.Read {
		a.streamRead(h.s, &e.Packet, h.toServer)
		return
	}
	a.segment(h.c, h.s, &e.Packet, e.seq, h.toServer)
}

// skipGap gives up what is missing, and takes all that is held.
func (a *Assembler) skipGap(c *conn, s *stream, toServer bool) {
	h := s.held
	if s.since == 0 && a.now > 0 {
		s.since = a.now // no SYN will come
	}
	s.lose()
	if !toServer {
		a.unsee(c)
	}
	if h == nil {
		return
	}
	for i := range h.packets {
		e := &h.packets[i]
		if s.synced && s.early(e.seq) {
			s.lose()
		}
		a.takeEarly(h, e)
	}
	a.streams.unhold(s)
}

// unsee notes that bytes of a connection's answers went by unseen: what waits for an answer may have had it there.
func (a *Assembler) unsee(c *conn) {
	c.answer.lost = false
	s := a.sockets.get(socketID{c.end, uint8(link.TCP)})
	if s == nil {
		return
	}
	for l := s.open.first; l != nil; l = l.next {
		if e := l.e; !e.AnswerSeen || !e.whole() {
			e.AnswerUnseen = true
		}
	}
}

// unhold lets go of what is held of a stream.
func (st *streams) unhold(s *stream) {
	h := s.held
	if h == nil {
		return
	}
	st.held -= len(h.packets)
	s.held = nil
	if i := slices.Index(st.gaps, h); i >= 0 {
		st.gaps = slices.Delete(st.gaps, i, i+1)
	}
}

// forget lets go of a connection.
func (st *streams) forget(c *conn) {
	st.unhold(&c.query)
	st.unhold(&c.answer)
	delete(st.conns, c.end)
}

// sweepGaps gives up what has been missing for long.
func (a *Assembler) sweepGaps(now int64) {
	for i := 0; i < len(a.streams.gaps); {
		if h := a.streams.gaps[i]; now-h.since >= h.s.wait() {
			a.skipGap(h.c, h.s, h.toServer)
			continue
		}
		i++
	}
}

// segment takes one hop of a segment, in its turn.
func (a *Assembler) segment(c *conn, s *stream, p *hop.Packet, seq uint32, toServer bool) {
	before := s.cut
	s.found = func(m *message, data []byte) { a.messageFound(c, p, m, data, toServer) }
	s.feed(seq, p.Payload, p.PayloadLen, p.Time)
	s.found = nil
	if s.lost && !toServer {
		a.unsee(c)
	}
	a.stats.BytesCut += uint64(s.cut - before)
	a.passed(c, s, p, seq, toServer)
	for _, e := range a.streams.began {
		if len(e.Hops) == 0 && e.serial != 0 && s.tearing.Time != 0 { // its part that was dropped is all there is of it
			q := *p
			q.Hop, q.Answer, q.Partial, q.Payload = s.tearing, false, true, nil
			a.queryHop(e, &q)
		}
	}
	a.streams.began = a.streams.began[:0]
}
