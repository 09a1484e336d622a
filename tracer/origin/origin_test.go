package origin

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/identity"

	"golang.org/x/sys/unix"
)

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const uid = "5e2a0000-0000-4000-8000-000000000001"
	for _, c := range []struct{ name, path, pod, container string }{
		{"systemd, containerd",
			"/kubepods.slice/kubepods-burstable.slice/" +
				"kubepods-burstable-pod5e2a0000_0000_4000_8000_000000000001.slice/cri-containerd-" + id + ".scope", uid, id},
		{"systemd, guaranteed", "/kubepods.slice/kubepods-pod5e2a0000_0000_4000_8000_000000000001.slice/crio-" + id +
			".scope", uid, id},
		{"cgroupfs", "/kubepods/besteffort/pod" + uid + "/" + id, uid, id},
		{"a cgroup of the container's own below", "/kubepods/pod" + uid + "/" + id + "/app", uid, id},
		{"static pod", "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/" + id, "0123456789abcdef0123456789abcdef",
			id},
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
	//nolint:usetesting // a cgroup can be made in the cgroup hierarchy only
	dir, err := os.MkdirTemp(root, "dnstrail-test-")
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

// TestWhoAsked: by what each place tells, the surest first.
func TestWhoAsked(t *testing.T) {
	const podUID, otherUID = "5e2a0000-0000-4000-8000-000000000001", "5e2a0000-0000-4000-8000-000000000002"
	path := filepath.Join(t.TempDir(), "clients.yaml")
	text := "clients:\n- {addresses: [10.0.0.1], namespace: shop, pod: cart}\n- {uid: " + podUID +
		", namespace: shop, pod: static}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := identity.OpenFile(path, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	inside := map[uint32]*identity.Client{
		1: identity.NewClient(identity.Description{Kind: identity.Pod, Namespace: "shop", Pod: "stub", UID: otherUID}),
		2: identity.NewClient(identity.Description{Kind: identity.Node, Node: "node-1"}),
	}
	cgroups := &Cgroups{paths: map[uint64]string{
		1: "/kubepods/pod" + podUID, 2: "/kubepods/pod" + otherUID, 3: "/system.slice/sshd.service",
	}}
	for _, c := range []struct {
		name   string
		addr   string
		netns  uint32
		cgroup uint64
		want   string
	}{
		{"by the address", "10.0.0.1", 9, 0, "pod shop/cart"},
		{"by the address, whatever its namespace", "10.0.0.1", 1, 0, "pod shop/cart"},
		{"by the cgroup, whatever the address", "10.0.0.1", 1, 1, "pod shop/static"},
		{"a stub in the pod: by the namespace", "127.0.0.1", 1, 0, "pod shop/stub"},
		{"the same with a cgroup that tells its pod", "127.0.0.53", 1, 2, "pod shop/stub"},
		{"an address that nobody has told, in a pod", "192.0.2.1", 1, 0, "pod shop/stub"},
		{"a stub on the node", "127.0.0.53", 2, 3, "node node-1"},
		{"in a namespace of which nothing is known", "127.0.0.1", 9, 0, "unknown 127.0.0.1"},
		{"where the sender was not seen", "127.0.0.1", 0, 0, "unknown 127.0.0.1"},
	} {
		r := Resolver{
			Index: file.Index(), Cgroups: cgroups, InNetNS: func(n uint32) *identity.Client { return inside[n] },
		}
		o := r.find(cacheKey{addr: netip.MustParseAddr(c.addr), netns: c.netns, cgroup: c.cgroup})
		if got := o.Kind.String() + " " + o.Name(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
