package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// chain makes a chain of one rule in a namespace.
func (s *space) chain(hook *nftables.ChainHook, at *nftables.ChainPriority, more func(*nftables.Conn, *nftables.Table),
	rules ...[]expr.Any) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(s.file.Fd())))
	if err != nil {
		return fmt.Errorf("nftables in %s: %w", s.name, err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "path"})
	if more != nil {
		more(c, table)
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "path", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: at,
	})
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables in %s: %w", s.name, err)
	}
	return nil
}

// dnsBy matches packets of a transport whose port at an offset, 0 of the source and 2 of the destination, is DNS's.
func dnsBy(proto byte, offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
	}
}

// withFlowtable lets a flowtable of the client's node forward what belongs to a connection that was answered once.
func withFlowtable(w *world) error {
	established := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED)
	return w.west.chain(nftables.ChainHookForward, nftables.ChainPriorityFilter,
		func(c *nftables.Conn, t *nftables.Table) {
			c.AddFlowtable(&nftables.Flowtable{Table: t, Name: "fast", Devices: []string{"pod0", "eth0"}})
		},
		[]expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{
				SourceRegister: 1, DestRegister: 1, Len: 4, Mask: established, Xor: make([]byte, 4),
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.FlowOffload{Name: "fast"},
		})
}

// queueRule sends DNS that the client's node forwards to a program.
func queueRule(w *world) error {
	ask := func(proto byte, offset uint32) []expr.Any {
		return append(dnsBy(proto, offset), &expr.Queue{Num: queue})
	}
	return w.west.chain(nftables.ChainHookForward, nftables.ChainPriorityFilter, nil,
		ask(unix.IPPROTO_UDP, 0), ask(unix.IPPROTO_UDP, 2), ask(unix.IPPROTO_TCP, 0), ask(unix.IPPROTO_TCP, 2))
}

const queue = 7

// Of linux/netfilter/nfnetlink_queue.h: messages, and attributes of each.
const (
	queueVerdict = 1
	queueConfig  = 2

	queuePacketHeader  = 1
	queueVerdictHeader = 2
	queueCommand       = 1
	queueParameters    = 2

	netfilterDrop   = 0
	netfilterAccept = 1
)

// withQueue asks a program, which lets everything pass, about what the client's node forwards.
func withQueue(w *world) error { return errors.Join(w.answerQueue(netfilterAccept), queueRule(w)) }

// queueDrops has a program that lets nothing pass in the other's place.
func queueDrops(w *world) error { return errors.Join(w.answerQueue(netfilterDrop), queueRule(w)) }

// answerQueue says of every packet in the queue what to do, until the world ends.
func (w *world) answerQueue(verdict uint32) error {
	c, err := mdl.Dial(unix.NETLINK_NETFILTER, &mdl.Config{NetNS: int(w.west.file.Fd())})
	if err != nil {
		return fmt.Errorf("the queue: %w", err)
	}
	w.closers = append(w.closers, c.Close)
	params := append(binary.BigEndian.AppendUint32(nil, 0), 1) // no bytes of a packet, 1: its header alone
	for _, a := range []mdl.Attribute{
		{Type: queueCommand, Data: []byte{1, 0, 0, unix.AF_INET}}, // bind
		{Type: queueParameters, Data: params},
	} {
		if _, err := c.Execute(queueMessage(queueConfig, mdl.Acknowledge, a)); err != nil {
			return fmt.Errorf("the queue: %w", err)
		}
	}
	go func() {
		for {
			msgs, err := c.Receive()
			if err != nil {
				return // it was closed
			}
			for i := range msgs {
				id, ok := queuedPacket(msgs[i].Data)
				if !ok {
					continue
				}
				data := append(binary.BigEndian.AppendUint32(nil, verdict), id...)
				// a packet that the kernel has forgotten needs no verdict
				_, _ = c.Send(queueMessage(queueVerdict, 0, mdl.Attribute{Type: queueVerdictHeader, Data: data}))
			}
		}
	}()
	return nil
}

func queueMessage(kind uint16, flags mdl.HeaderFlags, a mdl.Attribute) mdl.Message {
	attrs, _ := mdl.MarshalAttributes([]mdl.Attribute{a}) // it is short
	return mdl.Message{
		Header: mdl.Header{Type: mdl.HeaderType(unix.NFNL_SUBSYS_QUEUE<<8 | kind), Flags: mdl.Request | flags},
		Data:   append([]byte{unix.AF_INET, 0, 0, queue}, attrs...), // a struct nfgenmsg
	}
}

// queuedPacket gives the number that the kernel gave a packet.
func queuedPacket(message []byte) (id []byte, ok bool) {
	if len(message) < 4 {
		return nil, false
	}
	attrs, err := mdl.UnmarshalAttributes(message[4:])
	if err != nil {
		return nil, false
	}
	for _, a := range attrs {
		if a.Type == queuePacketHeader && len(a.Data) >= 4 {
			return a.Data[:4], true
		}
	}
	return nil, false
}

// withTProxy gives what the client asks of the server to a server on the client's node, by TPROXY, as transparent
// proxies and service meshes do.
func withTProxy(w *world) error {
	const mark, table = 7, 107
	to := func(proto byte) []expr.Any {
		return append(dnsBy(proto, 2),
			&expr.Immediate{Register: 1, Data: []byte{0, 53}},
			// Without an address the kernel looks for a socket with the device's own.
			&expr.Immediate{Register: 2, Data: net.ParseIP(w.west.own(serverAddr)).To4()},
			&expr.TProxy{Family: unix.NFPROTO_IPV4, TableFamily: unix.NFPROTO_IPV4, RegPort: 1, RegAddr: 2},
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			&expr.Verdict{Kind: expr.VerdictAccept},
		)
	}
	err := w.west.chain(nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, nil, to(unix.IPPROTO_UDP),
		to(unix.IPPROTO_TCP))
	if err != nil {
		return err
	}
	w.server = w.west
	return w.west.inside(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		_, all, _ := net.ParseCIDR("0.0.0.0/0") // it is one
		rule := netlink.NewRule()
		rule.Mark, rule.Table, rule.Family = mark, table, unix.AF_INET
		return errors.Join(netlink.RuleAdd(rule), netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: all, Table: table, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		}))
	})
}
