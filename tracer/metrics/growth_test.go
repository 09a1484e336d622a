package metrics

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestNothingGrowsMoreThanLinearly: twice as many clients, processes or rcodes are counted, told and forgotten in twice
// the time.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 1000
	now := time.Now()
	for name, one := range map[string]func(m *Metrics, i int){
		"workloads":         func(m *Metrics, i int) { count(m, fmt.Sprint("w", i), i%2 == 0, now) },
		"clients that wait": func(m *Metrics, i int) { count(m, "w", false, now.Add(time.Duration(i)*time.Hour)) },
		"names of processes": func(m *Metrics, i int) {
			m.Untold(&origin.Origin{Process: fmt.Sprint("p\xff", i)}, now)
		},
		"rcodes": func(m *Metrics, i int) {
			l := &lookup.Lookup{
				Ending: lookup.Answered, Final: true, ClientNetNS: 1, Counts: true, Attempts: 1, AnswerSeen: true,
				Hops: []hop.Hop{{Time: 1}, {Time: 2e6}},
			}
			l.Body.Rcode = uint16(i)
			v := verdict.Verdict{Where: verdict.Answered, Cause: verdict.CauseAnswered}
			m.Count(l, &v, &origin.Origin{Namespace: "shop", Workload: "cart"}, "", now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				m := New(1<<30, "v1")
				return func() {
					for i := range n {
						one(m, i)
					}
					if name == "workloads" {
						w := httptest.NewRecorder()
						m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
						if w.Code != http.StatusOK {
							t.Fatal(w.Code)
						}
					}
					m.Tick(now.Add(1<<20*time.Hour), pipeline.Stats{}, export.Stats{})
				}
			})
		})
	}
}
