package pipeline_test

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// record is an event with its payload as it lies in the ring buffer.
type record struct {
	event   bpf.Event
	payload [96]byte
}

// recordedLookup gives the events of one lookup from pod to pod over two nodes: 16 packets and 2 reads.
func recordedLookup(b *testing.B) []record {
	b.Helper()
	q := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
	a := new(dns.Msg).SetReply(q)
	a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: 1},
		A: []byte{10, 96, 0, 1}}}
	a.Compress = true
	var records []record
	add := func(hook bpf.Hook, netns, ifindex uint32, answer bool) {
		m := q
		r := record{event: bpf.Event{Hook: hook, NetNS: netns, IfIndex: ifindex, Version: 4, Proto: 17,
			Dev: [16]byte{'e', 't', 'h', '0'}, SKB: 1}}
		r.event.Addr = bpf.Tuple{SrcAddr: [16]byte{10, 24, 2, 10}, DstAddr: [16]byte{10, 96, 0, 10}, SrcPort: 40000,
			DstPort: 53}
		if answer {
			m = a
			r.event.Addr = bpf.Tuple{SrcAddr: [16]byte{10, 96, 0, 10}, DstAddr: [16]byte{10, 24, 2, 10}, SrcPort: 53,
				DstPort: 40000}
			r.event.SKB = 2
		}
		if hook == bpf.HookXmit && (ifindex == 2) {
			r.event.Flags |= bpf.FlagLocal
			r.event.PID, r.event.Comm = netns, [16]byte{'d', 'i', 'g'}
		}
		if hook != bpf.HookRead {
			w, err := m.Pack()
			if err != nil {
				b.Fatal(err)
			}
			r.event.Captured, r.event.PayloadLen = uint16(copy(r.payload[:], w)), uint32(len(w))
		}
		records = append(records, r)
	}
	for _, answer := range []bool{false, true} {
		from, to := uint32(1), uint32(5)
		if answer {
			from, to = to, from
		}
		add(bpf.HookXmit, from, 2, answer)
		add(bpf.HookRecv, from+10, 7, answer)
		add(bpf.HookRecv, from+10, 8, answer)
		add(bpf.HookXmit, from+10, 9, answer)
		add(bpf.HookRecv, to+10, 9, answer)
		add(bpf.HookXmit, to+10, 8, answer)
		add(bpf.HookXmit, to+10, 7, answer)
		add(bpf.HookRecv, to, 2, answer)
		add(bpf.HookRead, to, 0, answer)
	}
	return records
}

// BenchmarkLookup is what user space spends on a lookup of 18 events, from the ring buffer to its verdict.
func BenchmarkLookup(b *testing.B) {
	records := recordedLookup(b)
	var decoder hop.Decoder
	var judge verdict.Judge
	var segments []verdict.Segment
	lookups := 0
	asm := lookup.New(lookup.Options{Emit: func(l *lookup.Lookup) {
		lookups++
		judge.Of(l)
		segments = judge.Segments(segments[:0], l)
	}})
	now := uint64(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).UnixNano())
	var packet hop.Packet
	n := uint32(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		for i := range records {
			r := &records[i]
			now += 2000
			r.event.Time = now
			if r.event.Addr.SrcPort == 53 {
				r.event.Addr.DstPort = uint16(1024 + n%60000)
			} else {
				r.event.Addr.SrcPort = uint16(1024 + n%60000)
			}
			binary.BigEndian.PutUint16(r.payload[:], uint16(n))
			raw := unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r))
			e, payload, err := bpf.Decode(raw)
			if err != nil {
				b.Fatal(err)
			}
			if decoder.Decode(e, payload, &packet) {
				asm.Add(&packet)
			}
		}
	}
	asm.Flush()
	if lookups < int(n) {
		b.Fatalf("%d lookups of %d", lookups, n)
	}
}
