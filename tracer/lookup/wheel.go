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
	next  int64 // when the one after it begins, in ns since 1970: before that there is nothing to advance to
}

func (w *wheel) put(e *entry, now int64) {
	slot := e.deadline/slotLength + 1
	if w.at == 0 {
		w.at = now / slotLength
	}
	slot = max(slot, w.at+1)
	slot = min(slot, w.at+slots-1)
	i := int(slot % slots)
	if e.slot == i {
		return
	}
	w.remove(e)
	e.slot = i
	w.lists[i].push(&e.timer)
}

func (w *wheel) remove(e *entry) {
	if e.slot >= 0 {
		w.lists[e.slot].remove(&e.timer)
		e.slot = -1
	}
}

// advance calls expire for every lookup whose deadline is over.
func (w *wheel) advance(now int64, expire func(*entry)) {
	to := now / slotLength
	if w.at == 0 || to-w.at > slots {
		w.at = max(w.at, to-slots)
	}
	for w.at < to {
		w.at++
		s := &w.lists[w.at%slots]
		for range s.n {
			e := s.head
			if e == nil {
				break
			}
			w.remove(e)
			if e.deadline > now {
				w.put(e, now)
				continue
			}
			expire(e)
		}
	}
	w.next = (w.at + 1) * slotLength
}
