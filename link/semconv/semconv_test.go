package semconv

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/attributes.md anew")

func TestListIsSound(t *testing.T) {
	types := map[string]bool{"string": true, "int": true, "double": true, "boolean": true, "string[]": true,
		"template": true}
	seen := map[string]bool{}
	for _, a := range All {
		switch {
		case seen[a.Name]:
			t.Errorf("%s stands twice", a.Name)
		case !types[a.Type]:
			t.Errorf("%s: type %q", a.Name, a.Type)
		case strings.HasPrefix(a.Name, "dnstrail.") != (a.Origin == Own):
			t.Errorf("%s: origin %q", a.Name, a.Origin)
		case strings.HasSuffix(a.Name, ".") != (a.Type == "template"):
			t.Errorf("%s: a name that ends in a dot is a template, and the other way round", a.Name)
		case !strings.HasSuffix(a.Brief, "."):
			t.Errorf("%s: brief %q is not a sentence", a.Name, a.Brief)
		}
		seen[a.Name] = true
	}
}

// docs/attributes.md is the list for people; it is generated, and must match.
func TestDocument(t *testing.T) {
	const file = "../../docs/attributes.md"
	var b bytes.Buffer
	fmt.Fprintf(&b, "<!-- Generated from link/semconv/semconv.go by `go test ./link/semconv -update`; do not edit. "+
		"-->\n\n# Attributes\n\n"+
		"What the spans and resources of dnstrail carry. Names follow OpenTelemetry's semantic conventions %s "+
		"where they have one,\n"+
		"open-telemetry/semantic-conventions#2432 where they do not yet, and are `dnstrail.*` for the rest.\n", Version)
	for _, o := range []Origin{Standard, Proposed, Own} {
		fmt.Fprintf(&b, "\n## From %s\n\n| name | type | value |\n| --- | --- | --- |\n", o)
		for _, a := range All {
			if a.Origin != o {
				continue
			}
			name := a.Name
			if a.Type == "template" {
				name += "<key>"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, a.Type, a.Brief)
		}
	}
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s does not match the list; run: go test ./link/semconv -update", file)
	}
}
