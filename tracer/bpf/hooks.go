package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// hook is a program and where it is attached. A program that the kernel does not take was left out before: see
// [feature].
type hook struct {
	program string
	at      string // in words for the user
	needed  bool   // without it there is nothing to see
	cost    string // what is not seen without it, in words for the user
}

const (
	serverReads = "the wait in a DNS server's receive queue is not told from the time in the server"
	clientReads = "when an answer was read by its client is not seen"
	tcpReads    = "when a TCP message was read is not seen"
	failedConns = "a lookup whose socket cannot be connected (no route, no free port) is not seen"
	failedSends = "a lookup whose send fails before there is a packet (no route) is not seen"
	lateSends   = "a query that waited for its neighbor's address is timed from its departure, and may name no process"
)

var hooks = []hook{
	{program: "on_kfree_skb", at: "tracepoint kfree_skb", needed: true},
	{program: "on_kfree_skb_plain", at: "tracepoint kfree_skb", needed: true},
	{program: "on_netif_receive_skb", at: "tracepoint netif_receive_skb", needed: true},
	{program: "on_net_dev_queue", at: "tracepoint net_dev_queue", needed: true},
	{program: "on_copy_datagram", at: "tracepoint skb_copy_datagram_iovec", cost: tcpReads},
	{program: "on_sock_recv", at: "tracepoint sock_recv_length", cost: clientReads},
	{program: "on_consume_udp", at: "function skb_consume_udp", cost: clientReads},
	{program: "on_sock_send", at: "tracepoint sock_send_length", cost: lateSends},
	{program: "on_udp_sendmsg", at: "function udp_sendmsg", cost: lateSends},
	{program: "on_udpv6_sendmsg", at: "function udpv6_sendmsg", cost: lateSends},
	{program: "on_recvmsg4", at: "cgroup/recvmsg4", cost: serverReads},
	{program: "on_recvmsg6", at: "cgroup/recvmsg6", cost: serverReads},
	{program: "on_connect4", at: "cgroup/connect4", cost: failedConns},
	{program: "on_connect6", at: "cgroup/connect6", cost: failedConns},
	{program: "on_sendmsg4", at: "cgroup/sendmsg4", cost: failedSends},
	{program: "on_sendmsg6", at: "cgroup/sendmsg6", cost: failedSends},
	{program: "on_dgram_connect", at: "function inet_dgram_connect", cost: failedConns},
	{program: "on_stream_connect", at: "function inet_stream_connect", cost: failedConns},
	{program: "on_sock_release", at: "cgroup/sock_release", cost: failedConns},
}

// attach attaches what was loaded. What cannot be, and can be done without, fails into [Tracer.Missing].
func (t *Tracer) attach() error {
	for _, h := range hooks {
		p := t.objects.Programs[h.program]
		if p == nil {
			continue
		}
		var l link.Link
		var err error
		if p.Type() == ebpf.CGroupSockAddr || p.Type() == ebpf.CGroupSock {
			l, err = t.attachCgroup(p, h.program)
		} else {
			l, err = link.AttachTracing(link.TracingOptions{Program: p})
		}
		switch {
		case err == nil:
			t.links = append(t.links, l)
		case h.needed:
			return fmt.Errorf("attaching to %s: %w", h.at, err)
		default:
			t.Missing = append(t.Missing, fmt.Sprintf("%s: %v: %s", h.at, err, h.cost))
		}
	}
	return nil
}

func (t *Tracer) attachCgroup(p *ebpf.Program, name string) (link.Link, error) {
	root, err := Cgroup2Mount()
	if err != nil {
		return nil, err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: t.attachTypes[name], Program: p})
	if err != nil {
		return nil, fmt.Errorf("at %s: %w", root, err)
	}
	if t.attachTypes[name] == ebpf.AttachCGroupUDP4Recvmsg || t.attachTypes[name] == ebpf.AttachCGroupUDP6Recvmsg {
		t.recvmsg++
	}
	return l, nil
}
