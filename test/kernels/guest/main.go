// Command guest is the first process of a machine that was booted to try dnstrail on its kernel (test/kernels): it
// makes the machine ready, does its job and switches it off.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/kernels/job"
	"github.com/dnstrail/dnstrail/tracer/bpf"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a machine, see test/kernels")
		os.Exit(2)
	}
	if err := begin(); err != nil {
		say(&job.Record{Problem: err.Error()})
	}
	say(&job.Record{End: true})
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // if the first process ends, the kernel panics, and what it printed is lost
}

func say(r *job.Record) { fmt.Println(r.Line()) }

// begin mounts what every process expects to be mounted, and goes on as a new program: packages look at /proc as soon
// as they are there.
func begin() error {
	if len(os.Args) > 1 && os.Args[1] == mounted {
		return run()
	}
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", ""},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", "/run", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s at %s: %w", m.kind, m.at, err)
		}
	}
	env := []string{"PATH=/bin:/usr/bin:/p", "HOME=/root", "TMPDIR=/tmp", "NO_COLOR=1"}
	return unix.Exec("/p/guest", []string{"guest", mounted}, env)
}

// mounted is the argument of the program that goes on.
const mounted = "mounted"

func run() error {
	text, err := os.ReadFile(job.Path)
	if err != nil {
		return err
	}
	var j job.Job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("%s: %w", job.Path, err)
	}
	say(&job.Record{Boot: boot()})
	loadModules()
	// The lab brings devices of its own up; of the machine itself that is the loopback device.
	for _, args := range [][]string{{"ip", "link", "set", "lo", "up"}, {"hostname", "guest"}} {
		if out, err := exec.Command("busybox", args...).CombinedOutput(); err != nil { // #nosec G204 -- constants
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	// is so already where the kernel knows no other way
	_ = os.WriteFile("/proc/sys/net/core/bpf_jit_enable", []byte("1"), 0)
	said := complaints()
	loaded := load()
	say(&job.Record{Load: loaded})
	if j.Doctor {
		// no DNS server can be asked here: its status says so
		out, _ := exec.Command("/p/dnstrail", "doctor").CombinedOutput()
		say(&job.Record{Doctor: &job.Doctor{Text: string(out)}})
	}
	if j.Demo {
		say(&job.Record{Demo: demo()})
	}
	for _, args := range j.Faults {
		if loaded.InfersCauses() {
			args = append(args, "-infer")
		}
		faults(args)
	}
	if j.Paths != "" {
		args := []string{"-bin", "/p", "-slow", "4", "-run", j.Paths}
		if loaded.InfersCauses() {
			args = append(args, "-infer")
		}
		// What is wrong with a path stands in its row.
		if out, err := passOn("/p/paths", args...); !strings.Contains(out, job.Marker) {
			say(&job.Record{Problem: fmt.Sprintf("no data path was tried: %v", err)})
		}
	}
	if lines := complaints()[len(said):]; len(lines) > 0 {
		say(&job.Record{Kernel: &job.Kernel{Lines: lines}})
	}
	return nil
}

func boot() *job.Boot {
	var b job.Boot
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		b.Release = unix.ByteSliceToString(u.Release[:])
	}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
		b.Seconds = float64(ts.Nano()) / 1e9
	}
	return &b
}

// loadModules loads all modules that there are, in the order of their list.
func loadModules() {
	list, err := os.ReadFile("/modules/list")
	if err != nil {
		say(&job.Record{Problem: err.Error()})
		return
	}
	for m := range strings.FieldsSeq(string(list)) {
		data, err := os.ReadFile("/modules/" + m + ".ko") // #nosec G304 -- of the list
		if err == nil {
			err = unix.InitModule(data, "")
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			say(&job.Record{Problem: "module " + m + ": " + err.Error()})
		}
	}
}

// load loads and attaches the eBPF programs, and looks at what the kernel made of them.
func load() *job.Load {
	var l job.Load
	begin := time.Now()
	t, err := bpf.Open(bpf.Options{})
	l.Milliseconds = time.Since(begin).Milliseconds()
	if err != nil {
		l.Error = err.Error()
		if verifier, ok := errors.AsType[*ebpf.VerifierError](err); ok {
			l.Error += "\n" + strings.Join(verifier.Log[max(0, len(verifier.Log)-30):], "\n")
		}
		return &l
	}
	l.Missing = t.Missing
	for _, name := range slices.Sorted(maps.Keys(t.Refused)) {
		l.Refused = append(l.Refused, fmt.Sprintf("%s: %v", name, t.Refused[name]))
	}
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			break
		}
		if p, ok := program(id); ok && strings.HasPrefix(p.Name, "on_") {
			l.Programs = append(l.Programs, p)
		}
	}
	if err := t.Close(); err != nil {
		l.Error = "detaching: " + err.Error()
	}
	return &l
}

func program(id ebpf.ProgramID) (job.Program, bool) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return job.Program{}, false
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return job.Program{}, false
	}
	made := job.Program{Name: info.Name}
	made.Verified, _ = info.VerifiedInstructions()
	if size, err := info.TranslatedSize(); err == nil {
		made.Instructions = size / 8
	}
	return made, true
}

func demo() *job.Demo {
	out, err := passOn("/p/demo", "-bin", "/p")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return &job.Demo{OK: err == nil, Last: lines[len(lines)-1]}
}

// passOn runs a command and lets the console have what it prints, as it comes: silence there means that the machine
// hangs.
func passOn(path string, args ...string) (string, error) {
	var b bytes.Buffer
	c := exec.Command(path, args...) // #nosec G204 -- of the job
	c.Stdout, c.Stderr = io.MultiWriter(&b, os.Stdout), os.Stdout
	err := c.Run()
	return b.String(), err
}

// faults runs a part of the fault matrix.
func faults(args []string) {
	const results = "/tmp/rows.jsonl"
	_, failed := passOn("/p/faults", append([]string{"-bin", "/p", "-slow", "4", "-jsonl", results}, args...)...)
	f, err := os.Open(results)
	if err != nil {
		say(&job.Record{Problem: fmt.Sprintf("the fault matrix: %v, %v", failed, err)})
		return
	}
	defer func() { _ = f.Close() }()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); n++ {
		var r job.Row
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			say(&job.Record{Problem: "a row of the fault matrix: " + err.Error()})
			continue
		}
		say(&job.Record{Row: &r})
	}
	if n == 0 {
		say(&job.Record{Problem: fmt.Sprintf("the fault matrix has no row for %q: %v", args, failed)})
	}
}

// complaints gives the lines of the kernel's log that tell of a fault of its own.
func complaints() (lines []string) {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return nil
	}
	for l := range strings.Lines(string(buf[:n])) {
		for _, sign := range []string{"BUG:", "WARNING:", "Oops", "general protection", "soft lockup", "Call Trace",
			"panic"} {
			if strings.Contains(l, sign) {
				lines = append(lines, strings.TrimSpace(l))
				break
			}
		}
	}
	return lines
}
