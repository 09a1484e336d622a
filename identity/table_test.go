package identity

import (
	"math/rand/v2"
	"testing"
)

// The table against a Go map, through many rounds of growth, removal and return.
func TestTableIsAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	table := &table{seed: key{rng.Uint64(), rng.Uint64()}}
	want := map[key]*Client{}
	clients := make([]*Client, 50)
	for i := range clients {
		clients[i] = new(Client)
	}
	for step := range 200_000 {
		k := key{rng.Uint64N(4), rng.Uint64N(600)}
		c := clients[rng.IntN(len(clients))]
		switch {
		case rng.IntN(3) > 0:
			table.put(k, c)
			want[k] = c
		case rng.IntN(2) == 0:
			table.remove(k, c)
			if want[k] == c {
				delete(want, k)
			}
		default:
			if old := want[k]; old != nil {
				table.remove(k, old)
				delete(want, k)
			}
		}
		if got := table.get(k); got != want[k] {
			t.Fatalf("step %d: %v is %p, want %p", step, k, got, want[k])
		}
		if step%1000 != 0 {
			continue
		}
		n := 0
		table.all(func(k key, c *Client) bool {
			if n++; want[k] != c {
				t.Fatalf("step %d: %v is %p, want %p", step, k, c, want[k])
			}
			return true
		})
		if n != len(want) || int(table.live.Load()) != n {
			t.Fatalf("step %d: %d entries, %d counted, want %d", step, n, table.live.Load(), len(want))
		}
	}
}
