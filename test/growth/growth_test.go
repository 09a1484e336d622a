package growth

import (
	"slices"
	"testing"
)

// TestQuadraticTablesAreFound: the check sees what it is there for, and leaves alone what is in order.
func TestQuadraticTablesAreFound(t *testing.T) {
	for _, c := range []struct {
		name      string
		n         int
		work      Work
		quadratic bool
	}{
		{name: "a map", n: 1 << 16, work: func(n int) func() {
			return func() {
				m := map[int]int{}
				for i := range n {
					m[i]++
				}
			}
		}},
		{name: "a sorted list", n: 1 << 16, work: func(n int) func() {
			list := make([]int, n)
			for i := range list {
				list[i] = i * 7919 % n
			}
			return func() { slices.Sort(list) }
		}},
		{name: "a list looked through for each of its entries", n: 1 << 13, quadratic: true, work: func(n int) func() {
			return func() {
				var list []int
				for i := range n {
					if !slices.Contains(list, i) {
						list = append(list, i)
					}
				}
			}
		}},
		{name: "one bucket of a hash", n: 1 << 13, quadratic: true, work: func(n int) func() {
			return func() {
				buckets := map[string][]int{}
				for i := range n {
					if slices.Index(buckets["all"], i) < 0 {
						buckets["all"] = append(buckets["all"], i)
					}
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := Ratio(t, c.n, c.work); r > Most != c.quadratic {
				t.Errorf("twice as much took %.1f times as long", r)
			}
		})
	}
}
