package podns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/identity"
)

const uid = "3f0c2a1e-8d4b-4c6a-9e57-0b1d2c3e4f50"

// fakeProc gives a /proc with processes as a node has them: what only a kubelet and two nodes' worth of pods would give
// otherwise.
func fakeProc(t *testing.T) string {
	t.Helper()
	proc := t.TempDir()
	write := func(pid int, file, text string) {
		path := filepath.Join(proc, strconv.Itoa(pid), file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Two processes of a pod share a namespace: a hard link has the same inode.
	write(10, "ns/net", "")
	write(11, "comm", "server\n")
	if err := os.Mkdir(filepath.Join(proc, "11/ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(proc, "10/ns/net"), filepath.Join(proc, "11/ns/net")); err != nil {
		t.Fatal(err)
	}
	write(10, "comm", "pause\n")
	for _, pid := range []int{10, 11} {
		write(pid, "cgroup", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"+
			strings.ReplaceAll(uid, "-", "_")+
			".slice/cri-containerd-"+strings.Repeat("ab", 32)+".scope\n")
		write(pid, "root/etc/hostname", "cart-1\n")
		write(pid, "net/fib_trie", "Main:\n  +-- 10.244.1.0/24 2 0 2\n     |-- 10.244.1.0\n        /24 link UNICAST\n    "+
			" |-- 10.244.1.10\n        /32 host LOCAL\n")
		write(pid, "net/if_inet6", "fd000010024400010000000000000010 02 40 00 80     eth0\n")
	}
	for i, pid := range []int{20, 30} { // two pods with one host name
		write(pid, "ns/net", "")
		write(pid, "comm", "web\n")
		write(pid, "cgroup", "0::/\n")
		write(pid, "root/etc/hostname", "web-0\n")
		write(pid, "net/fib_trie", "     |-- 10.244.1.2"+strconv.Itoa(i)+"\n        /32 host LOCAL\n")
		write(pid, "net/if_inet6", "")
	}
	return proc
}

func TestFind(t *testing.T) {
	proc := fakeProc(t)
	path := filepath.Join(t.TempDir(), "clients.yaml")
	text := "clients:\n- addresses: [10.244.1.10]\n  namespace: shop\n  pod: cart-1\n  uid: " + uid + "\n  node: node-1\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := identity.OpenFile(path, 0, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tc := range []struct {
		from, name string
		pid        int
		err        string
	}{
		{from: "shop/cart-1", name: "shop/cart-1", pid: 10},
		{from: "cart-1", name: "shop/cart-1", pid: 10},
		{from: "10.244.1.10", name: "10.244.1.10", pid: 10},
		{from: "fd00:10:244:1::10", name: "fd00:10:244:1::10", pid: 10},
		{from: "10.244.1.21", name: "10.244.1.21", pid: 30},
		{from: "pid:11", name: "server", pid: 11},
		{from: "other/cart-1", err: ErrNotFound.Error()},
		{from: "cart-2", err: ErrNotFound.Error()},
		{from: "10.244.1.0", err: ErrNotFound.Error()},
		{from: "web-0", err: "more than one: web-0 (pid:20), web-0 (pid:30)"},
		{from: "pid:x", err: "want pid:PID"},
		{from: "pid:99", err: "no such file"},
	} {
		t.Run(tc.from, func(t *testing.T) {
			got, err := find(proc, tc.from, file.Index())
			switch {
			case tc.err != "":
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%+v, %v; want error %q", got, err, tc.err)
				}
			case err != nil || got.PID != tc.pid || got.Name != tc.name || got.NetNS == 0:
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	if _, err := find(proc, "shop/cart-1", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("found a namespace that nobody knows: %v", err)
	}
	if got, err := find(proc, "cart-1", nil); err != nil || got.PID != 10 {
		t.Errorf("by host name: %+v, %v", got, err)
	}
}

func TestSelf(t *testing.T) {
	p, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if !hasAddress("/proc/self/net", prefix.Addr()) {
			t.Errorf("%v is not seen as this namespace's own", prefix.Addr())
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("entering a namespace needs root")
	}
	ran := false
	if err := p.Do(func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("%v, ran: %v", err, ran)
	}
}

// TestOwners: whose the namespaces are, by what each of them tells.
func TestOwners(t *testing.T) {
	proc, named := fakeProc(t), t.TempDir()
	file := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file(filepath.Join(proc, "1/ns/net"))
	file(filepath.Join(named, "blue"))
	path := filepath.Join(t.TempDir(), "clients.yaml")
	text := "clients:\n- {namespace: shop, pod: cart-1, uid: " + uid + "}\n- {addresses: [10.244.1.21], node: node-7}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ids, err := identity.OpenFile(path, 0, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer ids.Close()
	n := &Names{proc: proc, named: named, index: ids.Index(), node: "node-1"}
	if err := n.look(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(proc, "1/ns/net"):  "on node node-1",
		filepath.Join(proc, "11/ns/net"): "in pod shop/cart-1", // by its UID
		filepath.Join(proc, "20/ns/net"): "in the network namespace of web (pid 20)",
		filepath.Join(proc, "30/ns/net"): "on node node-7", // by its address
		filepath.Join(named, "blue"):     "in network namespace blue",
	} {
		netns, err := inodeAt(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.Owner(netns).On(); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]string{
		filepath.Join(proc, "1/ns/net"):  "node-1",
		filepath.Join(proc, "11/ns/net"): "cart-1",
		filepath.Join(proc, "20/ns/net"): "",
		filepath.Join(proc, "30/ns/net"): "node-7",
		filepath.Join(named, "blue"):     "",
	} {
		netns, err := inodeAt(path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if c := n.Client(netns); c != nil {
			got = c.Pod() + c.Node()
		}
		if got != want {
			t.Errorf("%s: the client is %q, want %q", path, got, want)
		}
	}
	if got := n.Owner(1).On(); got != "" {
		t.Errorf("%q of a namespace that nobody knows", got)
	}
	// A number whose namespace has gone may be another's by now.
	gone := filepath.Join(proc, "30/ns/net")
	netns, err := inodeAt(gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if got := n.Owner(netns).On(); got != "" {
		t.Errorf("%q of a namespace that has gone", got)
	}
}

// TestStarted: by this test's own process, whose name may have brackets and spaces in it.
func TestStarted(t *testing.T) {
	own := started("/proc", os.Getpid())
	if own == 0 || own < started("/proc", 1) {
		t.Errorf("this process began at tick %d, process 1 at %d", own, started("/proc", 1))
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "7"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"
	if err := os.WriteFile(filepath.Join(dir, "7/stat"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := started(dir, 7); got != 4711 {
		t.Errorf("%d, want 4711", got)
	}
}

// BenchmarkLook: through this host's own /proc.
func BenchmarkLook(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := owners("/proc", namedDir, nil, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOn: a namespace that is known, as it is asked for each lookup that was lost.
func BenchmarkOn(b *testing.B) {
	n, err := NewNames(nil, "node-1")
	if err != nil {
		b.Fatal(err)
	}
	host, err := inode("/proc", os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if n.Owner(host).On() == "" {
			b.Fatal("this host is not known")
		}
	}
}

// An agent's pod has no CAP_SYS_ADMIN, and doctor and walk look from where they are there. The test calls itself, for
// it gives its rights up.
func TestDoNeedsNoRightInItsOwnNamespace(t *testing.T) {
	const inside = "PODNS_TEST_WITHOUT_RIGHTS"
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if os.Geteuid() == 0 {
		if err := syscall.Setuid(65534); err != nil {
			t.Fatal(err)
		}
	}
	p, err := place("/proc", os.Getpid(), "this host")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	if err := unix.Setns(int(self.Fd()), unix.CLONE_NEWNET); !errors.Is(err, unix.EPERM) {
		t.Fatalf("this process may enter a namespace: %v", err)
	}
	want := errors.New("what f gives")
	if err := p.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do gives %v, want %v", err, want)
	}
}
