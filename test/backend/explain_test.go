package backend

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// TestJaegerTellsTheSameStory: a lookup that went through a Jaeger is drawn and told as it was sent.
func TestJaegerTellsTheSameStory(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	j, err := StartJaeger(ctx, jaegerBinary(t), "../jaeger/config.yaml", 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Stop()
	c, err := j.Traces()
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob("../../tracer/render/testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			js, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(js)
			if err != nil {
				t.Fatal(err)
			}
			sent := trace.FromOTLP(td)
			send(t, j.OTLP, sent)
			var came *trace.Trace
			for came == nil || len(came.Spans) < len(sent) {
				if came, err = c.Trace(ctx, sent[0].TraceID); err != nil && !errors.Is(err, traceapi.ErrNotFound) {
					t.Fatal(err)
				}
				select {
				case <-ctx.Done():
					t.Fatalf("not all of %d spans came back: %v", len(sent), came)
				case <-time.After(50 * time.Millisecond):
				}
			}
			tell := func(tr *trace.Trace) string {
				var out strings.Builder
				if err := render.Story(&out, explain.Tell(tr, nil), render.Options{}); err != nil {
					t.Fatal(err)
				}
				return out.String()
			}
			if got, want := tell(came), tell(trace.New(sent)); got != want {
				t.Errorf("from Jaeger:\n%s\nas sent:\n%s", got, want)
			}
		})
	}
}
