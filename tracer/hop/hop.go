// Package hop turns the kernel's raw events into hops: one DNS packet seen at one place at one time.
//
// A hop is an observation, never an inference. What its place in a lookup is, package lookup finds out.
package hop

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
)

// Kind says what happened to the packet.
type Kind uint8

// The kinds.
const (
	Out         Kind = 1 + iota // left by a device
	In                          // arrived at a device
	Drop                        // was dropped by the kernel
	Read                        // was read from a socket
	Unreachable                 // was answered by an ICMP error, which was sent or arrived here
	// a send returned although the packet had not left: no hop of a lookup, but who sent it, and when
	Sent
	Unsent // a connection or send failed before there was a packet

	afterKinds
)

// LastKind is the last of the kinds: [Out] is the first.
const LastKind = afterKinds - 1

// String gives the kind as it stands in outputs: `out`, `in`, `drop`, `read`, `unreachable`, `unsent`.
func (k Kind) String() string {
	switch k {
	case Out:
		return "out"
	case In:
		return "in"
	case Drop:
		return "drop"
	case Read:
		return "read"
	case Unreachable:
		return "unreachable"
	case Sent:
		return "sent"
	case Unsent:
		return "unsent"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Endpoint is an address and a port; IPv4 addresses are mapped into IPv6. It is comparable and holds no pointer.
type Endpoint struct {
	Addr [16]byte
	Port uint16
}

// EndpointOf gives the endpoint of an address and port.
func EndpointOf(ap netip.AddrPort) Endpoint {
	return Endpoint{Addr: ap.Addr().As16(), Port: ap.Port()}
}

// AddrPort gives the endpoint with an IPv4 address as such.
func (e Endpoint) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.Addr).Unmap(), e.Port)
}

// IsZero says whether there is no endpoint.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// Equal is ==, without a call.
func (e *Endpoint) Equal(o *Endpoint) bool {
	return e.Port == o.Port &&
		binary.LittleEndian.Uint64(e.Addr[8:]) == binary.LittleEndian.Uint64(o.Addr[8:]) &&
		binary.LittleEndian.Uint64(e.Addr[:8]) == binary.LittleEndian.Uint64(o.Addr[:8])
}

// String gives address:port.
func (e Endpoint) String() string { return e.AddrPort().String() }

// Process is a process that sent or read a packet.
type Process struct {
	PID      uint32 // thread group ID in the initial PID namespace
	Name     string // the thread group leader's name, at most 15 bytes (the kernel's comm)
	CgroupID uint64 // cgroup v2 ID; 0 where none
}

// ConntrackStatus is the kernel's enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
type ConntrackStatus uint32

// The bits that outputs speak of.
const (
	SeenReply ConntrackStatus = 1 << 1
	Assured   ConntrackStatus = 1 << 2
	Confirmed ConntrackStatus = 1 << 3
	SrcNAT    ConntrackStatus = 1 << 4
	DstNAT    ConntrackStatus = 1 << 5
	Dying     ConntrackStatus = 1 << 9
)

// String gives the status in the words of conntrack(8): `UNREPLIED DST_NAT`, `SEEN_REPLY ASSURED`.
func (s ConntrackStatus) String() string {
	words := []string{"UNREPLIED"}
	if s&SeenReply != 0 {
		words[0] = "SEEN_REPLY"
	}
	for _, b := range []struct {
		bit  ConntrackStatus
		word string
	}{{Assured, "ASSURED"}, {SrcNAT, "SRC_NAT"}, {DstNAT, "DST_NAT"}, {Dying, "DYING"}} {
		if s&b.bit != 0 {
			words = append(words, b.word)
		}
	}
	if s&Confirmed == 0 {
		words = append(words, "UNCONFIRMED")
	}
	return strings.Join(words, " ")
}

// Conntrack is the connection-tracking entry of a packet: its two directions as the kernel expects them. Source
// translation shows in ReplyDst != OrigSrc, destination translation in ReplySrc != OrigDst.
type Conntrack struct {
	OrigSrc, OrigDst   Endpoint
	ReplySrc, ReplyDst Endpoint
	Status             ConntrackStatus
}

// String gives both directions and the status.
func (c *Conntrack) String() string {
	return fmt.Sprintf("%s>%s / %s>%s %s", c.OrigSrc, c.OrigDst, c.ReplySrc, c.ReplyDst, c.Status)
}

