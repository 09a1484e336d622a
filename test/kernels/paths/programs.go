package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// neutral is a service's address whose one's complement sum is the server's, in world 7: who puts one in the other's
// place needs to mend no checksum.
const neutral = "10.0.3.9"

// What programs of tc and XDP say of a packet (linux/pkt_cls.h, linux/bpf.h), where addresses and ports are in one with
// an Ethernet header and no options, and what a packet is made (linux/if_packet.h).
const (
	tcOK, tcShot                  = 0, 2
	xdpDrop, xdpPass, xdpTX       = 1, 2, 3
	etherSrc, etherType           = 6, 12
	ipProto, ipSrc, ipDst         = 14 + 9, 14 + 12, 14 + 16
	portFrom, portTo              = 14 + 20, 14 + 22
	packetHost              int32 = 0
)

// word gives an address as a program reads it that loads in host order what came in network order.
func word(addr string) int32 {
	a := netip.MustParseAddr(addr).As4()
	return int32(binary.BigEndian.Uint32(a[:])) // #nosec G115 -- bits
}

// isDNS ends at "pass" what is no UDP over IPv4 with an address and port 53 at these offsets. It leaves the packet in
// R6.
func isDNS(at int32, addr string, portAt int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(etherType, asm.Half),
		asm.JNE.Imm(asm.R0, unix.ETH_P_IP, "pass"),
		asm.LoadAbs(ipProto, asm.Byte),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "pass"),
		asm.LoadAbs(at, asm.Word),
		asm.Mov.Imm32(asm.R7, word(addr)),
		asm.JNE.Reg(asm.R0, asm.R7, "pass"),
		asm.LoadAbs(portAt, asm.Half),
		asm.JNE.Imm(asm.R0, 53, "pass"),
	}
}

// otherwise ends a program of tc.
func otherwise(program ...asm.Instruction) asm.Instructions {
	return append(program,
		asm.Mov.Imm(asm.R0, tcOK).WithSymbol("pass"),
		asm.Return(),
	)
}

// replace puts an address in another's place and lets the packet pass.
func replace(at int32, from, to string, portAt int32) asm.Instructions {
	return append(isDNS(at, from, portAt), otherwise(
		asm.Mov.Imm(asm.R1, int32(binary.NativeEndian.Uint32(net.ParseIP(to).To4()))), // #nosec G115 -- bits
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, at),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -4),
		asm.Mov.Imm(asm.R4, 4),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
	)...)
}

// withTC translates a service's address in tc, where the client's link comes to its node, with no connection tracking:
// what Cilium does.
func withTC(w *world) error {
	return errors.Join(
		w.west.tc("pod0", netlink.HANDLE_MIN_INGRESS, replace(ipDst, w.west.own(neutral), w.west.own(serverAddr), portTo)),
		w.west.tc("pod0", netlink.HANDLE_MIN_EGRESS, replace(ipSrc, w.west.own(serverAddr), w.west.own(neutral), portFrom)),
	)
}

// withRedirect forwards by eBPF alone, past the node's routing and netfilter, as Cilium's and Calico's host routing do:
// queries by bpf_redirect_neigh, answers by bpf_redirect_peer.
func withRedirect(w *world) error {
	out, err := w.west.index("eth0")
	if err != nil {
		return err
	}
	in, err := w.west.index("pod0")
	if err != nil {
		return err
	}
	return errors.Join(
		w.west.tc("pod0", netlink.HANDLE_MIN_INGRESS, append(isDNS(ipDst, w.west.own(serverAddr), portTo), otherwise(
			asm.Mov.Imm(asm.R1, out),
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRedirectNeigh.Call(),
			asm.Return(),
		)...)),
		w.west.tc("eth0", netlink.HANDLE_MIN_INGRESS, append(isDNS(ipSrc, w.west.own(serverAddr), portFrom), otherwise(
			// The frame is for the node's hardware address, and so for another host where it is redirected to.
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, packetHost),
			asm.FnSkbChangeType.Call(),
			asm.Mov.Imm(asm.R1, in),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirectPeer.Call(),
			asm.Return(),
		)...)),
	)
}

// dropInTC drops queries where they come to the server's node.
func dropInTC(w *world) error {
	return w.east.tc("eth0", netlink.HANDLE_MIN_INGRESS, append(isDNS(ipDst, w.west.own(serverAddr), portTo),
		otherwise(
			asm.Mov.Imm(asm.R0, tcShot),
			asm.Return(),
		)...))
}

// dropInXDP does the same before the kernel's own.
func dropInXDP(w *world) error {
	return w.east.xdp("eth0", append(isUDPInXDP(ipDst, w.west.own(serverAddr)),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	))
}

