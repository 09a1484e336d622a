package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	if names, ok := os.LookupEnv(goClientEnv); ok {
		goClient(names)
		return
	}
	os.Exit(m.Run())
}

// Real clients' rows and traces say what a capture in the pod shows.
func TestClients(t *testing.T) {
	bin := os.Getenv("DNSTRAIL_BIN")
	if os.Geteuid() != 0 || bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and DNSTRAIL_BIN (make test-system), and CI=true allows no skip")
		}
		t.Skip("needs root and DNSTRAIL_BIN: make test-system")
	}
	results, err := run(t.Context(), options{bin: bin, only: regexp.MustCompile(""), core: true}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("real clients\n%s", table(results))
	if err := allWrong(results); err != nil {
		t.Error(err)
	}
}
