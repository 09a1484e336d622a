/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the loader sets, and the maps. */
#ifndef DNSTRAIL_CONFIG_H
#define DNSTRAIL_CONFIG_H

#define MAX_PORTS 8

/* The DNS ports, in network order. The verifier knows them, and removes the comparisons beyond the last. */
const volatile __u32 dns_port_count = 1;
const volatile __be16 dns_ports[MAX_PORTS] = {0x3500};

/* Whether only the namespaces in netns_allowed are watched. */
const volatile bool netns_confined = false;

/* Wake the reader once this many bytes wait; it polls besides. */
const volatile __u32 wakeup_bytes = 256 << 10;

/* The most payload to capture, of a UDP packet and of a TCP segment. */
#define MAX_UDP_CAPTURE 1536
#define MAX_TCP_CAPTURE 4096

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
	__type(value, struct event); /* puts the type into the object's BTF, where a test finds it */
} events SEC(".maps");

/* Own losses, a count a CPU. The Go side has the same list. */
enum loss {
	LOSS_RING_FULL = 0,
	LOSS_PAGED = 1,
	LOSS_FRAGMENT = 2,
	LOSS_MAX = 3,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOSS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u8);
} netns_allowed SEC(".maps");

static __always_inline void count_loss(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&losses, &which);
	if (n)
		*n += 1;
}

static __always_inline bool netns_watched(__u32 netns)
{
	return !netns_confined || bpf_map_lookup_elem(&netns_allowed, &netns);
}

static __always_inline bool is_dns_port(__be16 port)
{
	if (port == dns_ports[0])
		return true;
#pragma unroll
	for (__u32 i = 1; i < MAX_PORTS; i++)
		if (i < dns_port_count && port == dns_ports[i])
			return true;
	return false;
}

#endif