// isUDPInXDP ends at "pass" what is no UDP over IPv4 with an address at an offset. It leaves the packet in R2.
func isUDPInXDP(at int16, addr string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, portTo+2),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, ipProto, asm.Byte),
		asm.JNE.Imm(asm.R5, unix.IPPROTO_UDP, "pass"),
		asm.LoadMem(asm.R5, asm.R2, at, asm.Word),
		asm.LoadImm(asm.R0, int64(binary.NativeEndian.Uint32(net.ParseIP(addr).To4())), asm.DWord),
		asm.JNE.Reg(asm.R5, asm.R0, "pass"),
	}
}

// sendBack puts an address in another's place and sends the frame back where it came from.
func sendBack(at int16, from, to string) asm.Instructions {
	return append(isUDPInXDP(at, from),
		asm.LoadImm(asm.R0, int64(binary.NativeEndian.Uint32(net.ParseIP(to).To4())), asm.DWord),
		asm.StoreMem(asm.R2, at, asm.R0, asm.Word),
		asm.LoadMem(asm.R3, asm.R2, 0, asm.Word), // the hardware addresses, to and from
		asm.LoadMem(asm.R4, asm.R2, 4, asm.Half),
		asm.LoadMem(asm.R5, asm.R2, etherSrc, asm.Word),
		asm.LoadMem(asm.R0, asm.R2, etherSrc+4, asm.Half),
		asm.StoreMem(asm.R2, 0, asm.R5, asm.Word),
		asm.StoreMem(asm.R2, 4, asm.R0, asm.Half),
		asm.StoreMem(asm.R2, etherSrc, asm.R3, asm.Word),
		asm.StoreMem(asm.R2, etherSrc+4, asm.R4, asm.Half),
		asm.Mov.Imm(asm.R0, xdpTX),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	)
}

// withXDPTX translates a service's address on load balancers of their own by XDP, one for queries and one for answers,
// which send each frame back by the device that it came by (XDP_TX), as Katran and Cilium do.
func withXDPTX(w *world) error {
	for _, lb := range []struct {
		name, ours, theirs string
		program            asm.Instructions
	}{
		{"lbq", "10.7.5.1", "10.7.5.2", sendBack(ipDst, w.west.own(neutral), w.west.own(serverAddr))},
		{"lba", "10.7.6.1", "10.7.6.2", sendBack(ipSrc, w.west.own(serverAddr), w.west.own(neutral))},
	} {
		s, err := newSpace(lb.name, w.west.n)
		if err != nil {
			return err
		}
		w.more = append(w.more, s)
		if err := link(w.west, lb.name, lb.ours+"/24", s, "eth0", lb.theirs+"/24"); err != nil {
			return err
		}
		if err := s.xdp("eth0", lb.program); err != nil {
			return err
		}
	}
	if err := w.west.route(w.west.own(neutral)+"/32", "10.7.5.2"); err != nil {
		return err
	}
	// What comes from the server's node goes by the other before it goes to the client.
	return w.west.inside(func() error {
		const table = 108
		_, all, _ := net.ParseCIDR("0.0.0.0/0") // it is one
		rule := netlink.NewRule()
		rule.IifName, rule.Table, rule.Family = "eth0", table, unix.AF_INET
		return errors.Join(netlink.RuleAdd(rule),
			netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP(w.west.own("10.7.6.2")), Table: table}))
	})
}

func (s *space) index(device string) (index int32, err error) {
	err = s.inside(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, s.name, err)
		}
		index = int32(l.Attrs().Index) // #nosec G115 -- the kernel's are
		return nil
	})
	return index, err
}

// tc puts a program on what comes in by a device, or goes out.
func (s *space) tc(device string, at uint32, program asm.Instructions) error {
	index, err := s.index(device)
	if err != nil {
		return err
	}
	return s.inside(func() error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: program})
		if err != nil {
			return fmt.Errorf("a program for %s in %s: %w", device, s.name, err)
		}
		defer func() { _ = p.Close() }() // the filter holds it
		attrs := netlink.QdiscAttrs{LinkIndex: int(index), Handle: netlink.MakeHandle(0xffff, 0),
			Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("clsact on %s in %s: %w", device, s.name, err)
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: int(index), Parent: at, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: p.FD(), Name: "path", DirectAction: true,
		})
	})
}

// xdp puts a program on what a device receives, behind its driver: every device can do that.
func (s *space) xdp(device string, program asm.Instructions) error {
	return s.inside(func() error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: program})
		if err != nil {
			return fmt.Errorf("an XDP program for %s in %s: %w", device, s.name, err)
		}
		defer func() { _ = p.Close() }() // the device holds it
		l, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, s.name, err)
		}
		if err := netlink.LinkSetXdpFdWithFlags(l, p.FD(), nl.XDP_FLAGS_SKB_MODE); err != nil {
			return fmt.Errorf("XDP on %s in %s: %w", device, s.name, err)
		}
		return nil
	})
}