// Hop is one packet at one place at one time.
type Hop struct {
	Time    int64  // ns since 1970-01-01T00:00:00Z
	SKB     uint64 // identity of the packet in the kernel, 0 for a read without it
	Kind    Kind
	Answer  bool   // the packet is an answer
	Local   bool   // it was sent here: Process is the sender
	Tracked bool   // Conntrack is set
	Paged   bool   // its payload could not be read
	Tunnel  bool   // it was seen inside a tunnel's packet: what happens to it happens to that
	Partial bool   // it is the first fragment of a fragmented packet, or one of several segments
	Attempt uint8  // which of the lookup's attempts the packet belongs to, from 0; package lookup sets it
	NetNS   uint32 // inode number of the network namespace, 0 if not known
	IfIndex uint32 // 0 without a device
	Dev     [16]byte
	Src     Endpoint
	Dst     Endpoint

	Conntrack Conntrack

	Fragment Fragment // of a fragmented UDP packet, the first one or (see Packet.Later) another

	Reason   Reason // Drop: why
	Route    Route  // Drop: where it was going; Unsent: whether there is a way
	Location uint64 // Drop: the address in the kernel that dropped it
	TTL      uint8  // hop limit

	ICMP       uint16   // Unreachable: type << 8 | code (RFC 792, RFC 4443)
	ICMPSender [16]byte // Unreachable: who sent the error

	Process *Process // Local and Read: the sender or reader; shared, not to be changed
}

// Fragment is which part of a packet a fragment is: its identification (of IPv4 or IPv6), and what it holds of what
// follows the IP header, in bytes.
type Fragment struct {
	ID            uint32
	Offset, Bytes uint16
}

// Route is where a packet was going that was dropped.
type Route = bpf.Route

// The routes.
const (
	RouteUnknown = bpf.RouteUnknown // none was looked up yet
	RouteLocal   = bpf.RouteLocal   // to a socket of the namespace
	RouteOn      = bpf.RouteOn      // on to another host; Unsent: there is one
	RouteNone    = bpf.RouteNone    // Unsent: there is none
)

// Device gives the device's name; "" without one.
func (h *Hop) Device() string { return bpf.CString(h.Dev[:]) }

// Packet is a hop with what the packet carries. Its slices live until the next event is read.
type Packet struct {
	Hop
	Transport  uint8 // 6 or 17
	PayloadLen int   // bytes of payload in the packet
	Payload    []byte
	// Proxied is the client that a load balancer's header before the message names (PROXY protocol, version 2); zero
	// where there is none.
	Proxied Endpoint
	// Head is the DNS header and question; HasHead false on TCP, on a read without packet, and where the payload is none.
	Head    dnswire.Head
	HasHead bool
	// Later says that this is a later fragment: it has no ports, and says only by addresses and identification what it
	// belongs to.
	Later bool
	// Error is the errno of what was not sent, 0 if it was not seen, and Connect whether a connection failed.
	Error   int
	Connect bool
	// Seq and TCPFlags are TCP's.
	Seq      uint32
	TCPFlags uint8
}

// Decoder turns events into packets. It is for one goroutine.
type Decoder struct {
	// Offset is added to the kernel's monotonic time to give wall-clock time, in ns: see [Clock].
	Offset int64
	// First, if set, gets a process at its first packet, before that is given: what is to be asked about a process must
	// be asked while it is there. It gets some again, since not all are remembered.
	First func(*Process)

	processes map[processKey]*Process
	questions dnswire.Questions
}

type processKey struct {
	pid    uint32
	cgroup uint64
	comm   [16]byte
}

// maxProcesses bounds the processes remembered, so that each is one allocation and not one a packet.
const maxProcesses = 8192

