package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// What a program at a device may say of a packet (linux/bpf.h), and what it may make of it (linux/if_packet.h).
const (
	tcxNext    = -1 // leave it to the next program, and to the kernel after the last
	tcxDrop    = 2
	packetHost = 0 // it is for this host
)

// RedirectPeer makes what comes in by a device of the namespace for an address go with bpf_redirect_peer straight to
// the other end of a veth, past netfilter and every device on the way, until undone: what Cilium's host routing in eBPF
// does as the last step. The kernel does not begin to receive such a packet anew in the pod.
func (n *Namespace) RedirectPeer(device, veth string, to netip.Addr) (Undo, error) {
	return n.attach(device, func(_, veth *net.Interface) asm.Instructions {
		return append(matchDestination(to, "pass"),
			// On a bridge the packet is for the pod's own hardware address, and so for another host where it is redirected.
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, packetHost),
			asm.FnSkbChangeType.Call(),
			asm.Mov.Imm(asm.R1, int32(veth.Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirectPeer.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
			asm.Return(),
		)
	}, veth)
}

// TCDrop drops what comes in by a device of the namespace for an address, by a program as a CNI's or a policy's, until
// undone.
func (n *Namespace) TCDrop(device string, to netip.Addr) (Undo, error) {
	return n.attach(device, func(_, _ *net.Interface) asm.Instructions {
		return append(matchDestination(to, "pass"),
			asm.Mov.Imm(asm.R0, tcxDrop),
			asm.Return(),
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
			asm.Return(),
		)
	}, "")
}

// attach loads a program and puts it on what comes in by a device.
func (n *Namespace) attach(device string, program func(device, other *net.Interface) asm.Instructions, other string) (
	undo Undo, err error) {
	err = n.Do(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, n.Name, err)
		}
		to := dev
		if other != "" {
			if to, err = net.InterfaceByName(other); err != nil {
				return fmt.Errorf("%s in %s: %w", other, n.Name, err)
			}
		}
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: program(dev, to)})
		if err != nil {
			return fmt.Errorf("load a program for %s in %s: %w", device, n.Name, err)
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: p, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return errors.Join(fmt.Errorf("attach a program to %s in %s: %w", device, n.Name, err), p.Close())
		}
		undo = func() error { return errors.Join(l.Close(), p.Close()) }
		return nil
	})
	return undo, err
}

// XDPDrop drops UDP for an address and a port before the kernel makes a packet of it, where it comes in by a device,
// until undone: what a load balancer or a firewall in XDP does. The kernel gives no reason for it.
func (n *Namespace) XDPDrop(device string, to netip.AddrPort) (undo Undo, err error) {
	err = n.Do(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, n.Name, err)
		}
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: xdpDrop(to)})
		if err != nil {
			return fmt.Errorf("load an XDP program for %s in %s: %w", device, n.Name, err)
		}
		l, err := link.AttachXDP(link.XDPOptions{Interface: dev.Index, Program: p, Flags: link.XDPGenericMode})
		if err != nil {
			return errors.Join(fmt.Errorf("attach an XDP program to %s in %s: %w", device, n.Name, err), p.Close())
		}
		undo = func() error { return errors.Join(l.Close(), p.Close()) }
		return nil
	})
	return undo, err
}

// Offsets in a packet that begins with an Ethernet header, and its types.
const (
	etherHeader = 14
	ip4Dst      = etherHeader + 16
	ip6Dst      = etherHeader + 24
	ip4Payload  = etherHeader + 20 // without options
	ip6Payload  = etherHeader + 40 // without extension headers
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
)

// matchDestination jumps to a symbol if the packet is not for an address. It leaves the packet in R6.
func matchDestination(to netip.Addr, otherwise string) asm.Instructions {
	etherType, at := int32(etherIPv6), int32(ip6Dst)
	if to.Is4() {
		etherType, at = etherIPv4, ip4Dst
	}
	is := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(12, asm.Half), // in host order, as are the words below
		asm.JNE.Imm(asm.R0, etherType, otherwise),
	}
	for b := to.AsSlice(); len(b) > 0; b, at = b[4:], at+4 {
		is = append(is,
			asm.LoadAbs(at, asm.Word),
			asm.LoadImm(asm.R7, int64(binary.BigEndian.Uint32(b)), asm.DWord),
			asm.JNE.Reg(asm.R0, asm.R7, otherwise),
		)
	}
	return is
}

// xdpDrop is the program of [Namespace.XDPDrop]. XDP has no LD_ABS: words are read from the packet, in network order.
func xdpDrop(to netip.AddrPort) asm.Instructions {
	etherType, dst, payload := uint16(etherIPv6), int16(ip6Dst), int16(ip6Payload)
	if to.Addr().Is4() {
		etherType, dst, payload = etherIPv4, ip4Dst, ip4Payload
	}
	is := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, int32(payload)+8),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, int32(swap16(etherType)), "pass"),
	}
	for b := to.Addr().AsSlice(); len(b) > 0; b, dst = b[4:], dst+4 {
		is = append(is,
			asm.LoadMem(asm.R5, asm.R2, dst, asm.Word),
			asm.LoadImm(asm.R0, int64(binary.NativeEndian.Uint32(b)), asm.DWord),
			asm.JNE.Reg(asm.R5, asm.R0, "pass"),
		)
	}
	return append(is,
		asm.LoadMem(asm.R5, asm.R2, payload+2, asm.Half),
		asm.JNE.Imm(asm.R5, int32(swap16(to.Port())), "pass"),
		asm.Mov.Imm(asm.R0, 1), // XDP_DROP
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("pass"), // XDP_PASS
		asm.Return(),
	)
}

// swap16 gives a number in network order as a load in host order reads it.
func swap16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
