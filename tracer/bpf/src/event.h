/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The record that one DNS packet at one hook leaves in the ring buffer. Addresses are 16 bytes (IPv4 in the first four), ports
 * and lengths in host order. The Go side has the same in event.go, and a test holds the two together.
 */
#ifndef DNSTRAIL_EVENT_H
#define DNSTRAIL_EVENT_H

enum hook {
	HOOK_XMIT = 1, /* net_dev_queue: leaves by a device */
	HOOK_RECV = 2, /* netif_receive_skb: arrives at a device */
	HOOK_DROP = 3, /* kfree_skb */
	HOOK_COPY = 4, /* skb_copy_datagram_iovec: read from a TCP socket: seq and payload are the range that was read */
	HOOK_READ = 5, /* read from a socket, without the packet: only the two ends are known */
	HOOK_SENT = 6, /* a send returned although no packet had left: only the sender's end is known, and who it is */
	HOOK_UNSENT = 7, /* a connection or send failed before there was a packet: who asked whom, as in HOOK_READ */
	HOOK_MAX = 8,
};

enum event_flags {
	EVENT_LOCAL = 1 << 0,     /* sent from here: pid, comm and cgroup are the sender's */
	EVENT_PAGED = 1 << 1,     /* the payload lies in pages that this kernel gives no access to: none was captured */
	EVENT_FRAGMENT = 1 << 2,  /* first fragment of a fragmented packet */
	EVENT_CONNTRACK = 1 << 3, /* the conntrack fields are set */
	EVENT_INNER = 1 << 4,     /* the addresses are those of a packet inside a tunnel */
	EVENT_VLAN = 1 << 5,      /* the packet carried a VLAN tag in its data */
	EVENT_ICMP = 1 << 6,      /* an ICMP error that quotes a DNS packet: the tuple and payload are the quoted packet's, ct_orig.saddr
				     is who sent the error, icmp its type and code */
	EVENT_LATER = 1 << 7,     /* a later fragment of a packet whose first one was DNS: no ports, and no payload captured */
};

/* Where a packet was going that was dropped, by its route; and what is known of the route of what was not sent. */
enum route {
	ROUTE_UNKNOWN = 0,
	ROUTE_LOCAL = 1, /* to a socket here */
	ROUTE_ON = 2,    /* on to another host; HOOK_UNSENT: there is one */
	ROUTE_NONE = 3,  /* HOOK_UNSENT: there is none */
};

/* What failed. */
enum call {
	CALL_SEND = 0,
	CALL_CONNECT = 1,
};

struct tuple {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
};

struct event {
	__u64 time;      /* ns, CLOCK_MONOTONIC */
	__u64 skb;       /* the packet's address in the kernel: an identity, for as long as it lives */
	__u64 location;  /* HOOK_DROP: the kernel address that dropped it */
	__u64 cgroup;    /* EVENT_LOCAL, HOOK_READ, HOOK_UNSENT: cgroup v2 ID */
	__u32 netns;     /* inode number of the network namespace; 0: not known */
	__u32 ifindex;   /* 0: no device */
	__u32 iif;       /* ifindex of the device it came in by; 0: sent from here, or just crossed into this namespace */
	__u32 reason;    /* HOOK_DROP: enum skb_drop_reason; HOOK_UNSENT: errno, 0: not known */
	__u32 pid;       /* EVENT_LOCAL, HOOK_READ, HOOK_UNSENT: thread group ID in the initial PID namespace */
	__u32 seq;       /* TCP: sequence number; fragments: offset << 16 | bytes, of what the IP header is followed by */
	__u32 ct_status; /* EVENT_CONNTRACK: enum ip_conntrack_status */
	__u32 ip_id;     /* IPv4 identification, IPv6 fragment identification; 0 where there is none */
	struct tuple addr;
	struct tuple ct_orig;  /* EVENT_CONNTRACK */
	struct tuple ct_reply; /* EVENT_CONNTRACK */
	__u8 hook;
	__u8 version;   /* 4 or 6 */
	__u8 proto;     /* 6 or 17 */
	__u8 flags;
	__u8 tcp_flags;
	__u8 ttl;
	__u16 icmp;     /* EVENT_ICMP: type << 8 | code */
	__u16 captured;     /* bytes of payload that follow the record */
	__u8 route;         /* HOOK_DROP, HOOK_UNSENT: enum route */
	__u8 call;          /* HOOK_UNSENT: enum call */
	__u32 payload;      /* bytes of payload in the packet */
	char dev[16];
	char comm[16];
};

/* What stands before a packet that the kernel copied whole. */
struct paged_event {
	struct event e;
	__u32 skip; /* bytes of the packet before its payload */
	__u32 pad;
};

#endif
