/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs that are only ever loaded, each to learn whether the running kernel takes what it does. A version number
 * would not tell: distributions carry features back to older kernels, and a function that exists may be refused to
 * tracing programs.
 */
#ifndef DNSTRAIL_PROBE_H
#define DNSTRAIL_PROBE_H

SEC("tp_btf/net_dev_queue")
int BPF_PROG(probe_dynptr, struct sk_buff *skb)
{
	struct bpf_dynptr d;

	return bpf_dynptr_from_skb(skb, 0, &d);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(probe_skb_output, struct sk_buff *skb)
{
	__u64 record = 0;

	return bpf_skb_output(skb, &paged, 1ULL << 32 | BPF_F_CURRENT_CPU, &record, sizeof(record));
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(probe_drop_reason, struct sk_buff *skb, void *location, __u32 reason)
{
	return reason != 0;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(probe_copy_datagram, struct sk_buff *skb)
{
	return skb->len;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(probe_rdonly_cast, struct sk_buff *skb)
{
	return bytes_at(skb->head)->in6_u.u6_addr8[0];
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(probe_task_btf, struct sk_buff *skb)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return task->group_leader->tgid;
}

__noinline int behind_pointer(struct packet *p)
{
	return p ? p->version : 0;
}

/* A function that is verified by itself, as parse_ip is. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(probe_global_pointer, struct sk_buff *skb)
{
	struct packet p = {};

	return behind_pointer(&p);
}

#endif
