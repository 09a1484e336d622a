package lookup

import "time"

// The timer wheel: a deadline is met to within one slot.
const (
	slotLength = int64(20 * time.Millisecond)
	slots      = 1024 // 20 s; a deadline beyond is looked at once a turn
)

// wheel holds lookups by deadline. Setting and moving a deadline costs the same however many there are.
type wheel struct {
	lists [slots]list
	at    int64 // the slot that was last advanced to, counted from 1970
}

func (w *wheel) put(l *Lookup, now int64) {
	slot := l.deadline/slotLength + 1
	if w.at == 0 {
		w.at = now / slotLength
	}
	slot = max(slot, w.at+1)
	slot = min(slot, w.at+slots-1)
	i := int(slot % slots)
	if l.slot == i {
		return
	}
	w.remove(l)
	l.slot = i
	w.lists[i].push(&l.timer)
}

func (w *wheel) remove(l *Lookup) {
	if l.slot >= 0 {
		w.lists[l.slot].remove(&l.timer)
		l.slot = -1
	}
}

// advance calls expire for every lookup whose deadline is over.
func (w *wheel) advance(now int64, expire func(*Lookup)) {
	to := now / slotLength
	if w.at == 0 || to-w.at > slots {
		w.at = max(w.at, to-slots)
	}
	for w.at < to {
		w.at++
		s := &w.lists[w.at%slots]
		for range s.n {
			l := s.head
			if l == nil {
				break
			}
			w.remove(l)
			if l.deadline > now {
				w.put(l, now)
				continue
			}
			expire(l)
		}
	}
}
