package semconv

import "testing"

func TestWordsOfDNS(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{TypeName(1), "A"},
		{TypeName(61234), "TYPE61234"},
		{ClassName(3), "CH"},
		{ClassName(7), "CLASS7"},
		{RcodeName(0), "NOERROR"},
		{RcodeName(11), "DSOTYPENI"},
		{RcodeName(16), "BADVERS"},
		{RcodeName(23), "BADCOOKIE"},
		{RcodeName(99), "RCODE99"},
		{RcodeName(4095), "RCODE4095"},
		{OpcodeName(0), "QUERY"},
		{OpcodeName(6), "DSO"},
		{OpcodeName(9), "OPCODE9"},
		{SpanName(0, 28), "DNS AAAA"},
		{SpanName(0, 61234), "DNS"},
		{SpanName(5, 6), "DNS UPDATE"},
		{SpanName(9, 1), "DNS"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

// TestRcodes: of all that a message can carry, few have labels of their own, and five are no failure.
func TestRcodes(t *testing.T) {
	labels, fine := map[string]bool{}, map[string]bool{}
	for r := range 1 << 12 {
		labels[RcodeLabel(r)] = true
		if RcodeLabel(r) != OtherRcode && RcodeLabel(r) != RcodeName(r) {
			t.Errorf("rcode %d is %s in metrics and %s elsewhere", r, RcodeLabel(r), RcodeName(r))
		}
		if !RcodeFails(r) {
			fine[RcodeName(r)] = true
		}
	}
	if len(labels) != len(rcodes)+1 || !labels[OtherRcode] {
		t.Errorf("%d labels, want %d and %q", len(labels), len(rcodes), OtherRcode)
	}
	for _, want := range []string{"NOERROR", "NXDOMAIN", "YXDOMAIN", "YXRRSET", "NXRRSET"} {
		if !fine[want] {
			t.Errorf("%s counts as a failure", want)
		}
		delete(fine, want)
	}
	if len(fine) > 0 {
		t.Errorf("no failures either: %v", fine)
	}
}

// TestSpanNamesAreFew: whatever is asked.
func TestSpanNamesAreFew(t *testing.T) {
	names := map[string]bool{}
	for opcode := range 16 {
		for qtype := range 1 << 16 {
			names[SpanName(opcode, uint16(qtype))] = true
		}
	}
	if len(names) > 120 {
		t.Errorf("%d names of spans", len(names))
	}
}
