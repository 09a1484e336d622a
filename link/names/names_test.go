package names

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestShow(t *testing.T) {
	p := Policy{Key: []byte("k"), Rules: []Rule{
		{Zones: []string{"."}, Labels: 2},
		{Zones: []string{"people.example.org."}, Labels: 0, Hash: true},
		{Zones: []string{"cluster.local."}, Labels: 127},
	}}
	for _, row := range []struct {
		name, want string
		hidden     bool
	}{
		{"a.b.example.com.", "*.example.com.", true},
		{"example.com.", "example.com.", false},
		{"com.", "com.", false},
		{".", ".", false},
		{"a.b.svc.cluster.local.", "a.b.svc.cluster.local.", false},
		{"A.B.Example.Com.", "*.Example.Com.", true},
		{"people.example.org.", "people.example.org.", false},
		{`a\.b.example.com.`, "*.example.com.", true},
	} {
		if got, hidden := p.Show(row.name); got != row.want || hidden != row.hidden {
			t.Errorf("%s: %s, %t, want %s, %t", row.name, got, hidden, row.want, row.hidden)
		}
	}
	one, _ := p.Show("jane.people.example.org.")
	two, _ := p.Show("JANE.People.example.org.")
	other, _ := p.Show("john.people.example.org.")
	if len(one) != len("h-0123456789abcdef.people.example.org.") || !dns.IsSubDomain("people.example.org.", one) ||
		one[:18] != two[:18] || one == other {
		t.Errorf("hashed as %s, %s and %s", one, two, other)
	}
}

func TestAnswersTellNoHiddenName(t *testing.T) {
	p := New()
	if err := p.Add("redact", "0", "secret.example."); err != nil {
		t.Fatal(err)
	}
	list := []string{"a.secret.example.", "192.0.2.1", "b.example."}
	if got := p.ShowAnswers("www.example.", list); !slices.Equal(
		got, []string{"*.secret.example.", "192.0.2.1", "b.example."}) {
		t.Errorf("%q", got)
	}
	if list[0] != "a.secret.example." {
		t.Error("what was given is changed")
	}
	if got := p.ShowAnswers("x.secret.example.", list); got != nil {
		t.Errorf("%q", got)
	}
	if got := (*Policy)(nil).ShowAnswers("x.secret.example.", list); !slices.Equal(got, list) {
		t.Errorf("without a policy: %q", got)
	}
}

// TestOneFileForAll: two programs that read the same file, with a key, show and hash alike; without one they do not.
func TestOneFileForAll(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := write("key", strings.Repeat("k", leastKey)+"\n")
	read := func(text string) *Policy {
		p := New()
		if err := p.Add("file", write("policy", text)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const rules = "# what is asked of others\nredact 2\nhash 0 corp.example Other.Example. # two zones\n\n"
	for _, text := range []string{rules + "key " + key, rules} {
		a, _ := read(text).Show("x.corp.example.")
		b, _ := read(text).Show("x.corp.example.")
		if (a == b) != strings.Contains(text, "key") {
			t.Errorf("%s and %s by %q", a, b, text)
		}
	}
	if got, _ := read(rules).Show("a.b.c.example."); got != "*.c.example." {
		t.Error(got)
	}
	for text, want := range map[string]string{
		"redact":                     "line 1: wrong arguments",
		"\nshow 1":                   "line 2: wrong arguments",
		"file x":                     "line 1: wrong arguments",
		"redact 128":                 "'128' is not a number of labels",
		"hash 1 a..b":                "'a..b' is not a zone",
		"key " + write("short", "k"): "a key of 1 bytes",
		"key /nonexistent":           "no such file",
	} {
		if err := New().Add("file", write("wrong", text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
