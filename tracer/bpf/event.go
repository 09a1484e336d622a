package bpf

import (
	"errors"
	"unsafe"
)

// Hook says where in the kernel an event was seen.
type Hook uint8

// The hooks; src/event.h has the same list.
const (
	HookXmit Hook = 1 + iota // net_dev_queue: leaves by a device
	HookRecv                 // netif_receive_skb: arrives at a device
	HookDrop                 // kfree_skb
	HookCopy                 // skb_copy_datagram_iovec: read from a socket, with the packet
	HookRead                 // read from a socket, without the packet: only the two ends are known
	// a send returned although no packet had left: only the sender's end is known, and who it is
	HookSent
	HookUnsent // a connection or send failed before there was a packet
)

// Flags are the properties of an event.
type Flags uint8

// The flags; src/event.h has the same list and says what each means.
const (
	FlagLocal Flags = 1 << iota
	FlagPaged
	FlagFragment
	FlagConntrack
	FlagInner
	FlagVLAN
	FlagICMP
	FlagLater
)

// Route is where a packet was going that was dropped, and what is known of the route of what was not sent.
type Route uint8

// The routes; src/event.h has the same list.
const (
	RouteUnknown Route = iota // none was looked up
	RouteLocal                // to a socket of the namespace
	RouteOn                   // on to another host; HookUnsent: there is one
	RouteNone                 // HookUnsent: there is none
)

// Call is what failed before there was a packet.
type Call uint8

// The calls; src/event.h has the same list.
const (
	CallSend Call = iota
	CallConnect
)

// Tuple is the two ends of a packet or of a conntrack direction. IPv4 addresses are in the first four bytes; ports in
// host order.
type Tuple struct {
	SrcAddr, DstAddr [16]byte
	SrcPort, DstPort uint16
}

// Event is one DNS packet at one hook, as the kernel side writes it: src/event.h describes each field.
type Event struct {
	Time                    uint64 // ns, CLOCK_MONOTONIC
	SKB, Location, CgroupID uint64
	NetNS, IfIndex, InIndex uint32
	Reason                  uint32 // HookUnsent: errno, 0 if not known
	PID                     uint32
	Seq                     uint32 // fragments: offset << 16 | bytes
	CTStatus                uint32
	IPID                    uint32
	Addr, CTOrig, CTReply   Tuple
	Hook                    Hook
	Version, Proto          uint8
	Flags                   Flags
	TCPFlags, TTL           uint8
	ICMP                    uint16 // FlagICMP: type << 8 | code; CTOrig.SrcAddr sent it
	Captured                uint16
	Route                   Route
	Call                    Call
	PayloadLen              uint32 // bytes in the packet
	Dev, Comm               [16]byte
}

const eventSize = int(unsafe.Sizeof(Event{}))

// ErrEvent says that a record of the ring buffer is shorter than its head or than the payload it announces.
var ErrEvent = errors.New("short kernel event")

// Decode gives the event in a record of the ring buffer and the captured payload, neither of them copied: both live as
// long as raw does. raw is 8-byte aligned, as every slice of that size from Go's allocator is.
func Decode(raw []byte) (*Event, []byte, error) {
	if len(raw) < eventSize {
		return nil, nil, ErrEvent
	}
	e := eventOf(raw)
	if int(e.Captured) > len(raw)-eventSize {
		return nil, nil, ErrEvent
	}
	return e, raw[eventSize : eventSize+int(e.Captured)], nil
}

func eventOf(raw []byte) *Event {
	return (*Event)(unsafe.Pointer(unsafe.SliceData(raw))) // #nosec G103 -- whoever calls it has checked the length
}

// CString gives the bytes of a C string up to its NUL as a string.
func CString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
