/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a packet or a socket to a record in the ring buffer. */
#ifndef DNSTRAIL_RECORD_H
#define DNSTRAIL_RECORD_H

#define AF_INET 2
#define AF_INET6 10
#define MSG_PEEK 2

/* Reads a packet's pages, too. Kernels from 6.4 on have it, and let tracing programs call it from 6.11 on. */
extern int bpf_dynptr_from_skb(struct sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/* Some records: one of them is the first beyond the level. */
#define WAKEUP_RANGE 4096

static __always_inline __u64 wakeup_flags(void)
{
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);

	/* A reader that was woken takes all there is: it is not woken for every record that comes meanwhile. */
	if (waiting < wakeup_bytes || (waiting & (wakeup_bytes - 1)) >= WAKEUP_RANGE)
		return BPF_RB_NO_WAKEUP;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * The programs at tp_btf hooks read fields behind skb by plain loads, which the kernel guards (BPF_PROBE_MEM) and
 * which cost a tenth of a call of bpf_probe_read_kernel; copies of more than a word are calls, as few as can be.
 *
 * While UDP data waits in a socket, skb->dev holds other things (udp_set_dev_scratch), which are no kernel address:
 * such loads give zero, and what may be no kernel address is read by calls where they may not (bad_loads_give_zero).
 */
static __always_inline __u32 netns_of(struct sk_buff *skb)
{
	__u32 netns = bad_loads_give_zero ? skb->dev->nd_net.net->ns.inum : BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	struct sock *sk;

	if (netns)
		return netns;
	sk = skb->sk;
	if (!sk)
		return 0;
	return bad_loads_give_zero ? sk->__sk_common.skc_net.net->ns.inum : BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* The cgroup v2 ID of a socket's cgroup, 0 where the kernel keeps something else in its place. */
static __always_inline __u64 cgroup_of(struct sock *sk)
{
	struct sock_cgroup_data___union *old;
	__u64 val;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	old = (void *)&sk->sk_cgrp_data;
	val = BPF_CORE_READ(old, val);
	/*
	 * The lowest bit says that these are the numbers of net_prio and net_cls, the next one whether a reference is
	 * held.
	 */
	return val & 1 ? 0 : BPF_CORE_READ((struct cgroup *)(val & ~3ULL), kn, id);
}

/* Fills in who runs now. */
static __always_inline void put_process(struct event *e, struct sock *sk)
{
	struct task_struct *leader;

	if (have_task_btf) {
		struct task_struct *task = bpf_get_current_task_btf(); /* known by type: read by plain loads */

		leader = task->group_leader;
		e->pid = task->tgid;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		leader = BPF_CORE_READ(task, group_leader);
		e->pid = BPF_CORE_READ(task, tgid);
	}
	/* The thread's own name is often not the program's: isc-net-0000, dispatcher-3. */
	bpf_core_read(&e->comm, sizeof(e->comm), &leader->comm);
	e->cgroup = cgroup_of(sk);
}

/*
 * Whether `current` is who sends: the packet has its socket and has come in by no device. A TCP segment may leave
 * from a timer or an acknowledgement; then the socket is not owned.
 */
static __always_inline bool sent_from_here(struct sk_buff *skb, struct sock *sk, struct packet *p)
{
	if (!sk || skb->skb_iif)
		return false;
	if (p->proto == IPPROTO_UDP)
		return true;
	return bad_loads_give_zero ? sk->sk_lock.owned : BPF_CORE_READ(sk, sk_lock.owned); /* a socket that is being opened or closed is smaller */
}

/* The socket whose packet left last on this CPU, and the thread that ran then. */
struct departure {
	__u64 sk;
	__u64 thread;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct departure);
} departed SEC(".maps");

/* Notes that a packet of the socket has left, sent by who runs now. */
static __always_inline void note_departure(struct sock *sk)
{
	__u32 zero = 0;
	struct departure *d = bpf_map_lookup_elem(&departed, &zero);

	if (!d)
		return;
	d->sk = (__u64)sk;
	d->thread = bpf_get_current_pid_tgid();
}

/* Whether a socket of that cgroup is sent by who runs now. */
static __always_inline bool sent_by_current(__u64 cgroup)
{
	return !cgroup || cgroup == bpf_get_current_cgroup_id();
}

/*
 * Fills in who sends, where that is who runs now. A packet that waited for its neighbor's address, or a segment,
 * leaves in the context of whoever made that possible: of another cgroup than the socket's, it is not the sender. One
 * of the same cgroup is found out by HOOK_SENT.
 */
static __always_inline void put_sender(struct event *e, struct sock *sk)
{
	put_process(e, sk);
	if (sent_by_current(e->cgroup))
		note_departure(sk);
	else
		e->pid = 0;
}

/* Sixteen bytes by plain loads. */
static __always_inline void put_address(__u8 *to, struct in6_addr *from)
{
	__u32 *words = (__u32 *)to;

	words[0] = from->in6_u.u6_addr32[0];
	words[1] = from->in6_u.u6_addr32[1];
	words[2] = from->in6_u.u6_addr32[2];
	words[3] = from->in6_u.u6_addr32[3];
}

/* One direction of a conntrack entry by plain loads, where the kernel has them for such memory. */
static __always_inline void load_tuple(struct tuple *t, void *src, void *dst)
{
	put_address(t->saddr, bytes_at(src));
	put_address(t->daddr, bytes_at(dst));
	t->sport = bpf_ntohs(bytes_at(src + 16)->in6_u.u6_addr16[0]);
	t->dport = bpf_ntohs(bytes_at(dst + 16)->in6_u.u6_addr16[0]);
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
	struct nf_conn *ct = conntrack_of(skb);

	if (!ct)
		return;
	e->flags |= EVENT_CONNTRACK;
	if (have_rdonly_cast && bpf_rdonly_cast) {
		void *base = ct;

		e->ct_status = bytes_at(base + CT_OFFSET(status))->in6_u.u6_addr32[0];
		load_tuple(&e->ct_orig, base + CT_OFFSET(tuplehash[0].tuple.src.u3), base + CT_OFFSET(tuplehash[0].tuple.dst.u3));
		load_tuple(&e->ct_reply, base + CT_OFFSET(tuplehash[1].tuple.src.u3), base + CT_OFFSET(tuplehash[1].tuple.dst.u3));
		return;
	}
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
	e->ifindex = bad_loads_give_zero ? skb->dev->ifindex : BPF_CORE_READ(skb, dev, ifindex);
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
		put_sender(e, sk);
	}
	if (!(p->flags & EVENT_INNER))
		put_conntrack(e, skb); /* else it is the tunnel's */
}

