package conntrack

import "time"

// Readings remembers what was read, so that a flood of drops does not make a flood of readings, and so that what is
// asked again of a time gets the same answer. The zero value is ready. It is for one goroutine.
type Readings struct {
	read  func(netns uint32) (Table, error) // Of, but in tests
	now   func() time.Time
	known map[uint32][]reading
}

type reading struct {
	Table
	ok bool
	at int64 // ns since 1970
}

// Bounds of what is remembered: of a namespace, as much as lookups are waited for after they were lost.
const (
	readingInterval = 250 * time.Millisecond
	maxReadings     = 64
	maxNamespaces   = 256
)

// After gives how full the connection tracking of a network namespace was soon after a time, in ns since 1970: by the
// first reading after it, or by one not much older. Where there is none yet, it reads. False: it cannot be read.
func (r *Readings) After(netns uint32, after int64) (count, limit int, ok bool) {
	for _, x := range r.known[netns] {
		if x.at >= after-int64(readingInterval) {
			return x.Count, x.Max, x.ok
		}
	}
	read, now := r.read, r.now
	if read == nil {
		read, now = Of, time.Now
	}
	if r.known == nil || len(r.known) >= maxNamespaces {
		r.known = make(map[uint32][]reading)
	}
	t, err := read(netns)
	x := reading{t, err == nil, now().UnixNano()}
	list := r.known[netns]
	if len(list) == maxReadings {
		list = append(list[:0], list[1:]...)
	}
	r.known[netns] = append(list, x)
	return x.Count, x.Max, x.ok
}
