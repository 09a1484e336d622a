package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/report"
)

// TestReportOfAFile: rows that observe wrote, through the filters that observe has.
func TestReportOfAFile(t *testing.T) {
	var rows strings.Builder
	out := output.NewJSONL(&rows)
	for i := range 60 {
		r := &output.Row{
			Schema: output.SchemaVersion, Time: time.Unix(1_800_000_000+int64(i),
				0), Name: "db.", Type: "A", Transport: "udp", Result: "NOERROR",
			Client: output.Client{Namespace: "shop", Pod: "cart-1", Workload: "cart",
				Address: fmt.Sprintf("10.0.0.1:%d", 1000+i)}, Server: "10.96.0.10:53",
			Verdict: output.Verdict{Where: "answered", Cause: "answered"}, TraceID: fmt.Sprintf("%032x", i), Attempts: 1,
		}
		if i%2 == 0 {
			r.Client.Workload, r.Result, r.Verdict.Where, r.Verdict.Cause, r.Total = "web", output.Lost, "node", "policy-drop",
				5e9
		}
		if err := out.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "rows.jsonl")
	if err := os.WriteFile(file, []byte(rows.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := run("report", "--from", file)
	if err != nil || !strings.Contains(text, "losses: 30 lookups of 60 (50 %) got no answer") ||
		!strings.Contains(text, "150 s of waiting") {
		t.Errorf("%v\n%s", err, text)
	}
	js, err := run("report", "--from", file, "--client", "shop/cart", "-o", "json")
	var r report.Report
	top, topErr := run("top", "--from", file, "--sort", "time", "--type", "A")
	if topErr != nil || !strings.Contains(top, "60 lookups in 1m3s, 30 failed") ||
		strings.Index(top, "shop/web") > strings.Index(top, "shop/cart") {
		t.Errorf("%v\n%s", topErr, top)
	}
	if err != nil || json.Unmarshal([]byte(js), &r) != nil || r.Lookups != 30 || len(r.Findings) != 0 ||
		r.Schema != report.SchemaVersion {
		t.Errorf("%v\n%s", err, js)
	}
}
