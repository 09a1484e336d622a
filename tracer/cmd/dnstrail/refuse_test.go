package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryCommandRefuses: what is not understood is an error that names it, before anything is done. None of it needs root.
func TestEveryCommandRefuses(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "clients.yaml")
	if err := os.WriteFile(bad, []byte("clients:\n- addresses: [10.0.0.1]\n  podd: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ args, want string }{
		{"obser", `unknown command "obser" for "dnstrail"`},
		{"obser", "observe"}, // did you mean
		{"agent x", `unexpected argument "x": dnstrail agent takes flags only`},
		{"store x", `unexpected argument "x": dnstrail store takes flags only`},
		{"doctor x", `unexpected argument "x": dnstrail doctor takes flags only`},
		{"explain x y", "accepts at most 1 arg(s), received 2"},
		{"walk", "want a name, and a type if it is not A"},
		{"walk a b c", "want a name, and a type if it is not A"},
		{"agent --sampel 1", "unknown flag: --sampel"},
		{"store --span 1", "unknown flag: --span"},
		{"walk x --form y", "unknown flag: --form"},
		{"doctor --form y", "unknown flag: --form"},
		{"observe -x", "unknown shorthand flag: 'x' in -x"},
		{"agent --identity-file " + bad, bad + ": line 3: field podd not found"},
		{"observe --identity-file " + bad, bad + ": line 3: field podd not found"},
		{"walk x --identity-file " + bad, bad + ": line 3: field podd not found"},
		{"doctor --identity-file " + bad, bad + ": line 3: field podd not found"},
		{"agent --identity-file " + bad + " --kubeconfig y", "--identity-file and --kubeconfig: want one of them"},
		{"agent --sample 2", `--sample "2": want a number from 0 to 1`},
		{"agent --endpoint collector:4317", `--endpoint: "collector:4317": want http://host:port`},
		{"doctor --endpoint collector:4317", `--endpoint: "collector:4317": want http://host:port`},
		{"agent --slow -1s", "--slow -1s: want 0 or more"},
		{"agent --metrics-clients -1", "--metrics-clients -1: want 0 or more"},
		{"agent --past -1", "--past -1, --past-lost 1024: want 0 or more"},
		{"agent --port 0", "--port 0: want 1 to 65535"},
		{"agent --netns blue", "--netns blue: want an inode number, a path or pid:PID"},
		{"agent --label app", "--label: no cluster is asked"},
		{"observe --give-up 0", "--give-up 0s: want more than 0"},
		{"observe --ring-size 3", "--ring-size 3: want a power of two"},
		{"observe --slow fast", `invalid argument "fast" for "--slow" flag`},
		{"store --spans 0", "--spans 0: want more than 0"},
		{"store --grpc= --http=", "--grpc and --http are both empty"},
		{"store --api nowhere", "--api: listen tcp: address nowhere: missing port"},
		{"walk x nope", `"nope" is no type`},
		{"walk x --jaeger ftp://y", "--jaeger"},
		{"doctor --timeout 0", "--timeout 0s: want more than 0"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			out, err := run(strings.Fields(tc.args)...)
			if err == nil || !strings.Contains(err.Error(), tc.want) || out != "" {
				t.Errorf("error %v, want %q; output %q", err, tc.want, out)
			}
		})
	}
}

func TestFold(t *testing.T) {
	got := fold("one two\nthree four five\n\nsix", 9)
	if want := "one two\nthree\nfour five\n\nsix"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
