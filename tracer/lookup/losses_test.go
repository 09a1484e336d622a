package lookup

import (
	"testing"
	"time"
)

// TestWhatWasLostWhileEventsWaited: an agent that is behind has counted what was lost after an event before it reads
// that event. The lookup that begins with it knows of the loss all the same.
func TestWhatWasLostWhileEventsWaited(t *testing.T) {
	for name, tc := range map[string]struct {
		counted time.Duration // after the query's first event: when the loss came to be known
		lost    uint64        // what the lookup is to know of
	}{
		"long before":  {-time.Second, 0},
		"just before":  {-time.Duration(lossKnown) / 2, 7},
		"just after":   {time.Millisecond, 7},
		"long after":   {5 * time.Second, 7},
		"at that time": {0, 7},
	} {
		t.Run(name, func(t *testing.T) {
			var n uint64
			var at int64
			w := start(t, Options{Losses: func() (uint64, int64) { return n, at }})
			n, at = 7, w.now+int64(tc.counted)
			w.a.lossesBefore(w.now - int64(time.Second)) // of another lookup, which began a second before
			w.there()                                    // read only now
			w.wait(time.Minute)
			if len(w.emitted) == 0 {
				t.Fatal("no report")
			}
			if got := w.emitted[len(w.emitted)-1].EventsLost; got != tc.lost {
				t.Errorf("it knows of %d lost events, want %d", got, tc.lost)
			}
		})
	}
}

// TestCountsOfLossesAreBounded: of losses that go on, the counts of the last time are kept, and older lookups take all
// that is not known to have been before them.
func TestCountsOfLossesAreBounded(t *testing.T) {
	var n uint64
	var at int64
	a := New(Options{Emit: func(*Lookup) {}, Losses: func() (uint64, int64) { return n, at }})
	const step = int64(50 * time.Millisecond)
	for i := range int64(3 * maxLossCounts) {
		n, at = uint64(i+1), i*step
		a.lossesBefore(at)
	}
	if len(a.losses.counts) > maxLossCounts {
		t.Errorf("%d counts are kept", len(a.losses.counts))
	}
	recent := int64(3*maxLossCounts) - 100
	if got, want := a.lossesBefore(recent*step+lossKnown), uint64(recent+1); got != want {
		t.Errorf("%d were lost before, want %d", got, want)
	}
	if got := a.lossesBefore(0); got > a.losses.counts[0].n {
		t.Errorf("%d were lost before what is not known any more", got)
	}
}
