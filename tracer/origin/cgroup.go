package origin

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// fileIDKernfs is FILEID_KERNFS of linux/exportfs.h: a file handle that is a kernfs node's 8-byte ID, as a cgroup's ID
// is.
const fileIDKernfs = 0xfe

// Cgroups finds the paths of cgroups by their IDs.
type Cgroups struct {
	root  *os.File
	paths map[uint64]string
}

const maxCgroups = 65536

// OpenCgroups opens the cgroup v2 hierarchy mounted at root.
func OpenCgroups(root string) (*Cgroups, error) {
	f, err := os.Open(root) // #nosec G304 -- where cgroup v2 is mounted
	if err != nil {
		return nil, fmt.Errorf("opening the cgroup hierarchy: %w", err)
	}
	return &Cgroups{root: f, paths: make(map[uint64]string)}, nil
}

// Close closes the hierarchy.
func (c *Cgroups) Close() error { return c.root.Close() }

// Path gives the path of a cgroup below the root of the hierarchy, "" if there is none such now. IDs are not used
// again, so that what was found stays true.
func (c *Cgroups) Path(id uint64) string {
	if p, ok := c.paths[id]; ok {
		return p
	}
	p := c.byHandle(id)
	if len(c.paths) >= maxCgroups {
		clear(c.paths)
	}
	c.paths[id] = p
	return p
}

func (c *Cgroups) byHandle(id uint64) string {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], id)
	fd, err := unix.OpenByHandleAt(int(c.root.Fd()), unix.NewFileHandle(fileIDKernfs, b[:]), unix.O_PATH)
	if err != nil {
		return c.walk(id)
	}
	defer func() { _ = unix.Close(fd) }() // opened for its name only
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	rel, err := filepath.Rel(c.root.Name(), p)
	if err != nil {
		return ""
	}
	return "/" + rel
}

// walk looks for the directory whose inode number is the ID: where handles may not be opened (no CAP_DAC_READ_SEARCH).
func (c *Cgroups) walk(id uint64) string {
	found := ""
	_ = filepath.WalkDir(c.root.Name(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup that has just gone is not the one
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == id {
			found = strings.TrimPrefix(path, c.root.Name())
			return filepath.SkipAll
		}
		return nil
	})
	return found
}

// What kubelet and the container runtimes call the cgroups of a pod and of a container, with the systemd driver and
// with the cgroupfs driver:
//
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5e2a0000_0000_4000_8000_000000000001.slice/
//	  cri-containerd-<64 digits>.scope
//	/kubepods/besteffort/pod5e2a0000-0000-4000-8000-000000000001/<64 digits>
var (
	podPattern = regexp.MustCompile(`(?:^|/|-)pod` +
		`([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:/|$)`)
	containerPattern = regexp.MustCompile(`/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?:/|$)`)
)

// ParseCgroup gives the pod's UID, with dashes, and the container's ID in the path of a cgroup; "" for what is not
// there.
func ParseCgroup(path string) (podUID, containerID string) {
	m := podPattern.FindStringSubmatchIndex(path)
	if m == nil {
		return "", ""
	}
	podUID = strings.ReplaceAll(path[m[2]:m[3]], "_", "-")
	if c := containerPattern.FindStringSubmatch(path[m[3]:]); c != nil {
		containerID = c[1]
	}
	return podUID, containerID
}
