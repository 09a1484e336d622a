package identity

import (
	"strings"
	"testing"
)

func FuzzParseUID(f *testing.F) {
	f.Add("5e2a1b6c-3d4f-4a5b-8c6d-7e8f9a0b1c2d")
	f.Add("5e2a1b6c_3d4f_4a5b_8c6d_7e8f9a0b1c2d")
	f.Add("0123456789abcdef0123456789ABCDEF")
	f.Fuzz(func(t *testing.T, s string) {
		u, dashed, ok := parseUID(s)
		if !ok {
			if u != (uid{}) {
				t.Errorf("%q: refused, and gave %v", s, u)
			}
			return
		}
		if got, want := u.format(dashed), strings.ToLower(strings.ReplaceAll(s, "_", "-")); got != want {
			t.Errorf("%q: written again it is %q", s, got)
		}
	})
}