/*
 * How much of the payload there is here, at most max bytes: of a first fragment, of what an ICMP error quotes, and of
 * a packet that lies about its length, less than its header says.
 */
static __always_inline __u32 payload_here(struct sk_buff *skb, struct packet *p, __u32 max)
{
	__u32 end = (skb->data - skb->head) + skb->len;
	__u32 n = p->length;

	if (p->payload >= end)
		return 0;
	if (n > end - p->payload)
		n = end - p->payload;
	return n < max ? n : max;
}

/* Offset from skb->head of the end of what does not lie in pages. */
static __always_inline __u32 linear_end(struct sk_buff *skb)
{
	return (skb->data - skb->head) + (skb->len - skb->data_len);
}

/*
 * Copies payload, at most max bytes: from the linear part, or through the kernel's dynptr where pages hold some of
 * it. Gives what was captured.
 */
static __always_inline __u32 put_payload(void *to, struct sk_buff *skb, struct packet *p, __u32 max)
{
	const unsigned char *head = skb->head;
	__u32 data = skb->data - head;
	__u32 end = linear_end(skb);
	__u32 n = payload_here(skb, p, max);

	if (n > max)
		return 0; /* for the verifier */
	if (!skb->data_len || p->payload + n <= end)
		return bpf_probe_read_kernel(to, n, head + p->payload) ? 0 : n;
	if (have_dynptr && bpf_dynptr_from_skb && p->payload >= data) {
		struct bpf_dynptr d;

		if (!bpf_dynptr_from_skb(skb, 0, &d) && !bpf_dynptr_read(to, n, &d, p->payload - data, 0))
			return n;
	}
	/*
	 * What lies before the pages: of a datagram that was put together from fragments, the first one, which has the
	 * question.
	 */
	if (p->payload >= end)
		return 0;
	n = end - p->payload;
	if (n > max)
		n = max;
	return bpf_probe_read_kernel(to, n, head + p->payload) ? 0 : n;
}

