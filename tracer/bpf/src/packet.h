/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From an sk_buff to addresses, ports and where the DNS payload lies. Everything is bounded: a header that lies about its
 * length ends the walk, and the packet is not ours.
 */
#ifndef DNSTRAIL_PACKET_H
#define DNSTRAIL_PACKET_H

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_TEB 0x6558
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_IPV6 41
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60

#define VXLAN_PORT 4789
#define VXLAN_PORT_LINUX 8472
#define VXLAN_HEADERS (8 + 8 + 14)
#define GENEVE_PORT 6081

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04

/* Enough for an IPv6 header and the ports behind it, and for an IPv4 header without options and all of TCP's. */
#define FIRST_BYTES 44

struct packet {
	__u64 head;    /* skb->head, as a number */
	__u32 l4;      /* offset of the UDP or TCP header from skb->head */
	__u32 payload; /* offset of the payload from skb->head */
	__u32 length;  /* bytes of payload, by the IP header */
	__u32 l4_length;
	__u32 ip_id;
	__u32 seq;
	__be16 sport;
	__be16 dport;
	__u8 version;
	__u8 proto;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 flags;
	__u16 icmp;
	__u8 addrs[32] __attribute__((aligned(8))); /* as in the header: source, destination */
	__u8 sender[16]; /* of an ICMP error */
	__u8 first[FIRST_BYTES] __attribute__((aligned(8))); /* of the packet */
};

/* From kernel 6.2 on: memory that is read by plain loads instead of by a call. A bad address reads as zero. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/* Sixteen bytes, as the kernel's type for that. */
#define bytes_at(p) ((struct in6_addr *)bpf_rdonly_cast(p, bpf_core_type_id_kernel(struct in6_addr)))

#include "follow.h"

static __always_inline bool is_vxlan_port(__be16 port)
{
	return port == bpf_htons(VXLAN_PORT) || port == bpf_htons(VXLAN_PORT_LINUX);
}

static __always_inline bool is_tunnel_port(__be16 port)
{
	return is_vxlan_port(port) || port == bpf_htons(GENEVE_PORT);
}

/*
 * Says cheaply that a packet is not DNS: most are not, and all of them come by here. What it cannot tell so cheaply (options,
 * extension headers, ICMP, an older kernel) it lets pass.
 */
static __always_inline bool surely_not_dns(struct sk_buff *skb, const unsigned char *ip, __u8 hook)
{
	struct in6_addr *h;
	const unsigned char *l4;
	__be16 sport, dport;
	__u8 first, proto;
	__u32 ports;

	if (!have_rdonly_cast || !bpf_rdonly_cast)
		return false;
	h = bytes_at(ip);
	first = h->in6_u.u6_addr8[0];
	if (first == 0x45) {
		if (h->in6_u.u6_addr16[3] & bpf_htons(0x1fff)) /* a later fragment */
			return !fragment_is_dns(fragment_tag4(h->in6_u.u6_addr32[3], bytes_at(ip + 16)->in6_u.u6_addr32[0], bpf_ntohs(h->in6_u.u6_addr16[2])));
		proto = h->in6_u.u6_addr8[9];
		barrier_var(proto); /* it is not loaded anew for each comparison */
		if (proto != IPPROTO_UDP && proto != IPPROTO_TCP)
			return proto != IPPROTO_ICMP && proto != IPPROTO_IPIP && proto != IPPROTO_IPV6;
		l4 = ip + 20;
	} else if (first >> 4 == 6) {
		proto = h->in6_u.u6_addr8[6];
		barrier_var(proto);
		if (proto != IPPROTO_UDP && proto != IPPROTO_TCP)
			return false;
		l4 = ip + 40;
	} else {
		return false;
	}
	ports = bytes_at(l4)->in6_u.u6_addr32[0];
	barrier_var(ports);
	sport = ports; /* the object is little-endian */
	dport = ports >> 16;
	return !is_dns_port(sport) && !is_dns_port(dport) && !is_tunnel_port(dport) &&
	       !(following && (may_follow(sport) || may_follow(dport))) &&
	       !(may_be_tracked(hook) && asked_dns_port(conntrack_of(skb)));
}

