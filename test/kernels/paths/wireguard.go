package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/wireguard.h: the command, and attributes of devices, of peers and of what a peer may send.
const (
	wgSetDevice = 1

	wgIfname     = 2
	wgPrivateKey = 3
	wgListenPort = 6
	wgPeers      = 8

	peerPublicKey  = 1
	peerEndpoint   = 4
	peerAllowedIPs = 9

	allowedFamily = 1
	allowedAddr   = 2
	allowedMask   = 3
)

const wgPort = 51820

// withWireGuard sends what goes between the nodes by WireGuard, as Cilium and Calico do to encrypt.
func withWireGuard(w *world) error {
	err := w.between("wg7", func(int, net.IP, net.IP) netlink.Link {
		return &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg7"}}
	})
	if err != nil {
		return err
	}
	west, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	east, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return errors.Join(w.west.wireGuard(west, east.PublicKey(), "10.7.2.2"),
		w.east.wireGuard(east, west.PublicKey(), "10.7.2.1"))
}

// wireGuard gives the device wg7 a key, and one peer, who may send anything.
func (s *space) wireGuard(key *ecdh.PrivateKey, peer *ecdh.PublicKey, at string) error {
	return s.inside(func() error {
		family, err := netlink.GenlFamilyGet("wireguard")
		if err != nil {
			return fmt.Errorf("WireGuard: %w", err)
		}
		r := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		r.AddData(&nl.Genlmsg{Command: wgSetDevice, Version: 1})
		r.AddData(nl.NewRtAttr(wgIfname, nl.ZeroTerminated("wg7")))
		r.AddData(nl.NewRtAttr(wgPrivateKey, key.Bytes()))
		r.AddData(nl.NewRtAttr(wgListenPort, nl.Uint16Attr(wgPort)))
		endpoint := binary.NativeEndian.AppendUint16(nil, unix.AF_INET) // a struct sockaddr_in
		endpoint = binary.BigEndian.AppendUint16(endpoint, wgPort)
		endpoint = append(append(endpoint, net.ParseIP(s.own(at)).To4()...), make([]byte, 8)...)
		peers := nl.NewRtAttr(wgPeers|unix.NLA_F_NESTED, nil)
		p := peers.AddRtAttr(unix.NLA_F_NESTED, nil)
		p.AddRtAttr(peerPublicKey, peer.Bytes())
		p.AddRtAttr(peerEndpoint, endpoint)
		allowed := p.AddRtAttr(peerAllowedIPs|unix.NLA_F_NESTED, nil).AddRtAttr(unix.NLA_F_NESTED, nil)
		allowed.AddRtAttr(allowedFamily, nl.Uint16Attr(unix.AF_INET))
		allowed.AddRtAttr(allowedAddr, make([]byte, 4))
		allowed.AddRtAttr(allowedMask, []byte{0})
		r.AddData(peers)
		if _, err := r.Execute(unix.NETLINK_GENERIC, 0); err != nil {
			return fmt.Errorf("WireGuard in %s: %w", s.name, err)
		}
		return nil
	})
}