static __always_inline void put_record(struct event *e, struct sk_buff *skb, struct packet *p, __u8 hook, __u32 netns, __u32 reason,
				       __u64 location)
{
	zero_record(e);
	put_packet(e, skb, p);
	e->hook = hook;
	e->netns = netns;
	e->reason = reason;
	e->location = location;
	if (hook == HOOK_DROP && !(p->flags & (EVENT_INNER | EVENT_ICMP)))
		e->route = route_of(skb, p->version);
}

/* Whether some of the payload that is wanted lies in pages, and all of it where bpf_skb_output finds it. */
static __always_inline bool in_pages(struct sk_buff *skb, struct packet *p)
{
	return skb->data_len && p->payload >= skb->data - skb->head && p->payload + payload_here(skb, p, MAX_PAGED_CAPTURE) > linear_end(skb);
}

/*
 * Writes the record of such a packet to where the kernel itself copies the packet behind it, for programs that may
 * not read pages.
 */
static __always_inline void submit_paged(struct sk_buff *skb, struct packet *p, __u8 hook, __u32 netns, __u32 reason, __u64 location)
{
	__u32 n = payload_here(skb, p, MAX_PAGED_CAPTURE);
	__u32 key = hook;
	struct paged_event *r = bpf_map_lookup_elem(&paged_room, &key);

	if (!r)
		return;
	put_record(&r->e, skb, p, hook, netns, reason, location);
	r->e.captured = n;
	r->skip = p->payload - (skb->data - skb->head);
	if (bpf_skb_output(skb, &paged, (__u64)((r->skip + n) & 0xfffff) << 32 | BPF_F_CURRENT_CPU, r, sizeof(*r)))
		count_loss(LOSS_RING_FULL);
}

/* One size class of record: the ring buffer's reservation must be of a constant size. */
#define SUBMIT(capacity)                                                                                                     \
	do {                                                                                                                 \
		struct {                                                                                                     \
			struct event e;                                                                                      \
			__u8 payload[capacity];                                                                              \
		} *r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);                                                          \
		if (!r)                                                                                                      \
			goto full;                                                                                           \
		put_record(&r->e, skb, &p, hook, netns, reason, location);                                                   \
		if (p.length) {                                                                                              \
			r->e.captured = put_payload(r->payload, skb, &p, capacity);                                          \
			if (!r->e.captured) {                                                                                \
				r->e.flags |= EVENT_PAGED;                                                                   \
				count_loss(LOSS_PAGED);                                                                      \
			}                                                                                                    \
		}                                                                                                            \
		bpf_ringbuf_submit(r, wakeup_flags());                                                                       \
	} while (0)

/* Whether a packet to and from other ports is DNS behind a translation. */
static __always_inline bool follows(struct sk_buff *skb, struct packet *p)
{
	if (p->version == 4) {
		if (follow_end(p->addrs, 4, p->sport) || follow_end(p->addrs + 4, 4, p->dport))
			return true;
	} else if (follow_end(p->addrs, 16, p->sport) || follow_end(p->addrs + 16, 16, p->dport)) {
		return true;
	}
	return !(p->flags & (EVENT_INNER | EVENT_ICMP)) && learn(skb);
}

/* How much payload the record of a packet with so much of it has room for: the size classes of SUBMIT. */
static __always_inline __u32 record_room(__u32 length)
{
	return length <= 96 ? 96 : length <= 512 ? 512 : length <= 4096 ? 4096 : length <= 16384 ? 16384 : MAX_TCP_CAPTURE;
}

