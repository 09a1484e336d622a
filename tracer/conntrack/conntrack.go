// Package conntrack reads how full the connection tracking of a network namespace is: what tells a packet that found no
// room there from one that a rule dropped.
package conntrack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUnreachable says that no process of this host is in the namespace, so that it cannot be entered.
var ErrUnreachable = errors.New("no process is in the network namespace")

// Table is a namespace's table of connections: how many there are, and how many there may be (nf_conntrack_count and
// nf_conntrack_max).
type Table struct{ Count, Max int }

// Full says whether the next new connection finds no room: nf_conntrack_alloc in net/netfilter/nf_conntrack_core.c
// drops its packet unless an older connection gives way.
func (t Table) Full() bool { return t.Max > 0 && t.Count >= t.Max }

// Of reads the table of a network namespace, by inode number. Another namespace than this process's own is entered by
// way of a process that is in it: an error wraps [ErrUnreachable] if there is none, and is that of setns(2) without
// CAP_SYS_ADMIN. It takes a millisecond for each thousand processes.
func Of(netns uint32) (Table, error) {
	if is(netns, "/proc/self/ns/net") {
		return read()
	}
	path := find(netns)
	if path == "" {
		return Table{}, fmt.Errorf("connection tracking of network namespace %d: %w", netns, ErrUnreachable)
	}
	ns, err := os.Open(path) // #nosec G304 -- below /proc or /run/netns
	if err != nil {
		return Table{}, fmt.Errorf("connection tracking of network namespace %d: %w", netns, err)
	}
	defer func() { _ = ns.Close() }()
	var t Table
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and none is left in the wrong namespace
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering network namespace %d: %w", netns, err)
			return
		}
		var err error
		t, err = read()
		done <- err
	}()
	err = <-done
	return t, err
}

func is(netns uint32, path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && uint32(st.Ino) == netns
}

// find gives a file that stands for the namespace; "" if there is none.
func find(netns uint32) string {
	for _, pattern := range []string{"/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			continue // never: the patterns are well formed
		}
		for _, path := range paths {
			if is(netns, path) {
				return path
			}
		}
	}
	return ""
}

// read reads the table of the namespace that the calling thread is in.
func read() (t Table, err error) {
	for _, f := range []struct {
		name string
		to   *int
	}{{"nf_conntrack_count", &t.Count}, {"nf_conntrack_max", &t.Max}} {
		text, err := os.ReadFile(filepath.Join("/proc/sys/net/netfilter", f.name)) // #nosec G304 -- one of two
		if err != nil {
			return Table{}, fmt.Errorf("reading connection tracking: %w", err)
		}
		if *f.to, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return Table{}, fmt.Errorf("reading %s: %w", f.name, err)
		}
	}
	return t, nil
}
