// Package growth tells how much longer twice as much takes. What an attacker can have as much of as it likes must cost
// no more than in proportion: a table that is looked through for each of its entries costs four times as much.
package growth

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Most is how many times as long twice as much may take: some more than twice, since what is larger is farther away.
const Most = 2.5

// rounds is how often it is tried to see it within [Most]: what else goes on in the machine only ever makes it longer.
const rounds = 8

// least is the shortest time that is compared: a shorter one tells more of caches and interrupts than of the work.
const least = 2 * time.Millisecond

// Work makes ready what takes n steps, and gives what is measured of it, which runs on the caller's thread alone.
type Work func(n int) (run func())

// Ratio gives the least of some rounds of: time for 2n over time for n, for some n and larger ones. It ends with the
// first that is within [Most].
func Ratio(t testing.TB, n int, w Work) float64 {
	t.Helper()
	runtime.LockOSThread() // the time that other programs take does not count
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would work on other threads, and stop this one
	took := func(n int) time.Duration {
		run := w(n)
		runtime.GC()
		before := used(t)
		run()
		return used(t) - before
	}
	took(2 * n) // the memory is there from now on
	ratio := math.Inf(1)
	for round := range rounds {
		if round%2 == 1 {
			n += n / 2 // a table that doubles may just do so between n and 2n
		}
		large, small := took(2*n), took(n)
		for small < least { // too little to tell
			if n >= 1<<26 {
				t.Fatalf("%d steps take %v: nothing is done", n, small)
			}
			n *= 2
			large, small = took(2*n), large
		}
		if ratio = min(ratio, float64(large)/float64(small)); ratio <= Most {
			break
		}
	}
	return ratio
}

// Linear fails the test if twice as much takes more than [Most] times as long. n is raised until it can be told.
func Linear(t testing.TB, n int, w Work) {
	t.Helper()
	if r := Ratio(t, n, w); r > Most {
		t.Errorf("twice as much took %.1f times as long", r)
	}
}

// used gives the processor's time that this thread has had.
func used(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
