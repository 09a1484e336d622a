package origin

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const uid = "5e2a0000-0000-4000-8000-000000000001"
	for _, c := range []struct{ name, path, pod, container string }{
		{"systemd, containerd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5e2a0000_0000_4000_8000_000000000001.slice/cri-containerd-" + id + ".scope", uid, id},
		{"systemd, guaranteed", "/kubepods.slice/kubepods-pod5e2a0000_0000_4000_8000_000000000001.slice/crio-" + id + ".scope", uid, id},
		{"cgroupfs", "/kubepods/besteffort/pod" + uid + "/" + id, uid, id},
		{"a cgroup of the container's own below", "/kubepods/pod" + uid + "/" + id + "/app", uid, id},
		{"static pod", "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/" + id, "0123456789abcdef0123456789abcdef", id},
		{"nested in a node's container", "/docker/" + id + "/kubelet/kubepods/pod" + uid + "/" + id, uid, id},
		{"the pod itself", "/kubepods/pod" + uid, uid, ""},
		{"no pod", "/system.slice/sshd.service", "", ""},
		{"the root", "/", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if pod, container := ParseCgroup(c.path); pod != c.pod || container != c.container {
				t.Errorf("%q, %q, want %q, %q", pod, container, c.pod, c.container)
			}
		})
	}
}

func TestPathByID(t *testing.T) {
	const root = "/sys/fs/cgroup/unified"
	if os.Getuid() != 0 {
		t.Skip("needs root to make a cgroup")
	}
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("cgroup v2 is not mounted at " + root)
		}
		t.Skip("cgroup v2 is not mounted at " + root)
	}
	dir, err := os.MkdirTemp(root, "dnstrail-test-") //nolint:usetesting // a cgroup can be made in the cgroup hierarchy only
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	c, err := OpenCgroups(root)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := strings.TrimPrefix(dir, root)
	if got := c.Path(st.Ino); got != want {
		t.Errorf("path %q, want %q", got, want)
	}
	if got := c.walk(st.Ino); got != want {
		t.Errorf("path by walking %q, want %q", got, want)
	}
}
