package bpf

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// TestEventIsTheSameOnBothSides holds Event against struct event of the committed object, field by field.
func TestEventIsTheSameOnBothSides(t *testing.T) {
	spec, err := loadObject()
	if err != nil {
		t.Fatal(err)
	}
	var kernel *btf.Struct
	if err := spec.Types.TypeByName("event", &kernel); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"time": "Time", "skb": "SKB", "location": "Location", "cgroup": "CgroupID", "netns": "NetNS", "ifindex": "IfIndex",
		"iif":    "InIndex",
		"reason": "Reason", "pid": "PID", "seq": "Seq", "ct_status": "CTStatus", "ip_id": "IPID", "addr": "Addr",
		"ct_orig":  "CTOrig",
		"ct_reply": "CTReply", "hook": "Hook", "version": "Version", "proto": "Proto", "flags": "Flags",
		"tcp_flags": "TCPFlags", "ttl": "TTL",
		"icmp": "ICMP", "captured": "Captured", "payload": "PayloadLen", "dev": "Dev", "comm": "Comm", "route": "Route",
		"call": "Call",
	}
	typ := reflect.TypeFor[Event]()
	if uint32(typ.Size()) != kernel.Size {
		t.Errorf("%d bytes, the kernel side has %d", typ.Size(), kernel.Size)
	}
	for _, m := range kernel.Members {
		if bytes.HasPrefix([]byte(m.Name), []byte("pad")) {
			continue
		}
		f, ok := typ.FieldByName(names[m.Name])
		if !ok {
			t.Errorf("%s is not in Event", m.Name)
			continue
		}
		if size, err := btf.Sizeof(m.Type); err != nil || uint32(f.Offset) != m.Offset.Bytes() || int(f.Type.Size()) != size {
			t.Errorf("%s is at %d, %d bytes; the kernel side has it at %d, %d bytes (%v)", f.Name, f.Offset, f.Type.Size(),
				m.Offset.Bytes(), size, err)
		}
	}
}

func TestDecodeRefusesShortRecords(t *testing.T) {
	whole := make([]byte, eventSize+10)
	for n := range eventSize {
		if _, _, err := Decode(whole[:n]); !errors.Is(err, ErrEvent) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	e, _, err := Decode(whole)
	if err != nil {
		t.Fatal(err)
	}
	e.Captured = 11
	if _, _, err := Decode(whole); !errors.Is(err, ErrEvent) {
		t.Errorf("more payload than there is: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	spec, err := loadObject()
	if err != nil {
		t.Fatal(err)
	}
	if err := configure(spec, Options{Ports: make([]uint16, maxPorts+1)}); err == nil {
		t.Error("nine ports pass")
	}
	if err := configure(spec, Options{Ports: []uint16{53, 5353}, NetNS: []uint32{1}, RingBytes: 1 << 20}); err != nil {
		t.Error(err)
	}
	if spec.Maps["events"].MaxEntries != 1<<20 || spec.Maps["events"].Type != ebpf.RingBuf {
		t.Errorf("%v", spec.Maps["events"])
	}
}
