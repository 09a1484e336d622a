package store

import "github.com/dnstrail/dnstrail/link"

// Watch tells which traces have changed. Make one with [Store.Watch]; its methods are safe for concurrent use.
type Watch struct {
	store *Store

	// Guarded by store.mu. No more traces are changed than the store keeps.
	changed map[link.TraceID]struct{}
	missed  uint64
}

// Watch starts to note which traces change; close it.
func (s *Store) Watch() *Watch {
	w := &Watch{store: s, changed: map[link.TraceID]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches = append(s.watches, w)
	return w
}

// Take gives the traces that spans have come for since it was called last, and how many of those have been evicted
// since, ever.
func (w *Watch) Take() (changed []link.TraceID, missed uint64) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	changed = make([]link.TraceID, 0, len(w.changed))
	for id := range w.changed {
		changed = append(changed, id)
	}
	clear(w.changed)
	return changed, w.missed
}

// Close ends the watch.
func (w *Watch) Close() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	for i, other := range w.store.watches {
		if other == w {
			w.store.watches = append(w.store.watches[:i], w.store.watches[i+1:]...)
			return
		}
	}
}

// evicted notes that a trace has gone. The caller holds store.mu.
func (w *Watch) evicted(id link.TraceID) {
	if _, ok := w.changed[id]; ok {
		delete(w.changed, id)
		w.missed++
	}
}
