package lookup

import (
	"testing"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// TestAReadTooShortForAMessageIsNoAnswer: a server may send what is no DNS message; who reads it still waits.
func TestAReadTooShortForAMessageIsNoAnswer(t *testing.T) {
	for _, c := range []struct {
		size     int
		answered bool
	}{{5, false}, {11, false}, {12, true}, {0, true}} {
		w := start(t, Options{ReadsSeen: true})
		q := w.query(hop.Out, podNS, 2, client, vip)
		q.Local, q.Process = true, resolver
		w.add(q)
		var p hop.Packet
		p.Kind, p.Time, p.NetNS, p.Src, p.Dst, p.Process = hop.Read, w.now+1000, podNS, vip, client, resolver
		p.Transport, p.PayloadLen = 17, c.size
		w.add(&p)
		w.a.Flush()
		if l := w.emitted[len(w.emitted)-1]; l.ReadByClient != c.answered || (l.Ending == Answered) != c.answered {
			t.Errorf("a read of %d bytes: %s, read %v", c.size, l.Ending, l.ReadByClient)
		} else if c.answered && !l.ReadInferred {
			t.Errorf("a read of %d bytes that were not seen coming is taken for the answer for sure", c.size)
		}
	}
}
