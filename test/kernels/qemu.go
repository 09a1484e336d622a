package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// silence is how long a booted machine may print nothing before it counts as hung. How long it takes in all is not
// limited: an emulated processor on a busy machine takes what it takes.
const silence = 6 * time.Minute

// errHung says that the machine printed nothing for so long that nothing more was to be expected.
var errHung = errors.New("the machine hangs")

// machines are what QEMU emulates, by architecture. Of five-level page tables and of true pointer signatures a
// processor that is emulated only gets slower.
var machines = map[string]struct{ program, kind, cpu, console string }{
	"amd64": {"qemu-system-x86_64", "q35", "max,la57=off", "ttyS0"},
	"arm64": {"qemu-system-aarch64", "virt", "max,pauth-impdef=on", "ttyAMA0"},
}

// boot boots a kernel with a file system, and gives what the machine found out. Its processor is emulated unless kvm:
// of a /dev/kvm in a virtual machine nobody knows whether it works. Its console goes to w.
func boot(ctx context.Context, img *image, initrd string, kvm bool, w io.Writer) ([]job.Record, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m, ok := machines[img.arch]
	if !ok {
		return nil, fmt.Errorf("no machine is known for %s", img.arch)
	}
	args := []string{
		"-machine", m.kind, "-m", "3G", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", img.bzImage, "-initrd", initrd,
	}
	if kvm {
		args = append(args, "-cpu", "host", "-accel", "kvm")
	} else {
		args = append(args, "-cpu", m.cpu, "-accel", "tcg,thread=multi")
	}
	args = append(args, "-append", "console="+m.console+" quiet loglevel=1 panic=-1 mitigations=off")
	c := exec.CommandContext(ctx, m.program, args...) // #nosec G204 -- one of those
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	go func() {
		for ctx.Err() == nil {
			if time.Since(time.Unix(0, last.Load())) > silence {
				cancel(errHung)
			}
			time.Sleep(time.Second)
		}
	}()
	var records []job.Record
	ended := false
	s := bufio.NewScanner(out)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		last.Store(time.Now().UnixNano())
		fmt.Fprintln(w, s.Text())
		_, text, ok := strings.Cut(s.Text(), job.Marker)
		if !ok {
			continue
		}
		var r job.Record
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return records, errors.Join(fmt.Errorf("the machine says %q: %w", text, err), c.Cancel(), c.Wait())
		}
		records = append(records, r)
		ended = ended || r.End
	}
	err = errors.Join(s.Err(), c.Wait())
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil && !ended {
		err = errors.New("the machine ended before its job did: its console says why")
	}
	return records, err
}
