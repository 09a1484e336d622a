/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a packet or a socket to a record in the ring buffer. */
#ifndef DNSTRAIL_RECORD_H
#define DNSTRAIL_RECORD_H

#define AF_INET 2
#define AF_INET6 10
#define MSG_PEEK 2
#define NFCT_PTRMASK (~7UL)

/* From kernel 6.11 on for this kind of program: reads a packet's pages, too. */
extern int bpf_dynptr_from_skb(struct sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

static __always_inline __u64 wakeup_flags(void)
{
	if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < wakeup_bytes)
		return BPF_RB_NO_WAKEUP;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * The programs at tp_btf hooks read fields behind skb by plain loads, which the kernel guards (BPF_PROBE_MEM) and which cost a tenth
 * of a call of bpf_probe_read_kernel; copies of more than a word are calls, as few as can be.
 *
 * While UDP data waits in a socket, skb->dev holds other things (udp_set_dev_scratch), which are no kernel address: such loads give zero.
 */
static __always_inline __u32 netns_of(struct sk_buff *skb)
{
	__u32 netns = skb->dev->nd_net.net->ns.inum;
	struct sock *sk;

	if (netns)
		return netns;
	sk = skb->sk;
	return sk ? sk->__sk_common.skc_net.net->ns.inum : 0;
}

static __always_inline void put_process(struct event *e, struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf(); /* known by type: read by plain loads */
	struct task_struct *leader = task->group_leader;

	/* The thread's own name is often not the program's: isc-net-0000, dispatcher-3. */
	e->pid = task->tgid;
	bpf_core_read(&e->comm, sizeof(e->comm), &leader->comm);
	e->cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

/* Whether `current` is who sends: the packet has its socket and has come in by no device. A TCP segment may leave from a timer or an acknowledgement; then the socket is not owned. */
static __always_inline bool sent_from_here(struct sk_buff *skb, struct sock *sk, struct packet *p)
{
	if (!sk || skb->skb_iif)
		return false;
	return p->proto == IPPROTO_UDP || sk->sk_lock.owned;
}

static __always_inline void put_tuple(struct tuple *t, struct nf_conntrack_tuple *from)
{
	struct {
		__u8 addr[16];
		__be16 port;
	} src, dst;

	/* The port has stood directly behind the address since there is conntrack: one call reads both. */
	bpf_core_read(&src, sizeof(src), &from->src.u3);
	bpf_core_read(&dst, sizeof(dst), &from->dst.u3);
	__builtin_memcpy(t->saddr, src.addr, 16);
	__builtin_memcpy(t->daddr, dst.addr, 16);
	t->sport = bpf_ntohs(src.port);
	t->dport = bpf_ntohs(dst.port);
}

static __always_inline void put_conntrack(struct event *e, struct sk_buff *skb)
{
	struct nf_conn *ct;

	if (!bpf_core_field_exists(skb->_nfct))
		return;
	ct = (void *)(skb->_nfct & NFCT_PTRMASK);
	if (!ct)
		return;
	e->flags |= EVENT_CONNTRACK;
	e->ct_status = BPF_CORE_READ(ct, status);
	put_tuple(&e->ct_orig, &ct->tuplehash[0].tuple);
	put_tuple(&e->ct_reply, &ct->tuplehash[1].tuple);
}

#define DST_FAKE_RTABLE 0x0010 /* a bridge's, that stands for no route */
#define DST_METADATA 0x0080    /* a tunnel's */
#define SKB_DST_PTRMASK (~1UL)
#define RTN_LOCAL 2
#define RTF_LOCAL 0x80000000

/* Where the packet was going, if its route was looked up. */
static __always_inline __u8 route_of(struct sk_buff *skb, __u8 version)
{
	struct dst_entry *dst;
	bool local;

	if (!bpf_core_field_exists(skb->_skb_refdst))
		return ROUTE_UNKNOWN;
	dst = (void *)(skb->_skb_refdst & SKB_DST_PTRMASK);
	if (!dst || (BPF_CORE_READ(dst, flags) & (DST_FAKE_RTABLE | DST_METADATA)))
		return ROUTE_UNKNOWN;
	/* Both kinds of route begin with their dst_entry. */
	if (version == 4)
		local = BPF_CORE_READ((struct rtable *)dst, rt_type) == RTN_LOCAL;
	else
		local = BPF_CORE_READ((struct rt6_info *)dst, rt6i_flags) & RTF_LOCAL;
	return local ? ROUTE_LOCAL : ROUTE_ON;
}

static __always_inline __u64 fragment_tag(struct packet *p)
{
	__u32 *a = (__u32 *)p->addrs;

	return p->version == 4 ? fragment_tag4(a[0], a[1], p->ip_id) : fragment_tag6(a, p->ip_id);
}

static __always_inline void zero_record(struct event *e)
{
	__builtin_memset(e, 0, sizeof(*e));
}

static __always_inline void put_packet(struct event *e, struct sk_buff *skb, struct packet *p)
{
	struct sock *sk = skb->sk;

	e->time = bpf_ktime_get_ns();
	e->skb = (__u64)skb;
	e->ifindex = skb->dev->ifindex;
	if (e->ifindex)
		bpf_core_read(&e->dev, sizeof(e->dev), &skb->dev->name);
	e->iif = skb->skb_iif;
	e->version = p->version;
	e->proto = p->proto;
	e->ttl = p->ttl;
	e->tcp_flags = p->tcp_flags;
	e->flags = p->flags;
	e->seq = p->seq;
	e->ip_id = p->ip_id;
	e->payload = p->length;
	e->addr.sport = bpf_ntohs(p->sport);
	e->addr.dport = bpf_ntohs(p->dport);
	if (p->version == 4) {
		__builtin_memcpy(e->addr.saddr, p->addrs, 4);
		__builtin_memcpy(e->addr.daddr, p->addrs + 4, 4);
	} else {
		__builtin_memcpy(e->addr.saddr, p->addrs, 16);
		__builtin_memcpy(e->addr.daddr, p->addrs + 16, 16);
	}
	if (p->flags & EVENT_ICMP) {
		e->icmp = p->icmp;
		__builtin_memcpy(e->ct_orig.saddr, p->sender, 16);
		return; /* neither its sender nor its conntrack entry is the quoted packet's */
	}
	if (sent_from_here(skb, sk, p)) {
		e->flags |= EVENT_LOCAL;
		put_process(e, sk);
	}
	if (!(p->flags & EVENT_INNER))
		put_conntrack(e, skb); /* else it is the tunnel's */
}

/* Copies n bytes of payload, n <= max: from the linear part, or through the kernel's dynptr where pages hold some of it. Gives what was captured. */
static __always_inline __u32 put_payload(void *to, struct sk_buff *skb, struct packet *p, __u32 n, __u32 max)
{
	const unsigned char *head = skb->head;
	__u32 data = skb->data - head;
	__u32 linear_end = data + (skb->len - skb->data_len);

	/* Of a first fragment, and of what an ICMP error quotes, there is less here than its header says. */
	if (p->flags & (EVENT_FRAGMENT | EVENT_ICMP)) {
		__u32 end = data + skb->len;

		if (p->payload >= end)
			return 0;
		if (n > end - p->payload)
			n = end - p->payload;
	}
	if (n > max)
		n = max;
	if (!skb->data_len || p->payload + n <= linear_end)
		return bpf_probe_read_kernel(to, n, head + p->payload) ? 0 : n;
	if (bpf_dynptr_from_skb && p->payload >= data) {
		struct bpf_dynptr d;

		if (!bpf_dynptr_from_skb(skb, 0, &d) && !bpf_dynptr_read(to, n, &d, p->payload - data, 0))
			return n;
	}
	return 0;
}

/* One size class of record: the ring buffer's reservation must be of a constant size. */
#define SUBMIT(capacity)                                                                                                     \
	do {                                                                                                                 \
		struct {                                                                                                     \
			struct event e;                                                                                      \
			__u8 payload[capacity];                                                                              \
		} *r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);                                                          \
		if (!r) {                                                                                                    \
			count_loss(LOSS_RING_FULL);                                                                          \
			return 0;                                                                                            \
		}                                                                                                            \
		zero_record(&r->e);                                                                                          \
		put_packet(&r->e, skb, &p);                                                                             \
		r->e.hook = hook;                                                                                            \
		r->e.netns = netns;                                                                                          \
		r->e.reason = reason;                                                                                        \
		r->e.location = location;                                                                                    \
		if (hook == HOOK_DROP && !(p.flags & (EVENT_INNER | EVENT_ICMP)))                                            \
			r->e.route = route_of(skb, p.version);                                                               \
		if (p.length) {                                                                                              \
			r->e.captured = put_payload(r->payload, skb, &p, p.length, capacity);                                \
			if (!r->e.captured) {                                                                                \
				r->e.flags |= EVENT_PAGED;                                                                   \
				count_loss(LOSS_PAGED);                                                                      \
			}                                                                                                    \
		}                                                                                                            \
		bpf_ringbuf_submit(r, wakeup_flags());                                                                       \
	} while (0)

static __always_inline int watch(struct sk_buff *skb, __u8 hook, __u32 network, __u32 reason, __u64 location)
{
	struct packet p;
	__u32 netns;
	bool tagged = false;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
	case bpf_htons(ETH_P_IPV6):
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		/* A tag that the device left in the packet. On arrival it is what skb->data points to, and IP, if it is that, comes behind it. */
		if (hook == HOOK_RECV)
			network += 4;
		tagged = true;
		break;
	default:
		return 0;
	}
	if (surely_not_dns(skb->head + network))
		return 0;
	__builtin_memset(&p, 0, sizeof(p));
	p.head = (__u64)skb->head;
	if (!network || !parse_ip(&p, network) || !enter_tunnel(&p))
		return 0;
	if (p.proto != IPPROTO_UDP && p.proto != IPPROTO_TCP && !(p.flags & EVENT_LATER)) {
		if (p.proto == IPPROTO_ICMP || p.proto == IPPROTO_ICMPV6) {
			if (!enter_quoted(skb->head, &p))
				return 0;
		} else if (p.version != 6 || !skip_extensions(&p)) {
			return 0;
		}
	}
	if (tagged)
		p.flags |= EVENT_VLAN;
	if (p.version == 4)
		__builtin_memcpy(p.addrs, p.first + 12, 8);
	else
		__builtin_memcpy(p.addrs, p.first + 8, 32);
	if (p.flags & EVENT_LATER) {
		if (p.proto != IPPROTO_UDP || !fragment_is_dns(fragment_tag(&p)))
			return 0;
	} else if (!is_dns_port(p.dport) && !is_dns_port(p.sport)) {
		return 0;
	}
	netns = netns_of(skb);
	/* A dropped packet may have lost its device already: then user space knows it by its address. */
	if (netns && !netns_watched(netns))
		return 0;
	if (!(p.flags & EVENT_LATER) && !find_payload(skb->head, &p))
		return 0;
	if ((p.flags & EVENT_FRAGMENT) && p.proto == IPPROTO_UDP)
		note_fragment(fragment_tag(&p));

	if (p.length <= 96)
		SUBMIT(96);
	else if (p.length <= 512)
		SUBMIT(512);
	else
		SUBMIT(4096);
	return 0;
}

