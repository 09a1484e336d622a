package podns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAPodsFilesLeadNowhereElse: whatever a pod puts where its resolv.conf is looked for, at most 64 KiB of a plain
// file below its own root are read, and at once.
func TestAPodsFilesLeadNowhereElse(t *testing.T) {
	proc := t.TempDir()
	root := filepath.Join(proc, "7/root")
	outside := filepath.Join(proc, "secret")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.WriteFile(outside, []byte("outside"), 0o600))
	for _, tc := range []struct {
		name string
		make func(path string) error
		want string // "": an error
	}{
		{"a file", func(path string) error { return os.WriteFile(path, []byte("inside"), 0o600) }, "inside"},
		{"a link within", func(path string) error {
			do(os.WriteFile(filepath.Join(root, "run/resolv.conf"), []byte("run"), 0o600))
			return os.Symlink("../run/resolv.conf", path)
		}, "run"},
		{"an absolute link, which is of the pod's root", func(path string) error {
			do(os.WriteFile(filepath.Join(root, "run/resolv.conf"), []byte("run"), 0o600))
			return os.Symlink("/run/resolv.conf", path)
		}, "run"},
		{"an absolute link to a file of the host", func(path string) error { return os.Symlink(outside, path) }, ""},
		{"a link up and out", func(path string) error { return os.Symlink("../../../secret", path) }, ""},
		{"a link of /proc", func(path string) error { return os.Symlink("/proc/self/root"+outside, path) }, ""},
		{"links in a circle", func(path string) error { return os.Symlink("resolv.conf", path) }, ""},
		{"a link of a directory out", func(path string) error {
			do(os.Remove(filepath.Dir(path)))
			return os.Symlink("../..", filepath.Dir(path))
		}, ""},
		{"a pipe", func(path string) error { return unix.Mkfifo(path, 0o600) }, ""},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }, ""},
		{"a file of 10 GiB", func(path string) error {
			f, err := os.Create(path)
			do(err)
			do(f.Truncate(10 << 30))
			return f.Close()
		}, ""},
		{"64 KiB", func(path string) error { return os.WriteFile(path, make([]byte, maxFile), 0o600) },
			strings.Repeat("\x00", maxFile)},
		{"nothing", func(string) error { return nil }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			do(os.RemoveAll(root))
			for _, dir := range []string{"etc", "run"} {
				do(os.MkdirAll(filepath.Join(root, dir), 0o700))
			}
			do(tc.make(filepath.Join(root, "etc/resolv.conf")))
			type result struct {
				b   []byte
				err error
			}
			done := make(chan result, 1)
			go func() {
				b, err := readBelow(proc, 7, "etc/resolv.conf")
				done <- result{b, err}
			}()
			select {
			case r := <-done:
				if string(r.b) != tc.want || (r.err != nil) != (tc.want == "") {
					t.Errorf("%.20q, %v", r.b, r.err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it is waited for")
			}
		})
	}
}
