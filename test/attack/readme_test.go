package attack

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEachAttackHasItsTest: the README names a test of each attack, and all of these exist.
func TestEachAttackHasItsTest(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (S\d+|all) \|.*\| ([^|]+) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) != 12 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		tests := regexp.MustCompile("`([^`]+)` (Test\\w+)").FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 {
			t.Errorf("%s has no test", row[1])
		}
		for _, test := range tests {
			files, err := filepath.Glob(filepath.Join("../..", test[1], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, file := range files {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				found = found || strings.Contains(string(b), "func "+test[2]+"(t *testing.T)")
			}
			if !found {
				t.Errorf("%s: there is no %s in %s", row[1], test[2], test[1])
			}
		}
	}
}
