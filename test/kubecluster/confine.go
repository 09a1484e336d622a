package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
)

// confineInterval is how long a pod's namespace may be there before its node's agent is told of it.
const confineInterval = 50 * time.Millisecond

// reopenInterval is how often an agent's map is looked for anew: one that loads its programs in several attempts has
// had others before.
const reopenInterval = time.Second

// confine keeps each agent to its own node. The nodes have one kernel, so each agent would see both: to those that
// watch only the namespaces they are told of (--netns), it tells the node's and its pods' as they come. On nodes of
// kernels of their own there is nothing to do.
func confine(ctx context.Context, o options) {
	agents := map[int]*agentMap{}
	for ctx.Err() == nil {
		for _, n := range nodes {
			want := namespacesOf(o, n.name)
			for _, pid := range agentsOf(n.name) {
				a := agents[pid]
				if a == nil || time.Since(a.opened) > reopenInterval {
					if a = openAgent(pid, a); a == nil {
						continue // it has not loaded its programs yet
					}
					agents[pid] = a
				}
				a.set(want)
			}
		}
		for pid, a := range agents {
			if syscall.Kill(pid, 0) != nil {
				_ = a.m.Close()
				delete(agents, pid)
			}
		}
		time.Sleep(confineInterval)
	}
}

// namespacesOf gives the network namespaces of a node: its own, and those that its runtime made for pods.
func namespacesOf(o options, node string) map[uint32]bool {
	pid, err := o.pidOf(node)
	if err != nil {
		return nil
	}
	root := fmt.Sprintf("/proc/%d/root/run/netns", pid)
	paths := []string{fmt.Sprintf("/proc/%d/ns/net", pid)}
	made, _ := filepath.Glob(filepath.Join(root, "cni-*"))
	found := map[uint32]bool{}
	for _, p := range append(paths, made...) {
		var st syscall.Stat_t
		if syscall.Stat(p, &st) == nil {
			found[uint32(st.Ino)] = true // #nosec G115 -- the kernel's own numbers have 32 bits
		}
	}
	return found
}

// agentsOf gives the processes of a node's agents that keep to the namespaces they are told of.
func agentsOf(node string) []int {
	all, err := hierarchies()
	if err != nil {
		return nil
	}
	var pids []int
	_ = filepath.WalkDir(cgroupOf(all[len(all)-1], node), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path) // #nosec G304 G122 -- a cgroup's
		for line := range strings.Lines(string(b)) {
			var pid int
			if _, err := fmt.Sscan(line, &pid); err != nil {
				continue
			}
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if bytes.HasPrefix(args, []byte("/dnstrail\x00agent\x00")) && bytes.Contains(args, []byte("\x00--netns=")) {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// agentMap is an agent's map of the namespaces that it watches.
type agentMap struct {
	m      *ebpf.Map
	id     ebpf.MapID
	opened time.Time
	have   map[uint32]bool
}

// openAgent gives the map that the agent has now, the one before if it is the same, and nil where it has none yet.
func openAgent(pid int, before *agentMap) *agentMap {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, f := range files {
		b, err := os.ReadFile(f) // #nosec G304 -- of procfs
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if _, err := fmt.Sscanf(line, "map_id:\t%d", &id); err != nil {
				continue
			}
			if before != nil && before.id == ebpf.MapID(id) {
				before.opened = time.Now()
				return before
			}
			m, err := ebpf.NewMapFromID(ebpf.MapID(id))
			if err != nil {
				continue
			}
			if info, err := m.Info(); err == nil && info.Name == "netns_allowed" {
				if before != nil {
					_ = before.m.Close()
				}
				return &agentMap{m: m, id: ebpf.MapID(id), opened: time.Now(), have: map[uint32]bool{}}
			}
			_ = m.Close()
		}
	}
	return nil
}

// set makes the agent watch these namespaces and, beside what it began with, no others.
func (a *agentMap) set(want map[uint32]bool) {
	for n := range want {
		if !a.have[n] && a.m.Put(n, uint8(1)) == nil {
			a.have[n] = true
		}
	}
	for n := range a.have {
		if !want[n] && a.m.Delete(n) == nil {
			delete(a.have, n)
		}
	}
}
