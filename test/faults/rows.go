package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/output"
)

const clientAddress = semconv.ClientAddress

// readyPrefix begins the names that are asked to see whether a program is ready, which are in no row of the matrix.
const readyPrefix = "ready-"

// rows are what one `dnstrail observe` printed.
type rows struct {
	mu   sync.Mutex
	list []*seen
	bad  error
}

// seen is one lookup: its newest line, and when it came.
type seen struct {
	row *output.Row
	at  time.Time
}

func (r *rows) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := new(output.Row)
		d := json.NewDecoder(strings.NewReader(lines.Text()))
		d.DisallowUnknownFields()
		err := d.Decode(row)
		r.mu.Lock()
		if err != nil {
			r.bad = fmt.Errorf("a row of dnstrail observe: %w: %s", err, lines.Text())
		} else {
			r.take(row)
		}
		r.mu.Unlock()
	}
}

// take puts a line to the lookup that it corrects, or to none if it is the first one of a lookup.
func (r *rows) take(row *output.Row) {
	if row.Revision > 0 {
		var of *seen
		for _, s := range r.list {
			if s.row.Server != row.Server && s.row.Server != "" || s.row.Revision >= row.Revision {
				continue // a store's line has no server where CoreDNS alone told of the lookup
			}
			if same := s.row.Time.Equal(row.Time) && s.row.Client.Address == row.Client.Address && s.row.ID == row.ID; same ||
				s.row.TraceID == row.TraceID {
				of = s
				if same {
					break
				}
			}
		}
		if of != nil {
			of.row, of.at = row, time.Now()
			return
		}
	}
	r.list = append(r.list, &seen{row, time.Now()})
}

// any says whether there is one.
func (r *rows) any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list) > 0
}

// problem gives what was wrong with a line, if one was.
func (r *rows) problem() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad
}

// of gives the lookups that belong to a row of the matrix: not those that servers made for others, nor those that they
// made for themselves, unless they are called lost.
func (r *rows) of(s *scene, of *row) []*output.Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*output.Row
	for _, l := range r.list {
		if l.row.Serves != "" || l.row.Own && l.row.Result != output.Lost || strings.HasPrefix(l.row.Name, readyPrefix) {
			continue
		}
		// CoreDNS's forward plugin asks for the root to see whether an upstream is well again, for as long as it is not.
		if l.row.Name == "." && l.row.Type == "NS" && !of.fault.probes {
			continue
		}
		if s.owner(l.row) == of {
			all = append(all, l.row)
		}
	}
	return all
}

// at gives when a lookup's newest line came.
func (r *rows) at(row *output.Row) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.list {
		if s.row == row {
			return s.at
		}
	}
	return time.Time{}
}
