package bpf

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// WithoutVariable is the environment variable that names features, separated by commas, which the tracer then does
// without as it does on a kernel that lacks them. It is for trials: one machine stands in for many kernels.
const WithoutVariable = "DNSTRAIL_WITHOUT"

// The features that the loader itself asks for, by their names in [WithoutVariable].
const (
	featureDynptr        = "dynptr"
	featureSKBOutput     = "skb_output"
	featureGlobalPointer = "global_pointer"
)

// feature is what the program uses where the running kernel lets it, and does without elsewhere.
type feature struct {
	name      string
	probe     string   // the program whose loading shows that the kernel has it: of src/probe.h, or the one to be used
	constants []string // of src/config.h: tell the program
	with      string   // the program that is for kernels that have it
	without   string   // the program that is for kernels that do not
	instead   string   // the feature that stands in for it, at no loss; "" for none
	lack      string   // what is not there, and what that costs, in words for the user; "" if it costs nothing
}

const (
	pagesUnread   = "a way to read packets' data in pages: DNS over TCP is not seen"
	connectErrors = "a way into inet_dgram_connect and inet_stream_connect: why a socket could not be connected is " +
		"concluded, and told when it is closed"
	sendsUnseen = "tracepoint sock_send_length, or a way out of udp_sendmsg: " + lateSends + ", and " + failedSends
	readsUnseen = "tracepoint sock_recv_length, or a way into skb_consume_udp: " + clientReads
)

// featureTable is in the order of the trials: a program is tried as a kernel with the features before it gets it.
var featureTable = []feature{
	{name: featureGlobalPointer, probe: "probe_global_pointer"},
	{
		name: featureDynptr, probe: "probe_dynptr", constants: []string{"have_dynptr", "bad_loads_give_zero"},
		instead: featureSKBOutput, lack: pagesUnread,
	},
	{
		name: featureSKBOutput, probe: "probe_skb_output", constants: []string{"have_skb_output"}, instead: featureDynptr,
		lack: pagesUnread,
	},
	{
		name: "rdonly_cast", probe: "probe_rdonly_cast", constants: []string{"have_rdonly_cast"},
		lack: "bpf_rdonly_cast: to tell that a packet is not DNS costs a call more",
	},
	{name: "task_btf", probe: "probe_task_btf", constants: []string{"have_task_btf"}},
	{
		name: "drop_reason", probe: "probe_drop_reason", with: "on_kfree_skb", without: "on_kfree_skb_plain",
		lack: "the reasons of drops: why a packet was dropped is concluded from the function that dropped it",
	},
	{
		name: "copy_datagram", probe: "probe_copy_datagram", with: "on_copy_datagram",
		lack: "tracepoint skb_copy_datagram_iovec: " + tcpReads,
	},
	{name: "sock_recv_length", probe: "on_sock_recv", with: "on_sock_recv", instead: "consume_udp", lack: readsUnseen},
	{
		name: "sock_send_length", probe: "on_sock_send", with: "on_sock_send", instead: "udp_sendmsg", lack: sendsUnseen,
	},
	{
		name: "udp_sendmsg", probe: "on_udp_sendmsg", with: "on_udp_sendmsg", instead: "sock_send_length",
		lack: sendsUnseen,
	},
	{
		name: "udpv6_sendmsg", probe: "on_udpv6_sendmsg", with: "on_udpv6_sendmsg", instead: "sock_send_length",
		lack: "tracepoint sock_send_length, or a way out of udpv6_sendmsg: over IPv6, " + lateSends + ", and " + failedSends,
	},
	{
		name: "consume_udp", probe: "on_consume_udp", with: "on_consume_udp", instead: "sock_recv_length",
		lack: readsUnseen,
	},
	{name: "dgram_connect", probe: "on_dgram_connect", with: "on_dgram_connect", lack: connectErrors},
	{name: "stream_connect", probe: "on_stream_connect", with: "on_stream_connect", lack: connectErrors},
	{
		name: "sock_release", probe: "on_sock_release", with: "on_sock_release", instead: "dgram_connect",
		lack: "cgroup/sock_release: " + failedConns,
	},
}

