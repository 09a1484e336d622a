package doctor

import (
	"strings"
	"testing"
)

func TestSymbolsShown(t *testing.T) {
	for _, tt := range []struct {
		name, kallsyms string
		want           bool
	}{
		{"shown", "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _stext\n", true},
		{"hidden", "0000000000000000 A fixed_percpu_data\n0000000000000000 T _stext\n", false},
		{"none", "", false},
		{"no line of it", "ffffffff81000000\n", false},
	} {
		if got := symbolsShown(strings.NewReader(tt.kallsyms)); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
