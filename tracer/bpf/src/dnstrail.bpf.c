// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sees every DNS packet at every device of every network namespace, where it is dropped and where it is read, and writes a
 * record of each into one ring buffer. It keeps no state: nothing can be evicted here, and nothing is forgotten. The one exception is in fragment.h, and counts what it forgets.
 * What belongs together is found in user space (tracer/lookup).
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
#include "record.h"

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

#define SKB_CONSUMED 1 /* enum skb_drop_reason: not a drop */

SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb, struct sk_buff *skb, void *location, __u32 reason)
{
	if (reason <= SKB_CONSUMED)
		return 0;
	return watch(skb, HOOK_DROP, skb->network_header, reason, (__u64)location);
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(on_copy_datagram, struct sk_buff *skb)
{
	struct sock *sk = skb->sk;

	/* What TCP hands out has its socket (skb_set_owner_r), which the reader has at hand; the packet's headers were last read long ago. */
	if (sk && !is_dns_port(bpf_htons(sk->__sk_common.skc_num)) && !is_dns_port(sk->__sk_common.skc_dport))
		return 0;
	return watch(skb, HOOK_COPY, skb->network_header, 0, 0);
}

/*
 * A connected socket was read: a client's, mostly. The datagram is gone already (its free is deferred), the socket
 * tells both ends.
 */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_sock_recv, struct sock *sk, int ret, int flags)
{
	if (ret <= 0 || (flags & MSG_PEEK))
		return 0;
	return watch_read(sk, 0);
}

/* The verifier lets the context's socket be read through few fields only; as a plain number it is read like any kernel memory. */
static __always_inline struct sock *socket_of(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &sk);
	return (struct sock *)address;
}

/*
 * A socket that is not connected was read with the peer's address asked for: what a DNS server does.
 * These two never change the outcome: 1 is "go on".
 */
SEC("cgroup/recvmsg4")
int on_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct peer peer = {.version = 4, .port = ctx->user_port, .addr = {ctx->user_ip4}};

	watch_read(socket_of(ctx), &peer);
	return 1;
}

SEC("cgroup/recvmsg6")
int on_recvmsg6(struct bpf_sock_addr *ctx)
{
	/* Word by word: the context may not be read wider, and the compiler would. */
	volatile __u32 *addr = ctx->user_ip6;
	struct peer peer = {.version = 6, .port = ctx->user_port, .addr = {addr[0], addr[1], addr[2], addr[3]}};

	watch_read(socket_of(ctx), &peer);
	return 1;
}
