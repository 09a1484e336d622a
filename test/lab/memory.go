package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// MemoryCgroup bounds the memory of the processes in it, what the kernel holds for them included. It is of cgroup v2,
// or of v1 where that has the memory controller.
type MemoryCgroup struct {
	dir string
	v2  bool
}

// AddMemoryCgroup makes a memory cgroup with a limit in bytes. It ends, and what runs in it, with the lab.
func (l *Lab) AddMemoryCgroup(limit int64) (*MemoryCgroup, error) {
	parent, v2, err := memoryParent()
	if err != nil {
		return nil, fmt.Errorf("memory cgroup: %w", err)
	}
	name := fmt.Sprintf("%smemory-%d-%s", cgroupPrefix, os.Getpid(), randomHex(2))
	m := &MemoryCgroup{filepath.Join(parent, name), v2}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, fmt.Errorf("memory cgroup: %w", err)
	}
	l.onDown(m.remove)
	file := "memory.limit_in_bytes"
	if v2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(m.dir, file), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		return nil, fmt.Errorf("memory cgroup: %w", err)
	}
	return m, nil
}

// memoryParent gives a cgroup under which one with a memory limit can be made.
func memoryParent() (dir string, v2 bool, err error) {
	if mount, err := cgroupMount(); err == nil {
		controllers, _ := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
		if strings.Contains(string(controllers), "memory") {
			// The root may hold processes and hand out controllers at once.
			err := os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+memory"), 0)
			return mount, true, err
		}
	}
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// cgroups(7): hierarchy:controllers:path
		if parts := strings.SplitN(s.Text(), ":", 3); len(parts) == 3 && parts[1] == "memory" {
			return filepath.Join("/sys/fs/cgroup/memory", parts[2]), false, nil
		}
	}
	return "", false, errors.New("no memory controller")
}

// Command gives c as it is to be started to run in the cgroup from its first instruction on.
func (m *MemoryCgroup) Command(c Command) Command {
	procs := filepath.Join(m.dir, "cgroup.procs")
	c.Args = append([]string{"-c", `echo $$ >"$0" && exec "$@"`, procs, c.Path}, c.Args...)
	c.Path = "sh"
	return c
}

// Peak gives the most memory that was in use, in bytes.
func (m *MemoryCgroup) Peak() (int64, error) {
	name := "memory.max_usage_in_bytes"
	if m.v2 {
		name = "memory.peak"
	}
	b, err := os.ReadFile(filepath.Join(m.dir, name)) // #nosec G304 -- of the cgroup
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// Killed gives how many processes were killed because the limit was reached.
func (m *MemoryCgroup) Killed() (int, error) {
	name := "memory.oom_control"
	if m.v2 {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(m.dir, name)) // #nosec G304 -- of the cgroup
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, fmt.Errorf("%s has no oom_kill: %q", name, b)
}

// remove removes the cgroup once the last process in it is gone.
func (m *MemoryCgroup) remove() error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := os.Remove(m.dir)
		if err == nil || os.IsNotExist(err) || time.Now().After(end) {
			return err
		}
	}
}
