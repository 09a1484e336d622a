package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryCommandRefuses: what is not understood is an error that names it, before anything is done. None of it needs
// root.
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
		{"agent --sample 2", "--sample: '2' is not a ratio; want a number from 0 to 1"},
		{"agent --endpoint collector:4317", `--endpoint: 'collector:4317' is not an endpoint; want none, or a URL`},
		{"doctor --endpoint collector:4317", `--endpoint: 'collector:4317' is not an endpoint; want none, or a URL`},
		{"agent --slow -1s", "--slow -1s: want 0 or more"},
		{"agent --metrics-clients -1", "--metrics-clients -1: want 0 or more"},
		{"agent --past -1", "--past -1, --past-lost 1024: want 0 or more"},
		{"agent --port 0", "--port 0: want 1 to 65535"},
		{"agent --netns blue", "--netns blue: want an inode number, a path or pid:PID"},
		{"agent --label app", "--label: no cluster is asked"},
		{"observe --give-up 0", "--give-up 0s: want more than 0"},
		{"observe --ring-size 3", "--ring-size 3: want a power of two"},
		{"observe --slow fast", `invalid argument "fast" for "--slow" flag`},
		{"report x", `unexpected argument "x": dnstrail report takes flags only`},
		{"report --from rows --store x", "--store and --from: want one of them"},
		{"report --from rows --port 53", "--port is for watching the kernel here, and does not go with --from"},
		{"report --from rows --for 1m", "--for does not go with --from"},
		{"report --here --since 1m", "--since does not go with watching this host"},
		{"report --from /nonexistent", "open /nonexistent"},
		{"report --from " + bad, "line 1: no row of observe -o jsonl"},
		{"report --since 0", "--since 0s, --for 0s: want more than 0"},
		{"report -o yaml --here", `--output "yaml": want text, html or json`},
		{"report --where nowhere", "--where nowhere: want one of"},
		{"top --by color", `--by "color": want one of client, pod, name`},
		{"top --sort color", `--sort "color": want one of rate, time, failures`},
		{"top --once --for 1s", "--once and --for: want one of them"},
		{"top --window 1s --for 1s", "--window and --for: want one of them"},
		{"top --once --here", "--once needs --socket, --store or a cluster"},
		{"top --from rows --every 1s", "--every does not go with --from"},
		{"top --lines -1", "--lines -1: want 0 or more"},
		{"top --slow fast", `invalid argument "fast" for "--slow" flag`},
		{"store --spans 0", "--spans 0: want more than 0"},
		{"store --grpc= --http=", "--grpc and --http are both empty"},
		{"store --grpc 127.0.0.1:0 --http= --api :0", "--api :0: others than this machine can reach it"},
		{"store --memory 1GB", "want a number of bytes"},
		{"store --otlp-token-file /nonexistent", "--otlp-token-file: stat /nonexistent"},
		{"store --tls-client-ca /nonexistent", "clients' certificates need a certificate and key"},
		{"store --reviews", "--reviews: unable to load in-cluster configuration"},
		{"explain --lost --token-file /nonexistent", "--token-file: open /nonexistent"},
		{"store --api nowhere", "--api: listen tcp: address nowhere: missing port"},
		{"walk x nope", `"nope" is no type`},
		{"walk x --context c --here", "--context is for a walk in a cluster"},
		{"walk x --context c --port 54", "--context is for a walk in a cluster"},
		{"walk x --context c", "no kubeconfig names a cluster"},
		{"doctor --context c --from shop/cart", "--context is for a cluster"},
		{"doctor --context c", "no kubeconfig names a cluster"},
		{"doctor -o yaml", `--output "yaml": want text or json`},
		{"walk x --jaeger ftp://y", "--jaeger"},
		{"install x", `unexpected argument "x": dnstrail install takes flags only`},
		{"install", "no kubeconfig names a cluster: set KUBECONFIG, or give --kubeconfig"},
		{"install --kubeconfig " + bad, "no kubeconfig names a cluster"},
		{"uninstall --image y", "unknown flag: --image"},
		{"upgrade --context other", "no kubeconfig names a cluster"},
		{"status", "no kubeconfig names a cluster"},
		{"observe --context other", "no kubeconfig names a cluster"},
		{"doctor --timeout 0", "--timeout 0s: want more than 0"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			t.Setenv("KUBECONFIG", "/none")
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
