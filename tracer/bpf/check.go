package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// MinKernel is the oldest kernel on which the tracer is tried (docs/kernels.md). Nothing asks for the version: what
// the program needs is BTF and a ring buffer, what else it uses it can do without.
const MinKernel = "5.10"

// ErrUnsupported says that this process or this kernel cannot run the tracer; what wraps it says what is missing.
var ErrUnsupported = errors.New("cannot trace here")

// Check says whether the tracer can run: capabilities, kernel version, BTF. Every error wraps [ErrUnsupported] and
// names what is missing and what to do.
func Check() error {
	if missing := MissingCapabilities(); len(missing) > 0 {
		return fmt.Errorf("%w: needs %s: run as root, or with these capabilities", ErrUnsupported,
			strings.Join(missing, ", "))
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: no /sys/kernel/btf/vmlinux: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (and "+
			"/sys be mounted)", ErrUnsupported)
	}
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: raising RLIMIT_MEMLOCK: %w", ErrUnsupported, err)
	}
	return CheckKernel()
}

// CheckKernel says whether the kernel has what the tracer needs, if this process may ask it. Errors are as [Check]'s.
func CheckKernel() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: reading /sys/kernel/btf/vmlinux: %w", ErrUnsupported, err)
	}
	if err := features.HaveMapType(ebpf.RingBuf); err != nil {
		return fmt.Errorf("%w: kernel %s: eBPF ring buffer: %w: at least %s is needed", ErrUnsupported, release(), err,
			MinKernel)
	}
	return nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "(unknown)"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// MissingCapabilities gives the names of the capabilities that the tracer needs and this process lacks. CAP_SYS_ADMIN
// stands for CAP_BPF and CAP_PERFMON (capabilities(7)).
func MissingCapabilities() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return []string{"capget(2) to work: " + err.Error()}
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		if has(unix.CAP_NET_ADMIN) {
			return nil
		}
		return []string{"CAP_NET_ADMIN"}
	}
	var missing []string
	for _, c := range []struct {
		n    int
		name string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}} {
		if !has(c.n) {
			missing = append(missing, c.name)
		}
	}
	return missing
}