/* Whether a packet's record gives way to those of others (fair.h). */
static __always_inline bool packet_gives_way(struct sk_buff *skb, struct packet *p, __u32 netns)
{
	bool asks = is_dns_port(p->dport) || (!is_dns_port(p->sport) && may_follow(p->dport));
	__u32 *a = (__u32 *)p->addrs, client[4] = {};
	__u32 ifindex = skb->skb_iif;

	if (p->version == 4)
		client[0] = asks ? a[0] : a[1];
	else
		__builtin_memcpy(client, asks ? a : a + 4, 16);
	if (!ifindex)
		ifindex = bad_loads_give_zero ? skb->dev->ifindex : BPF_CORE_READ(skb, dev, ifindex);
	return gives_way(client, netns, ifindex, sizeof(struct event) + record_room(p->length));
}

/*
 * A packet's record is not written. It was there nevertheless: else its send would be told as one that no packet has
 * left by, and be one event more.
 */
static __always_inline void lose(struct sk_buff *skb, struct packet *p, __u32 which)
{
	struct sock *sk = skb->sk;

	count_loss(which);
	if (!(p->flags & EVENT_ICMP) && sent_from_here(skb, sk, p) && sent_by_current(cgroup_of(sk)))
		note_departure(sk);
}

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
		/*
		 * A tag that the device left in the packet. On arrival it is what skb->data points to, and IP, if it is that,
		 * comes behind it.
		 */
		if (hook == HOOK_RECV)
			network += 4;
		tagged = true;
		break;
	default:
		return 0;
	}
	if (surely_not_dns(skb, skb->head + network, hook))
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
	} else if (!is_dns_port(p.dport) && !is_dns_port(p.sport) && !follows(skb, &p)) {
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

	if (packet_gives_way(skb, &p, netns)) {
		lose(skb, &p, LOSS_FLOOD);
		return 0;
	}
	if (!have_dynptr && have_skb_output && in_pages(skb, &p))
		submit_paged(skb, &p, hook, netns, reason, location);
	else if (p.length <= 96)
		SUBMIT(96);
	else if (p.length <= 512)
		SUBMIT(512);
	else if (p.length <= 4096)
		SUBMIT(4096);
	else if (p.length <= 16384)
		SUBMIT(16384);
	else
		SUBMIT(MAX_TCP_CAPTURE);
	return 0;
full:
	lose(skb, &p, LOSS_RING_FULL);
	return 0;
}

struct peer {
	__u32 addr[4];
	__be16 port;
	__u8 version;
};

/* Whether a socket's port is one whose reads and sends are DNS. */
static __always_inline bool watched_port(__be16 port)
{
	return is_dns_port(port) || may_follow(port);
}

/* The two ends of a socket as plain values, ports in network order. */
struct ends {
	__be16 peer;
	__be16 own;
};

static __always_inline struct ends ends_of(struct sock *sk)
{
	struct {
		__be16 dport;
		__u16 num;
	} ports; /* side by side in the kernel's skc_portpair: one call reads both */

	bpf_core_read(&ports, sizeof(ports), &sk->__sk_common.skc_dport);
	return (struct ends){.peer = ports.dport, .own = bpf_htons(ports.num)};
}

/* Fills in both ends of a socket as a packet to it has them: from the peer, to the socket. */
static __always_inline void put_ends(struct event *e, struct sock *sk, struct peer *peer, struct ends ends)
{
	e->addr.sport = bpf_ntohs(ends.peer);
	e->addr.dport = bpf_ntohs(ends.own);
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
}

/* Notes who has read an answer, if a read is that (fair.h). A socket that is bound to no address does not tell. */
static __always_inline void note_reader(struct event *e, struct ends ends)
{
	__u32 *own = (__u32 *)e->addr.daddr;

	if (!is_dns_port(ends.own) && (own[0] || own[3]))
		note_answered(own, e->time);
}

/*
 * Whether a socket's record gives way to those of others (fair.h). peer is given where the socket is not connected to
 * it. A client's socket that is bound to no address counts by its namespace.
 */
