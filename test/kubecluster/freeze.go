package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// freeze makes the containers of processes stand still, or go on: by the freezer of the cgroup that each is in, as
// "docker pause" does. A signal would be the process's own to see.
func freeze(pids []int, still bool) error {
	if len(pids) == 0 {
		return errors.New("there is no such process")
	}
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		b, e := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		err = errors.Join(err, freezeCgroup(all, string(b), still))
	}
	return err
}

// freezeCgroup does so to the cgroup that /proc/PID/cgroup tells of.
func freezeCgroup(all []hierarchy, cgroups string, still bool) error {
	for line := range strings.Lines(cgroups) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(w) < 3 || !strings.Contains(w[2], "/kubepods") { // it is none of a container's alone
			continue
		}
		for _, h := range all {
			file, text := "cgroup.freeze", map[bool]string{true: "1", false: "0"}[still]
			if h.Kind == "cgroup" {
				file, text = "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}[still]
				if !slices.Contains(strings.Split(w[1], ","), "freezer") ||
					!slices.Contains(strings.Split(h.Options, ","), "freezer") {
					continue
				}
			} else if w[1] != "" {
				continue
			}
			file = filepath.Join(h.Path, w[2], file)
			if _, err := os.Stat(file); err == nil {
				return os.WriteFile(file, []byte(text), 0o600)
			}
		}
	}
	return fmt.Errorf("no cgroup that can be frozen among %q", cgroups)
}
