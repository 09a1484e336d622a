package link

import (
	"bytes"
	"errors"
	"testing"
)

var (
	someTrace = TraceID{0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36}
	someSpan  = SpanID{0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7}
)

func TestTraceparent(t *testing.T) {
	full := Traceparent{someTrace, someSpan, 0}.Append(nil)
	if len(full) != TraceparentSize {
		t.Fatalf("%d bytes, want %d", len(full), TraceparentSize)
	}
	with := func(i int, b byte) []byte {
		c := bytes.Clone(full)
		c[i] = b
		return c
	}
	noTrace, noSpan := bytes.Clone(full), bytes.Clone(full)
	clear(noTrace[2:18])
	clear(noSpan[18:26])
	for _, tt := range []struct {
		name string
		data []byte
		want Traceparent
		ok   bool
	}{
		{"27 bytes", full, Traceparent{someTrace, someSpan, 0}, true},
		{"27 bytes, sampled", with(26, 1), Traceparent{someTrace, someSpan, FlagSampled}, true},
		{"reserved byte set", with(1, 0xff), Traceparent{someTrace, someSpan, 0}, true},
		{"26 bytes: no flags", full[:26], Traceparent{someTrace, someSpan, FlagSampled}, true},
		{"18 bytes: trace ID alone", full[:18], Traceparent{someTrace, SpanID{}, FlagSampled}, true},
		{"version 1", with(0, 1), Traceparent{}, false},
		{"zero trace ID", noTrace, Traceparent{}, false},
		{"zero span ID", noSpan, Traceparent{}, false},
		{"empty", nil, Traceparent{}, false},
		{"25 bytes", full[:25], Traceparent{}, false},
		{"28 bytes", append(bytes.Clone(full), 0), Traceparent{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseTraceparent(tt.data)
			if got != tt.want || (err == nil) != tt.ok {
				t.Errorf("ParseTraceparent = %+v, %v", got, err)
			}
			if err != nil && !errors.Is(err, ErrTraceparent) {
				t.Errorf("error %v does not wrap ErrTraceparent", err)
			}
		})
	}
}

func FuzzParseTraceparent(f *testing.F) {
	full := Traceparent{someTrace, someSpan, FlagSampled}.Append(nil)
	for _, n := range []int{0, 18, 26, 27} {
		f.Add(full[:n])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseTraceparent(b)
		if err != nil {
			return
		}
		if got.TraceID == (TraceID{}) {
			t.Fatalf("%x: a zero trace ID was accepted", b)
		}
		if len(b) == 18 {
			return // has no span ID, and so no 27-byte form
		}
		if again, err := ParseTraceparent(got.Append(nil)); err != nil || again != got {
			t.Fatalf("%x -> %+v -> %+v, %v", b, got, again, err)
		}
	})
}
