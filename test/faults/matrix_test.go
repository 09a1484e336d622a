package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

func TestMatrix(t *testing.T) {
	bin := os.Getenv("DNSTRAIL_BIN")
	if os.Geteuid() != 0 || bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and DNSTRAIL_BIN (make test-system), and CI=true allows no skip")
		}
		t.Skip("needs root and DNSTRAIL_BIN: make test-system")
	}
	rows, err := run(t.Context(), options{bin: bin, only: regexp.MustCompile(""), v4: true, v6: true}, func(r *row) { t.Log(r.progress()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the fault matrix\n%s", table(rows))
	if err := wrong(rows); err != nil {
		t.Error(err)
	}
}
