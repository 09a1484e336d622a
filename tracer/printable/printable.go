// Package printable makes text that somebody else chose fit to be shown: names, process names and attributes of spans
// may hold what moves a terminal's cursor, turns the direction of writing, or takes no room and hides.
//
// All that dnstrail shows to people goes through [Text], on a terminal, in a log and on a page alike. What it lets
// through has a width in cells ([Width]), by which columns are cut and padded.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// maxMarks is how many combining marks one character may have. Living scripts need two; stacks of them paint over the
// lines above and below.
const maxMarks = 2

// unseen are the printable characters that show nothing (Unicode, Default_Ignorable_Code_Point, and the blank Braille
// pattern) or take no room of their own, which are not among the format characters that [unicode.IsPrint] turns down.
var unseen = []*unicode.RangeTable{
	unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector,
	{R16: []unicode.Range16{
		{Lo: 0x1160, Hi: 0x11ff, Stride: 1}, // Hangul vowels and finals, drawn upon the letter before them
		{Lo: 0x2800, Hi: 0x2800, Stride: 1},
		{Lo: 0xd7b0, Hi: 0xd7ff, Stride: 1},
	}},
}

// shown tells whether r is seen as itself, be it on the character before it.
func shown(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unseen...) && (isMark(r) || runewidth.RuneWidth(r) > 0)
}

func isMark(r rune) bool { return unicode.Is(unicode.M, r) }

// Text gives text with everything that is not seen as itself written as an escape: control characters, format
// characters (directions of writing, joiners, zero-width ones), invisible letters, marks without a letter or too many
// of them as \uXXXX or \UXXXXXXXX, and bytes that are not UTF-8 as \xXX. Text that needs none is given as it is.
func Text(text string) string {
	if plain(text) {
		return text
	}
	var b strings.Builder
	marks := maxMarks // a mark that comes first has no letter
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
			marks = maxMarks
		case !shown(r):
			escape(&b, r)
			marks = maxMarks
		case isMark(r):
			if marks >= maxMarks {
				escape(&b, r)
				break
			}
			marks++
			b.WriteRune(r)
		default:
			b.WriteRune(r)
			marks = 0
		}
		i += n
	}
	return b.String()
}

// Lines is [Text] for text of several lines, whose ends stay.
func Lines(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = Text(l)
	}
	return strings.Join(lines, "\n")
}

func plain(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] >= 0x7f {
			return false
		}
	}
	return true
}

func escape(b *strings.Builder, r rune) {
	if r > 0xffff {
		fmt.Fprintf(b, `\U%08x`, r)
		return
	}
	fmt.Fprintf(b, `\u%04x`, r)
}

// JSON gives a JSON document in which what [Text] would escape is escaped in JSON's own way, so that it can be shown
// on a terminal and reads back as the same values. The document must be valid JSON; line ends between values stay.
func JSON(doc []byte) []byte {
	clean := true
	for _, c := range doc {
		if c >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return doc // encoders escape the control characters of ASCII, but for DEL
	}
	out := make([]byte, 0, len(doc)+16)
	for i := 0; i < len(doc); {
		r, n := utf8.DecodeRune(doc[i:])
		switch {
		case r < 0x7f || shown(r) && !isMark(r):
			out = append(out, doc[i:i+n]...)
		case r > 0xffff:
			high, low := surrogates(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

// surrogates gives r, which is beyond the basic plane, as UTF-16 (RFC 8259, section 7).
func surrogates(r rune) (high, low rune) {
	r -= 0x10000
	return 0xd800 + r>>10, 0xdc00 + r&0x3ff
}

// Width gives how many cells of a terminal text takes that [Text] gave: terminals draw character by character, and a
// mark on the one before it.
func Width(text string) int {
	w := 0
	for _, r := range text {
		w += width(r)
	}
	return w
}

func width(r rune) int {
	if r < 0x7f {
		return 1
	}
	if isMark(r) {
		return 0
	}
	return runewidth.RuneWidth(r)
}

// Cut gives the beginning of text that fits into cells, with ellipsis at its end where something was left out; nothing
// where not even the ellipsis fits. It looks no further than it must.
func Cut(text string, cells int, ellipsis string) string {
	room := cells - Width(ellipsis)
	w, end := 0, -1
	for i, r := range text {
		if w+width(r) > room && end < 0 {
			end = i
		}
		if w += width(r); w > cells {
			if room < 0 {
				return ""
			}
			return text[:end] + ellipsis
		}
	}
	return text
}

// CutMiddle is [Cut] with both ends kept, of the beginning twice as much: both ends of a name tell something.
func CutMiddle(text string, cells int, ellipsis string) string {
	room := cells - Width(ellipsis)
	if room < 2 || Cut(text, cells, "") == text {
		return Cut(text, cells, ellipsis)
	}
	head := Cut(text, room*2/3, "")
	at := len(text) // of the end that is kept; it begins with no mark, which would be drawn upon the ellipsis
	for i, rest := at, room-Width(head); i > 0; {
		r, n := utf8.DecodeLastRuneInString(text[:i])
		if rest -= width(r); rest < 0 {
			break
		}
		if i -= n; !isMark(r) {
			at = i
		}
	}
	return head + ellipsis + text[at:]
}
