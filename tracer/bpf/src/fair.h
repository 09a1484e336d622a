/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who gives way when the ring buffer fills. Its first half is for all, its third quarter for clients that read answers:
 * a busy one is no flood. What is left is for those who have written little of late: the fuller it is, the less one may
 * have written. So who floods loses records of its own lookups, and what a quiet neighbor does is still seen.
 *
 * Records are counted by the client's address and, since a packet can have any source, by the device that it came in
 * by. A client that has read an answer is at its own address: the device does not count for it, which others may share.
 * Counts are in a table of fixed size whose places nobody outside can foresee. They are not atomic: a count that is
 * lost makes no difference.
 */
#ifndef DNSTRAIL_FAIR_H
#define DNSTRAIL_FAIR_H

#define SHARES 4096                  /* a half of the table; a power of two */
#define ANSWERED_FOR 60000000000ULL /* ns that a client counts as one that reads answers */

struct share {
	__u64 turn;  /* in which quarter of the ring it wrote last, counted from the start */
	__u64 bytes; /* written in it, and half as many of those before */
	__u64 read;  /* when an answer was read last, in ns of CLOCK_MONOTONIC; of an address alone */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SHARES);
	__type(key, __u32);
	__type(value, struct share);
} shares SEC(".maps");

/*
 * Where an address counts: four words, the last three of them 0 for IPv4. What a socket of IPv6 says of an IPv4 address
 * (::ffff:0:0/96, RFC 4291, section 2.5.5.2) is the same.
 */
static __always_inline __u32 place_of_address(const __u32 *addr)
{
	__u64 high = (__u64)addr[0] << 32 | addr[1], low = (__u64)addr[2] << 32 | addr[3];

	if (!high && addr[2] == bpf_htonl(0xffff)) {
		high = (__u64)addr[3] << 32;
		low = 0;
	}
	return mix(mix(share_seed, high), low) & (SHARES - 1);
}

static __always_inline __u32 place_of_device(__u32 netns, __u32 ifindex)
{
	return SHARES + (mix(share_seed, (__u64)netns << 32 | ifindex) & (SHARES - 1));
}

/* A client at an address has read an answer. */
static __always_inline void note_answered(const __u32 *addr, __u64 now)
{
	__u32 place = place_of_address(addr);
	struct share *s = bpf_map_lookup_elem(&shares, &place);

	if (s)
		s->read = now;
}

/* Gives what was written of late. */
static __always_inline __u64 written(struct share *s, __u64 turn)
{
	if (s->turn != turn) {
		s->bytes = s->turn + 1 == turn ? s->bytes >> 1 : 0;
		s->turn = turn;
	}
	return s->bytes;
}

/* Whether so much waits that it is counted who writes. */
static __always_inline bool ring_fills(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= ring_bytes / 8;
}

/*
 * Whether a record of so many bytes is not to be written, and counts it if it is. client is the client's address,
 * ifindex the device by which the packet came into the namespace, 0 where there is no packet.
 */
static __always_inline bool gives_way(const __u32 *client, __u32 netns, __u32 ifindex, __u32 size)
{
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	__u64 turn, most;
	bool reads;
	struct share *s, *d;
	__u32 place;

	if (waiting < ring_bytes / 8)
		return false; /* nearly always */
	turn = bpf_ringbuf_query(&events, BPF_RB_PROD_POS) / (ring_bytes / 4);
	place = place_of_address(client);
	s = bpf_map_lookup_elem(&shares, &place);
	place = place_of_device(netns, ifindex);
	d = bpf_map_lookup_elem(&shares, &place);
	if (!s || !d)
		return false;
	reads = s->read && bpf_ktime_get_ns() - s->read <= ANSWERED_FOR;
	most = waiting < ring_bytes / 4 * (reads ? 3 : 2) ? ~0ULL : (ring_bytes - waiting) / 16;
	if (written(s, turn) > most)
		return true;
	if (!reads && written(d, turn) > most)
		return true;
	s->bytes += size;
	d->bytes += size;
	return false;
}

#endif
