package render

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/dnstrail/dnstrail/tracer/explain"
)

// TestPageIsSelfContainedAndEscaped: whatever stands in a span, the page loads nothing and runs nothing.
func TestPageIsSelfContainedAndEscaped(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			tr := read(t, input)
			for _, s := range tr.Spans { // every string that a sender chooses
				s.Name += `<script>alert(1)</script>"'><img src=http://192.0.2.1/x onerror=alert(1)>`
				for i := range s.Attributes {
					if v, ok := s.Attributes[i].Value.(string); ok && strings.HasPrefix(s.Attributes[i].Key, "dns.question.name") {
						s.Attributes[i].Value = v + `</style></title><script>alert(1)</script>`
					}
				}
			}
			var out bytes.Buffer
			if err := Page(&out, explain.Tell(tr, nil), Options{}); err != nil {
				t.Fatal(err)
			}
			doc, err := html.Parse(&out)
			if err != nil {
				t.Fatal(err)
			}
			rows := 0
			for n := range doc.Descendants() {
				if n.Type != html.ElementNode {
					continue
				}
				switch n.Data {
				case "script", "img", "iframe", "object", "form":
					t.Errorf("a <%s> stands in the page", n.Data)
				}
				for _, a := range n.Attr {
					if strings.HasPrefix(a.Key, "on") || (a.Key == "href" || a.Key == "src") && a.Val != "data:," {
						t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
					}
					if a.Key == "class" && strings.Contains(" "+a.Val+" ", " row ") {
						rows++
					}
				}
			}
			if rows < len(tr.Spans) {
				t.Errorf("%d rows for %d spans", rows, len(tr.Spans))
			}
		})
	}
}

// The page for a browser to check: see test/browser.
func TestWritePage(t *testing.T) {
	dir := os.Getenv("DNSTRAIL_PAGES")
	if dir == "" {
		t.Skip("DNSTRAIL_PAGES names no directory")
	}
	for _, name := range []string{"lost-between-nodes", "slow-upstream"} {
		f, err := os.Create(filepath.Join(dir, name+".html"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Page(f, explain.Tell(read(t, "testdata/"+name+".json"), nil), Options{}); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