static __always_inline bool socket_gives_way(struct sock *sk, struct peer *peer, struct ends ends, __u32 netns)
{
	bool serves = is_dns_port(ends.own) || (!is_dns_port(ends.peer) && may_follow(ends.own));
	__u32 client[4] = {};

	if (!ring_fills())
		return false;
	if (serves && peer)
		__builtin_memcpy(client, peer->addr, 16);
	else if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_INET && serves)
		BPF_CORE_READ_INTO(&client, sk, __sk_common.skc_v6_daddr);
	else if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_INET)
		BPF_CORE_READ_INTO(&client, sk, __sk_common.skc_v6_rcv_saddr);
	else
		client[0] = serves ? BPF_CORE_READ(sk, __sk_common.skc_daddr) : BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	if (!client[0] && !client[3])
		client[1] = netns;
	if (!gives_way(client, netns, 0, sizeof(struct event)))
		return false;
	count_loss(LOSS_FLOOD);
	return true;
}

/*
 * A UDP socket was read. peer is given where the socket is not connected and the reader asked who sent; size is what
 * was read, 0 where that is not known.
 */
static __always_inline int watch_read(struct sock *sk, struct peer *peer, __u32 size)
{
	struct event *e;
	struct ends ends;
	__u32 netns;

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return 0;
	ends = ends_of(sk);
	if ((peer != 0) == (ends.peer != 0))
		return 0; /* each kind of socket has one hook */
	if (peer)
		ends.peer = peer->port;
	if (!watched_port(ends.own) && !watched_port(ends.peer))
		return 0;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (!netns_watched(netns))
		return 0;
	if (socket_gives_way(sk, peer, ends, netns))
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
	e->payload = size;
	put_ends(e, sk, peer, ends);
	put_process(e, sk);
	note_reader(e, ends);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* A TCP socket is read: which bytes of its stream. */
static __always_inline int watch_stream(struct sock *sk, int size)
{
	struct event *e;
	struct ends ends;
	__u32 netns;

	if (size <= 0 || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	ends = (struct ends){.peer = sk->__sk_common.skc_dport, .own = bpf_htons(sk->__sk_common.skc_num)};
	if (!watched_port(ends.own) && !watched_port(ends.peer))
		return 0;
	netns = sk->__sk_common.skc_net.net->ns.inum;
	if (!netns_watched(netns))
		return 0;
	if (socket_gives_way(sk, 0, ends, netns))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_loss(LOSS_RING_FULL);
		return 0;
	}
	zero_record(e);
	e->time = bpf_ktime_get_ns();
	e->hook = HOOK_COPY;
	e->proto = IPPROTO_TCP;
	e->netns = netns;
	e->seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	e->payload = size;
	put_ends(e, sk, 0, ends);
	put_process(e, sk);
	note_reader(e, ends);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* A send of a connected UDP socket has returned: told only where its packet did not leave meanwhile. */
static __always_inline int watch_sent(struct sock *sk, int ret)
{
	__u32 zero = 0;
	struct departure *d;
	struct event *e;
	struct ends ends;
	__u32 netns;

	if (ret <= 0 || sk->sk_protocol != IPPROTO_UDP || !watched_port(sk->__sk_common.skc_dport))
		return 0;
	d = bpf_map_lookup_elem(&departed, &zero);
	if (d && d->sk == (__u64)sk && d->thread == bpf_get_current_pid_tgid()) {
		d->sk = 0;
		return 0;
	}
	netns = sk->__sk_common.skc_net.net->ns.inum;
	if (!netns_watched(netns))
		return 0;
	ends = (struct ends){.peer = sk->__sk_common.skc_dport, .own = bpf_htons(sk->__sk_common.skc_num)};
	if (socket_gives_way(sk, 0, ends, netns))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_loss(LOSS_RING_FULL);
		return 0;
	}
	zero_record(e);
	e->time = bpf_ktime_get_ns();
	e->hook = HOOK_SENT;
	e->proto = IPPROTO_UDP;
	e->netns = netns;
	put_ends(e, sk, 0, ends);
	put_process(e, sk);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

#endif
