package hop

import "testing"

func TestReasonsHaveTheRunningKernelsNames(t *testing.T) {
	if got := Reason(0).String(); got != "" {
		t.Errorf("a packet that was not dropped has the reason %q", got)
	}
	// A kernel may give no reason (before 5.17), or number NOT_SPECIFIED zero (5.17).
	if got := reasonOf(0); got.String() != "NOT_SPECIFIED" || got == 0 {
		t.Errorf("a drop without a reason is %d, %q", got, got)
	}
	if r, ok := ReasonByName("NOT_SPECIFIED"); !ok || r.String() != "NOT_SPECIFIED" {
		t.Errorf("NOT_SPECIFIED is %d, %v", r, ok)
	}
	if _, ok := ReasonByName(""); ok {
		t.Error("no name is the name of a reason")
	}
	if got := Reason(1 << 30).String(); got != "REASON_1073741824" {
		t.Errorf("a number that no kernel has is %q", got)
	}
}