/*
 * Reads the IP header at an offset from head into p->first, and the ports, which a later fragment does not have. False: not whole. A global function, like
 * skip_extensions, because a packet inside a tunnel or an ICMP error is read by it once more.
 */
__noinline int parse_ip(struct packet *p, __u32 off)
{
	const unsigned char *head;
	__u8 *b;

	if (!p)
		return false;
	head = (const unsigned char *)p->head;
	b = p->first;
	if (bpf_probe_read_kernel(b, FIRST_BYTES, head + off))
		return false;
	if ((b[0] >> 4) == 4) {
		__u32 hlen = (b[0] & 0x0f) * 4;
		__u32 total = (__u32)b[2] << 8 | b[3];
		__u32 frag = ((__u32)b[6] << 8 | b[7]) & 0x3fff;

		if (hlen < 20 || total < hlen)
			return false;
		p->proto = b[9];
		p->l4 = off + hlen;
		p->l4_length = total - hlen;
		p->version = 4;
		p->ttl = b[8];
		p->ip_id = (__u32)b[4] << 8 | b[5];
		if (frag) {
			p->flags |= frag & 0x1fff ? EVENT_LATER : EVENT_FRAGMENT;
			p->seq = (frag & 0x1fff) << 19 | (p->l4_length & 0xffff);
		}
		if (frag & 0x1fff)
			return true;
		if (hlen == 20) {
			p->sport = *(__be16 *)(b + 20);
			p->dport = *(__be16 *)(b + 22);
			return true;
		}
		__be16 ports[2];
		if (bpf_probe_read_kernel(ports, sizeof(ports), head + p->l4))
			return false;
		p->sport = ports[0];
		p->dport = ports[1];
		return true;
	}
	if ((b[0] >> 4) == 6) {
		p->proto = b[6];
		p->l4 = off + 40;
		p->l4_length = (__u32)b[4] << 8 | b[5];
		p->version = 6;
		p->ttl = b[7];
		p->sport = *(__be16 *)(b + 40);
		p->dport = *(__be16 *)(b + 42);
		return true;
	}
	return false;
}

/*
 * Steps over IPv6 extension headers (RFC 8200, section 4), at most six. A function of its own, and global: the verifier walks it once, and not
 * once for every way that leads to it.
 */
__noinline int skip_extensions(struct packet *p)
{
	const unsigned char *head;

	if (!p)
		return false;
	head = (const unsigned char *)p->head;
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u8 h[8];
		__u32 len;

		if (p->proto == IPPROTO_UDP || p->proto == IPPROTO_TCP)
			break;
		if (p->proto != IPPROTO_HOPOPTS && p->proto != IPPROTO_ROUTING && p->proto != IPPROTO_DSTOPTS &&
		    p->proto != IPPROTO_FRAGMENT && p->proto != IPPROTO_AH)
			return false;
		if (bpf_probe_read_kernel(h, sizeof(h), head + p->l4))
			return false;
		len = ((__u32)h[1] + 1) * 8;
		if (p->proto == IPPROTO_AH)
			len = ((__u32)h[1] + 2) * 4;
		if (p->proto == IPPROTO_FRAGMENT) {
			len = 8;
			p->ip_id = (__u32)h[4] << 24 | (__u32)h[5] << 16 | (__u32)h[6] << 8 | h[7];
		}
		if (len > p->l4_length)
			return false;
		if (p->proto == IPPROTO_FRAGMENT) {
			__u32 offset = ((__u32)h[2] << 8 | h[3]) & 0xfff8;

			p->seq = offset << 16 | ((p->l4_length - len) & 0xffff);
			if (offset) {
				p->flags |= EVENT_LATER;
				p->proto = h[0];
				p->sport = p->dport = 0;
				return true;
			}
			if (h[3] & 1)
				p->flags |= EVENT_FRAGMENT;
		}
		p->proto = h[0];
		p->l4 += len;
		p->l4_length -= len;
	}
	__be16 ports[2];
	if (bpf_probe_read_kernel(ports, sizeof(ports), head + p->l4))
		return false;
	p->sport = ports[0];
	p->dport = ports[1];
	return true;
}

