/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which later fragments are DNS. They have no ports: only the first fragment tells. Its identification is kept in a table in which the next one with the same slot
 * takes its place; to take it from one that may still be on its way is a loss, and counted.
 */
#ifndef DNSTRAIL_FRAGMENT_H
#define DNSTRAIL_FRAGMENT_H

#define FRAGMENT_SLOTS 4096
#define FRAGMENT_ON_ITS_WAY 10000000 /* ns */

struct fragment {
	__u64 tag; /* of the addresses and the identification */
	__u64 time; /* ns, CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAGMENT_SLOTS);
	__type(key, __u32);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Mixes a packet's identification: half a tag a call. */
static __always_inline __u64 mix(__u64 tag, __u64 word)
{
	tag = (tag ^ word) * 0x9e3779b97f4a7c15ULL;
	return tag ^ tag >> 32;
}

/* The tag of an IPv4 packet. Addresses as in the header, the identification in host order. */
static __always_inline __u64 fragment_tag4(__u32 saddr, __u32 daddr, __u32 id)
{
	return mix(mix(4, (__u64)saddr << 32 | daddr), id);
}

static __always_inline __u64 fragment_tag6(const __u32 *addrs, __u32 id)
{
	__u64 tag = 6;

#pragma unroll
	for (int i = 0; i < 8; i += 2)
		tag = mix(tag, (__u64)addrs[i] << 32 | addrs[i + 1]);
	return mix(tag, id);
}

static __always_inline struct fragment *fragment_slot(__u64 tag)
{
	__u32 slot = tag % FRAGMENT_SLOTS;

	return bpf_map_lookup_elem(&fragments, &slot);
}

static __always_inline bool fragment_is_dns(__u64 tag)
{
	struct fragment *f = fragment_slot(tag);

	return f && f->tag == tag;
}

static __always_inline void note_fragment(__u64 tag)
{
	struct fragment *f = fragment_slot(tag);
	__u64 now = bpf_ktime_get_ns();

	if (!f)
		return;
	if (f->tag != tag && f->tag && now - f->time < FRAGMENT_ON_ITS_WAY)
		count_loss(LOSS_FRAGMENT);
	f->tag = tag;
	f->time = now;
}

#endif
