// Package podns finds a pod on this host, by one of its processes, and runs code in its network namespace: what
// `dnstrail walk` and `dnstrail doctor` do as a pod.
package podns

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/tracer/origin"
)

// ErrNotFound says that no process on this host is of the pod.
var ErrNotFound = errors.New("no process of it on this host")

// Place is a process whose network namespace and files stand for a pod's.
type Place struct {
	PID   int
	NetNS uint32 // inode number of the network namespace
	// Name is namespace/pod where that is known, else the process's name.
	Name string
}

// Self is this process's own place.
func Self() (Place, error) { return place("/proc", os.Getpid(), "this host") }

// Find gives the place that from names: "pid:PID", an address, a pod, or namespace/pod. index knows pods by the UID in
// their cgroups; nil knows none, and a pod is then found by the host name in its /etc/hostname, which kubelet sets. An
// error wraps [ErrNotFound], or names several pods that match.
func Find(from string, index *identity.Index) (Place, error) { return find("/proc", from, index) }

func find(proc, from string, index *identity.Index) (Place, error) {
	if text, ok := strings.CutPrefix(from, "pid:"); ok {
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			return Place{}, fmt.Errorf("%q: want pid:PID", from)
		}
		return place(proc, pid, "")
	}
	pids, err := processes(proc)
	if err != nil {
		return Place{}, err
	}
	match := byName(proc, from, index)
	if addr, err := netip.ParseAddr(from); err == nil {
		match = byAddress(proc, addr)
	}
	found := map[uint32]Place{}
	for _, pid := range pids {
		name, ok := match(pid)
		if !ok {
			continue
		}
		p, err := place(proc, pid, name)
		if err != nil {
			continue // it ended meanwhile
		}
		if have, ok := found[p.NetNS]; !ok || started(proc, p.PID) < started(proc, have.PID) {
			found[p.NetNS] = p // the oldest: others may end at any time
		}
	}
	switch len(found) {
	case 0:
		return Place{}, fmt.Errorf("%s: %w: want pid:PID, an address, POD or NAMESPACE/POD of this node", from, ErrNotFound)
	case 1:
		for _, p := range found {
			return p, nil
		}
	}
	var names []string
	for _, p := range found {
		names = append(names, fmt.Sprintf("%s (pid:%d)", p.Name, p.PID))
	}
	slices.Sort(names)
	return Place{}, fmt.Errorf("%s is more than one: %s", from, strings.Join(names, ", "))
}

// byName matches processes by their pod: by the UID in the cgroup, else by /etc/hostname.
func byName(proc, from string, index *identity.Index) func(pid int) (string, bool) {
	namespace, pod, qualified := strings.Cut(from, "/")
	if !qualified {
		namespace, pod = "", from
	}
	return func(pid int) (string, bool) {
		if uid := podUID(proc, pid); uid != "" && index != nil {
			if c := index.LookupUID(uid); c.Kind() != identity.Unknown {
				return c.Namespace() + "/" + c.Pod(), c.Pod() == pod && (namespace == "" || c.Namespace() == namespace)
			}
		}
		if qualified {
			return "", false // a host name has no namespace
		}
		hostname, err := readBelow(proc, pid, "etc/hostname")
		return pod, err == nil && strings.TrimSpace(string(hostname)) == pod && !sameRoot(proc, pid)
	}
}

// sameRoot tells whether a process has this process's root directory: the host's own processes are no pod.
func sameRoot(proc string, pid int) bool {
	own, err := os.Stat("/")
	if err != nil {
		return false
	}
	its, err := os.Stat(filepath.Join(proc, strconv.Itoa(pid), "root") + "/")
	return err == nil && os.SameFile(own, its)
}

func podUID(proc string, pid int) string {
	text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup")) // #nosec G304 -- below /proc
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			if uid, _ := origin.ParseCgroup(parts[2]); uid != "" {
				return uid
			}
		}
	}
	return ""
}

// byAddress matches processes in a network namespace that has the address as its own.
func byAddress(proc string, addr netip.Addr) func(pid int) (string, bool) {
	known := map[uint32]bool{}
	return func(pid int) (string, bool) {
		inode, err := inode(proc, pid)
		if err != nil {
			return "", false
		}
		has, ok := known[inode]
		if !ok {
			has = hasAddress(filepath.Join(proc, strconv.Itoa(pid), "net"), addr)
			known[inode] = has
		}
		return addr.String(), has
	}
}

// hasAddress tells whether a namespace has an address for its own.
func hasAddress(dir string, addr netip.Addr) bool {
	return slices.Contains(addresses(dir), addr.Unmap())
}

// started gives when a process began, in clock ticks since the host did (proc(5), field 22 of stat); 0 if it cannot be
// read.
func started(proc string, pid int) uint64 {
	text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat")) // #nosec G304 -- below /proc
	if err != nil {
		return 0
	}
	// The name, in brackets, may have anything in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64) // 0 of no number
	return ticks
}

func processes(proc string) ([]int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func inode(proc string, pid int) (uint32, error) {
	return inodeAt(filepath.Join(proc, strconv.Itoa(pid), "ns/net"))
}

func inodeAt(path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint32(st.Ino), nil
}

func place(proc string, pid int, name string) (Place, error) {
	n, err := inode(proc, pid)
	if err != nil {
		return Place{}, err
	}
	comm, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "comm")) // #nosec G304 -- below /proc
	if err != nil {
		return Place{}, err
	}
	return Place{PID: pid, NetNS: n, Name: cmp.Or(name, strings.TrimSpace(string(comm)))}, nil
}

// ResolvConf reads the place's /etc/resolv.conf; what is none within reason (a pod can put anything there) is an error.
func (p Place) ResolvConf() (*dns.ClientConfig, error) {
	text, err := readBelow("/proc", p.PID, "etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	return dns.ClientConfigFromReader(bytes.NewReader(text))
}

// Do runs f on a thread in the place's network namespace. Goroutines that f starts are not there; sockets that it opens
// are, wherever they are used. It needs CAP_SYS_ADMIN, unless this process is in that namespace itself: an agent's pod
// has no such right, and asks from where it is.
func (p Place) Do(f func() error) error {
	ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(p.PID), "ns/net"))
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	errs := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and none is left in the wrong namespace.
		runtime.LockOSThread()
		var its, own unix.Stat_t
		here := unix.Fstat(int(ns.Fd()), &its) == nil && unix.Stat("/proc/thread-self/ns/net", &own) == nil &&
			its.Ino == own.Ino && its.Dev == own.Dev
		if here {
			errs <- f()
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("entering the network namespace of %s (pid %d): %w", p.Name, p.PID, err)
			return
		}
		errs <- f()
	}()
	return <-errs
}
