/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DNS behind a translation. A service on port 53 may have its server on another port, and a rule in the pod may send
 * port 53 to a proxy: what conntrack translates from a DNS port is followed to where it goes. The ends that were
 * learned so are remembered; a bit a port says cheaply that a packet is none of them.
 */
#ifndef DNSTRAIL_FOLLOW_H
#define DNSTRAIL_FOLLOW_H

#define MAX_FOLLOWED 4096
#define NFCT_PTRMASK (~7UL)

/* An end behind a translation: the address as in event.h, the port in network order. */
struct end {
	__u8 addr[16];
	__be16 port;
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FOLLOWED);
	__type(key, struct end);
	__type(value, __u8);
} followed SEC(".maps");

/* A bit a port, by its number in host order. */
__u64 followed_ports[1024];

/* Whether any bit is set: nearly everywhere none is, and the words above are not touched. */
__u32 following;

/*
 * Where a port's bit is. The compiler knows that sixteen bits leave no more than this range, older verifiers do not,
 * and it must not take the mask away.
 */
static __always_inline __u64 *followed_word(__u32 port)
{
	__u32 word = port >> 6;

	barrier_var(word);
	return &followed_ports[word & 1023];
}

static __always_inline bool may_follow(__be16 port)
{
	__u32 n = bpf_ntohs(port);

	if (!following)
		return false;
	return *followed_word(n) >> (n & 63) & 1;
}

static __always_inline bool follow_end(const __u8 *addr, __u32 size, __be16 port)
{
	struct end e = {.port = port};

	if (!may_follow(port))
		return false;
	__builtin_memcpy(e.addr, addr, size);
	return bpf_map_lookup_elem(&followed, &e);
}

/* The conntrack entry of a packet; its address is no pointer that the verifier knows. */
static __always_inline struct nf_conn *conntrack_of(struct sk_buff *skb)
{
	if (!bpf_core_field_exists(skb->_nfct))
		return 0;
	return (void *)(skb->_nfct & NFCT_PTRMASK);
}

/* Offset of a field of the conntrack entry. */
#define CT_OFFSET(field) __builtin_preserve_field_info(((struct nf_conn *)0)->field, 0 /* its byte offset */)

/*
 * Whether the entry was made for a packet to a DNS port. Read by a plain load, which every packet with an entry pays.
 */
static __always_inline bool asked_dns_port(struct nf_conn *ct)
{
	if (!ct)
		return false;
	if (!have_rdonly_cast || !bpf_rdonly_cast) {
		__be16 port = 0;

		bpf_core_read(&port, sizeof(port), &ct->tuplehash[0].tuple.dst.u.all);
		return is_dns_port(port);
	}
	return is_dns_port(bytes_at((void *)ct + CT_OFFSET(tuplehash[0].tuple.dst.u.all))->in6_u.u6_addr16[0]);
}

/*
 * Whether a packet at a hook may have a conntrack entry. One that arrives has none yet, but for what a node sends to
 * itself, and that was looked at when it left.
 */
static __always_inline bool may_be_tracked(__u8 hook)
{
	return hook != HOOK_RECV;
}

/* Remembers where a DNS port was translated to, and says whether the packet is of such an entry. */
static __always_inline bool learn(struct sk_buff *skb)
{
	struct nf_conn *ct = conntrack_of(skb);
	struct end e = {};
	__u8 one = 1;
	__u32 n;

	if (!asked_dns_port(ct))
		return false;
	bpf_core_read(&e.addr, sizeof(e.addr), &ct->tuplehash[1].tuple.src.u3);
	bpf_core_read(&e.port, sizeof(e.port), &ct->tuplehash[1].tuple.src.u.all);
	if (is_dns_port(e.port))
		return false;
	n = bpf_ntohs(e.port);
	/*
	 * Not atomic, which before 5.12 only an addition can be: a bit that another CPU takes away is set again by the
	 * next packet.
	 */
	if (!bpf_map_update_elem(&followed, &e, &one, 0)) {
		*followed_word(n) |= 1ULL << (n & 63);
		following = 1;
	}
	return true;
}

#endif
