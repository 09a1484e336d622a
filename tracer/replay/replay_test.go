package replay

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
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
	byID := map[string]*trace.Trace{}
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
		if tr.Name() != r.Name || tr.Type() != r.Type || v.Where != r.Verdict.Where || v.Cause != r.Verdict.Cause ||
			v.Lost() != (r.Result == output.Lost) {
			t.Errorf("%s %s: %+v, want %+v", tr.Name(), tr.Type(), v, r.Verdict)
		}
		if r.Result != output.Lost && tr.Rcode() != r.Result {
			t.Errorf("%s: rcode %s, want %s", r.Name, tr.Rcode(), r.Result)
		}
		if got := tr.Asker(); got.Pod != r.Client.Pod || got.Process != r.Client.Process ||
			got.Address.String() != r.Client.Address {
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

// One socket that asked two servers the same with one ID has two rows of one trace, and both are told.
func TestEachServerAskedIsALookup(t *testing.T) {
	var one *output.Row
	for _, r := range rows(t) {
		if r.Serves == "" && r.Result != output.Lost && len(r.Hops) > 0 {
			one = r
			break
		}
	}
	if one == nil {
		t.Fatal("no answered row")
	}
	other := *one
	other.Server, other.Result = "192.0.2.1:53", output.Lost
	other.Verdict = output.Verdict{Where: "between-nodes", Cause: "no-reply-seen", Certainty: "inferred"}
	traces, err := Traces([]*output.Row{one, &other})
	if err != nil || len(traces) != 1 {
		t.Fatalf("%d traces, %v", len(traces), err)
	}
	got := map[string]bool{}
	for _, l := range traces[0].Lookups() {
		got[l.Asked().Address.String()] = l.Verdict().Lost()
	}
	if len(got) != 2 || got[one.Server] || !got[other.Server] {
		t.Errorf("lost by server: %v", got)
	}
}

// Every kind of hop that a row can have is read again.
func TestEveryKindOfHopIsRead(t *testing.T) {
	for _, r := range rows(t) {
		if r.Serves != "" || len(r.Hops) == 0 {
			continue
		}
		for k := hop.Out; k <= hop.LastKind; k++ {
			r.Hops[0].Kind = k.String()
			if _, err := Traces([]*output.Row{r}); err != nil {
				t.Error(err)
			}
		}
		return
	}
	t.Fatal("no row with hops")
}

// The trace ID that a server derives of another server's query leads to the lookup that the query was made for.
func TestAServersOwnQueryIsFoundByItsOwnTraceID(t *testing.T) {
	r := *rows(t)[0]
	r.Serves, r.OwnTraceID = r.TraceID, strings.Repeat("0a", 16)
	own, err := trace.ParseID(r.OwnTraceID)
	if err != nil {
		t.Fatal(err)
	}
	traces, err := Traces([]*output.Row{&r})
	if err != nil || len(traces) != 1 {
		t.Fatalf("%d traces, %v", len(traces), err)
	}
	if tr := traces[0]; !tr.ServedBy(own) || tr.ServedBy(tr.ID) || tr.ID.String() != r.Serves {
		t.Errorf("trace %v is not served by %v", tr.ID, own)
	}
}
