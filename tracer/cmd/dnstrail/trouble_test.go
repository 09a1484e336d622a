package main

import (
	"errors"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/export"
)

func TestSendTrouble(t *testing.T) {
	var trouble sendTrouble
	now := time.Now()
	why := func() error { return errors.New("refused") }
	for i, tt := range []struct {
		after time.Duration
		s     export.Stats
		want  string
	}{
		{time.Second, export.Stats{Sent: 10}, ""},
		{time.Second, export.Stats{Sent: 10, Failed: 3}, "spans are lost: 3 could not be sent, 0 found no room in the " +
			"queue: refused"},
		{time.Second, export.Stats{Sent: 10, Failed: 5}, ""},
		{time.Minute, export.Stats{Sent: 10, Failed: 9, Dropped: 1}, "spans are lost: 9 could not be sent, 1 found no " +
			"room in the queue: refused"},
		{time.Second, export.Stats{Sent: 10, Failed: 9, Dropped: 1}, ""},
		{time.Second, export.Stats{Sent: 20, Failed: 9, Dropped: 1}, "spans are sent again; 10 were lost meanwhile"},
		{time.Second, export.Stats{Sent: 30, Failed: 9, Dropped: 1}, ""},
		{time.Second, export.Stats{Sent: 30, Failed: 10, Dropped: 1}, "spans are lost: 10 could not be sent, 1 found no " +
			"room in the queue: refused"},
	} {
		now = now.Add(tt.after)
		if got := trouble.tell(now, tt.s, why); got != tt.want {
			t.Errorf("%d: %q, want %q", i, got, tt.want)
		}
	}
}
