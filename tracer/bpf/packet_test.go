package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// crafted sends frames out of a device of a namespace of its own and gives the events of them.
type crafted struct {
	t      *testing.T
	tracer *Tracer
	lab    *lab.Lab
	pod    *lab.Pod
	fd     int
	index  int
}

func craft(t *testing.T) *crafted {
	t.Helper()
	return craftWith(t, nil)
}

// craftWith is craft on a kernel without some features.
func craftWith(t *testing.T, without []string) *crafted {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: eBPF and raw packets")
	}
	if err := Check(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l, err := lab.Up(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	c := &crafted{t: t, lab: l}
	c.from("raw")
	c.open(Options{NetNS: []uint32{uint32(c.pod.Inode())}, without: without})
	return c
}

// from makes a pod, out of whose device frames are sent from now on.
func (c *crafted) from(name string) {
	c.t.Helper()
	pod, err := c.lab.AddPod(lab.PodSpec{Node: "node-1", Namespace: "test",
		Workload: lab.Workload{Kind: "Deployment", Name: name}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.pod = pod
	err = pod.Do(func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		c.index = dev.Attrs().Index
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	fd := c.fd
	c.t.Cleanup(func() { _ = unix.Close(fd) })
}

// open opens a tracer with a small ring buffer.
func (c *crafted) open(o Options) {
	c.t.Helper()
	o.RingBytes = 1 << 20
	tracer, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.tracer = tracer
	c.t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			c.t.Error(err)
		}
	})
}

// send puts one IP packet on the device.
func (c *crafted) send(protocol uint16, packet []byte) {
	c.t.Helper()
	to := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: c.index, Halen: 6,
		Addr: [8]byte{2, 0, 0, 0, 0, 9}}
	if err := unix.Sendto(c.fd, packet, 0, to); err != nil {
		c.t.Fatal(err)
	}
}

// events reads what comes within a short while. Payloads are copied.
func (c *crafted) events(wait time.Duration) (events []Event, payloads []string) {
	c.t.Helper()
	for end := time.Now().Add(wait); time.Now().Before(end); {
		e, p, err := c.tracer.Read()
		if err != nil {
			c.t.Fatal(err)
		}
		if e != nil && e.Hook == HookXmit {
			events, payloads = append(events, *e), append(payloads, string(p))
		}
	}
	return events, payloads
}

func udp(payload []byte, length int) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, 53)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	return append(b, payload...)
}

func ip4(proto byte, options int, total int, fragment uint16, rest []byte) []byte {
	b := make([]byte, 20+options)
	b[0] = 4<<4 | byte(5+options/4)
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8], b[9] = 64, proto
	for i := range options {
		b[20+i] = 1 // no operation
	}
	copy(b[12:], net.IPv4(10, 244, 1, 10).To4())
	copy(b[16:], net.IPv4(192, 0, 2, 53).To4())
	return append(b, rest...)
}

// otherPacket gives an IPv4 packet another identification.
func otherPacket(b []byte) []byte {
	b[5] = 77
	return b
}

func ip6(next byte, rest []byte) []byte {
	b := make([]byte, 40)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[6], b[7] = next, 64
	copy(b[8:], net.ParseIP("fd00::1"))
	copy(b[24:], net.ParseIP("fd00::2"))
	return append(b, rest...)
}

// extension is an IPv6 extension header of eight bytes.
func extension(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// vxlan is the outer UDP header, that of VXLAN (RFC 7348) and the inner Ethernet header.
func vxlan(length int) []byte {
	b := binary.BigEndian.AppendUint16(nil, 50000)
	b = binary.BigEndian.AppendUint16(b, 4789)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0)
	return append(b, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0)
}

// geneve is the outer UDP header and that of GENEVE (RFC 8926) with eight bytes of options.
func geneve(protocol uint16, length int) []byte {
	b := binary.BigEndian.AppendUint16(nil, 50000)
	b = binary.BigEndian.AppendUint16(b, 6081)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0, 2, 0)
	b = binary.BigEndian.AppendUint16(b, protocol)
	return append(b, 0, 0, 1, 0, 1, 2, 3, 1, 0, 0, 0, 0)
}

