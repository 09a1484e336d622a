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