// adapt tries each feature, leaves in the program what is for a kernel with these features, and tells it which they
// are. Those in without count as missing.
func (t *Tracer) adapt(spec *ebpf.CollectionSpec, without []string, kernel *btf.Cache) error {
	t.has, t.Refused = map[string]bool{}, map[string]error{}
	for _, f := range featureTable {
		if !slices.Contains(without, f.name) {
			tested, ok := t.has[featureGlobalPointer]
			err := try(spec, f.probe, ok && !tested, kernel)
			t.has[f.name] = err == nil
			if err != nil {
				t.Refused[f.name] = err
			}
		} else {
			t.has[f.name] = false
		}
		for _, c := range f.constants {
			if err := spec.Variables[c].Set(t.has[f.name]); err != nil {
				return fmt.Errorf("telling the program of %s: %w", f.name, err)
			}
		}
	}
	for _, f := range featureTable {
		if f.probe != f.with {
			delete(spec.Programs, f.probe)
		}
		if t.has[f.name] {
			delete(spec.Programs, f.without)
			continue
		}
		delete(spec.Programs, f.with)
		if f.lack != "" && !t.has[f.instead] && !slices.Contains(t.Missing, f.lack) {
			t.Missing = append(t.Missing, f.lack)
		}
	}
	if t.has["sock_recv_length"] {
		delete(spec.Programs, "on_consume_udp") // a read would be seen twice
	}
	t.seeCalls(spec)
	if !t.has[featureGlobalPointer] {
		makeStatic(spec)
	}
	return nil
}

// seeCalls leaves the programs by which a failed connection or send is seen: those that see the call return, or the
// one that sees a socket let go; and those that see whom a socket is to reach, where there are any of these.
func (t *Tracer) seeCalls(spec *ebpf.CollectionSpec) {
	returns := t.has["dgram_connect"] && t.has["stream_connect"]
	if returns {
		delete(spec.Programs, "on_sock_release")
	} else {
		delete(spec.Programs, "on_dgram_connect")
		delete(spec.Programs, "on_stream_connect")
	}
	if !returns && !t.has["sock_release"] {
		delete(spec.Programs, "on_connect4")
		delete(spec.Programs, "on_connect6")
	}
	if t.has["sock_send_length"] { // a send would be seen twice
		delete(spec.Programs, "on_udp_sendmsg")
		delete(spec.Programs, "on_udpv6_sendmsg")
		return
	}
	if !t.has["udp_sendmsg"] {
		delete(spec.Programs, "on_sendmsg4")
	}
	if !t.has["udpv6_sendmsg"] {
		delete(spec.Programs, "on_sendmsg6")
	}
}

// makeStatic makes the functions of the programs static ones, which are verified where they are called: what a global
// function is given may not be a pointer everywhere.
func makeStatic(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			if f := btf.FuncMetadata(&p.Instructions[i]); f != nil && i > 0 {
				f.Linkage = btf.StaticFunc
			}
		}
	}
}

// try gives why the kernel does not take a program, nil if it does. The program is what would be used: with the
// constants as they are, and with static functions if so asked.
func try(spec *ebpf.CollectionSpec, name string, static bool, kernel *btf.Cache) error {
	alone := spec.Copy()
	uses := map[string]bool{}
	for _, ins := range alone.Programs[name].Instructions {
		uses[ins.Reference()] = true
	}
	maps.DeleteFunc(alone.Programs, func(n string, _ *ebpf.ProgramSpec) bool { return n != name })
	maps.DeleteFunc(alone.Maps, func(n string, _ *ebpf.MapSpec) bool { return !uses[n] })
	maps.DeleteFunc(alone.Variables, func(_ string, v *ebpf.VariableSpec) bool { return !uses[v.SectionName] })
	if static {
		makeStatic(alone)
	}
	c, err := ebpf.NewCollectionWithOptions(alone, ebpf.CollectionOptions{Cache: kernel})
	if err != nil {
		return err
	}
	c.Close()
	return nil
}

// withoutFromEnvironment gives the features that the environment tells to do without.
func withoutFromEnvironment() []string {
	return strings.FieldsFunc(os.Getenv(WithoutVariable), func(r rune) bool { return r == ',' })
}