func TestCraftedPackets(t *testing.T) {
	c := craft(t)
	q, err := new(dns.Msg).SetQuestion("example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	large := append([]byte(nil), q...)
	for len(large) < 1300 {
		large = append(large, 0xaa)
	}
	whole := udp(q, 8+len(q))
	const ip, ipv6, other = 0x0800, 0x86dd, 0x88b5
	cat := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	for _, tt := range []struct {
		name     string
		protocol uint16
		packet   []byte
		seen     bool
		payload  string
		flags    Flags
	}{
		{"a query", ip, ip4(17, 0, 20+len(whole), 0, whole), true, string(q), 0},
		{"IPv4 options", ip, ip4(17, 8, 28+len(whole), 0, whole), true, string(q), 0},
		{"a large one", ip, ip4(17, 0, 28+len(large), 0, udp(large, 8+len(large))), true, string(large), 0},
		{"a first fragment", ip, ip4(17, 0, 20+len(whole), 0x2000, udp(q, 4000)), true, string(q), FlagFragment},
		{"a later fragment", ip, ip4(17, 0, 20+len(whole), 0x2010, whole), true, "", FlagLater},
		{"the last fragment, with options", ip, ip4(17, 8, 28+len(whole), 0x0020, whole), true, "", FlagLater},
		{"a later fragment of another packet", ip, otherPacket(ip4(17, 0, 20+len(whole), 0x2010, whole)), false, "", 0},
		{"a later fragment of another packet, with options", ip, otherPacket(ip4(17, 8, 28+len(whole), 0x2010, whole)), false,
			"", 0},
		{"a later fragment of another protocol", ip, ip4(132, 0, 20+len(whole), 0x2010, whole), false, "", 0},
		{"a UDP length beyond the packet", ip, ip4(17, 0, 20+len(whole), 0, udp(q, 60000)), true, string(q), 0},
		{"a UDP length below its header", ip, ip4(17, 0, 20+len(whole), 0, udp(q, 3)), false, "", 0},
		{"an IP length below its header", ip, ip4(17, 0, 12, 0, whole), false, "", 0},
		{"an IP header length of nothing", ip, cat([]byte{0x40}, ip4(17, 0, 20+len(whole), 0, whole)[1:]), false, "", 0},
		{"another port", ip, ip4(17, 0, 20+len(whole), 0, cat([]byte{0x9c, 0x40, 0, 54}, whole[4:])), false, "", 0},
		{"another protocol", ip, ip4(132, 0, 20+len(whole), 0, whole), false, "", 0},
		{"not IP", other, ip4(17, 0, 20+len(whole), 0, whole), false, "", 0},
		{"IPv6", ipv6, ip6(17, whole), true, string(q), 0},
		{"IPv6, hop-by-hop and destination options", ipv6, ip6(0, cat(extension(60), extension(17), whole)), true, string(q),
			0},
		{"IPv6, a first fragment", ipv6, ip6(44, cat([]byte{17, 0, 0, 1, 0, 0, 0, 9}, whole)), true, string(q), FlagFragment},
		{"IPv6, a later fragment", ipv6, ip6(44, cat([]byte{17, 0, 0x10, 0, 0, 0, 0, 9}, whole)), true, "", FlagLater},
		{"IPv6, a later fragment of another packet", ipv6, ip6(44, cat([]byte{17, 0, 0x10, 0, 0, 0, 0, 8}, whole)), false, "",
			0},
		{"IPv6, a fragment that is all of it", ipv6, ip6(44, cat([]byte{17, 0, 0, 0, 0, 0, 0, 7}, whole)), true, string(q),
			0},
		{"IPv6, an extension that lies about its length", ipv6, ip6(0, cat([]byte{17, 0xff, 1, 4, 0, 0, 0, 0}, whole)), false,
			"", 0},
		{"IPv6, extensions without end", ipv6,
			ip6(0, cat(extension(0), extension(0), extension(0), extension(0), extension(0), extension(0), extension(0),
				extension(17), whole)), false, "", 0},
		{"IP in IP", ip, ip4(4, 0, 40+len(whole), 0, ip4(17, 0, 20+len(whole), 0, whole)), true, string(q), FlagInner},
		{"IPv6 in IP", ip, ip4(41, 0, 60+len(whole), 0, ip6(17, whole)), true, string(q), FlagInner},
		{"VXLAN", ip, ip4(17, 0, 70+len(whole), 0, cat(vxlan(50+len(whole)), ip4(17, 0, 20+len(whole), 0, whole))), true,
			string(q), FlagInner},
		{"GENEVE with Ethernet inside", ip,
			ip4(17, 0, 78+len(whole), 0, cat(geneve(0x6558, 58+len(whole)), make([]byte, 12), []byte{8, 0},
				ip4(17, 0, 20+len(whole), 0, whole))), true, string(q), FlagInner},
		{"GENEVE with IP inside", ip,
			ip4(17, 0, 64+len(whole), 0, cat(geneve(ip, 44+len(whole)), ip4(17, 0, 20+len(whole), 0, whole))), true,
			string(q), FlagInner},
		{"GENEVE with something else inside", ip,
			ip4(17, 0, 64+len(whole), 0, cat(geneve(0x8847, 44+len(whole)), ip4(17, 0, 20+len(whole), 0, whole))), false, "", 0},
		{"GENEVE with options that end behind the packet", ip, ip4(17, 0, 36, 0, geneve(0x6558, 16)[:16]), false, "", 0},
		{"VXLAN with something else inside", ip,
			ip4(17, 0, 70+len(whole), 0, cat(vxlan(50+len(whole)), ip4(1, 0, 20+len(whole), 0, whole))), false, "", 0},
		{"a VLAN tag in the packet", 0x8100, cat([]byte{0, 7, 0x08, 0}, ip4(17, 0, 20+len(whole), 0, whole)), true, string(q),
			FlagVLAN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			c.events(30 * time.Millisecond)
			c.send(tt.protocol, tt.packet)
			events, payloads := c.events(150 * time.Millisecond)
			if !tt.seen {
				if len(events) > 0 {
					t.Fatalf("seen: %+v", events)
				}
				return
			}
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			e := &events[0]
			if payloads[0] != tt.payload {
				t.Errorf("payload of %d bytes, want %d", len(payloads[0]), len(tt.payload))
			}
			src, dst := uint16(40000), uint16(53)
			if tt.flags == FlagLater {
				src, dst = 0, 0
				if offset, bytes := e.Seq>>16, int(e.Seq&0xffff); offset == 0 || offset%8 != 0 || bytes != len(whole) {
					t.Errorf("offset %d, %d bytes", offset, bytes)
				}
			}
			if e.Addr.SrcPort != src || e.Addr.DstPort != dst || e.Proto != 17 || e.TTL != 64 ||
				e.Flags&(FlagFragment|FlagLater|FlagInner|FlagVLAN) != tt.flags || CString(e.Dev[:]) != "eth0" {
				t.Errorf("%s", fmt.Sprintf("%+v", e))
			}
		})
	}
}
