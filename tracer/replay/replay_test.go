package replay

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/store"
)

// rows are those that the outputs are tested with.
func rows(t *testing.T) []*output.Row {
	t.Helper()
	f, err := os.Open("../output/testdata/rows.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var all []*output.Row
	for s := bufio.NewScanner(f); s.Scan(); {
		var r output.Row
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, &r)
	}
	return all
}

func TestTracesSayWhatTheRowsSay(t *testing.T) {
	all := rows(t)
	traces, err := Traces(all)
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]*store.Trace{}
	for _, tr := range traces {
		byID[tr.ID.String()] = tr
	}
	n := 0
	for _, r := range last(all) {
		tr := byID[r.TraceID]
		if tr == nil {
			if len(r.Hops) > 0 {
				t.Errorf("no trace for %s %s", r.Name, r.TraceID)
			}
			continue
		}
		if r.Serves != "" {
			continue
		}
		n++
		v := tr.Verdict()
		if tr.Name() != r.Name || tr.Type() != r.Type || v.Where != r.Verdict.Where || v.Cause != r.Verdict.Cause || v.Lost() != (r.Result == output.Lost) {
			t.Errorf("%s %s: %+v, want %+v", tr.Name(), tr.Type(), v, r.Verdict)
		}
		if r.Result != output.Lost && tr.Rcode() != r.Result {
			t.Errorf("%s: rcode %s, want %s", r.Name, tr.Rcode(), r.Result)
		}
		if got := tr.Asker(); got.Pod != r.Client.Pod || got.Process != r.Client.Process || got.Address.String() != r.Client.Address {
			t.Errorf("%s: asked by %+v, want %+v", r.Name, got, r.Client)
		}
		if len(r.Hops) > 1 && len(tr.Spans) < len(r.Hops)/2 {
			t.Errorf("%s: %d spans of %d hops", r.Name, len(tr.Spans), len(r.Hops))
		}
	}
	if n == 0 {
		t.Error("no row was compared")
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for name, spoil := range map[string]func(*output.Row){
		"trace ID": func(r *output.Row) { r.TraceID = "x" },
		"kind":     func(r *output.Row) { r.Hops[0].Kind = "sideways" },
		"address":  func(r *output.Row) { r.Hops[0].Src = "nowhere" },
		"server":   func(r *output.Row) { r.Server = "nowhere" },
	} {
		t.Run(name, func(t *testing.T) {
			r := rows(t)[0]
			spoil(r)
			if _, err := Traces([]*output.Row{r}); err == nil {
				t.Error("taken")
			}
		})
	}
}
