package verdict

import (
	"fmt"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// datagram gives the length of the UDP datagram that a hop is a fragment of, its header included.
func datagram(l *lookup.Lookup, h *hop.Hop) int {
	if h.Answer {
		return l.AnswerSize + 8
	}
	return l.QuerySize + 8
}

// fragmentLost says, where the last that was seen of an answer is its first fragment, whether others did not come
// there, and where those were last; "" if they did.
func (j *Judge) fragmentLost(l *lookup.Lookup, last *hop.Hop) (text string, evidence []string) {
	whole, came := datagram(l, last), l.Arrived(last)
	if came == 0 || came >= whole {
		return "", nil
	}
	text = fmt.Sprintf("the answer is fragmented, and not all of it came to %s: %d of %d bytes", at(last), came, whole)
	var seen *hop.Hop
	for i := range l.Fragments {
		if h := &l.Fragments[i]; h.Answer && (seen == nil || h.Time > seen.Time) {
			seen = h
		}
	}
	if seen == nil {
		return text, []string{"no later fragment of the answer was seen"}
	}
	return text, []string{"a later fragment of the answer was last seen " + j.spot(l, seen)}
}
