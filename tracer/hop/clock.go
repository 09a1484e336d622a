package hop

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ClockOffset gives what must be added to CLOCK_MONOTONIC (the kernel side's clock) to get wall-clock time, in ns: the
// best of a few readings, good to a microsecond. It changes when the wall clock is stepped; take it anew every few
// seconds.
func ClockOffset() (int64, error) {
	best, offset := int64(1<<62), int64(0)
	for range 5 {
		var before, after unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &before); err != nil {
			return 0, fmt.Errorf("reading CLOCK_MONOTONIC: %w", err)
		}
		wall := time.Now().UnixNano()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &after); err != nil {
			return 0, fmt.Errorf("reading CLOCK_MONOTONIC: %w", err)
		}
		if d := after.Nano() - before.Nano(); d < best {
			best, offset = d, wall-(before.Nano()+d/2)
		}
	}
	return offset, nil
}
