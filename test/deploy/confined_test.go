package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// profile is the seccomp profile that is shipped for the agent.
const profile = "../../build/kubernetes/seccomp-agent.json"

// spec gives the container that a runtime makes of the manifest and the profile (OCI runtime specification,
// config.json).
func spec(t *testing.T, capabilities []string, args ...string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	var seccomp map[string]any
	if err := json.Unmarshal(b, &seccomp); err != nil {
		t.Fatal(err)
	}
	mount := func(at, kind, source string, options ...string) map[string]any {
		return map[string]any{"destination": at, "type": kind, "source": source, "options": options}
	}
	namespaces := []any{}
	for _, n := range []string{"pid", "network", "ipc", "uts", "mount", "cgroup"} {
		namespaces = append(namespaces, map[string]any{"type": n})
	}
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0}, "cwd": "/", "args": append([]string{"/dnstrail"}, args...),
			"env": []string{"NODE_NAME=node-1"}, "noNewPrivileges": true,
			"capabilities": map[string]any{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"root": map[string]any{"path": "rootfs", "readonly": true},
		"mounts": []any{
			mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
			mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
			mount("/host/cgroup", "none", "/sys/fs/cgroup", "rbind", "ro"),
		},
		"linux": map[string]any{
			"namespaces": namespaces, "seccomp": seccomp,
			// What Kubernetes' runtimes hide (k8s.io/kubernetes/pkg/securitycontext).
			"maskedPaths": []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
				"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
			},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// TestAgentRunsUnderItsSeccompProfile: in a container as a runtime makes it of the manifest, with the shipped seccomp
// profile and a root that cannot be written to, the agent sees a lookup and does without nothing. Once it runs, no
// thread of it has the capabilities that loading needed.
func TestAgentRunsUnderItsSeccompProfile(t *testing.T) {
	c, program := agent(t)
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
	bundle := t.TempDir()
	for _, dir := range []string{"proc", "sys", "host/cgroup", "tmp", "dev"} {
		if err := os.MkdirAll(filepath.Join(bundle, "rootfs", dir), 0o755); err != nil { //nolint:gosec // an image's
			t.Fatal(err)
		}
	}
	binary, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "rootfs/dnstrail"), binary, 0o755) //nolint:gosec // a program
	}
	if err != nil {
		t.Fatal(err)
	}
	var capabilities []string
	for _, name := range c.SecurityContext.Capabilities.Add {
		capabilities = append(capabilities, "CAP_"+string(name))
	}
	config, err := json.Marshal(spec(t, capabilities, "agent", "--endpoint=none", "--metrics-address=127.0.0.1:9154"))
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint("dnstrail-deploy-", os.Getpid())
	pidFile := filepath.Join(bundle, "pid")
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), runc, "run", "--bundle", bundle, "--pid-file", pidFile, id)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = exec.CommandContext(context.Background(), runc, "delete", "--force", id).Run() // it is gone if all went well
	})
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("it ended before %s: %v\n%s", what, err, out.String())
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("no %s", what)
			}
		}
	}
	pid := 0
	await("process", func() bool {
		b, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err == nil
	})
	// Its programs are attached and what it needs no more is given up when no thread has CAP_NET_ADMIN.
	var threads []status
	await("giving up of capabilities", func() bool {
		threads = statuses(t, pid)
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(s status) bool { return s.has(unix.CAP_NET_ADMIN) })
	})
	for _, s := range threads {
		for _, gone := range []int{unix.CAP_NET_ADMIN, unix.CAP_PERFMON} {
			if s.has(gone) {
				t.Errorf("a thread has capability %d: %+v", gone, s)
			}
		}
		if !s.has(unix.CAP_DAC_READ_SEARCH) || !s.has(unix.CAP_SYSLOG) {
			t.Errorf("a thread lacks what is used while it runs: %+v", s)
		}
		if s.seccomp != 2 || s.noNewPrivs != 1 {
			t.Errorf("a thread is not confined: %+v", s)
		}
	}
	for range 5 {
		query(t)
		time.Sleep(200 * time.Millisecond)
	}
	if err := unix.Kill(pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v\n%s", err, out.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	text := out.String()
	m := regexp.MustCompile(`(\d+) lookups, (\d+) kernel events`).FindStringSubmatch(text)
	if m == nil || m[1] == "0" || m[2] == "0" {
		t.Errorf("the agent saw no lookup:\n%s", text)
	}
	all := exec.CommandContext(t.Context(), "timeout", "-s", "INT", "3", program, "agent", "--endpoint=none")
	withAll, err := all.CombinedOutput()
	if code := all.ProcessState.ExitCode(); code != 0 && code != 124 {
		t.Fatalf("%v\n%s", err, withAll)
	}
	if got, want := missing(text), missing(string(withAll)); !slices.Equal(got, want) {
		t.Errorf("the agent does without %q, unconfined without %q:\n%s", got, want, text)
	}
}

// query asks the loopback address, of which nobody need answer.
func query(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	message := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01")
	if _, err := conn.Write(message); err != nil && !strings.Contains(err.Error(), "refused") {
		t.Fatal(err)
	}
}

// status is what /proc tells of a thread.
type status struct {
	permitted, effective uint64
	seccomp, noNewPrivs  int
}

func (s status) has(capability int) bool { return (s.permitted|s.effective)&(1<<capability) != 0 }

func statuses(t *testing.T, pid int) (all []status) {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		var s status
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch name {
			case "CapPrm":
				s.permitted, err = strconv.ParseUint(value, 16, 64)
			case "CapEff":
				s.effective, err = strconv.ParseUint(value, 16, 64)
			case "Seccomp":
				s.seccomp, err = strconv.Atoi(value)
			case "NoNewPrivs":
				s.noNewPrivs, err = strconv.Atoi(value)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, s)
	}
	return all
}

// TestProfileLetsNobodyOut: what would lead out of the container, or change the host, is not among what the profile
// allows, whatever else a new agent needs.
func TestProfileLetsNobodyOut(t *testing.T) {
	b, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		DefaultAction string
		Syscalls      []struct {
			Action string
			Names  []string
		}
	}
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" || len(p.Syscalls) == 0 {
		t.Errorf("%s, %d rules", p.DefaultAction, len(p.Syscalls))
	}
	refused := []string{
		"add_key", "clone3", "delete_module", "finit_module", "init_module", "io_uring_setup", "kexec_load", "keyctl",
		"mount",
		"move_mount", "open_tree", "personality", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "reboot",
		"setns", "settimeofday", "swapon", "umount2", "unshare", "userfaultfd",
	}
	for _, rule := range p.Syscalls {
		if rule.Action != "SCMP_ACT_ALLOW" {
			t.Errorf("a rule of %s", rule.Action)
		}
		if !slices.IsSorted(rule.Names) {
			t.Error("the names are not in order")
		}
		for _, name := range refused {
			if slices.Contains(rule.Names, name) {
				t.Errorf("%s is allowed", name)
			}
		}
	}
}
