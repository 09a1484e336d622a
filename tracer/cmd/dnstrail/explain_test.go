package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

func run(args ...string) (stdout string, err error) {
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(io.Discard)
	err = root.ExecuteContext(context.Background())
	return out.String(), err
}

const traces = "../../render/testdata"

// files gives all traces of the renderer's tests in one file.
func files(t *testing.T) string {
	t.Helper()
	inputs, err := filepath.Glob(filepath.Join(traces, "*.json"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	all := filepath.Join(t.TempDir(), "all.json")
	var b []byte
	for _, in := range inputs {
		one, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, one...)
	}
	if err := os.WriteFile(all, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestExplainFromFileAndFromStore(t *testing.T) {
	all := files(t)
	s := store.New(store.Limits{})
	b, err := os.ReadFile(all)
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(bytes.NewReader(b)); dec.More(); {
		var doc json.RawMessage
		if err := dec.Decode(&doc); err != nil {
			t.Fatal(err)
		}
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(doc)
		if err != nil {
			t.Fatal(err)
		}
		s.Receive(td, access.Caller{})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() { _ = http.Serve(l, traceapi.Handler(s)) }()

	const id = "7cf92f3577b34da6a3ce929d0e0e4736"
	for name, source := range map[string][]string{"file": {"--file", all}, "store": {"--store", l.Addr().String()},
		"jaeger": {"--jaeger", l.Addr().String()}} {
		t.Run(name, func(t *testing.T) {
			out, err := run(append([]string{"explain", id}, source...)...)
			if err != nil || !strings.Contains(out, "LOST  db.shop.svc.cluster.local. A") ||
				!strings.Contains(out, "What to look at next") {
				t.Errorf("%v\n%s", err, out)
			}
			out, err = run(append([]string{"explain", "7CF92f35", "--since", "10000h"}, source...)...)
			if err != nil || !strings.Contains(out, "LOST  db.shop.svc.cluster.local. A") {
				t.Errorf("by the first digits: %v\n%s", err, out)
			}
			out, err = run(append([]string{"explain", id, "-o", "html"}, source...)...)
			if err != nil || !strings.HasPrefix(out, "<!doctype html>") {
				t.Errorf("%v\n%.300s", err, out)
			}
			search := []string{"explain", "--lost", "--last", "9", "--since", "10000h", "--name", "DB.*.local", "-o", "json"}
			out, err = run(append(search, source...)...)
			var story struct {
				TraceID, Where string
				Lost           bool
			}
			for _, filters := range [][]string{{"--name", "db.*", "--slow", "1s"}, {"--where", "between-*", "--type", "A"}} {
				out, err := run(append(append([]string{"explain", "--since", "10000h"}, filters...), source...)...)
				if err != nil || !strings.Contains(out, "LOST  db.shop.svc.cluster.local. A") {
					t.Errorf("by %v: %v\n%s", filters, err, out)
				}
			}
			if err != nil || json.Unmarshal([]byte(out), &story) != nil || story.TraceID != id || !story.Lost ||
				story.Where != "between-nodes" {
				t.Errorf("%v: %+v\n%s", err, story, out)
			}
		})
	}
}

func TestExplainRefuses(t *testing.T) {
	all := files(t)
	const id = "7cf92f3577b34da6a3ce929d0e0e4736"
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"want a trace ID, --lost, or another filter", nil},
		{"--lost goes without a trace ID", []string{id, "--lost"}},
		{"want 32 hexadecimal digits, or the first of them, at least 4", []string{"7cf"}},
		{"is no trace ID", []string{"7cfg"}},
		{"no trace ID begins with 7cf91 among the", []string{"7cf91", "--file", all}},
		{"begins 2 trace IDs", []string{"cf92f", "--file", jsonFile(t, `{"resourceSpans":[{"scopeSpans":[{"spans":[
			{"traceId":"cf92f000000000000000000000000001","spanId":"0000000000000001"},
			{"traceId":"cf92f000000000000000000000000002","spanId":"0000000000000001"}]}]}]}`)}},
		{"want text, html or json", []string{id, "-o", "yaml"}},
		{"--last 0", []string{"--lost", "--last", "0"}},
		{"--hops goes with --output text", []string{id, "--hops", "-o", "json"}},
		{"page of one lookup", []string{"--lost", "--last", "2", "-o", "html"}},
		{"--client goes without a trace ID", []string{id, "--client", "x"}},
		{"none of the others can be", []string{id, "--file", all, "--jaeger", "http://127.0.0.1:1"}},
		{"no URL of a query API", []string{id, "--jaeger", "ftp://x"}},
		{"is not among the", []string{"ffffffffffffffffffffffffffffffff", "--file", all}},
		{"no such file", []string{id, "--file", "/does/not/exist"}},
		{"not OTLP JSON", []string{id, "--file", jsonFile(t, `{"resourceSpans": 3}`)}},
		{"document 1", []string{id, "--file", jsonFile(t, `{`)}},
		{"asking 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused: no store and no Jaeger there",
			[]string{id, "--jaeger", "http://127.0.0.1:1"}},
		{"unknown flag", []string{id, "--jager", "x"}},
	} {
		t.Run(tc.want, func(t *testing.T) {
			out, err := run(append([]string{"explain"}, tc.args...)...)
			if err == nil || !strings.Contains(err.Error(), tc.want) || out != "" {
				t.Errorf("error %v, output %q", err, out)
			}
		})
	}
}

func jsonFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
