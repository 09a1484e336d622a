package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runtimeCapabilities are those that a tracer has a use for once its programs are attached: to name the kernel's
// functions, to find the cgroup of a process, and, of one that is run by hand, to look into other namespaces.
var runtimeCapabilities = []int{
	unix.CAP_SYSLOG, unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN,
}

// DropCapabilities gives up, in all threads and for good, the capabilities that were needed to load the programs: this
// process can then load and attach no others, nor change the network's setup. Call it once all that needs more has been
// done. Kernels before 5.19 let nobody without CAP_BPF read the losses, and there that one stays. The error wraps
// [syscall.ENOTSUP] in a program that is linked with C.
func (t *Tracer) DropCapabilities() error {
	// With this, nothing that is executed has more rights, root's files neither.
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	keep := runtimeCapabilities
	if !t.readableWithout(keep) {
		keep = append(slices.Clip(keep), unix.CAP_BPF)
	}
	header, data, err := reduced(keep)
	if err != nil {
		return err
	}
	// Each thread may do this, whatever it may do now: Go ends the program where one fails and another does not.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)),
		uintptr(unsafe.Pointer(&data[0])), 0) // #nosec G103 -- what capset(2) takes
	runtime.KeepAlive(header)
	runtime.KeepAlive(data)
	if errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// reduced gives what capset(2) takes to leave, of the capabilities that there are, those to keep.
func reduced(keep []int) (*unix.CapUserHeader, *[2]unix.CapUserData, error) {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	if err := unix.Capget(header, &data[0]); err != nil {
		return nil, nil, fmt.Errorf("capget: %w", err)
	}
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= mask[i]
		data[i].Effective &= mask[i]
		data[i].Inheritable = 0
	}
	return header, data, nil
}

// readableWithout tries, on a thread of its own, whether what the tracer reads later can be read with no more than the
// capabilities to keep.
func (t *Tracer) readableWithout(keep []int) bool {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header, data, err := reduced(keep)
		if err == nil {
			// What is permitted stays: the thread may be there still when all of them give it up.
			all := [2]unix.CapUserData{}
			if err = unix.Capget(header, &all[0]); err == nil {
				for i := range all {
					all[i].Effective = data[i].Effective
				}
				err = unix.Capset(header, &all[0])
			}
		}
		if err == nil {
			err = t.readable()
		}
		done <- err
	}()
	return <-done == nil
}

// readable tells whether all of the losses can be read.
func (t *Tracer) readable() error {
	_, err := t.Losses()
	for _, h := range hooks {
		if p := t.objects.Programs[h.program]; p != nil && h.needed {
			_, e := p.Stats()
			err = errors.Join(err, e)
		}
	}
	return err
}
