package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

const cgroupPrefix = "dnstrail-lab-"

// cgroupRoot is the cgroup (v2) that holds the containers of one lab, named after the process that owns it.
type cgroupRoot struct{ dir string }

// containerCgroup is the cgroup of one container, named as a kubelet with the systemd driver and containerd name it.
type containerCgroup struct{ dir string }

// cgroupMount finds the cgroup2 file system in /proc/self/mountinfo: at /sys/fs/cgroup, or at /sys/fs/cgroup/unified
// on a hybrid host.
func cgroupMount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		// proc(5): fields up to the mount options, " - ", file system type, source, super options.
		before, after, _ := strings.Cut(s.Text(), " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.Join(s.Err(), errors.New("no cgroup2 file system is mounted"))
}

func newCgroupRoot() (*cgroupRoot, error) {
	mount, err := cgroupMount()
	if err != nil {
		return nil, err
	}
	if err := removeStaleCgroups(mount); err != nil {
		return nil, err
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	// A process may raise several labs: the last part tells them apart.
	dir := filepath.Join(mount, fmt.Sprintf("%s%d-%d-%s", cgroupPrefix, os.Getpid(), start, randomHex(2)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's cgroup: %w", err)
	}
	return &cgroupRoot{dir}, nil
}

// removeStaleCgroups removes the cgroups of labs whose process is gone, and kills what still runs in them.
func removeStaleCgroups(mount string) error {
	entries, err := os.ReadDir(mount)
	if err != nil {
		return err
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), cgroupPrefix)
		parts := strings.Split(rest, "-")
		if !ok || len(parts) != 3 {
			continue
		}
		pid, err1 := strconv.Atoi(parts[0])
		start, err2 := strconv.ParseUint(parts[1], 10, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		if now, err := startTime(pid); err == nil && now == start {
			continue
		}
		stale := cgroupRoot{filepath.Join(mount, e.Name())}
		if err := stale.remove(); err != nil && !errors.Is(err, fs.ErrNotExist) { // another lab may be removing it too
			return fmt.Errorf("remove a crashed lab's cgroup: %w", err)
		}
	}
	return nil
}

// startTime gives when a process started, in clock ticks since boot (proc(5), field 22 of stat): with it a process ID
// is unique.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in brackets, may hold spaces and brackets.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func (r *cgroupRoot) addContainer(podUID, containerID string) (*containerCgroup, error) {
	dir := filepath.Join(r.dir, "kubepods.slice", "kubepods-burstable.slice",
		"kubepods-burstable-pod"+strings.ReplaceAll(podUID, "-", "_")+".slice", "cri-containerd-"+containerID+".scope")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a container's cgroup: %w", err)
	}
	return &containerCgroup{dir}, nil
}

// kill kills every process in the cgroups, and waits until they are gone.
func (r *cgroupRoot) kill() error {
	killAll := os.WriteFile(filepath.Join(r.dir, "cgroup.kill"), []byte("1"), 0)
	var events []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if killAll != nil { // before Linux 5.14: one by one, until no one is left
			if err := r.killEach(); err != nil {
				return err
			}
		}
		var err error
		if events, err = os.ReadFile(filepath.Join(r.dir, "cgroup.events")); err != nil {
			return err
		}
		if strings.Contains(string(events), "populated 0") {
			return nil
		}
	}
	return fmt.Errorf("processes in %s outlive SIGKILL: %q", r.dir, events)
}

func (r *cgroupRoot) killEach() error {
	return filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		pids, err := os.ReadFile(path) // #nosec G304 -- of the cgroup
		if err != nil {
			return err
		}
		for text := range strings.FieldsSeq(string(pids)) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
			}
		}
		return nil
	})
}

func (r *cgroupRoot) remove() error {
	if err := r.kill(); err != nil {
		return err
	}
	var dirs []string
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = os.Remove(dirs[i])
	}
	return err
}

// PolicyDrop drops what processes of the pod send or, where they receive, what comes for their sockets, of UDP and for
// or from a port, by an eBPF program at the pod's cgroup, until undone: what systemd's IPAddressDeny and policies of a
// service do.
func (p *Pod) PolicyDrop(receive bool, port uint16) (Undo, error) {
	attach, at := ebpf.AttachCGroupInetEgress, int32(2) // the destination port
	if receive {
		attach, at = ebpf.AttachCGroupInetIngress, 0
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSKB, License: "GPL", Instructions: cgroupDrop(at, port),
	})
	if err != nil {
		return nil, fmt.Errorf("load a program for the cgroup of %s: %w", p.Name, err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: p.cgroup.dir, Attach: attach, Program: prog})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach a program to the cgroup of %s: %w", p.Name, err), prog.Close())
	}
	return func() error { return errors.Join(l.Close(), prog.Close()) }, nil
}

// cgroupDrop is the program of [Pod.PolicyDrop]. The packet begins with its IP header, without options.
func cgroupDrop(at int32, port uint16) asm.Instructions {
	// load puts bytes of the packet on the stack, and the first of them in R0.
	load := func(offset int32, size asm.Size, length int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, offset),
			asm.Mov.Reg(asm.R3, asm.R10),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, length),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "pass"),
			asm.LoadMem(asm.R0, asm.R10, -8, size),
		}
	}
	of := func(proto, ports int32, symbol string) asm.Instructions {
		is := load(proto, asm.Byte, 1)
		is[0] = is[0].WithSymbol(symbol)
		is = append(is, asm.JNE.Imm(asm.R0, syscall.IPPROTO_UDP, "pass"))
		is = append(is, load(ports+at, asm.Half, 2)...)
		return append(is, asm.JEq.Imm(asm.R0, int32(swap16(port)), "drop"), asm.Ja.Label("pass"))
	}
	return slices.Concat(
		asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)},
		load(0, asm.Byte, 1),
		asm.Instructions{asm.RSh.Imm(asm.R0, 4), asm.JEq.Imm(asm.R0, 6, "v6")},
		of(9, 20, "v4"), of(6, 40, "v6"),
		asm.Instructions{
			asm.Mov.Imm(asm.R0, 0).WithSymbol("drop"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
			asm.Return(),
		})
}
