package model

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// kinds are the networks.
var kinds = []string{
	"bridge", "routed", "vxlan", "same-node", "bridge-unfiltered", "host-network", "host-network-same-node",
	"loopback", "loopback-node",
	"redirected", "node-local", "macvlan", "redirect-peer", "redirect-peer-server", "external",
}

// build makes a world and lets it happen; a rough one has wires that lose what TCP sends, and delay packets.
func build(b []byte, rough bool) *world {
	w := newWorld(newDice(b))
	d := w.d
	if rough {
		w.rough, w.late = true, pick(d, 0, 4)
	}
	var ns []*network
	first := newNetwork(d, w.six, 0, kinds...)
	ns = append(ns, first)
	for _, s := range first.back {
		w.doubling = w.doubling && !s.hidden // of reads whose packets are out of sight, none tells which is a copy's
	}
	for i := 1; i < 1+d.n(3); i++ {
		// Another server that the same client asks.
		ns = append(ns, newNetworkLike(d, w.six, i, first))
	}
	for i, n := range ns {
		s := newServer(d, w.six, i, n)
		w.servers[n] = s
		w.servers[s.up] = &server{process: &hop.Process{PID: 1, Name: "named"}, busy: time.Millisecond}
	}
	for i := range 1 + d.n(3) {
		p := &hop.Process{PID: uint32(40 + i), Name: fmt.Sprintf("client-%d", i), CgroupID: uint64(4 + i)}
		n := ns[d.n(len(ns))]
		at := d.span(0, 12*time.Second)
		switch d.n(7) {
		case 0:
			w.after(at, func() { w.glibc(n, p) })
		case 1:
			w.after(at, func() { w.musl(ns, p) })
		case 2:
			w.after(at, func() { w.simple(n, p, 1, false, false, false) })
		case 3:
			w.after(at, func() { w.simple(n, p, 1+d.n(5), true, false, d.one(2)) })
		case 4:
			w.after(at, func() { w.simple(n, p, 1+d.n(5), true, true, true) })
		case 5:
			w.after(at, func() { w.pipelined(n, p) })
		case 6:
			w.after(at, func() { w.overTCP(n, p, w.newName(), w.id(), []uint16{dns.TypeA, dns.TypeAAAA}) })
		}
	}
	w.run()
	return w
}

// newNetworkLike makes the way to another server that the first one's client asks from the same socket.
func newNetworkLike(d *dice, six family, i int, first *network) *network {
	for {
		n := newNetwork(d, six, i, first.name)
		if n.mask == first.mask {
			return n
		}
	}
}

func numbered(i uint32) []byte { return binary.BigEndian.AppendUint32(nil, i) }

// FuzzLegalWorlds asks of every world what holds in all: no panic, an end for each lookup, no row that nobody asked
// for, and nothing held after all; and, where the agent lost no record and got them in order, a row for whatever was
// asked in its sight, and no connection called lost for sure that stood. What else is to hold, TestWorlds asks of the
// worlds of its list.
func FuzzLegalWorlds(f *testing.F) {
	for i := range uint32(64) {
		f.Add(numbered(i), i%2 == 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, rough bool) { check(t, b, rough, false) })
}

var (
	worlds = flag.Int("worlds", 600, "worlds that TestWorlds tries")
	first  = flag.Uint("first", 0, "number of the first of them")
	alone  = flag.String("world", "", "the one world that TestWorlds tries, in hexadecimal")
	rough  = flag.Bool("rough", false, "whether that is a rough one")
	goOn   = flag.Bool("go-on", false, "let TestWorlds try the others after one that fails")
)

// found are worlds beyond those that TestWorlds tries in which something was wrong, and is not any more; foundRough are
// rough ones.
var (
	found = []uint32{
		0x56e7, 0x6364, 0x20bb, 0x4fad, 0x5497, 0x54b2, 0x609e, 0x67c5, 0x8c14, 0x9734, 0x9d51, 0x9e6f, 0x791b, 0x8968,
		0x123d1, 0x25859,
		0x2a73d, 0x35aaf,
	}
	foundRough = []uint32{0xa634, 0xac7f, 0xaea3, 0xa4a9, 0xabf0, 0xb1aa, 0xc8bf, 0xe85c, 0xc280,
		0xe4a8, 0xe5b7, 0xd120, 0xa9b0, 0xc978, 0xdade, 0x2f604, 0x31b77}
)

// TestWorlds tries worlds by their number. One that fails prints its bytes, by which it can be tried alone.
func TestWorlds(t *testing.T) {
	if *alone != "" {
		b, err := hex.DecodeString(*alone)
		if err != nil {
			t.Fatal(err)
		}
		check(t, b, *rough, true)
		return
	}
	for _, i := range found {
		check(t, numbered(i), false, true)
	}
	for _, i := range foundRough {
		check(t, numbered(i), true, true)
	}
	for i := range uint32(*worlds) {
		check(t, numbered(uint32(*first)+i), false, true)
		check(t, numbered(uint32(*first)+i), true, true)
		if t.Failed() && !*goOn {
			return
		}
	}
}

// check builds a world, and compares what each observer's agent says of it with what was: all of it, or what holds in
// every world.
func check(t *testing.T, b []byte, rough, all bool) {
	w := build(b, rough)
	if len(w.shown) == 0 {
		return
	}
	for _, o := range observers(w.d, w.translates()) {
		x := w.watch(o)
		failed := false
		for _, f := range w.findings(x) {
			if f.hard || all {
				t.Errorf("world %x (rough: %v) seen by %s: %s", b, rough, o.name, f.text)
				failed = true
			}
		}
		if failed {
			if !*goOn {
				t.Log(w.tell(x))
			}
			return
		}
	}
}

// TestTheCostOfOneSocketIsLinear asks twice as many questions with one ID from one socket: that must not cost more than
// two and a half times as much. The best of some tries counts, because the machine has other work.
func TestTheCostOfOneSocketIsLinear(t *testing.T) {
	cost := func(n int) time.Duration {
		a := lookup.New(lookup.Options{Emit: func(*lookup.Lookup) {}})
		client, server := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:53")
		packets := make([]hop.Packet, n)
		for i := range packets {
			p := &packets[i]
			m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.org.", i), dns.TypeA)
			m.Id = 7
			p.Payload = pack(m)
			if err := p.Head.ParseAny(p.Payload); err != nil {
				t.Fatal(err)
			}
			p.HasHead, p.PayloadLen, p.Transport = true, len(p.Payload), udp
			p.Time, p.SKB, p.Kind, p.NetNS, p.IfIndex = begin+int64(i)*1000, uint64(i+1), hop.Out, clientNS, 2
			p.Src, p.Dst = hop.EndpointOf(client), hop.EndpointOf(server)
			p.Local, p.Process = true, &hop.Process{PID: 1, Name: "client"}
		}
		start := time.Now()
		for i := range packets {
			a.Add(&packets[i])
		}
		var r hop.Packet
		r.Kind, r.NetNS, r.Transport, r.Process = hop.Read, clientNS, udp, packets[0].Process
		r.Src, r.Dst = hop.EndpointOf(server), hop.EndpointOf(client)
		for i := range packets {
			r.Time = begin + int64(n+i)*1000
			a.Add(&r)
		}
		a.Sweep(begin + int64(time.Minute))
		a.Flush()
		return time.Since(start)
	}
	best := 100.0
	for range 8 {
		one, two := cost(4000), cost(8000)
		if best = min(best, float64(two)/float64(one)); best <= 2.5 {
			return
		}
	}
	t.Errorf("twice as many cost %.1f times as much", best)
}
