package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// query gives a packet with a DNS query from an IPv4 address.
func query(t *testing.T, from netip.Addr) []byte {
	t.Helper()
	q, err := new(dns.Msg).SetQuestion("example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	b := udp(q, 8+len(q))
	b = ip4(17, 0, 20+len(b), 0, b)
	copy(b[12:], from.AsSlice())
	return b
}

// readAnswer makes a lookup within the pod: its address has then read an answer.
func (c *crafted) readAnswer() {
	c.t.Helper()
	err := c.pod.Do(func() error {
		server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: c.pod.V4.AsSlice(), Port: 53})
		if err != nil {
			return err
		}
		defer server.Close()
		client, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: c.pod.V4.AsSlice(), Port: 53})
		if err != nil {
			return err
		}
		defer client.Close()
		b := make([]byte, 1<<10)
		if _, err := client.Write(query(c.t, c.pod.V4)[28:]); err != nil {
			return err
		}
		n, from, err := server.ReadFromUDP(b)
		if err != nil {
			return err
		}
		if _, err := server.WriteToUDP(b[:n], from); err != nil {
			return err
		}
		_, err = client.Read(b)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestWhoFloodsGivesWay: with nobody reading, a flood does not fill the ring buffer, whatever sources it says it has. A
// neighbor at another device is seen, and one at the same device whose address reads answers.
func TestWhoFloodsGivesWay(t *testing.T) {
	const many, few = 20_000, 50
	for _, tt := range []struct {
		name    string
		sources uint32
		same    bool // the neighbor is at the same device
	}{
		{"one source, another device", 1, false},
		{"one source, the same device", 1, true},
		{"any source, another device", many, false},
		{"any source, the same device", many, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := craft(t)
			inodes := []uint32{uint32(c.pod.Inode())}
			attacker := *c
			if !tt.same {
				c.from("neighbor")
				inodes = append(inodes, uint32(c.pod.Inode()))
			}
			c.open(Options{NetNS: inodes})
			if tt.same {
				c.readAnswer()
			}
			for i := range uint32(many) {
				source := [4]byte{198, 18}
				binary.BigEndian.PutUint16(source[2:], uint16(i%tt.sources))
				attacker.send(0x0800, query(t, netip.AddrFrom4(source)))
			}
			waiting := c.tracer.Waiting()
			for range few {
				c.send(0x0800, query(t, c.pod.V4))
			}
			l, err := c.tracer.Losses()
			if err != nil {
				t.Fatal(err)
			}
			if l.RingFull > 0 || l.Flood == 0 || waiting < 1<<18 || waiting > 1<<19+1<<16 {
				t.Errorf("%d bytes wait behind the flood; %+v", waiting, l)
			}
			seen, flood := 0, 0
			events, _ := c.events(200 * time.Millisecond)
			for i := range events {
				switch [4]byte(events[i].Addr.SrcAddr[:4]) {
				case c.pod.V4.As4():
					seen++
				default:
					flood++
				}
			}
			if tt.same {
				seen -= 2 // the query and the answer of its own lookup, which left by lo
			}
			if seen != few {
				t.Errorf("%d of the neighbor's %d packets were seen", seen, few)
			}
			if flood+int(l.Flood) != many {
				t.Errorf("%d of the flood's packets were seen and %d gave way, of %d", flood, l.Flood, many)
			}
			// Once all is read, the flood is seen again.
			attacker.send(0x0800, query(t, netip.AddrFrom4([4]byte{198, 18})))
			if events, _ := c.events(200 * time.Millisecond); len(events) != 1 {
				t.Errorf("%d packets were seen of one that came when nothing waited", len(events))
			}
		})
	}
}
