package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// initEnv carries an initSpec to the copy of this program that becomes a container's process.
const initEnv = "DNSTRAIL_LAB_INIT"

// initSpec is what is set up inside a container's namespaces before its program is executed.
type initSpec struct {
	Path     string
	Hostname string
	// Files are files with contents of their own: path to contents.
	Files map[string]string
}

// Reexec turns this program into a container's process if the lab started it as one, and never returns then.
// Call it first thing in main or TestMain: processes in pods are started through it.
func Reexec() {
	v, ok := os.LookupEnv(initEnv)
	if !ok {
		return
	}
	var s initSpec
	err := json.Unmarshal([]byte(v), &s)
	if err == nil {
		err = s.exec()
	}
	fmt.Fprintf(os.Stderr, "lab: start a process in a pod: %v\n", err)
	os.Exit(125)
}

// wrap makes cmd start this program in namespaces of its own; Reexec then executes what cmd was.
func (s initSpec) wrap(cmd *exec.Cmd) error {
	s.Path = cmd.Path
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, initEnv+"="+string(b))
	cmd.Path = "/proc/self/exe"
	// A PID namespace ends as a whole with its first process: no grandchild outlives the container.
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS
	return nil
}

func (s initSpec) exec() error {
	if err := os.Unsetenv(initEnv); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The files live in a tmpfs that keeps no place in the tree: bound over their targets, then detached.
	stage := os.TempDir()
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", stage, err)
	}
	for path, contents := range s.Files {
		src := filepath.Join(stage, filepath.Base(path))
		if err := os.WriteFile(src, []byte(contents), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(src, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put the pod's own file over %s: %w", path, err)
		}
	}
	if err := unix.Unmount(stage, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the tmpfs on %s: %w", stage, err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return fmt.Errorf("%s: %w", s.Path, syscall.Exec(s.Path, os.Args, os.Environ()))
}
