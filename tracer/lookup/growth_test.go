package lookup

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/dnstrail/dnstrail/test/growth"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// TestNothingGrowsMoreThanLinearly: what an attacker can choose in a packet costs twice the time where there is twice
// as much of it, in every table that it leads to.
func TestNothingGrowsMoreThanLinearly(t *testing.T) {
	const n = 8000
	other := func(i int) hop.Endpoint {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		return hop.EndpointOf(netip.AddrPortFrom(a, uint16(1024+i%60000)))
	}
	for _, c := range []struct {
		name string
		o    Options
		make func(w *walk, i int) []*hop.Packet // of the i'th of what there is more of
	}{
		{name: "names of one socket and ID", make: func(w *walk, i int) []*hop.Packet {
			w.id, w.name = 1, fmt.Sprintf("n%d.example.", i)
			return []*hop.Packet{w.query(hop.Out, podNS, 2, client, vip)}
		}},
		{name: "IDs of one question", make: func(w *walk, i int) []*hop.Packet {
			w.id = uint16(i)
			return []*hop.Packet{w.query(hop.Out, podNS, 2, client, vip)}
		}},
		{name: "clients", make: func(w *walk, i int) []*hop.Packet {
			return []*hop.Packet{w.query(hop.In, nodeNS, 2, other(i), vip)}
		}},
		{name: "servers", make: func(w *walk, i int) []*hop.Packet {
			p := w.query(hop.Out, podNS, 2, client, other(i))
			p.Local, p.Process = true, resolver
			return []*hop.Packet{p}
		}},
		{name: "processes", make: func(w *walk, i int) []*hop.Packet {
			w.id = uint16(i)
			p := w.query(hop.Out, podNS, 2, client, vip)
			p.Local, p.Process = true, &hop.Process{PID: uint32(i), Name: "x"}
			return []*hop.Packet{p}
		}},
		{name: "attempts", make: func(w *walk, i int) []*hop.Packet {
			w.skb = uint64(i)
			return []*hop.Packet{w.query(hop.Out, podNS, 2, client, vip)}
		}},
		{name: "answers that nobody asked for", make: func(w *walk, i int) []*hop.Packet {
			w.id = uint16(i)
			return []*hop.Packet{w.packet(hop.In, podNS, 2, other(i), client, true, 0)}
		}},
		{name: "lookups beyond the memory", o: Options{MaxBytes: n / 4 * bytesOfBare},
			make: func(w *walk, i int) []*hop.Packet {
				return []*hop.Packet{w.query(hop.In, nodeNS, 2, other(i), vip)}
			}},
		{name: "the same question of one server's process", make: func(w *walk, i int) []*hop.Packet {
			w.id = uint16(i)
			return []*hop.Packet{w.query(hop.In, serverNS, 2, other(i), backend)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			growth.Linear(t, n, func(n int) func() {
				o := c.o
				o.Emit, o.Tell = func(*Lookup) {}, -1
				if o.MaxBytes == 0 {
					o.MaxBytes = 1 << 30
				}
				w := start(t, o)
				w.a.o.Emit = o.Emit
				var packets []*hop.Packet
				for i := range n {
					packets = append(packets, c.make(w, i)...)
				}
				return func() {
					for _, p := range packets {
						w.a.Add(p)
					}
					w.a.Flush()
				}
			})
		})
	}
}
