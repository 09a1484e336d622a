package identity

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/growth"
)

// TestNothingGrowsMoreThanLinearly: twice as many pods come, change, are looked up and go in twice the time, and so do
// addresses of one pod, and addresses of strangers.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 4000
	address := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	describe := func(i int, labels map[string]string) Description {
		return Description{
			Kind: Pod, Namespace: "shop", Pod: fmt.Sprint("cart-", i), UID: fmt.Sprintf("5e2a1b6c-3d4f-4a5b-8c6d-%012x", i),
			WorkloadKind: "Deployment", Workload: "cart", Node: "node-1", Labels: labels, Addrs: []netip.Addr{address(i)},
		}
	}
	for name, d := range map[string]func(i int) Description{
		"pods":      func(i int) Description { return describe(i, nil) },
		"labels":    func(i int) Description { return describe(i, map[string]string{"l": fmt.Sprint(i)}) },
		"workloads": func(i int) Description { d := describe(i, nil); d.Workload = fmt.Sprint(i); return d },
		"pods of which each takes the address of the one before": func(i int) Description {
			d := describe(i, nil)
			d.Addrs = append(d.Addrs, address(i+1))
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				x := NewIndex()
				clients, later := make([]*Client, n), make([]*Client, n)
				for i := range n {
					clients[i], later[i] = newClient(d(i), 1), newClient(d(i), 2)
				}
				return func() {
					x.mu.Lock()
					defer x.mu.Unlock()
					for _, c := range clients {
						x.put(nil, c)
					}
					for i, c := range clients {
						x.put(c, later[i])
						x.Lookup(address(i))
						x.Lookup(address(1<<23 + i)) // nobody's
					}
					until := time.Now()
					for _, c := range later {
						x.gone[c] = until
						x.depart(c)
					}
					for _, c := range later {
						x.drop(c)
					}
				}
			})
		})
	}
	t.Run("a file", func(t *testing.T) {
		growth.Linear(t, n/4, func(n int) func() {
			x := NewIndex()
			var all []Description
			for i := range n {
				all = append(all, describe(i, nil))
			}
			now := time.Now()
			return func() {
				x.replace(all, now)
				x.replace(all[n/2:], now)
			}
		})
	})
}
