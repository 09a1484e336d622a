package link

import (
	"crypto/rand"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// TestRatioIsTheSDKs holds our choice against that of OpenTelemetry's sampler.
func TestRatioIsTheSDKs(t *testing.T) {
	for _, share := range []float64{0, 1e-9, 0.01, 0.1, 0.5, 0.999, 1} {
		ours, theirs := NewRatio(share), sdktrace.TraceIDRatioBased(share)
		kept := 0
		for range 20000 {
			var id TraceID
			_, _ = rand.Read(id[:]) // never fails: crypto/rand
			p := sdktrace.SamplingParameters{TraceID: trace.TraceID(id)}
			want := theirs.ShouldSample(p).Decision == sdktrace.RecordAndSample
			if got := ours.Holds(id); got != want {
				t.Fatalf("ratio %v, trace %s: %t, want %t", share, id, got, want)
			}
			if want {
				kept++
			}
		}
		if d := float64(kept)/20000 - share; d > 0.02 || d < -0.02 {
			t.Errorf("ratio %v keeps %d of 20000", share, kept)
		}
	}
}

func TestParseRatio(t *testing.T) {
	for s, want := range map[string]float64{"0": 0, "1": 1, "0.25": 0.25, "12.5%": 0.125, "100%": 1, "1e-3": 0.001} {
		if got, err := ParseRatio(s); err != nil || got != NewRatio(want) {
			t.Errorf("%s: %v, %v, want that of %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "%", "-0.1", "1.1", "101%", "NaN", "one", "5 %"} {
		if _, err := ParseRatio(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}
