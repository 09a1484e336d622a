package bpf

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// older is what some kernels lack, by their release.
var older = map[string]string{
	"5.10": "dynptr,rdonly_cast,task_btf,global_pointer,drop_reason,sock_recv_length,sock_send_length",
	"5.15": "dynptr,rdonly_cast,drop_reason,sock_recv_length,sock_send_length",
	"6.1":  "dynptr,rdonly_cast,sock_recv_length,sock_send_length",
	"6.8":  "dynptr",
}

// TestDoesWithoutFeatures loads and attaches the program without each of its features, without those that older
// kernels lack, and without all.
func TestDoesWithoutFeatures(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: eBPF")
	}
	var all []string
	sets := map[string][]string{"nothing": {}}
	for _, f := range featureTable {
		sets[f.name] = []string{f.name}
		all = append(all, f.name)
	}
	sets["all"] = all
	for release, names := range older {
		sets["what "+release+" lacks"] = strings.Split(names, ",")
	}
	for name, without := range sets {
		t.Run("without "+name, func(t *testing.T) {
			tracer, err := Open(Options{RingBytes: 1 << 16, without: without})
			if err != nil {
				t.Fatalf("%+v", err)
			}
			defer func() {
				if err := tracer.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, name := range without {
				if !slices.Contains(all, name) {
					t.Errorf("no feature is called %q", name)
				}
			}
			said := strings.Join(tracer.Missing, "\n")
			for _, f := range featureTable {
				if tracer.has[f.name] && slices.Contains(without, f.name) {
					t.Errorf("%s is used", f.name)
				}
				if f.lack == "" {
					continue
				}
				if costs := !tracer.has[f.name] && !tracer.has[f.instead]; costs != strings.Contains(said, f.lack) {
					t.Errorf("what it costs to be without %s: %v; said: %q", f.name, costs, said)
				}
			}
		})
	}
}

// TestProbesTellWhatIsRefused holds a probe that no kernel takes against one that every kernel does.
func TestProbesTellWhatIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: eBPF")
	}
	spec, err := loadObject()
	if err != nil {
		t.Fatal(err)
	}
	if err := try(spec, "probe_skb_output", false, btf.NewCache()); err != nil {
		t.Errorf("a program that every kernel takes counts as refused: %v", err)
	}
	p := spec.Programs["probe_skb_output"]
	p.Instructions = p.Instructions[len(p.Instructions)-1:] // r0 is not set: the verifier refuses
	if try(spec, "probe_skb_output", false, btf.NewCache()) == nil {
		t.Error("a program that the verifier refuses counts as taken")
	}
	for _, p := range spec.Programs {
		if strings.HasPrefix(p.Name, "probe_") && p.Type != ebpf.Tracing {
			t.Errorf("%s is a %v: it must be of the kind that it speaks for", p.Name, p.Type)
		}
	}
}

// TestProbesKnowTheConstants tries a program that holds what no kernel takes, behind a constant: without the constant's
// feature, that is never run.
func TestProbesKnowTheConstants(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: eBPF")
	}
	for _, name := range []string{"on_copy_datagram", "on_sock_recv"} {
		spec, err := loadObject()
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		for i := range spec.Programs[name].Instructions {
			if ins := &spec.Programs[name].Instructions[i]; ins.IsBuiltinCall() &&
				asm.BuiltinFunc(ins.Constant) == asm.FnGetCurrentTaskBtf {
				ins.Constant = 1 << 20
				calls++
			}
		}
		if calls == 0 {
			t.Fatalf("%s does not ask for the current task", name)
		}
		for _, has := range []bool{false, true} {
			if err := spec.Variables["have_task_btf"].Set(has); err != nil {
				t.Fatal(err)
			}
			if err := try(spec, name, false, btf.NewCache()); (err == nil) == has {
				t.Errorf("%s, task_btf %v: %v", name, has, err)
			}
		}
	}
}
