/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounds-checked reading of a frame. `take` is the only way to reach bytes: it hands out a
 * header that lies wholly inside the frame, or NULL.
 */
#ifndef OVERLANE_PARSE_H
#define OVERLANE_PARSE_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NULL ((void *)0)

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP  0x0806
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100   /* IEEE 802.1Q */
#define ETHERTYPE_QINQ 0x88a8   /* IEEE 802.1ad */

#define PROTO_HOP_BY_HOP  0
#define PROTO_ICMP        1
#define PROTO_TCP         6
#define PROTO_UDP         17
#define PROTO_ROUTING     43
#define PROTO_FRAGMENT    44
#define PROTO_ICMPV6      58
#define PROTO_DESTINATION 60
#define PROTO_SCTP        132

/* Extension headers walked before the packet is taken as "transport not seen". */
#define IPV6_EXTENSIONS_MAX 4

struct ethernet_header {
	__u8 destination[6];
	__u8 source[6];
	__be16 type;
};

/* RFC 791 section 3.1 */
struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;         /* flags (3 bits), offset in units of 8 bytes (13 bits) */
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 source;
	__be32 destination;
};
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff

/* RFC 8200 section 3 */
struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__be32 source[4];
	__be32 destination[4];
};

/* First 8 bytes of every extension header; only the fragment header uses `fragment`. */
struct ipv6_extension {
	__u8 next_header;
	__u8 length;             /* units of 8 bytes, without the first 8; reserved in a fragment header */
	__be16 fragment;         /* RFC 8200 section 4.5: offset (13 bits), reserved (2), more (1) */
	__be32 rest;
};
#define IPV6_OFFSET_MASK 0xfff8
#define IPV6_MORE_FRAGMENTS 1

struct udp_header {
	__be16 source;
	__be16 destination;
	__be16 length;
	__sum16 checksum;
};

/* How TCP (RFC 9293), UDP (RFC 768) and SCTP (RFC 9260) begin. */
struct ports {
	__be16 source;
	__be16 destination;
};

/* RFC 792, RFC 4443: the part common to errors and neighbour messages */
struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	union {
		__be32 rest;
		__be16 identifier;   /* of an echo message */
	};
};
#define ICMP_ECHO_REPLY               0
#define ICMP_UNREACHABLE              3
#define ICMP_ECHO_REQUEST             8
#define ICMP_TIME_EXCEEDED            11
#define ICMP_PARAMETER_PROBLEM        12
#define ICMP_FRAGMENTATION_NEEDED     4   /* RFC 1191 section 4 */
#define ICMPV6_UNREACHABLE            1
#define ICMPV6_TOO_BIG                2   /* RFC 4443 section 3.2 */
#define ICMPV6_TIME_EXCEEDED          3
#define ICMPV6_PARAMETER_PROBLEM      4
#define ICMPV6_ECHO_REQUEST           128
#define ICMPV6_ECHO_REPLY             129
#define ICMPV6_NEIGHBOR_SOLICITATION  135 /* RFC 4861 section 4.3 */

/* RFC 826 for IPv4 over Ethernet. The addresses in the middle are not aligned: 16-bit halves. */
struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__be16 sender[5];        /* MAC, then IPv4 */
	__be16 target_mac[3];
	__be32 target;
};
#define ARP_ETHERNET 1
#define ARP_REQUEST  1

_Static_assert(sizeof(struct ethernet_header) == 14, "Ethernet header");
_Static_assert(sizeof(struct ipv4_header) == 20, "IPv4 header");
_Static_assert(sizeof(struct ipv6_header) == 40, "IPv6 header");
_Static_assert(sizeof(struct ipv6_extension) == 8, "IPv6 extension header");
_Static_assert(sizeof(struct udp_header) == 8, "UDP header");
_Static_assert(sizeof(struct ports) == 4, "ports");
_Static_assert(sizeof(struct icmp_header) == 8, "ICMP header");
_Static_assert(sizeof(struct arp_packet) == 28, "ARP packet");

/* What is left of a frame. */
struct rest {
	void *at;
	void *end;
};

/* The next `length` bytes, or NULL when fewer are left; then nothing is consumed. */
static __always_inline void *take(struct rest *rest, __u32 length)
{
	void *start = rest->at;

	if (start + length > rest->end)
		return NULL;
	rest->at = start + length;
	return start;
}

/* A whole IPv4 header with its options consumed, or NULL; `malformed` says it was not too short
 * but wrong. */
static __always_inline struct ipv4_header *take_ipv4(struct rest *rest, int *malformed)
{
	struct ipv4_header *ip = take(rest, sizeof(*ip));
	__u32 length;

	*malformed = 0;
	if (!ip)
		return NULL;
	length = (ip->version_ihl & 0x0f) * 4;
	if (ip->version_ihl >> 4 != 4 || length < sizeof(*ip)) {
		*malformed = 1;
		return NULL;
	}
	return take(rest, length - sizeof(*ip)) ? ip : NULL;
}

/* A whole IPv6 header, or NULL, as take_ipv4. */
static __always_inline struct ipv6_header *take_ipv6(struct rest *rest, int *malformed)
{
	struct ipv6_header *ip = take(rest, sizeof(*ip));

	*malformed = 0;
	if (!ip)
		return NULL;
	if (bpf_ntohl(ip->version_class_flow) >> 28 != 6) {
		*malformed = 1;
		return NULL;
	}
	return ip;
}

/* Where the walk over the extension headers ended. */
struct transport {
	__u8 protocol;           /* 59 (no next header) when not reached */
	__u8 fragment;           /* this is a piece; `protocol` says what the whole is */
	__u8 later_fragment;     /* and not the first one */
};
#define PROTO_NONE 59

/* Consumes extension headers until a transport header, RFC 8200 section 4. */
static __always_inline struct transport take_extensions(struct rest *rest, __u8 next)
{
	struct transport none = { .protocol = PROTO_NONE };
	struct transport found = {};
	int i;

#pragma unroll
	for (i = 0; i <= IPV6_EXTENSIONS_MAX; i++) {
		struct ipv6_extension *header;

		if (next != PROTO_HOP_BY_HOP && next != PROTO_ROUTING && next != PROTO_DESTINATION &&
		    next != PROTO_FRAGMENT) {
			found.protocol = next;
			return found;
		}
		if (i == IPV6_EXTENSIONS_MAX)
			break;
		header = take(rest, sizeof(*header));
		if (!header)
			return none;
		if (next == PROTO_FRAGMENT) {
			if (header->fragment & bpf_htons(IPV6_OFFSET_MASK | IPV6_MORE_FRAGMENTS))
				found.fragment = 1;
			if (header->fragment & bpf_htons(IPV6_OFFSET_MASK)) {
				found.later_fragment = 1;
				found.protocol = header->next_header;
				return found;
			}
		} else if (!take(rest, (__u32)header->length * 8)) {
			return none;
		}
		next = header->next_header;
	}
	return none;
}

#endif