// Decode fills p from an event and its payload. False: the packet is not DNS after all.
func (d *Decoder) Decode(e *bpf.Event, payload []byte, p *Packet) bool {
	var kind Kind
	switch e.Hook {
	case bpf.HookXmit:
		kind = Out
	case bpf.HookRecv:
		kind = In
	case bpf.HookDrop:
		kind = Drop
	case bpf.HookCopy, bpf.HookRead:
		kind = Read
	case bpf.HookSent:
		kind = Sent
	case bpf.HookUnsent:
		kind = Unsent
	default:
		return false
	}
	*p = Packet{} // then field by field: a literal would be made beside it and copied
	p.Time = int64(e.Time) + d.Offset
	p.SKB = e.SKB
	p.Kind = kind
	// A packet keeps its socket where it crosses into another namespace by a switch alone; but what arrives was sent
	// elsewhere.
	p.Local = e.Flags&bpf.FlagLocal != 0 && kind != In
	p.Tracked = e.Flags&bpf.FlagConntrack != 0
	p.Paged = e.Flags&bpf.FlagPaged != 0
	p.Partial = e.Flags&bpf.FlagFragment != 0
	p.Tunnel = e.Flags&bpf.FlagInner != 0
	p.NetNS, p.IfIndex, p.Dev = e.NetNS, e.IfIndex, e.Dev
	setEndpoint(&p.Src, e.Version, &e.Addr.SrcAddr, e.Addr.SrcPort)
	setEndpoint(&p.Dst, e.Version, &e.Addr.DstAddr, e.Addr.DstPort)
	if kind == Unsent {
		p.Local, p.Error, p.Connect, p.Route = true, int(e.Reason), e.Call == bpf.CallConnect, e.Route
	}
	if kind == Sent || kind == Unsent {
		p.Src, p.Dst = p.Dst, p.Src // the record has both ends as a packet to the socket has them
	}
	p.Transport, p.PayloadLen, p.Payload = e.Proto, int(e.PayloadLen), payload
	p.Seq, p.TCPFlags = e.Seq, e.TCPFlags
	if p.Tracked {
		c := &p.Conntrack
		setEndpoint(&c.OrigSrc, e.Version, &e.CTOrig.SrcAddr, e.CTOrig.SrcPort)
		setEndpoint(&c.OrigDst, e.Version, &e.CTOrig.DstAddr, e.CTOrig.DstPort)
		setEndpoint(&c.ReplySrc, e.Version, &e.CTReply.SrcAddr, e.CTReply.SrcPort)
		setEndpoint(&c.ReplyDst, e.Version, &e.CTReply.DstAddr, e.CTReply.DstPort)
		c.Status = ConntrackStatus(e.CTStatus)
	}
	p.TTL = e.TTL
	if e.Flags&bpf.FlagICMP != 0 {
		p.Kind = Unreachable
		if kind == Drop {
			return false // the error itself was dropped: nothing follows from it
		}
		var sender Endpoint
		setEndpoint(&sender, e.Version, &e.CTOrig.SrcAddr, 0)
		p.ICMP, p.ICMPSender = e.ICMP, sender.Addr
	}
	if kind == Drop {
		p.Reason, p.Location, p.Route = reasonOf(e.Reason), e.Location, e.Route
	}
	if e.Flags&(bpf.FlagFragment|bpf.FlagLater) != 0 && e.Proto == protoUDP {
		p.Fragment = Fragment{ID: e.IPID, Offset: uint16(e.Seq >> 16), Bytes: uint16(e.Seq)}
		if e.Flags&bpf.FlagLater != 0 {
			p.Later, p.Partial = true, true
			return true
		}
	}
	if e.PID != 0 && (p.Local || kind == Read || kind == Sent) { // what is unsent is local
		p.Process = d.process(e)
	}
	if e.Proto != protoUDP || kind == Read || kind == Sent || kind == Unsent {
		return true
	}
	if n, client := dnswire.ProxyHeader(payload); n != 0 {
		if n > len(payload) || n > p.PayloadLen {
			return false
		}
		payload = payload[n:]
		p.Payload, p.PayloadLen = payload, p.PayloadLen-n
		if client.IsValid() {
			p.Proxied = EndpointOf(client)
		}
	}
	if err := d.questions.Parse(&p.Head, payload); err != nil {
		return false
	}
	p.HasHead = true
	p.Answer = p.Head.Flags.Response()
	return true
}

const protoUDP = 17

func (d *Decoder) process(e *bpf.Event) *Process {
	k := processKey{e.PID, e.CgroupID, e.Comm}
	if p := d.processes[k]; p != nil {
		return p
	}
	if d.processes == nil || len(d.processes) >= maxProcesses {
		d.processes = make(map[processKey]*Process)
	}
	p := &Process{PID: e.PID, Name: bpf.CString(e.Comm[:]), CgroupID: e.CgroupID}
	d.processes[k] = p
	if d.First != nil {
		d.First(p)
	}
	return p
}

// setEndpoint fills an endpoint in place, in two whole words: parts that are read back as a whole at once make the CPU
// wait.
func setEndpoint(e *Endpoint, version uint8, addr *[16]byte, port uint16) {
	e.Port = port
	if version != 4 {
		e.Addr = *addr
		return
	}
	binary.LittleEndian.PutUint64(e.Addr[:8], 0)
	binary.LittleEndian.PutUint64(e.Addr[8:], 0xffff<<16|uint64(binary.LittleEndian.Uint32(addr[:]))<<32)
}
