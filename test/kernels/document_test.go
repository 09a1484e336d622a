package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// TestBootsAddUp: what an earlier boot of the same release found out stays, but for what was tried again.
func TestBootsAddUp(t *testing.T) {
	boot := func(release string, rows ...job.Row) (all []job.Record) {
		all = append(all, job.Record{Boot: &job.Boot{Release: release}}, job.Record{Load: &job.Load{}})
		for i := range rows {
			all = append(all, job.Record{Row: &rows[i]})
		}
		return append(all, job.Record{Problem: release})
	}
	before := boot("1", job.Row{Fault: "a", Family: "IPv4"}, job.Row{Fault: "b", Family: "IPv4"})
	before = append(before, job.Record{Demo: &job.Demo{Last: "old"}})
	got := merged(before, boot("1", job.Row{Fault: "b", Family: "IPv4", Right: true}, job.Row{Fault: "b", Family: "IPv6"}))
	var said []string
	for _, r := range got {
		switch {
		case r.Row != nil:
			said = append(said, fmt.Sprint(r.Row.Fault, r.Row.Family, r.Row.Right))
		case r.Demo != nil:
			said = append(said, r.Demo.Last)
		case r.Problem != "":
			said = append(said, "problem")
		}
	}
	if want := []string{"bIPv4true", "bIPv6false", "problem", "aIPv4false", "old"}; !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	if got := merged(before, boot("2")); len(got) != 3 {
		t.Errorf("another release: %d records", len(got))
	}
}
