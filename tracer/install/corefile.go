package install

import (
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// directive is the plugin's name in a Corefile.
const directive = "dnstrail"

// block is the directive as it is added, without indentation.
var block = []string{directive + " {", "    sample 1", "    tracer", "}"}

var (
	errNoServerBlock = errors.New("the Corefile has no server block in braces")
	errLetters       = errors.New("the Corefile has a # within a word, spaces of Unicode, or bytes that are no text")
	errBraces        = errors.New("the Corefile's braces do not match")
)

// spaces part tokens on a line. A Corefile with others, of Unicode, is none that this reads.
const spaces = " \t\r\v\f"

// word is a token of a Corefile, as Caddy's lexer parts them: where it begins and ends, in bytes, and on which line.
type word struct {
	text       string
	start, end int
	line       int
}

// endLine gives the line on which the token ends.
func (w word) endLine() int { return w.line + strings.Count(w.text, "\n") }

// words parts a Corefile. A quoted token may hold spaces and line ends; a # outside of one begins a comment.
func words(text string) []word {
	var found []word
	line := 0
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '\n':
			line++
			i++
		case strings.IndexByte(spaces, c) >= 0:
			i++
		case c == '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '"':
			w := word{start: i, line: line}
			var b strings.Builder
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' && i+1 < len(text) && text[i+1] == '"' {
					i++
				}
				if text[i] == '\n' {
					line++
				}
				b.WriteByte(text[i])
			}
			i = min(i+1, len(text))
			w.text, w.end = b.String(), i
			found = append(found, w)
		default:
			w := word{start: i, line: line}
			for i < len(text) && strings.IndexByte(spaces+"\n#", text[i]) < 0 {
				i++
			}
			w.text, w.end = text[w.start:i], i
			found = append(found, w)
		}
	}
	return found
}

// server is a server block, or a snippet, of a Corefile.
type server struct {
	keys       []string
	open       word      // its opening brace
	directives []subject // what stands in it
	imports    []string
}

// subject is a directive with all that belongs to it.
type subject struct {
	name  string
	first word
	last  word
}

func (s *server) snippet() (string, bool) {
	if len(s.keys) != 1 || !strings.HasPrefix(s.keys[0], "(") || !strings.HasSuffix(s.keys[0], ")") {
		return "", false
	}
	return s.keys[0][1 : len(s.keys[0])-1], true
}

func (s *server) has(name string) bool {
	return slices.ContainsFunc(s.directives, func(d subject) bool { return d.name == name })
}

// servers parts a Corefile into its server blocks and snippets.
func servers(text string) ([]*server, error) {
	for _, r := range text {
		if r == '\uFEFF' || r > unicode.MaxASCII && unicode.IsSpace(r) || r == utf8.RuneError {
			return nil, errLetters
		}
	}
	tokens := words(text)
	for _, w := range tokens {
		if w.end < len(text) && text[w.end] == '#' { // to Caddy that comment ends at the next space
			return nil, errLetters
		}
	}
	var found []*server
	var current *server
	var keys []string
	depth, importLine, last := 0, -1, -1
	alone := false // whether a server's brace must be the last of its line
	for _, w := range tokens {
		newLine := w.line != last
		last = w.endLine()
		if alone && !newLine {
			return nil, errBraces
		}
		alone = w.text == "{" && depth == 0 || w.text == "}" && depth == 1
		switch w.text { // to Caddy a brace in quotes is a brace, too
		case "{":
			if depth == 0 {
				if newLine {
					return nil, errNoServerBlock // what stood before it has no braces
				}
				current = &server{keys: keys, open: w}
				found = append(found, current)
				keys = nil
			} else if n := len(current.directives); n > 0 {
				current.directives[n-1].last = w
			} else {
				return nil, errBraces
			}
			depth++
			continue
		case "}":
			if depth--; depth < 0 {
				return nil, errBraces
			}
			if depth > 0 {
				current.directives[len(current.directives)-1].last = w
			}
			continue
		}
		switch {
		case depth == 0:
			if newLine && w.text == "import" && len(keys) == 0 {
				importLine = w.line
			}
			if w.line == importLine {
				continue
			}
			if newLine && len(keys) > 0 && !strings.HasSuffix(keys[len(keys)-1], ",") {
				return nil, errNoServerBlock
			}
			keys = append(keys, w.text)
		case depth == 1 && newLine:
			current.directives = append(current.directives, subject{w.text, w, w})
		case len(current.directives) == 0:
			return nil, errBraces // a word beside the opening brace
		default:
			d := &current.directives[len(current.directives)-1]
			if d.name == "import" && depth == 1 {
				current.imports = append(current.imports, w.text)
			}
			d.last = w
		}
	}
	if depth != 0 {
		return nil, errBraces
	}
	if len(found) == 0 || len(keys) > 0 {
		return nil, errNoServerBlock
	}
	return found, nil
}

// traced tells, for each of the blocks, whether it is a server's, and has the directive by itself or by a snippet.
func traced(blocks []*server) (isServer, has []bool) {
	with := map[string]bool{}
	for _, b := range blocks {
		if name, ok := b.snippet(); ok && b.has(directive) {
			with[name] = true
		}
	}
	for _, b := range blocks {
		_, snippet := b.snippet()
		isServer = append(isServer, !snippet)
		has = append(has, b.has(directive) || slices.ContainsFunc(b.imports, func(name string) bool { return with[name] }))
	}
	return isServer, has
}

// AddBlock gives the Corefile with the dnstrail block first in each server block that has none; all else stays as it
// is. It also gives how many got it. The error says why the Corefile cannot be changed by a program.
func AddBlock(corefile string) (changed string, added int, err error) {
	blocks, err := servers(corefile)
	if err != nil {
		return "", 0, err
	}
	isServer, has := traced(blocks)
	var out strings.Builder
	at := 0
	for i, b := range blocks {
		if !isServer[i] || has[i] {
			continue
		}
		end := strings.IndexByte(corefile[b.open.end:], '\n')
		if end < 0 {
			return "", 0, errBraces
		}
		end += b.open.end + 1
		out.WriteString(corefile[at:end])
		indent := "    "
		if len(b.directives) > 0 {
			first := b.directives[0].first.start
			indent = corefile[strings.LastIndexByte(corefile[:first], '\n')+1 : first]
		}
		for _, line := range block {
			out.WriteString(indent + line + "\n")
		}
		at = end
		added++
	}
	out.WriteString(corefile[at:])
	return out.String(), added, nil
}

// RemoveBlocks gives the Corefile without any dnstrail block; all else stays as it is.
func RemoveBlocks(corefile string) (changed string, removed int, err error) {
	blocks, err := servers(corefile)
	if err != nil {
		return "", 0, err
	}
	var out strings.Builder
	at := 0
	for _, b := range blocks {
		for _, d := range b.directives {
			if d.name != directive {
				continue
			}
			out.WriteString(corefile[at : strings.LastIndexByte(corefile[:d.first.start], '\n')+1])
			at = d.last.end
			if end := strings.IndexByte(corefile[at:], '\n'); end >= 0 {
				at += end + 1
			}
			removed++
		}
	}
	out.WriteString(corefile[at:])
	return out.String(), removed, nil
}

// CountBlocks gives how many server blocks a Corefile has, and how many of them have dnstrail.
func CountBlocks(corefile string) (all, with int, err error) {
	blocks, err := servers(corefile)
	if err != nil {
		return 0, 0, err
	}
	isServer, has := traced(blocks)
	for i := range blocks {
		if isServer[i] {
			all++
			if has[i] {
				with++
			}
		}
	}
	return all, with, nil
}
