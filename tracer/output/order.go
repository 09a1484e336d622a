package output

import (
	"slices"
	"time"
)

// Order gives rows in order of time: lookups end out of order, so that a row waits a short while for those that began
// before it. A row that waited in vain (a lost lookup, minutes old) is given at once.
type Order struct {
	// Window is how long a row waits.
	Window time.Duration
	// Give gets the rows.
	Give func(*Row) error

	waiting []waitingRow
}

type waitingRow struct {
	row   *Row
	until time.Time
}

// Add takes a row at the time now.
func (o *Order) Add(r *Row, now time.Time) {
	i, _ := slices.BinarySearchFunc(o.waiting, r, func(w waitingRow, r *Row) int { return w.row.Time.Compare(r.Time) })
	o.waiting = slices.Insert(o.waiting, i, waitingRow{r, now.Add(o.Window)})
}

// Tick gives what has waited long enough, and what is older than that.
func (o *Order) Tick(now time.Time) error {
	n := 0
	for i, w := range o.waiting {
		if !now.Before(w.until) {
			n = i + 1
		}
	}
	return o.give(n)
}

// Flush gives everything.
func (o *Order) Flush() error { return o.give(len(o.waiting)) }

func (o *Order) give(n int) error {
	for _, w := range o.waiting[:n] {
		if err := o.Give(w.row); err != nil {
			return err
		}
	}
	o.waiting = slices.Delete(o.waiting, 0, n)
	return nil
}
