package pipeline

import (
	"testing"
	"time"
)

// What has been read is known where nothing is left to read, and, on a busy node, up to a while before what was read
// last. It never goes back.
func TestDrained(t *testing.T) {
	begun := time.Now()
	var p Pipeline
	for _, step := range []struct {
		left            bool
		now, last, want time.Duration
	}{
		{false, 0, 0, 0},
		{true, time.Second, 50 * time.Millisecond, 0}, // what was read last tells less than what is known
		{true, 2 * time.Second, time.Second, 900 * time.Millisecond},
		{true, 3 * time.Second, 2 * time.Second, 1900 * time.Millisecond},
		{true, 3 * time.Second, time.Second, 1900 * time.Millisecond},
		{false, 3 * time.Second, time.Second, 3 * time.Second},
	} {
		p.read(step.left, begun.Add(step.now), begun.Add(step.last).UnixNano())
		if got := p.Drained().Sub(begun).Round(time.Millisecond); got != step.want {
			t.Errorf("%+v: known until %v", step, got)
		}
	}
	var fresh Pipeline
	if fresh.read(true, begun, 0); !fresh.Drained().Before(begun.Add(-time.Hour)) {
		t.Errorf("before anything was read, it is known until %v", fresh.Drained())
	}
}
