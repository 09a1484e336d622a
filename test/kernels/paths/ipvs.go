package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/ip_vs.h: commands, and attributes of services and of real servers.
const (
	ipvsNewService = 1
	ipvsNewDest    = 5
	ipvsDelDest    = 7
	ipvsSetConfig  = 12

	ipvsAttrService    = 1
	ipvsAttrDest       = 2
	ipvsAttrTimeoutUDP = 6

	serviceFamily   = 1
	serviceProtocol = 2
	serviceAddr     = 3
	servicePort     = 4
	serviceSched    = 6
	serviceFlags    = 7
	serviceTimeout  = 8
	serviceNetmask  = 9

	destAddr    = 1
	destPort    = 2
	destForward = 3 // 0: masquerading, kube-proxy's way
	destWeight  = 4
	destUpper   = 5
	destLower   = 6
	destFamily  = 11
)

// withIPVS makes the client's node translate the service by IPVS, as kube-proxy does: the address is the node's own.
func withIPVS(w *world) error {
	if err := w.west.up("lo", vip+"/32"); err != nil {
		return err
	}
	return w.ipvs(func(family uint16) error {
		return each(func(proto uint16) error {
			return errors.Join(ipvs(family, proto, ipvsNewService),
				ipvs(family, proto, ipvsNewDest, dest(w.west.own(serverAddr))))
		})
	})
}

// noRealServer takes the service its one real server.
func noRealServer(w *world) error {
	return w.ipvs(func(family uint16) error {
		return each(func(proto uint16) error { return ipvs(family, proto, ipvsDelDest, dest(w.west.own(serverAddr))) })
	})
}

// deadRealServer puts an address that nobody has in the real server's place.
func deadRealServer(w *world) error {
	return errors.Join(noRealServer(w), w.ipvs(func(family uint16) error {
		return each(func(proto uint16) error { return ipvs(family, proto, ipvsNewDest, dest(w.west.own("10.7.3.77"))) })
	}))
}

// forgetful makes IPVS forget within a second or two what it translated.
func forgetful(w *world) error {
	return errors.Join(withIPVS(w), w.ipvs(func(family uint16) error {
		r := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
		r.AddData(&nl.Genlmsg{Command: ipvsSetConfig, Version: 1})
		r.AddData(nl.NewRtAttr(ipvsAttrTimeoutUDP, nl.Uint32Attr(1)))
		_, err := r.Execute(unix.NETLINK_GENERIC, 0)
		return err
	}))
}

// each does something for both transports.
func each(f func(proto uint16) error) error {
	return errors.Join(f(unix.IPPROTO_UDP), f(unix.IPPROTO_TCP))
}

// ipvs runs f in the client's node with the number that the kernel gives the messages.
func (w *world) ipvs(f func(family uint16) error) error {
	return w.west.inside(func() error {
		family, err := netlink.GenlFamilyGet("IPVS")
		if err != nil {
			return fmt.Errorf("IPVS: %w", err)
		}
		if err := f(family.ID); err != nil {
			return fmt.Errorf("IPVS: %w", err)
		}
		return nil
	})
}

func ipvs(family, proto uint16, command uint8, more ...*nl.RtAttr) error {
	r := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	r.AddData(&nl.Genlmsg{Command: command, Version: 1})
	s := nl.NewRtAttr(ipvsAttrService|unix.NLA_F_NESTED, nil)
	s.AddRtAttr(serviceFamily, nl.Uint16Attr(unix.AF_INET))
	s.AddRtAttr(serviceProtocol, nl.Uint16Attr(proto))
	s.AddRtAttr(serviceAddr, address(vip))
	s.AddRtAttr(servicePort, []byte{0, 53})
	s.AddRtAttr(serviceSched, nl.ZeroTerminated("rr"))
	s.AddRtAttr(serviceFlags, make([]byte, 8))
	s.AddRtAttr(serviceTimeout, nl.Uint32Attr(0))
	s.AddRtAttr(serviceNetmask, nl.Uint32Attr(0xffffffff))
	r.AddData(s)
	for _, a := range more {
		r.AddData(a)
	}
	_, err := r.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

func dest(to string) *nl.RtAttr {
	d := nl.NewRtAttr(ipvsAttrDest|unix.NLA_F_NESTED, nil)
	d.AddRtAttr(destAddr, address(to))
	d.AddRtAttr(destPort, []byte{0, 53})
	d.AddRtAttr(destForward, nl.Uint32Attr(0))
	d.AddRtAttr(destWeight, nl.Uint32Attr(1))
	d.AddRtAttr(destUpper, nl.Uint32Attr(0))
	d.AddRtAttr(destLower, nl.Uint32Attr(0))
	d.AddRtAttr(destFamily, nl.Uint16Attr(unix.AF_INET))
	return d
}

// address is a union nf_inet_addr.
func address(text string) []byte {
	return append(net.ParseIP(text).To4(), make([]byte, 12)...)
}
