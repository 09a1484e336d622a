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

/*
 * What the loader found out about the running kernel by trying it (features.go). That the kernel has a function does
 * not mean that it lets this kind of program call it.
 */
const volatile bool have_dynptr = true; /* bpf_dynptr_from_skb: a packet's pages can be read */
/*
 * Whether a plain load from a bad address gives zero in every program, as it is to. In one that has functions such a
 * load may stop the kernel where that lacks "bpf: ensure main program has an extable" (of 6.5, and carried back to
 * some). No probe can try that: it is taken for granted where tracing programs have dynptrs, and nowhere else.
 */
const volatile bool bad_loads_give_zero = true;
const volatile bool have_rdonly_cast = true; /* bpf_rdonly_cast: memory is read by plain loads */
const volatile bool have_task_btf = true; /* bpf_get_current_task_btf: the same for the current task */
const volatile bool have_skb_output = true; /* bpf_skb_output: the kernel copies a packet, pages and all, behind a record */

/* Wake the reader when so many bytes wait, a power of two, and when so many more do; it polls besides. */
const volatile __u32 wakeup_bytes = 1 << 20;

/* The ring buffer's size, a power of two, and what nobody outside knows (fair.h). */
const volatile __u32 ring_bytes = 64 << 20;
const volatile __u64 share_seed = 0;

/* The most payload to capture, */
#define MAX_TCP_CAPTURE 65528
/* ... and where the kernel copies it into a buffer whose records are smaller. */
#define MAX_PAGED_CAPTURE 16384

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
	__type(value, struct event); /* puts the type into the object's BTF, where a test finds it */
} events SEC(".maps");

/* Where bpf_skb_output writes to: a buffer a CPU. Used only where there is no dynptr. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} paged SEC(".maps");

/* Room for the record of a packet with data in pages, one a hook: a program does not interrupt itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOK_MAX);
	__type(key, __u32);
	__type(value, struct paged_event);
} paged_room SEC(".maps");

/* Own losses, a count a CPU. The Go side has the same list. */
enum loss {
	LOSS_RING_FULL = 0,
	LOSS_PAGED = 1,
	LOSS_FRAGMENT = 2,
	LOSS_CONNECT = 3,
	LOSS_FLOOD = 4, /* fair.h */
	LOSS_MAX = 5,
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
	/* What the verifier leaves of the loop below is a load a turn, for every packet. */
	if (dns_port_count == 1)
		return false;
#pragma unroll
	for (__u32 i = 1; i < MAX_PORTS; i++)
		if (i < dns_port_count && port == dns_ports[i])
			return true;
	return false;
}

#endif
