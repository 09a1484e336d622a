/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What fails before there is a packet. Which server a socket is to be connected to, or to send to, is told before the
 * route is looked up; that it failed, by the call's return or, where no program may see that, by a socket that is let
 * go unconnected.
 */
#ifndef DNSTRAIL_UNSENT_H
#define DNSTRAIL_UNSENT_H

#define MAX_CONNECTING 4096
#define SOCK_BINDPORT_LOCK 8

#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define EADDRNOTAVAIL 99
#define ENETUNREACH 101
#define EHOSTUNREACH 113

/* By socket, the record of a connection to a DNS port from when it was asked for until its outcome is known. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_CONNECTING);
	__type(key, __u64);
	__type(value, struct event);
} connecting SEC(".maps");

/* To whom a socket that is not connected sends: the last such send on this CPU. */
struct sending {
	__u64 sk;
	__u64 thread;
	struct peer peer;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sending);
} sendings SEC(".maps");

/* Fills in who asks whom. The process is who runs now. */
static __always_inline void put_unsent(struct event *e, struct sock *sk, struct peer *peer, __u8 proto, __u32 netns,
				       __u8 call)
{
	struct ends ends = ends_of(sk);

	if (peer)
		ends.peer = peer->port;
	zero_record(e);
	e->time = bpf_ktime_get_ns();
	e->hook = HOOK_UNSENT;
	e->proto = proto;
	e->netns = netns;
	e->call = call;
	put_ends(e, sk, peer, ends);
	put_process(e, sk);
}

static __always_inline void submit_unsent(struct event *e, __u32 error)
{
	__u32 client[4];

	e->reason = error;
	__builtin_memcpy(client, e->addr.daddr, 16);
	if (!client[0] && !client[3])
		client[1] = e->netns; /* a socket that is bound to no address */
	if (gives_way(client, e->netns, 0, sizeof(*e))) {
		count_loss(LOSS_FLOOD);
		return;
	}
	if (bpf_ringbuf_output(&events, e, sizeof(*e), wakeup_flags()))
		count_loss(LOSS_RING_FULL);
}

/*
 * Whether a socket never got as far as a packet of a connection. One that does gets a hash for what it sends first, and
 * keeps it.
 */
static __always_inline bool never_connected(struct sock *sk)
{
	return !ends_of(sk).peer && !BPF_CORE_READ(sk, sk_txhash);
}

/*
 * Fills in what a socket that was not connected has by now: the local port, and what it tells of the route. A UDP
 * socket that was bound to no port gets one before the route is looked up; a TCP socket gets its peer's IPv4 address
 * after that, and its port last.
 */
static __always_inline void put_outcome(struct event *e, struct sock *sk)
{
	e->addr.dport = bpf_ntohs(ends_of(sk).own);
	if (e->proto == IPPROTO_UDP) {
		if (e->addr.dport && !(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK))
			e->route = ROUTE_NONE;
	} else if (e->version == 4 && BPF_CORE_READ(sk, __sk_common.skc_daddr)) {
		e->route = ROUTE_ON;
	}
}

/*
 * Whether a socket is one of those that an MPTCP socket has for its paths. The call that connects and lets go names the
 * MPTCP socket alone: what came of this one it does not tell.
 */
static __always_inline bool is_subflow(struct sock *sk, __u32 proto)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return proto == IPPROTO_TCP && bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

/* A socket is to be connected. */
static __always_inline void watch_connect(struct sock *sk, struct peer *peer, __u32 proto)
{
	struct event e, *before;
	__u64 key = (__u64)sk;
	__u32 netns;

	if (!is_dns_port(peer->port) || (proto != IPPROTO_UDP && proto != IPPROTO_TCP) || is_subflow(sk, proto))
		return;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (!netns_watched(netns))
		return;
	before = bpf_map_lookup_elem(&connecting, &key);
	if (before && never_connected(sk)) {
		put_outcome(before, sk);
		submit_unsent(before, 0); /* the next server is tried, from the same socket */
	}
	put_unsent(&e, sk, peer, proto, netns, CALL_CONNECT);
	if (bpf_map_update_elem(&connecting, &key, &e, 0))
		count_loss(LOSS_CONNECT);
}

/* The call that was to connect a socket returns. */
static __always_inline void watch_connected(struct sock *sk, int ret)
{
	__u64 key = (__u64)sk;
	struct event *e = bpf_map_lookup_elem(&connecting, &key);

	if (!e)
		return;
	if (ret < 0 && never_connected(sk)) {
		put_outcome(e, sk);
		submit_unsent(e, -ret);
	}
	bpf_map_delete_elem(&connecting, &key);
}

/* A socket is let go. port is its peer's, 0 where it has none. */
static __always_inline void watch_release(struct sock *sk, __be16 port)
{
	__u64 key = (__u64)sk;
	struct event *e;

	if (port && !is_dns_port(port))
		return;
	e = bpf_map_lookup_elem(&connecting, &key);
	if (!e)
		return;
	if (never_connected(sk)) {
		put_outcome(e, sk);
		submit_unsent(e, 0);
	}
	bpf_map_delete_elem(&connecting, &key);
}

/* A socket that is not connected is to send. */
static __always_inline void watch_sending(struct sock *sk, struct peer *peer)
{
	__u32 zero = 0;
	struct sending *s;

	if (!is_dns_port(peer->port))
		return;
	s = bpf_map_lookup_elem(&sendings, &zero);
	if (!s)
		return;
	s->sk = (__u64)sk;
	s->thread = bpf_get_current_pid_tgid();
	s->peer = *peer;
}

/* The errors of a send that has found no way or port for its packet. Others are of earlier packets, or will pass. */
static __always_inline bool found_no_way(int error)
{
	return error == EPERM || error == EACCES || error == EINVAL || error == EADDRNOTAVAIL || error == ENETUNREACH ||
	       error == EHOSTUNREACH;
}

/* A UDP socket's send has failed. */
static __always_inline void watch_unsent(struct sock *sk, int error)
{
	struct peer *peer = 0;
	struct departure *d;
	struct sending *s;
	struct event e;
	__u32 zero = 0, netns;

	if (!found_no_way(error) || sk->sk_protocol != IPPROTO_UDP)
		return;
	if (!sk->__sk_common.skc_dport) {
		s = bpf_map_lookup_elem(&sendings, &zero);
		if (!s || s->sk != (__u64)sk || s->thread != bpf_get_current_pid_tgid())
			return;
		s->sk = 0;
		peer = &s->peer;
	} else if (!is_dns_port(sk->__sk_common.skc_dport)) {
		return;
	}
	d = bpf_map_lookup_elem(&departed, &zero);
	if (d && d->sk == (__u64)sk && d->thread == bpf_get_current_pid_tgid()) {
		d->sk = 0;
		return; /* there was a packet, and what became of it was seen */
	}
	netns = sk->__sk_common.skc_net.net->ns.inum;
	if (!netns_watched(netns))
		return;
	put_unsent(&e, sk, peer, IPPROTO_UDP, netns, CALL_SEND);
	submit_unsent(&e, error);
}

#endif
