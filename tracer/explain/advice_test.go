package explain

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestEveryCauseHasAdvice reads the causes from their source: a new one without advice fails here.
func TestEveryCauseHasAdvice(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../verdict/verdict.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	well := map[verdict.Cause]bool{verdict.CauseAnswered: true, verdict.CauseCorrected: true}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Cause" {
			return true
		}
		for _, v := range spec.Values {
			text, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			n++
			cause := verdict.Cause(text)
			switch tell := causes[cause]; {
			case well[cause]:
			case tell == nil:
				t.Errorf("nothing is said of %s", cause)
			case len(tell(&scene{})) == 0:
				t.Errorf("%s: no advice", cause)
			}
		}
		return true
	})
	if n < 20 {
		t.Errorf("only %d causes were found in the source", n)
	}
}
