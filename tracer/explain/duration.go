package explain

import (
	"math"
	"strconv"
	"time"
)

// Duration writes d with three significant digits and its unit: "18.2 µs", "1.24 ms", "5.00 s"; whole nanoseconds below
// a microsecond, days above 100,000 s.
func Duration(d time.Duration) string {
	if d < 0 {
		return "-" + Duration(-max(d, -math.MaxInt64)) // the least of all has no opposite
	}
	if d >= 100_000*time.Second { // no lookup's; a span may say anything
		return strconv.FormatFloat(d.Hours()/24, 'f', 0, 64) + " d"
	}
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Second, " s"}, {time.Millisecond, " ms"}, {time.Microsecond, " µs"}} {
		v := float64(d) / float64(u.unit)
		switch {
		case v >= 99.95:
			// A step below the next unit, rounding must not reach 1000 of this one.
			if u.unit != time.Second && v >= 999.5 {
				return "1.00" + map[time.Duration]string{time.Millisecond: " s", time.Microsecond: " ms"}[u.unit]
			}
			return strconv.FormatFloat(v, 'f', 0, 64) + u.name
		case v >= 9.995:
			return strconv.FormatFloat(v, 'f', 1, 64) + u.name
		case v >= 1:
			return strconv.FormatFloat(v, 'f', 2, 64) + u.name
		}
	}
	return strconv.FormatInt(d.Nanoseconds(), 10) + " ns"
}
