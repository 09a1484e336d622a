// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sees every DNS packet at every device of every network namespace, where it is dropped and where it is read, and
 * writes a record of each into one ring buffer. It holds no lookups, so none can be evicted here: user space finds
 * what belongs together (tracer/lookup). What it remembers is bounded: packets in fragments (fragment.h), ends behind
 * a translation (follow.h), sends under way (unsent.h).
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "event.h"
#include "config.h"
#include "fragment.h"
#include "packet.h"
#include "fair.h"
#include "record.h"
#include "unsent.h"
#include "probe.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/net_dev_queue")
int BPF_PROG(on_net_dev_queue, struct sk_buff *skb)
{
	return watch(skb, HOOK_XMIT, skb->network_header, 0, 0);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(on_netif_receive_skb, struct sk_buff *skb)
{
	/* The network header is set only just after this point, from skb->data. */
	return watch(skb, HOOK_RECV, skb->data - skb->head, 0, 0);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb, struct sk_buff *skb, void *location, __u32 reason)
{
	/* The numbers below this one are no drops. It is another on nearly every kernel. */
	if (reason < bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NOT_SPECIFIED))
		return 0;
	return watch(skb, HOOK_DROP, skb->network_header, reason, (__u64)location);
}

/* In place of it where the tracepoint does not tell the reason: of a drop only the place is known. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb_plain, struct sk_buff *skb, void *location)
{
	return watch(skb, HOOK_DROP, skb->network_header, 0, (__u64)location);
}

/* A stream's reader is handed bytes of a packet, which has its socket then (skb_set_owner_r). */
SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(on_copy_datagram, struct sk_buff *skb, int len)
{
	struct sock *sk = skb->sk;

	return sk ? watch_stream(sk, len) : 0;
}

/*
 * A connected socket was read: a client's, mostly. The datagram is gone already (its free is deferred), the socket
 * tells both ends.
 */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_sock_recv, struct sock *sk, int ret, int flags)
{
	/* Known by type here: a plain load spares nearly all reads, which are of other sockets, a call. */
	if (ret <= 0 || (flags & MSG_PEEK) || sk->sk_protocol != IPPROTO_UDP)
		return 0;
	return watch_read(sk, 0, ret);
}

/*
 * In place of it where there is no such tracepoint: a datagram that was read is let go. len is negative for one that
 * was only looked at.
 */
SEC("fentry/skb_consume_udp")
int BPF_PROG(on_consume_udp, struct sock *sk, struct sk_buff *skb, int len)
{
	return len > 0 ? watch_read(sk, 0, len) : 0;
}

/* A send returns: it has failed, or its packet has left, or waits. */
static __always_inline int watch_send(struct sock *sk, int ret)
{
	if (ret < 0) {
		watch_unsent(sk, -ret);
		return 0;
	}
	return watch_sent(sk, ret);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(on_sock_send, struct sock *sk, int ret, int flags)
{
	return watch_send(sk, ret);
}

/* In place of it where there is no such tracepoint. What an IPv6 socket sends over IPv4 passes both. */
SEC("fexit/udp_sendmsg")
int BPF_PROG(on_udp_sendmsg, struct sock *sk, void *message, unsigned long size, int ret)
{
	return sk->__sk_common.skc_family == AF_INET ? watch_send(sk, ret) : 0;
}

SEC("fexit/udpv6_sendmsg")
int BPF_PROG(on_udpv6_sendmsg, struct sock *sk, void *message, unsigned long size, int ret)
{
	return watch_send(sk, ret);
}

/*
 * The verifier lets the context's socket be read through few fields only; as a plain number it is read like any
 * kernel memory.
 */
static __always_inline struct sock *socket_of(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &sk);
	return (struct sock *)address;
}

/* Whom a socket is to be connected to or to send to, or from whom it has read. */
static __always_inline struct peer peer4(struct bpf_sock_addr *ctx)
{
	return (struct peer){.version = 4, .port = ctx->user_port, .addr = {ctx->user_ip4}};
}

static __always_inline struct peer peer6(struct bpf_sock_addr *ctx)
{
	/* Word by word: the context may not be read wider, and the compiler would. */
	volatile __u32 *addr = ctx->user_ip6;

	return (struct peer){.version = 6, .port = ctx->user_port, .addr = {addr[0], addr[1], addr[2], addr[3]}};
}

/* The programs at a cgroup never change the outcome: 1 is "go on". */

/* A socket that is not connected was read with the peer's address asked for: what a DNS server does. */
SEC("cgroup/recvmsg4")
int on_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer4(ctx);

	watch_read(socket_of(ctx), &peer, 0);
	return 1;
}

SEC("cgroup/recvmsg6")
int on_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer6(ctx);

	watch_read(socket_of(ctx), &peer, 0);
	return 1;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer4(ctx);

	watch_connect(socket_of(ctx), &peer, ctx->protocol);
	return 1;
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer6(ctx);

	watch_connect(socket_of(ctx), &peer, ctx->protocol);
	return 1;
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer4(ctx);

	watch_sending(socket_of(ctx), &peer);
	return 1;
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct peer peer = peer6(ctx);

	watch_sending(socket_of(ctx), &peer);
	return 1;
}

/* What connect(2) gives back for a UDP socket, and for a TCP socket. */
SEC("fexit/inet_dgram_connect")
int BPF_PROG(on_dgram_connect, struct socket *sock, void *addr, int size, int flags, int ret)
{
	watch_connected(sock->sk, ret);
	return 0;
}

SEC("fexit/inet_stream_connect")
int BPF_PROG(on_stream_connect, struct socket *sock, void *addr, int size, int flags, int ret)
{
	watch_connected(sock->sk, ret);
	return 0;
}

/* In place of the two where the return of a function may not be seen: why a connection failed is not told then. */
SEC("cgroup/sock_release")
int on_sock_release(struct bpf_sock *ctx)
{
	__u32 port = ctx->dst_port;
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &ctx);
	watch_release((struct sock *)address, port);
	return 1;
}
