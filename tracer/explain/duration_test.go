package explain

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ns", 999: "999 ns", 1000: "1.00 µs", 18_249: "18.2 µs", 99_940: "99.9 µs", 99_960: "100 µs", 999_400: "999 µs", 999_600: "1.00 ms",
		12_412_345: "12.4 ms", 999_700_000: "1.00 s", 5_001_000_000: "5.00 s", 65_000_000_000: "65.0 s", 1_000_000_000_000: "1000 s", 99_999_000_000_000: "99999 s", 100_000_000_000_000: "1 d", 1<<63 - 1: "106752 d", -18_249: "-18.2 µs",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%d ns: %q, want %q", d, got, want)
		}
	}
}
