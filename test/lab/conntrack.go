package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of ctnetlink: linux/netfilter/nfnetlink_conntrack.h.
const (
	ctTupleOrig  = 1
	ctTupleReply = 2
	ctStatus     = 3
	ctTimeout    = 7

	ctTupleIP    = 1
	ctTupleProto = 2

	ctIPv4Src  = 1
	ctIPv4Dst  = 2
	ctProtoNum = 1
	ctSrcPort  = 2
	ctDstPort  = 3

	ctMessageNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctMessageDelete = ctMessageNew | 2
)

// ctAssured is the status of an entry that is not thrown out to make room: IPS_SEEN_REPLY, IPS_ASSURED and
// IPS_CONFIRMED of linux/netfilter/nf_conntrack_common.h.
const ctAssured = 1<<1 | 1<<2 | 1<<3

// FillConntrack fills the namespace's connection tracking table, up to nf_conntrack_max, with connections that do not
// make room for others. Then the kernel drops the first packet of every new one. The undo empties the table.
func (n *Namespace) FillConntrack() (Undo, error) {
	limit, err := n.sysctlInt("net/netfilter/nf_conntrack_max")
	if err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.fd})
	if err != nil {
		return nil, fmt.Errorf("connection tracking of %s: %w", n.Name, err)
	}
	defer c.Close()
	// Documentation addresses (RFC 5737): nobody's connections.
	dst := netip.MustParseAddr("198.51.100.1")
	const batch = 256
	messages := make([]netlink.Message, 0, batch)
	for i := range limit {
		src := netip.AddrFrom4([4]byte{203, 0, 113, byte(i >> 16)})
		data, err := ctEntry(src, dst, uint16(i))
		if err != nil {
			return nil, err
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{Type: ctMessageNew, Flags: netlink.Request | netlink.Create},
			Data:   data,
		})
		if len(messages) == batch || i == limit-1 {
			// Errors come with the acknowledgement, which one of each batch asks for.
			last := &messages[len(messages)-1].Header
			last.Flags |= netlink.Acknowledge
			if _, err := c.SendMessages(messages); err != nil {
				return nil, fmt.Errorf("fill the connection tracking of %s: %w", n.Name, err)
			}
			if _, err := c.Receive(); errors.Is(err, unix.ENOMEM) {
				break // full: there were connections before
			} else if err != nil {
				return nil, fmt.Errorf("fill the connection tracking of %s: %w", n.Name, err)
			}
			messages = messages[:0]
		}
	}
	undo := func() error {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			if err := n.emptyConntrack(family); err != nil {
				return err
			}
		}
		return nil
	}
	if count, err := n.sysctlInt("net/netfilter/nf_conntrack_count"); err != nil || count < limit {
		return nil, errors.Join(fmt.Errorf("connection tracking of %s holds %d of %d", n.Name, count, limit), err, undo())
	}
	return undo, nil
}

func (n *Namespace) emptyConntrack(family byte) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.fd})
	if err != nil {
		return fmt.Errorf("connection tracking of %s: %w", n.Name, err)
	}
	defer c.Close()
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: ctMessageDelete, Flags: netlink.Request | netlink.Acknowledge},
		Data:   []byte{family, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return fmt.Errorf("empty the connection tracking of %s: %w", n.Name, err)
	}
	return nil
}

// ctEntry encodes a UDP connection over IPv4 with the same two ends both ways.
func ctEntry(src, dst netip.Addr, port uint16) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	tuple := func(typ uint16, src, dst netip.Addr, srcPort, dstPort uint16) {
		e.Nested(typ, func(e *netlink.AttributeEncoder) error {
			e.Nested(ctTupleIP, func(e *netlink.AttributeEncoder) error {
				e.Bytes(ctIPv4Src, src.AsSlice())
				e.Bytes(ctIPv4Dst, dst.AsSlice())
				return nil
			})
			e.Nested(ctTupleProto, func(e *netlink.AttributeEncoder) error {
				e.Uint8(ctProtoNum, unix.IPPROTO_UDP)
				e.Uint16(ctSrcPort, srcPort)
				e.Uint16(ctDstPort, dstPort)
				return nil
			})
			return nil
		})
	}
	tuple(ctTupleOrig, src, dst, port, 9)
	tuple(ctTupleReply, dst, src, 9, port)
	e.Uint32(ctStatus, ctAssured)
	e.Uint32(ctTimeout, 600)
	attrs, err := e.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode a connection: %w", err)
	}
	return append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, attrs...), nil
}

func (n *Namespace) sysctlInt(key string) (int, error) {
	v, err := n.Sysctl(key)
	if err != nil {
		return 0, err
	}
	i, err := strconv.Atoi(strings.TrimSpace(v))
	if err != nil {
		return 0, fmt.Errorf("%s in %s: %w", key, n.Name, err)
	}
	return i, nil
}
