package render

import (
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/tracer/doctor"
)

func TestALogIsShownLineByLine(t *testing.T) {
	var b strings.Builder
	f := doctor.Finding{What: "hooks", State: doctor.Fail, Is: "refused", Do: "report it",
		Log: []string{"0: (b7) r0 = 0", "R1 \"is\" \x1b[31mbad"}}
	if err := Finding(&b, f, Options{Width: 60}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "0: (b7) r0 = 0") || !strings.Contains(lines[2], `R1 "is"`) ||
		!strings.Contains(lines[3], "report it") {
		t.Errorf("%q", b.String())
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Errorf("a control character of the log reaches the terminal: %q", b.String())
	}
}

func TestALongNodeHasALineOfItsOwn(t *testing.T) {
	for _, tc := range []struct{ what, want string }{
		{"kube-dns", "ok    kube-dns      it is well\n"},
		{"node-1 reach", "ok    node-1 reach  it is well\n"},
		{"node-12 reach", "ok    node-12 reach it is well\n"},
		{"node-1 reachab", "ok    node-1 reachab\n                    it is well\n"},
		{"ip-10-0-12-34.compute.internal search path",
			"ok    ip-10-0-12-34.compute.internal search path\n                    it is well\n"},
	} {
		var b strings.Builder
		if err := Finding(&b, doctor.Finding{What: tc.what, Is: "it is well"}, Options{Width: 60}); err != nil {
			t.Fatal(err)
		}
		if b.String() != tc.want {
			t.Errorf("%q, want %q", b.String(), tc.want)
		}
	}
}