struct peer {
	__u32 addr[4];
	__be16 port;
	__u8 version;
};

/* A socket was read. peer is given where the socket is not connected and the reader asked who sent. */
static __always_inline int watch_read(struct sock *sk, struct peer *peer)
{
	struct event *e;
	__u32 netns;
	struct {
		__be16 dport;
		__u16 num;
	} ports; /* side by side in the kernel's skc_portpair: one call reads both */
	__be16 port;
	__u16 num;

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return 0;
	bpf_core_read(&ports, sizeof(ports), &sk->__sk_common.skc_dport);
	num = ports.num;
	port = ports.dport;
	if ((peer != 0) == (port != 0))
		return 0; /* each kind of socket has one hook */
	if (peer)
		port = peer->port;
	if (!is_dns_port(bpf_htons(num)) && !is_dns_port(port))
		return 0;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (!netns_watched(netns))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_loss(LOSS_RING_FULL);
		return 0;
	}
	zero_record(e);
	e->time = bpf_ktime_get_ns();
	e->hook = HOOK_READ;
	e->proto = IPPROTO_UDP;
	e->netns = netns;
	/* As the packet had them: from the peer, to this socket. */
	e->addr.sport = bpf_ntohs(port);
	e->addr.dport = num;
	/* With a peer the hook has said of which family the socket is. */
	if (peer ? peer->version == 4 : BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		__be32 own = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		e->version = 4;
		if (!peer) {
			__be32 addr = BPF_CORE_READ(sk, __sk_common.skc_daddr);
			__builtin_memcpy(e->addr.saddr, &addr, 4);
		}
		__builtin_memcpy(e->addr.daddr, &own, 4);
	} else {
		e->version = 6;
		if (!peer)
			BPF_CORE_READ_INTO(&e->addr.saddr, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO(&e->addr.daddr, sk, __sk_common.skc_v6_rcv_saddr);
	}
	if (peer)
		__builtin_memcpy(e->addr.saddr, peer->addr, 16);
	put_process(e, sk);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

#endif
