/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the BPF programs and the Rust side (src/tables.rs) agree on: the layout of map keys and
 * values, and the reasons that number the counters. A change here is a change there; the sizes
 * are asserted on both sides.
 */
#ifndef OVERLANE_MAPS_H
#define OVERLANE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* One AF_XDP socket per receive queue. The loader sets max_entries to the number of queues. */
struct ovl_xskmap {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

/* All zero (as the map is born): nothing is steered. */
struct ovl_settings {
	__be16 geneve_port;      /* 0: not used */
	__be16 vxlan_port;       /* 0: not used */
	__u8 answer_neighbors;   /* 0 or 1 */
	__u8 reserved[3];
};
_Static_assert(sizeof(struct ovl_settings) == 8, "settings layout");

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d. */
struct ovl_address {
	__be32 words[4];
};
_Static_assert(sizeof(struct ovl_address) == 16, "address layout");

/* Keys of the two prefix tries: bits that count, then the address. */
struct ovl_prefix_v4 {
	__u32 bits;
	__be32 address;
};
_Static_assert(sizeof(struct ovl_prefix_v4) == 8, "IPv4 prefix layout");

struct ovl_prefix_v6 {
	__u32 bits;
	__be32 address[4];
};
_Static_assert(sizeof(struct ovl_prefix_v6) == 20, "IPv6 prefix layout");

/* Why a frame went where it went. Every frame has exactly one; the values index the counters. */
enum ovl_reason {
	/* To the dataplane. */
	OVL_TUNNEL = 0,          /* tunnel packet to an address of this node */
	OVL_PATH_MTU = 1,        /* ICMP "too big" about a tunnel packet of this node */
	OVL_PREFIX = 2,          /* destination in a local prefix */
	OVL_NEIGHBOR = 3,        /* ARP or neighbour question about a local prefix */
	/* To the kernel. */
	OVL_TRUNCATED = 4,       /* ends before its own headers do */
	OVL_VLAN = 5,            /* VLAN tagged */
	OVL_GROUP = 6,           /* multicast or broadcast that asks for nothing of ours */
	OVL_PROTOCOL = 7,        /* not IPv4, IPv6 or ARP, or malformed */
	OVL_FRAGMENT = 8,        /* later UDP fragment to an address of this node: it has no port */
	OVL_NODE = 9,            /* node address inside a local prefix: the host's, never ours */
	OVL_OTHER = 10,          /* everything else, which belongs to the host */
	/* Counted beside one of the first four: no socket on the queue, so the kernel got it. */
	OVL_NO_SOCKET = 11,
	OVL_REASONS = 12,
};
#define OVL_FIRST_KERNEL_REASON OVL_TRUNCATED

#endif
