package lookup

import (
	"fmt"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// ask sends a query for a name of its own from a namespace, 1/rate of a second after the last.
func (w *walk) ask(i, rate int, netns uint32, client hop.Endpoint) {
	w.id, w.name = uint16(i), fmt.Sprintf("n%d.example.org.", i)
	p := w.query(hop.Out, netns, 2, client, vip)
	p.Local, p.Process = true, resolver
	w.add(p)
	w.wait(time.Second / time.Duration(rate))
}

// TestFloodIsToldInOne: of a client that leaves 2,000 lookups a second unanswered each is told or counted, the rows
// that are told name the flood, and another client's lookups are all told.
func TestFloodIsToldInOne(t *testing.T) {
	const tell, rate, seconds = 50, 2000, 40
	untold := uint64(0)
	w := start(t, Options{Tell: tell, Untold: func(l *Lookup) {
		untold++
		if l.ClientNetNS != podNS {
			t.Fatal("a lookup of another client was not told")
		}
	}})
	victim := end("10.24.2.11:40000")
	for i := range rate * seconds {
		w.ask(i, rate, podNS, client)
		if i%rate == 0 {
			w.ask(i, rate, 9, victim)
		}
	}
	for range 60 {
		w.wait(DefaultGiveUp / 50)
	}
	byVictim, byClient, named := 0, 0, 0
	for i := range w.emitted {
		l := &w.emitted[i]
		switch {
		case l.ClientNetNS == 9:
			byVictim++
			if l.Flood != nil {
				t.Errorf("another client is said to flood: %+v", l.Flood)
			}
			continue
		case l.Flood != nil:
			named++
			if n := l.Flood.PerSecond(); n < rate*8/10 || n > rate*12/10 {
				t.Errorf("%d/s, want about %d", n, rate)
			}
		}
		byClient++
	}
	if byVictim != seconds {
		t.Errorf("%d of the other client's %d lookups were told", byVictim, seconds)
	}
	if byClient+int(untold) != rate*seconds || untold != w.a.Stats().Untold {
		t.Errorf("%d told and %d untold of %d", byClient, untold, rate*seconds)
	}
	if most := tell * (burst + seconds + 8); byClient > most {
		t.Errorf("%d were told, want at most %d", byClient, most)
	}
	if named < seconds/2 {
		t.Errorf("%d rows name the flood", named)
	}
}

// TestABurstIsToldOneByOne: who leaves many unanswered once does not flood.
func TestABurstIsToldOneByOne(t *testing.T) {
	w := start(t, Options{})
	const n = burst * DefaultTell
	for i := range n {
		w.ask(i, 5000, podNS, client)
	}
	w.wait(DefaultGiveUp + time.Second)
	w.want(n)
}
