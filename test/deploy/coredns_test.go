package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCoreDNSNeedsNoRoot: CoreDNS as its image has it, a user who is not root and a program with the capability to bind
// port 53, serves in a container that has this capability and nothing else, as the Deployments of CoreDNS give it.
func TestCoreDNSNeedsNoRoot(t *testing.T) {
	_, program := agent(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a container")
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("runc is not installed (Debian package runc)")
		}
		t.Skip("runc is not installed (Debian package runc)")
	}
	image, err := os.ReadFile("../../build/image/Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, coredns, _ := strings.Cut(string(image), "AS coredns\n")
	coredns, _, _ = strings.Cut(coredns, "\nFROM ")
	uid, gid := 0, 0
	if _, user, ok := strings.Cut(coredns, "\nUSER "); ok {
		if _, err := fmt.Sscanf(user, "%d:%d\n", &uid, &gid); err != nil {
			t.Fatal(err)
		}
	}
	if uid == 0 {
		t.Fatalf("CoreDNS's image has root for its user:\n%s", coredns)
	}

	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"proc", "sys", "host/cgroup", "etc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil { //nolint:gosec // an image's
			t.Fatal(err)
		}
	}
	binary, err := os.ReadFile(filepath.Join(filepath.Dir(program), "coredns"))
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(rootfs, "coredns")
	if err := os.WriteFile(at, binary, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	corefile := []byte(".:53 {\n whoami\n}\n")
	//nolint:gosec // as it is mounted
	if err := os.WriteFile(filepath.Join(rootfs, "etc/Corefile"), corefile, 0o644); err != nil {
		t.Fatal(err)
	}
	// What setcap cap_net_bind_service=+ep writes: VFS_CAP_REVISION_2, effective (linux/capability.h).
	bind := []byte{1, 0, 0, 2, 0, 1 << (unix.CAP_NET_BIND_SERVICE - 8), 18: 0, 19: 0}
	if err := unix.Setxattr(at, "security.capability", bind, 0); err != nil {
		t.Fatal(err)
	}
	config := spec(t, []string{"CAP_NET_BIND_SERVICE"})
	process := config["process"].(map[string]any)
	process["user"] = map[string]any{"uid": uid, "gid": gid}
	process["args"] = []string{"/coredns", "-conf", "/etc/Corefile"}
	delete(config["linux"].(map[string]any), "seccomp") // the profile is the agent's
	text, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}

	id := fmt.Sprint("dnstrail-coredns-", os.Getpid())
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), runc, "run", "--bundle", bundle, "--pid-file",
		filepath.Join(bundle, "pid"), id)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = exec.CommandContext(context.Background(), runc, "delete", "--force", id).Run() // it is gone if all went well
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v\n%s", err, out.String())
		default:
		}
		pid := 0
		if b, err := os.ReadFile(filepath.Join(bundle, "pid")); err == nil {
			_, _ = fmt.Sscan(string(b), &pid) // 0 while it is being written
		}
		if listens(pid) {
			for _, s := range statuses(t, pid) {
				if s.effective != 1<<unix.CAP_NET_BIND_SERVICE || s.noNewPrivs != 1 {
					t.Errorf("a thread has more or less than it is to have: %+v", s)
				}
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not listen on port 53")
		}
	}
}

// listens says whether a UDP socket in a process's network namespace is bound to port 53.
func listens(pid int) bool {
	for _, table := range []string{"udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err == nil && strings.Contains(string(b), ":0035 ") {
			return true
		}
	}
	return false
}
