package lookup

// Who asks more than is ever answered floods, whether by a fault or on purpose. Each second so many of a client's
// unanswered lookups are told one by one, and a burst of many more; what is beyond is counted, and the client is named
// with how many there were. So a flood costs neither memory for long nor the attention of those who read.

// Defaults of [Options].
const (
	// DefaultTell is how many unanswered lookups of one client are told a second, in the long run.
	DefaultTell = 500
	// burst is how many seconds' worth of them are told at once.
	burst = 20
)

// second is the time over which a client's unanswered lookups are counted, in ns.
const second = int64(1e9)

// Flood is what a client left unanswered in a second, or longer where it was silent between: more than is told one by
// one.
type Flood struct {
	Unanswered int   // lookups
	Untold     int   // of them, counted and not told
	Nanos      int64 // over which they came
}

// PerSecond gives the rate, in lookups a second.
func (f *Flood) PerSecond() int { return int(int64(f.Unanswered) * second / max(f.Nanos, second)) }

// tally counts the unanswered lookups of an owner.
type tally struct {
	since      int64 // ns since 1970
	unanswered int
	untold     int
	spent      int    // of what may be told
	flood      *Flood // to be told with the next lookup
}

// roll begins another second if one is over.
func (t *tally) roll(now int64, tell int) {
	past := now - t.since
	if past < second {
		return
	}
	if t.unanswered > tell {
		t.flood = &Flood{Unanswered: t.unanswered, Untold: t.untold, Nanos: past}
	}
	t.spent = max(t.spent-int(min(past/second, burst)*int64(tell)), 0)
	t.since, t.unanswered, t.untold = now, 0, 0
}

// hush says that a lookup that has ended unanswered is not to be told: its owner floods. One that was told before is
// told on.
func (a *Assembler) hush(e *entry) bool {
	w := e.owner
	if w == nil || a.o.Tell < 0 || e.Ending == Answered || e.reportedHops > 0 {
		return false
	}
	w.roll(a.now, a.o.Tell)
	w.unanswered++
	if w.spent < burst*a.o.Tell {
		w.spent++
		e.Flood, w.flood = w.flood, nil
		return false
	}
	w.untold++
	a.stats.Untold++
	if a.o.Untold != nil {
		a.o.Untold(&e.Lookup)
	}
	return true
}
