package backend

import (
	"os/exec"
	"runtime"
)

// startLocked starts a command whose Pdeathsig is set. The kernel sends that signal when the thread that forked ends
// (prctl(2)), so the thread is one that lives as long as the program.
func startLocked(cmd *exec.Cmd) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, and never returned from: the thread stays
		errs <- cmd.Start()
		select {}
	}()
	return <-errs
}
