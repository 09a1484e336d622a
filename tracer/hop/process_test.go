package hop

import (
	"testing"

	"github.com/dnstrail/dnstrail/tracer/bpf"
)

func TestAProcessIsToldAtItsFirstPacket(t *testing.T) {
	var told []uint64
	d := Decoder{First: func(p *Process) { told = append(told, p.CgroupID) }}
	for _, cgroup := range []uint64{1, 1, 2, 1, 2} {
		if p := d.process(&bpf.Event{PID: 10, CgroupID: cgroup}); p.CgroupID != cgroup {
			t.Errorf("the process of cgroup %d is of %d", cgroup, p.CgroupID)
		}
	}
	if len(told) != 2 || told[0] != 1 || told[1] != 2 {
		t.Errorf("told of the processes of cgroups %v, want 1 and 2", told)
	}
	for pid := range uint32(2 * maxProcesses) { // those forgotten are told again
		d.process(&bpf.Event{PID: pid, CgroupID: 1})
	}
	if len(told) < 2*maxProcesses {
		t.Errorf("told of %d processes, want %d or more", len(told), 2*maxProcesses)
	}
}
