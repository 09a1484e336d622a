package printable

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"dig":                         "dig",
		"Käse 東京 😀":                   "Käse 東京 😀",
		"a\x1b[31mb":                  `a\u001b[31mb`,
		"a\nb\tc\x7f":                 `a\u000ab\u0009c\u007f`,
		"c1 \u009b2J":                 `c1 \u009b2J`,
		"moc.\u202eelgoog":            `moc.\u202eelgoog`,
		"\u2066x\u2069\u200e\u061c":   `\u2066x\u2069\u200e\u061c`,
		"a\u200bb\u200cc\u200d\ufeff": `a\u200bb\u200cc\u200d\ufeff`,
		"soft\u00adhyphen":            `soft\u00adhyphen`,
		"fill\u3164er\u115f\uffa0":    `fill\u3164er\u115f\uffa0`,
		"vs\ufe0f\U000e0100":          `vs\ufe0f\U000e0100`,
		"tag\U000e0041":               `tag\U000e0041`,
		"\u2800blank":                 `\u2800blank`,
		"line\u2028para\u2029":        `line\u2028para\u2029`,
		"e\u0301":                     "e\u0301",
		"\u0301e":                     `\u0301e`,
		"jamo \u1161":                 `jamo \u1161`,
		"z\u0301\u0302\u0303\u0304":   "z\u0301\u0302" + `\u0303\u0304`,
		"bad\xff\xc3":                 `bad\xff\xc3`,
		"\ufffd":                      "\ufffd",
		"\u00a0nbsp":                  `\u00a0nbsp`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%+q: %+q, want %+q", in, got, want)
		}
	}
	if got := Lines("a\u202e\nb\x1b\n"); got != "a\\u202e\nb\\u001b\n" {
		t.Errorf("%q", got)
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		text        string
		width       int
		end, middle string
	}{
		{"abcdefghij", 10, "abcdefghij", "abcdefghij"},
		{"abcdefghij", 7, "abcdef…", "abcd…ij"},
		{"東京東京東京", 7, "東京東…", "東京…京"},
		{"東京", 1, "…", "…"},
		{"東京", 0, "", ""},
		{"e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301…", "e\u0301…e\u0301"},
	} {
		if got := Cut(tc.text, tc.width, "…"); got != tc.end {
			t.Errorf("%q to %d: %q, want %q", tc.text, tc.width, got, tc.end)
		}
		if got := CutMiddle(tc.text, tc.width, "…"); got != tc.middle {
			t.Errorf("%q to %d from the middle: %q, want %q", tc.text, tc.width, got, tc.middle)
		}
	}
}

// FuzzText: what comes out is seen as itself, stays what it is when it is cleaned again, fits where it was cut to, and
// is the same value where it was escaped in JSON.
func FuzzText(f *testing.F) {
	for _, s := range []string{"dig", "a\x1b[2J", "moc.\u202eelgoog", "東京", "z\u0301\u0302\u0303", "bad\xff", "👩\u200d👩",
		"\u2028"} {
		f.Add(s, 7)
	}
	f.Fuzz(func(t *testing.T, s string, width int) {
		width = int(uint(width) % 200)
		out := Text(s)
		if !utf8.ValidString(out) {
			t.Fatalf("%q: not UTF-8", out)
		}
		if i := strings.IndexFunc(out, func(r rune) bool {
			return !shown(r) ||
				unicode.Is(unicode.Bidi_Control, r)
		}); i >= 0 {
			t.Errorf("%+q is not seen", out[i:])
		}
		if again := Text(out); again != out {
			t.Errorf("%+q again is %+q", out, again)
		}
		if len(out) > 0 && Width(out) == 0 {
			t.Errorf("%+q takes no room", out)
		}
		for _, cut := range []string{Cut(out, width, "…"), CutMiddle(out, width, "…")} {
			if Width(cut) > width || !utf8.ValidString(cut) {
				t.Errorf("%+q is %d cells wide, want at most %d", cut, Width(cut), width)
			}
		}
		doc, err := json.Marshal(map[string]string{"x": s})
		if err != nil {
			t.Fatal(err)
		}
		safe := JSON(doc)
		var before, after map[string]string
		if json.Unmarshal(doc, &before) != nil || json.Unmarshal(safe, &after) != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%s became %s", doc, safe)
		}
		if strings.ContainsFunc(string(safe), func(r rune) bool { return !shown(r) }) {
			t.Errorf("%+q is not seen", safe)
		}
	})
}
