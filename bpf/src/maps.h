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
	__u16 snat_first;        /* host byte order; 0: no source NAT */
	__u16 snat_last;         /* host byte order, included */
	__u8 answer_neighbors;   /* 0 or 1 */
	__u8 take_fragments;     /* 0 or 1 */
	__u8 reserved[2];
};
_Static_assert(sizeof(struct ovl_settings) == 12, "settings layout");

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d. */
struct ovl_address {
	__be32 words[4];
};
_Static_assert(sizeof(struct ovl_address) == 16, "address layout");

/* What an address is: bits of an entry of `addresses`. */
#define OVL_IS_NODE    1     /* this node has it: tunnels end there, and NodePorts are open */
#define OVL_IS_EGRESS  2     /* flows leave the cluster with it */
#define OVL_IS_SERVICE 4     /* services alone have it; of no effect on a node address */
#define OVL_IS_ANNOUNCED 8   /* questions for it are answered; of no effect on a node address */

/* A NodePort. */
struct ovl_node_port {
	__u8 protocol;           /* as in the IP header */
	__u8 reserved;           /* 0 */
	__be16 port;
};
_Static_assert(sizeof(struct ovl_node_port) == 4, "NodePort layout");

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
	OVL_NEIGHBOR = 3,        /* ARP or neighbour question about a local prefix or announced */
	OVL_SERVICE = 4,         /* destination is a service's address */
	OVL_NODE_PORT = 5,       /* destination is a NodePort of this node */
	OVL_EGRESS = 6,          /* answer to a flow that left with an address of this node's, or a
				  * fragment of what may be one, or for a NodePort */
	OVL_FLOW_ERROR = 7,      /* ICMP error about a packet from a NodePort or of such a flow */
	/* To the kernel. */
	OVL_TRUNCATED = 8,       /* ends before its own headers do */
	OVL_VLAN = 9,            /* VLAN tagged */
	OVL_GROUP = 10,          /* multicast or broadcast that asks for nothing of ours */
	OVL_PROTOCOL = 11,       /* not IPv4, IPv6 or ARP, or malformed */
	OVL_FRAGMENT = 12,       /* later fragment to an address of this node: it has no port */
	OVL_NODE = 13,           /* node address inside a local prefix: the host's, never ours */
	OVL_OTHER = 14,          /* everything else, which belongs to the host */
	/* Counted beside one of the first eight: no socket on the queue, so the kernel got it. */
	OVL_NO_SOCKET = 15,
	OVL_REASONS = 16,
};
#define OVL_FIRST_KERNEL_REASON OVL_TRUNCATED

#endif
