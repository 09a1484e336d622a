package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
)

const kubeadm = `.:53 {
    errors
    health {
       lameduck 5s
    }
    # the cluster's own names
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
    }
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
    reload
}
`

func TestAddBlock(t *testing.T) {
	tests := []struct {
		name, in, want string
		added          int
	}{
		{"kubeadm's", kubeadm, strings.Replace(kubeadm, ".:53 {\n",
			".:53 {\n    dnstrail {\n        sample 1\n        tracer\n    }\n", 1), 1},
		{"there already", ".:53 {\n\tdnstrail\n}\n", ".:53 {\n\tdnstrail\n}\n", 0},
		{"two servers, one with it", "a.test {\n  dnstrail\n}\nb.test c.test {\n  forward . 192.0.2.1\n}\n",
			"a.test {\n  dnstrail\n}\nb.test c.test {\n" +
				"  dnstrail {\n      sample 1\n      tracer\n  }\n  forward . 192.0.2.1\n}\n", 1},
		{"keys on lines of their own", "a.test,\nb.test {\n  errors\n}\n",
			"a.test,\nb.test {\n  dnstrail {\n      sample 1\n      tracer\n  }\n  errors\n}\n", 1},
		{"a snippet is no server", "(s) {\n  errors\n}\n.:53 {\n  import s\n}\n",
			"(s) {\n  errors\n}\n.:53 {\n  dnstrail {\n      sample 1\n      tracer\n  }\n  import s\n}\n", 1},
		{"by a snippet", "(s) {\n  dnstrail\n}\n.:53 {\n  import s\n}\n", "(s) {\n  dnstrail\n}\n.:53 {\n  import s\n}\n", 0},
		{"files imported", "import more/*.server\n.:53 {\n}\n",
			"import more/*.server\n.:53 {\n    dnstrail {\n        sample 1\n        tracer\n    }\n}\n", 1},
		{"braces and comments that are none",
			"# a {\n.:53 { # b {\n  template IN A {\n    answer \"{{ .Name }} }\n { 60\"\n  }\n}\n",
			"# a {\n.:53 { # b {\n  dnstrail {\n      sample 1\n      tracer\n  }\n" +
				"  template IN A {\n    answer \"{{ .Name }} }\n { 60\"\n  }\n}\n", 1},
		{"only named in a comment", ".:53 {\n  # dnstrail\n  errors\n}\n",
			".:53 {\n  dnstrail {\n      sample 1\n      tracer\n  }\n  # dnstrail\n  errors\n}\n", 1},
		{"no line end at its end", ".:53 {\n\terrors\n}",
			".:53 {\n\tdnstrail {\n\t    sample 1\n\t    tracer\n\t}\n\terrors\n}", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, added, err := AddBlock(tt.in)
			if err != nil || got != tt.want || added != tt.added {
				t.Fatalf("added %d, %v:\n%s\nwant %d:\n%s", added, err, got, tt.added, tt.want)
			}
			if tt.added == 0 || strings.Contains(tt.in, "dnstrail\n}") {
				return
			}
			back, removed, err := RemoveBlocks(got)
			if err != nil || back != tt.in || removed != tt.added {
				t.Errorf("and back: removed %d, %v:\n%s", removed, err, back)
			}
		})
	}
}

func TestAddBlockRefuses(t *testing.T) {
	for _, in := range []string{
		"", "# nothing\n", ".:53\nerrors\n", ".:53 {\n errors\n", ".:53 {\n}\n}\n", ".:53 { errors\n}\n",
	} {
		if got, _, err := AddBlock(in); err == nil {
			t.Errorf("%q: gives %q", in, got)
		}
	}
}

func TestRemoveBlocksKeepsWhatIsBesideThem(t *testing.T) {
	in := ".:53 {\n  errors\n  dnstrail {\n    sample 1\n  } # until here\n  cache\n}\nb.test {\n  dnstrail\n}\n"
	got, removed, err := RemoveBlocks(in)
	if want := ".:53 {\n  errors\n  cache\n}\nb.test {\n}\n"; err != nil || got != want || removed != 2 {
		t.Errorf("removed %d, %v: %q", removed, err, got)
	}
}

// Every Corefile that is shipped goes through, and Caddy finds in the result what it found before, and the directive.
func TestCorefilesThatAreShipped(t *testing.T) {
	files, err := filepath.Glob("../../corefile-examples/*.Corefile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Corefiles: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		without, _, err := RemoveBlocks(string(b))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		sameToCaddy(t, without)
	}
}

// sameToCaddy fails unless Caddy reads the Corefile with the block as the Corefile without, and the block in each
// server.
func sameToCaddy(t *testing.T, corefile string) {
	t.Helper()
	before, err := caddyfile.Parse("Corefile", strings.NewReader(corefile), nil)
	if err != nil {
		return
	}
	with, _, err := AddBlock(corefile)
	if err != nil {
		return // it is refused, which harms nobody
	}
	after, err := caddyfile.Parse("Corefile", strings.NewReader(with), nil)
	if err != nil {
		t.Fatalf("Caddy read\n%s\nand does not read\n%s\n%v", corefile, with, err)
	}
	if len(before) != len(after) {
		t.Fatalf("%d servers became %d:\n%s", len(before), len(after), with)
	}
	for i := range after {
		if strings.Join(before[i].Keys, " ") != strings.Join(after[i].Keys, " ") {
			t.Errorf("server %q became %q", before[i].Keys, after[i].Keys)
		}
		if len(after[i].Tokens[directive]) == 0 {
			t.Errorf("server %q has no dnstrail:\n%s", after[i].Keys, with)
		}
		for name, tokens := range before[i].Tokens {
			if name == directive {
				continue
			}
			if a, b := texts(tokens), texts(after[i].Tokens[name]); a != b {
				t.Errorf("%s: %q became %q", name, a, b)
			}
		}
	}
}

func texts(tokens []caddyfile.Token) string {
	var out []string
	for _, t := range tokens {
		out = append(out, t.Text)
	}
	return strings.Join(out, "\x00")
}

func FuzzAddBlock(f *testing.F) {
	f.Add(kubeadm)
	f.Add("a.test,\nb.test {\n  errors\n}\nimport x\n(s) {\n  log\n}\n")
	f.Add("# a {\n.:53 { # b {\n  template IN A {\n    answer \"{{ .Name }} }\n { 60\"\n  }\n}\n")
	f.Fuzz(func(t *testing.T, corefile string) {
		if strings.Contains(corefile, "import") {
			t.Skip("it would read files")
		}
		changed, added, err := AddBlock(corefile)
		if err != nil {
			return
		}
		if !strings.Contains(corefile, directive) {
			back, removed, err := RemoveBlocks(changed)
			if err != nil || removed != added || back != corefile {
				t.Errorf("%q became %q and then %q, %v", corefile, changed, back, err)
			}
		}
		sameToCaddy(t, corefile)
	})
}
