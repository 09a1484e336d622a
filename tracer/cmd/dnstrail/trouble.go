package main

import (
	"fmt"
	"time"

	"github.com/dnstrail/dnstrail/tracer/export"
)

// troubleEvery is how often the agent says again that its spans are lost.
const troubleEvery = time.Minute

// sendTrouble says when spans begin to be lost on their way to the collector, every minute that it goes on, and when
// they are sent again.
type sendTrouble struct {
	last  export.Stats
	told  time.Time
	since uint64 // how many had been lost when the trouble began
	bad   bool
}

// tell gives what is to be said now; "" for nothing. why gives the last failure.
func (t *sendTrouble) tell(now time.Time, s export.Stats, why func() error) string {
	last := t.last
	t.last = s
	switch lost := s.Failed + s.Dropped; {
	case lost > last.Failed+last.Dropped:
		if !t.bad {
			t.bad, t.since = true, last.Failed+last.Dropped
		} else if now.Sub(t.told) < troubleEvery {
			return ""
		}
		t.told = now
		text := fmt.Sprintf("spans are lost: %d could not be sent, %d found no room in the queue", s.Failed, s.Dropped)
		if err := why(); err != nil {
			text += fmt.Sprintf(": %v", err)
		}
		return text
	case t.bad && s.Sent > last.Sent:
		t.bad = false
		return fmt.Sprintf("spans are sent again; %d were lost meanwhile", lost-t.since)
	}
	return ""
}
