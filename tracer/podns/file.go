package podns

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of a file that a pod can shape, in bytes: no /etc/resolv.conf has as much.
const maxFile = 64 << 10

// readBelow reads a file below the root directory of a process, as the process would find it: symbolic links, absolute
// ones too, lead nowhere else, and none of /proc's. What a pod can put there costs little: what is no plain file or
// larger than 64 KiB is an error, and a named pipe is not waited for.
func readBelow(proc string, pid int, path string) ([]byte, error) {
	name := filepath.Join(proc, strconv.Itoa(pid), "root")
	root, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	name = filepath.Join(name, path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: no plain file (%s)", name, info.Mode().Type())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: more than %d KiB", name, maxFile>>10)
	}
	return b, nil
}
