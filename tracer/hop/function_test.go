package hop

import (
	"bufio"
	"strings"
	"testing"
)

func TestFunctionIn(t *testing.T) {
	const kallsyms = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 t ndisc_error_report
ffffffff81000300 T ip6_pkt_discard
ffffffff82000000 D some_data
ffffffffc0000000 t br_handle_frame	[bridge]
`
	for _, c := range []struct {
		name    string
		address uint64
		want    string
	}{
		{"first byte", 0xffffffff81000100, "ndisc_error_report"},
		{"inside", 0xffffffff810002ff, "ndisc_error_report"},
		{"data lies between", 0xffffffff82000010, "ip6_pkt_discard"},
		{"module", 0xffffffffc0000010, "br_handle_frame"},
		{"before all", 0x10, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := functionIn(bufio.NewScanner(strings.NewReader(kallsyms)), c.address); got != c.want {
				t.Errorf("%#x is in %q, want %q", c.address, got, c.want)
			}
		})
	}
	t.Run("hidden", func(t *testing.T) {
		if got := functionIn(bufio.NewScanner(strings.NewReader("0000000000000000 T _stext\n")), 0x10); got != "" {
			t.Errorf("found %q where the kernel hides its addresses", got)
		}
	})
}
