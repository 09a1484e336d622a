package model

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// What any hop is made of: few of each, so that hops have much in common.
var (
	anyEnds = []hop.Endpoint{
		{},
		hop.EndpointOf(netip.MustParseAddrPort("10.244.1.10:40000")),
		hop.EndpointOf(netip.MustParseAddrPort("10.244.1.10:40001")),
		hop.EndpointOf(netip.MustParseAddrPort("10.96.0.10:53")),
		hop.EndpointOf(netip.MustParseAddrPort("10.244.2.10:53")),
		hop.EndpointOf(netip.MustParseAddrPort("127.0.0.1:53")),
		hop.EndpointOf(netip.MustParseAddrPort("[fd00::10]:40000")),
		hop.EndpointOf(netip.MustParseAddrPort("[fd00::53]:53")),
	}
	anyProcesses = []*hop.Process{nil, {PID: 7, Name: "client"}, {PID: 8, Name: "coredns", CgroupID: 9}}
	anySteps     = []int64{0, 1, 1e3, 1e6, 2e8, 3e9, 6e9, 40e9} // ns from one hop to the next
)

// anyMessages are messages whole, cut short, and none.
func anyMessages(t testing.TB) [][]byte {
	t.Helper()
	found := [][]byte{nil, {0}, make([]byte, 12)}
	for _, name := range []string{"a.example.", "b.example."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Id = 1
		r := new(dns.Msg).SetReply(m)
		cut := new(dns.Msg).SetReply(m)
		cut.Truncated = true
		failed := new(dns.Msg).SetRcode(m, dns.RcodeServerFailure)
		for _, m := range []*dns.Msg{m, r, cut, failed} {
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, b, b[:14], append([]byte{byte(len(b) >> 8), byte(len(b))}, b...))
		}
	}
	return found
}

// anyPacket makes a packet of 16 bytes, which need not be one that a kernel could show.
func anyPacket(b []byte, messages [][]byte, now int64) *hop.Packet {
	p := &hop.Packet{Hop: hop.Hop{
		Time: now, SKB: uint64(b[1] % 8), Kind: hop.Kind(b[2] % (byte(hop.Unsent) + 2)),
		Local: b[3]&1 != 0, Paged: b[3]&2 != 0, Tunnel: b[3]&4 != 0, Partial: b[3]&8 != 0,
		NetNS: uint32(b[4] % 4), IfIndex: uint32(b[4] >> 4),
		Src: anyEnds[int(b[5])%len(anyEnds)], Dst: anyEnds[int(b[6])%len(anyEnds)],
		Reason: hop.Reason(b[7]), TTL: b[8], ICMP: uint16(b[9]) << 8, Process: anyProcesses[int(b[10])%len(anyProcesses)],
	}}
	if b[3]&16 != 0 {
		p.Tracked = true
		p.Conntrack = hop.Conntrack{
			OrigSrc: p.Src, OrigDst: p.Dst, ReplySrc: anyEnds[int(b[11])%len(anyEnds)], ReplyDst: p.Src,
			Status: hop.ConntrackStatus(b[12]),
		}
	}
	p.Payload = messages[int(b[13])%len(messages)]
	p.PayloadLen = len(p.Payload) + int(b[14]&3)*700
	p.Transport = 17
	switch {
	case b[3]&32 != 0:
		p.Transport = 6
		p.Seq, p.TCPFlags = uint32(b[15])*16, b[14]
		return p
	case b[3]&64 != 0:
		p.Fragment = hop.Fragment{ID: uint32(b[15] % 4), Offset: uint16(b[14]) * 8, Bytes: uint16(b[15])}
		p.Later = b[14] != 0
	}
	if h, err := dnswire.ParseHead(p.Payload); err == nil && !p.Later {
		p.Head, p.HasHead, p.Answer = h, true, h.Flags.Response()
	}
	return p
}

// FuzzAnyHops puts together what no kernel need ever show: whatever bytes say. Nothing panics, what is told has a
// verdict, lookups over UDP are not forgotten untold, and in the end nothing is held.
func FuzzAnyHops(f *testing.F) {
	messages := anyMessages(f)
	f.Add([]byte("0123456789abcdef0123456789abcdef"))
	f.Add(make([]byte, 16*8))
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 4096 // hops: more are more of the same
		var now int64 = 1_800_000_000e9
		judge := &verdict.Judge{ReadsSeen: len(b)%2 == 0}
		told, tcp := 0, false
		a := lookup.New(lookup.Options{MaxInFlight: 64, Tell: -1, ReadsSeen: judge.ReadsSeen, Emit: func(l *lookup.Lookup) {
			told++
			if v := judge.Of(l); v.Where == "" {
				t.Errorf("a lookup without a verdict: %+v", l)
			}
		}})
		for i := 0; len(b) >= 16 && i < most; i, b = i+1, b[16:] {
			now += anySteps[int(b[0])%len(anySteps)]
			p := anyPacket(b, messages, now)
			tcp = tcp || p.Transport == 6
			a.Add(p)
			a.Sweep(now)
		}
		for range 120 { // what is told as it stands at the end of a run need not have ended
			now += 1e9
			a.Sweep(now)
		}
		a.Flush()
		if s := a.Stats(); s.InFlight != 0 || s.Bytes != 0 {
			t.Errorf("held in the end: %d lookups, %d bytes", s.InFlight, s.Bytes)
		}
		// A connection that came about is begun as a lookup, and is none.
		if s := a.Stats(); !tcp && uint64(told) < s.Lookups {
			t.Errorf("%d lookups, told %d times", s.Lookups, told)
		}
	})
}
