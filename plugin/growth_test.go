package dnstrail

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/test/growth"
)

// TestNothingGrowsMoreThanLinearly: twice as many clients, pods of one workload, or rcodes of an upstream are counted
// and read in twice the time.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 2000
	for name, c := range map[string]struct {
		options clientOptions
		query   func(i int) *clientQuery
	}{
		"workloads": {clientOptions{max: 1 << 30}, func(i int) *clientQuery {
			return answered(pod("shop", fmt.Sprint("w", i), "x"))
		}},
		"workloads beyond the bound": {clientOptions{max: n / 4}, func(i int) *clientQuery {
			return answered(pod("shop", fmt.Sprint("w", i), "x"))
		}},
		"pods": {clientOptions{max: 1 << 30, pods: true}, func(i int) *clientQuery {
			return answered(pod("shop", "w", fmt.Sprint("w-", i)))
		}},
		"rcodes": {clientOptions{}, func() func(i int) *clientQuery {
			client := pod("shop", "w", "w-1")
			return func(i int) *clientQuery {
				q := answered(client)
				q.rcode = semconv.RcodeLabel(i % (1 << 12))
				return q
			}
		}()},
		"clients whose names are not UTF-8": {clientOptions{max: 1 << 30}, func(i int) *clientQuery {
			return answered(identity.NewClient(identity.Description{Kind: identity.Pod, Workload: fmt.Sprint("\xff", i)}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				table := newClientTable()
				now := time.Now()
				table.now = func() time.Time { return now }
				m := table.with(c.options)
				queries := make([]*clientQuery, n)
				for i := range queries {
					queries[i] = c.query(i)
				}
				sink := make(chan prometheus.Metric, 64*n+1024)
				return func() {
					for range 2 {
						for _, q := range queries {
							m.observe(q)
						}
					}
					table.Collect(sink)
					now = now.Add(1000 * time.Hour)
					table.sweep()
					table.sweep()
				}
			})
		})
	}
}
