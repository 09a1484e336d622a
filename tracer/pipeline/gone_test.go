package pipeline_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/tracer/bpf"
)

// TestACgroupThatGoes: a container that ends with its lookup takes its cgroup with it, once its query was read of and
// before the lookup is told. In the node's network nothing else tells its pod.
func TestACgroupThatGoes(t *testing.T) {
	r := raise(t, all)
	root, err := bpf.Cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	const uid = "3f0c2a1e-8d4b-4c6a-9e57-0b1d2c3e4f50"
	//nolint:usetesting // a cgroup can be made in the cgroup hierarchy only
	dir, err := os.MkdirTemp(root, "dnstrail-test-kubepods-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	pod := filepath.Join(dir, "pod"+uid)
	if err := os.Mkdir(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(pod)
	for i := range 10 {
		container := filepath.Join(pod, fmt.Sprintf("%064x", i))
		if err := os.Mkdir(container, 0o755); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("gone%d-%d.test.", i, time.Now().UnixNano())
		var st unix.Stat_t
		if err := unix.Stat(container, &st); err != nil {
			t.Fatal(err)
		}
		out, err := inCgroup(r, container, "dig", "+tries=1", "+time=2", "@10.96.0.10", name)
		r.waitPacket(t, st.Ino)
		if e := os.Remove(container); e != nil {
			t.Fatal(e)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := r.wait(t, name, 1); got.pod != uid {
			t.Errorf("%s is of pod %q (%s), want %s", name, got.pod, got.process, uid)
		}
	}
}

// waitPacket waits until a packet of a cgroup was read of.
func (r *rig) waitPacket(t *testing.T, cgroup uint64) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		read := r.cgroups[cgroup]
		r.mu.Unlock()
		if read {
			return
		}
	}
	t.Fatalf("no packet of cgroup %d", cgroup)
}

// inCgroup runs a program to its end in the client's network and a cgroup.
func inCgroup(r *rig, dir string, program ...string) (string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	cmd := exec.Command(program[0], program[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
	err = r.client.Do(func() error {
		if err := cmd.Start(); err != nil { // a child begins in the namespaces of the thread that starts it
			return err
		}
		return cmd.Wait()
	})
	return out.String(), err
}
