// Package deploy runs the built programs as the manifests of build/ would have them run.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/dnstrail/dnstrail/tracer/bpf"
)

// agent gives the agent's container of the manifest and the built program.
func agent(t *testing.T) (corev1.Container, string) {
	t.Helper()
	bin := os.Getenv("DNSTRAIL_BIN")
	if bin == "" {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatal("DNSTRAIL_BIN is not set")
		}
		t.Skip("DNSTRAIL_BIN is not set: make test-system builds the programs and runs this")
	}
	b, err := os.ReadFile("../../build/kubernetes/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(b), "\n---\n") {
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := o.(*appsv1.DaemonSet); ok {
			return d.Spec.Template.Spec.Containers[0], filepath.Join(bin, "dnstrail")
		}
	}
	t.Fatal("no DaemonSet in the manifest")
	return corev1.Container{}, ""
}

func TestAgentHasTheFlagsOfTheManifest(t *testing.T) {
	c, program := agent(t)
	help, err := exec.Command(program, "agent", "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Args[1:] {
		flag, _, _ := strings.Cut(a, "=")
		if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\b`).Match(help) {
			t.Errorf("dnstrail agent has no flag %s", flag)
		}
	}
}

// The agent runs, and sees a lookup, with the capabilities of the manifest and no others, in cgroup, mount and network
// namespaces of its own, with the host's cgroups mounted read-only beside its own.
func TestAgentRunsWithTheCapabilitiesOfTheManifest(t *testing.T) {
	c, program := agent(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give up all but a few of its rights")
	}
	root, err := bpf.Cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	caps := "-all"
	for _, name := range c.SecurityContext.Capabilities.Add {
		caps += ",+" + strings.ToLower(string(name))
	}
	own := filepath.Join(root, "dnstrail-deploy-test", "container")
	if err := os.MkdirAll(own, 0o755); err != nil { //nolint:gosec // as the kubelet makes them
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{own, filepath.Dir(own)} {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	// The shell first joins the cgroup, so that it is the root of the namespace that unshare makes.
	cmd := exec.Command("sh", "-c", `set -e
echo $$ >"$OWN/cgroup.procs"
exec unshare --cgroup --mount --net sh -c '
mkdir "$DIR/host" "$DIR/own"
mount --bind "$ROOT" "$DIR/host"
mount -o remount,bind,ro "$DIR/host"
umount "$ROOT"
mount -t cgroup2 none "$DIR/own"
ip link set lo up
(while sleep 1; do dig +tries=1 +time=1 @127.0.0.1 a.example; done) >/dev/null 2>&1 &
ASKING=$!
setpriv --no-new-privs --bounding-set="$CAPS" --inh-caps=-all timeout -s INT 10 \
	"$PROGRAM" agent --endpoint=http://127.0.0.1:1 || test $? = 124
kill $ASKING'`)
	cmd.Env = append(os.Environ(), "OWN="+own, "ROOT="+root, "DIR="+t.TempDir(), "CAPS="+caps, "PROGRAM="+program)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// What the kernel does not have is missing whoever runs the agent.
	all := exec.Command("timeout", "-s", "INT", "3", program, "agent", "--endpoint=http://127.0.0.1:1")
	withAll, err := all.CombinedOutput()
	if code := all.ProcessState.ExitCode(); code != 0 && code != 124 {
		t.Fatalf("%v\n%s", err, withAll)
	}
	if got, want := missing(string(out)), missing(string(withAll)); !slices.Equal(got, want) {
		t.Errorf("the agent does without %q, with all capabilities without %q:\n%s", got, want, out)
	}
	if m := regexp.MustCompile(`(\d+) lookups, (\d+) kernel events`).FindStringSubmatch(string(out)); m == nil ||
		m[1] == "0" || m[2] == "0" {
		t.Errorf("the agent saw no lookup:\n%s", out)
	}
}

// missing gives the lines in which an agent says what it does without.
func missing(out string) (lines []string) {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "dnstrail: without") {
			lines = append(lines, line)
		}
	}
	return lines
}