/* What lies between the outer UDP header and the packet inside GENEVE (RFC 8926, section 3.4); 0 where that is not IP. */
static __always_inline __u32 geneve_headers(struct packet *p)
{
	__u8 h[4];
	__u32 len;

	if (bpf_probe_read_kernel(h, sizeof(h), (void *)(p->head + p->l4 + 8)))
		return 0;
	len = 8 + (h[0] & 0x3f) * 4;
	switch ((__u32)h[2] << 8 | h[3]) {
	case ETH_P_TEB:
		return len + 14;
	case ETH_P_IP:
	case ETH_P_IPV6:
		return len;
	}
	return 0;
}

/* Goes on with the packet inside, where there is a tunnel around it: IP in IP, VXLAN, or GENEVE. One level. */
static __always_inline bool enter_tunnel(struct packet *p)
{
	__u32 inner;

	if (p->flags & EVENT_LATER)
		return true;
	if (p->proto == IPPROTO_IPIP || p->proto == IPPROTO_IPV6)
		inner = p->l4;
	else if (p->proto == IPPROTO_UDP && is_vxlan_port(p->dport))
		inner = p->l4 + VXLAN_HEADERS;
	else if (p->proto == IPPROTO_UDP && p->dport == bpf_htons(GENEVE_PORT)) {
		inner = geneve_headers(p);
		if (!inner)
			return false;
		inner += p->l4 + 8;
	}
	else
		return true;
	p->flags = EVENT_INNER;
	return parse_ip(p, inner);
}

/*
 * An ICMP error (destination unreachable) quotes the packet that it is about: goes on with that one. The lookup it ended is found by it.
 */
static __always_inline bool enter_quoted(const unsigned char *head, struct packet *p)
{
	__u8 h[2], *b = p->first;

	if ((p->flags & EVENT_LATER) || p->l4_length < 8 || bpf_probe_read_kernel(h, sizeof(h), head + p->l4))
		return false;
	if (p->proto == IPPROTO_ICMP ? h[0] != 3 : h[0] != 1)
		return false;
	p->icmp = (__u16)h[0] << 8 | h[1];
	if (p->version == 4)
		__builtin_memcpy(p->sender, b + 12, 4);
	else
		__builtin_memcpy(p->sender, b + 8, 16);
	if (!parse_ip(p, p->l4 + 8) || (p->flags & EVENT_LATER))
		return false;
	p->flags = EVENT_ICMP;
	return p->proto == IPPROTO_UDP;
}

/* Finds the payload behind the UDP or TCP header of a packet to or from a DNS port. */
static __always_inline bool find_payload(const unsigned char *head, struct packet *p)
{
	if (p->proto == IPPROTO_UDP) {
		__u8 h[8];

		if (p->l4_length < 8 || bpf_probe_read_kernel(h, sizeof(h), head + p->l4))
			return false;
		p->payload = p->l4 + 8;
		p->length = (__u32)h[4] << 8 | h[5]; /* of the datagram: a first fragment holds less of it */
		if (p->length < 8)
			return false;
		p->length -= 8;
		if (!(p->flags & EVENT_FRAGMENT) && p->length > p->l4_length - 8)
			p->length = p->l4_length - 8;
		return true;
	}
	__u8 h[14];
	__u32 hlen;

	if (p->l4_length < 20 || bpf_probe_read_kernel(h, sizeof(h), head + p->l4))
		return false;
	hlen = (h[12] >> 4) * 4;
	if (hlen < 20 || hlen > p->l4_length)
		return false;
	p->seq = (__u32)h[4] << 24 | (__u32)h[5] << 16 | (__u32)h[6] << 8 | h[7];
	p->tcp_flags = h[13];
	p->payload = p->l4 + hlen;
	p->length = p->l4_length - hlen;
	/* A bare acknowledgement says nothing of DNS. */
	return p->length || (p->tcp_flags & (TCP_SYN | TCP_RST | TCP_FIN));
}

#endif
