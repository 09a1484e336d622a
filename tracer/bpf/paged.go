package bpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"
)

// pagedBytes is the size of the buffer of each CPU to which the kernel copies packets with data in pages.
const pagedBytes = 256 << 10

// pagedHead is the size of struct paged_event of src/event.h.
const pagedHead = eventSize + 8

// pagedRecords are the events of packets whose payload lies in pages, on kernels whose programs may not read those.
// They come by another way than the rest, and are put back between them: what happened first is given first.
type pagedRecords struct {
	reader  *perf.Reader
	waiting []pagedRecord // by time
	// complete is the time up to which nothing more can come: a packet's earlier hop is written before its later one
	// begins. until is the time up to which what waits may be given: the ring buffer has nothing older. Both in ns of
	// CLOCK_MONOTONIC.
	complete, until uint64
	held            bool // the tracer's record is an event that waits for those before it
}

type pagedRecord struct {
	event   *Event
	payload []byte
}

func openPaged(m *ebpf.Map) (*pagedRecords, error) {
	// The reader polls: it need not be woken.
	r, err := perf.NewReaderWithOptions(m, pagedBytes, perf.ReaderOptions{Watermark: pagedBytes / 2})
	if err != nil {
		return nil, fmt.Errorf("opening the buffers for packets with data in pages: %w", err)
	}
	return &pagedRecords{reader: r}, nil
}

// merge gives the next event of both ways, as [Tracer.Read].
func (q *pagedRecords) merge(t *Tracer) (*Event, []byte, error) {
	for {
		if len(q.waiting) > 0 && q.waiting[0].event.Time <= q.until {
			r := q.waiting[0]
			q.waiting = q.waiting[1:]
			return r.event, r.payload, nil
		}
		if q.held {
			q.held = false
			return Decode(t.record.RawSample)
		}
		var err error
		if q.until, err = monotonic(); err != nil {
			return nil, nil, err
		}
		if q.held, err = t.fill(); err != nil {
			return nil, nil, err
		}
		if q.held {
			e, _, err := Decode(t.record.RawSample)
			if err != nil {
				q.held = false
				return nil, nil, err
			}
			q.until = e.Time
		}
		if q.until >= q.complete {
			if err := q.readAll(); err != nil {
				return nil, nil, err
			}
		}
		switch {
		case q.held:
		case len(q.waiting) == 0:
			return nil, nil, nil
		default:
			t.reader.SetDeadline(time.Unix(0, 1)) // look once more, without waiting, whether something came before these
		}
	}
}

// readAll reads what is there without waiting.
func (q *pagedRecords) readAll() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	q.reader.SetDeadline(time.Unix(0, 1))
	for {
		rec, err := q.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		// What found no room is counted by the program.
		if rec.LostSamples > 0 {
			continue
		}
		p, err := decodePaged(rec.RawSample)
		if err != nil {
			return err
		}
		q.waiting = append(q.waiting, p)
	}
	slices.SortStableFunc(q.waiting, func(a, b pagedRecord) int { return cmp.Compare(a.event.Time, b.event.Time) })
	q.complete = now
	return nil
}

// decodePaged takes a record apart: the event, how many bytes of the packet stand before its payload, and the packet.
func decodePaged(raw []byte) (pagedRecord, error) {
	if len(raw) < pagedHead {
		return pagedRecord{}, ErrEvent
	}
	e := eventOf(raw)
	skip, n := int(binary.NativeEndian.Uint32(raw[eventSize:])), int(e.Captured)
	if packet := raw[pagedHead:]; skip <= len(packet) && n <= len(packet)-skip {
		return pagedRecord{event: e, payload: packet[skip : skip+n]}, nil
	}
	return pagedRecord{}, ErrEvent
}

// monotonic gives the time that events have.
func monotonic() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	return uint64(ts.Nano()), nil
}
