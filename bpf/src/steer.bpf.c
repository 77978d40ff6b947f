// SPDX-License-Identifier: Apache-2.0
/*
 * Program of the uplink: decides which frames go to AF_XDP and which to the kernel, and nothing
 * else. The uplink is the host's too, so a frame that is not clearly the overlay's is passed on.
 */
#include "maps.h"
#include "parse.h"

struct ovl_xskmap xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ovl_settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct ovl_address);
	__type(value, __u8);
} node_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ovl_prefix_v4);
	__type(value, __u8);
} prefixes_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ovl_prefix_v6);
	__type(value, __u8);
} prefixes_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OVL_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* ---- questions to the tables ---- */

static __always_inline int is_node_v4(__be32 address)
{
	struct ovl_address key = { .words = { 0, 0, bpf_htonl(0xffff), address } };

	return bpf_map_lookup_elem(&node_addresses, &key) != NULL;
}

static __always_inline int is_node_v6(const __be32 *address)
{
	struct ovl_address key;

	__builtin_memcpy(key.words, address, sizeof(key.words));
	return bpf_map_lookup_elem(&node_addresses, &key) != NULL;
}

static __always_inline int is_local_v4(__be32 address)
{
	struct ovl_prefix_v4 key = { .bits = 32, .address = address };

	return bpf_map_lookup_elem(&prefixes_v4, &key) != NULL;
}

static __always_inline int is_local_v6(const __be32 *address)
{
	struct ovl_prefix_v6 key = { .bits = 128 };

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&prefixes_v6, &key) != NULL;
}

static __always_inline int is_tunnel_port(const struct ovl_settings *set, __be16 port)
{
	return port != 0 && (port == set->geneve_port || port == set->vxlan_port);
}

/* The next header is a whole UDP header whose destination is a tunnel port. */
static __always_inline int is_tunnel(struct rest *rest, const struct ovl_settings *set)
{
	struct udp_header *udp = take(rest, sizeof(*udp));

	return udp && is_tunnel_port(set, udp->destination);
}

/* ---- ARP ---- */

static __always_inline enum ovl_reason steer_arp(struct rest rest, const struct ovl_settings *set)
{
	struct arp_packet *arp = take(&rest, sizeof(*arp));

	if (!arp)
		return OVL_TRUNCATED;
	if (!set->answer_neighbors || arp->operation != bpf_htons(ARP_REQUEST) ||
	    arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETHERTYPE_IPV4) ||
	    arp->hardware_length != 6 || arp->protocol_length != 4)
		return OVL_OTHER;
	if (!is_local_v4(arp->target))
		return OVL_OTHER;
	return is_node_v4(arp->target) ? OVL_NODE : OVL_NEIGHBOR;
}

/* ---- IPv4 ---- */

/* The ICMP error's quote is a tunnel packet that this node sent (RFC 1191 section 4). */
static __always_inline int quotes_tunnel_v4(struct rest *rest, const struct ovl_settings *set)
{
	struct icmp_header *icmp = take(rest, sizeof(*icmp));
	struct ipv4_header *quoted;
	int malformed;

	if (!icmp || icmp->type != ICMP_UNREACHABLE || icmp->code != ICMP_FRAGMENTATION_NEEDED)
		return 0;
	quoted = take_ipv4(rest, &malformed);
	if (!quoted || quoted->protocol != PROTO_UDP ||
	    (quoted->fragment & bpf_htons(IPV4_OFFSET_MASK)))
		return 0;
	return is_tunnel(rest, set) && is_node_v4(quoted->source);
}

static __always_inline enum ovl_reason steer_ipv4(struct rest rest, const struct ovl_settings *set)
{
	int malformed;
	struct ipv4_header *ip = take_ipv4(&rest, &malformed);
	__be32 destination;
	__u8 protocol;

	if (!ip)
		return malformed ? OVL_PROTOCOL : OVL_TRUNCATED;
	destination = ip->destination;
	protocol = ip->protocol;
	if (ip->fragment & bpf_htons(IPV4_OFFSET_MASK)) {
		if (protocol == PROTO_UDP && is_node_v4(destination))
			return OVL_FRAGMENT;
	} else if (protocol == PROTO_UDP) {
		if (is_tunnel(&rest, set) && is_node_v4(destination))
			return OVL_TUNNEL;
	} else if (protocol == PROTO_ICMP) {
		if (quotes_tunnel_v4(&rest, set) && is_node_v4(destination))
			return OVL_PATH_MTU;
	}
	if (!is_local_v4(destination))
		return OVL_OTHER;
	return is_node_v4(destination) ? OVL_NODE : OVL_PREFIX;
}

/* ---- IPv6 ---- */

/* The error's quote is a tunnel packet that this node sent (RFC 4443 section 3.2). Ours have no
 * extension headers. */
static __always_inline int quotes_tunnel_v6(struct rest *rest, const struct ovl_settings *set)
{
	int malformed;
	struct ipv6_header *quoted = take_ipv6(rest, &malformed);

	if (!quoted || quoted->next_header != PROTO_UDP)
		return 0;
	return is_tunnel(rest, set) && is_node_v6(quoted->source);
}

/* A solicitation whose target is ours: its destination is a multicast group or, when a neighbour
 * checks what it knows, the target itself. */
static __always_inline enum ovl_reason steer_solicitation(struct rest *rest, __u8 hop_limit,
							  const struct ovl_settings *set)
{
	__be32 *target = take(rest, 16);

	/* RFC 4861 section 7.1.1: any other hop limit comes from off the link */
	if (!target || hop_limit != 255 || !set->answer_neighbors || !is_local_v6(target))
		return OVL_OTHER;
	return is_node_v6(target) ? OVL_NODE : OVL_NEIGHBOR;
}

static __always_inline enum ovl_reason steer_icmpv6(struct rest *rest, struct ipv6_header *ip,
						    const struct ovl_settings *set)
{
	struct icmp_header *icmp = take(rest, sizeof(*icmp));

	if (!icmp || icmp->code != 0)
		return OVL_OTHER;
	if (icmp->type == ICMPV6_NEIGHBOR_SOLICITATION)
		return steer_solicitation(rest, ip->hop_limit, set);
	if (icmp->type == ICMPV6_TOO_BIG && quotes_tunnel_v6(rest, set) &&
	    is_node_v6(ip->destination))
		return OVL_PATH_MTU;
	return OVL_OTHER;
}

static __always_inline enum ovl_reason steer_ipv6(struct rest rest, int group,
						  const struct ovl_settings *set)
{
	int malformed;
	struct ipv6_header *ip = take_ipv6(&rest, &malformed);
	enum ovl_reason reason = OVL_OTHER;
	struct transport transport;

	if (!ip)
		return malformed ? OVL_PROTOCOL : OVL_TRUNCATED;
	transport = take_extensions(&rest, ip->next_header);
	if (transport.later_fragment) {
		if (transport.protocol == PROTO_UDP && is_node_v6(ip->destination))
			reason = OVL_FRAGMENT;
	} else if (transport.protocol == PROTO_ICMPV6) {
		reason = steer_icmpv6(&rest, ip, set);
	} else if (transport.protocol == PROTO_UDP && !group) {
		if (is_tunnel(&rest, set) && is_node_v6(ip->destination))
			reason = OVL_TUNNEL;
	}
	if (group)
		return reason == OVL_NEIGHBOR ? OVL_NEIGHBOR : OVL_GROUP;
	if (reason != OVL_OTHER || !is_local_v6(ip->destination))
		return reason;
	return is_node_v6(ip->destination) ? OVL_NODE : OVL_PREFIX;
}

/* ---- the frame ---- */

static __always_inline enum ovl_reason steer(struct xdp_md *ctx)
{
	struct rest rest = { .at = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };
	struct ethernet_header *ethernet = take(&rest, sizeof(*ethernet));
	struct ovl_settings *set;
	__u32 zero = 0;
	int group;

	if (!ethernet)
		return OVL_TRUNCATED;
	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set) /* an array's element 0 always exists; the verifier does not know */
		return OVL_OTHER;
	group = ethernet->destination[0] & 1;
	switch (bpf_ntohs(ethernet->type)) {
	case ETHERTYPE_IPV4:
		return group ? OVL_GROUP : steer_ipv4(rest, set);
	case ETHERTYPE_IPV6:
		return steer_ipv6(rest, group, set);
	case ETHERTYPE_ARP:
		return steer_arp(rest, set);
	case ETHERTYPE_VLAN:
	case ETHERTYPE_QINQ:
		return OVL_VLAN;
	default:
		return group ? OVL_GROUP : OVL_PROTOCOL;
	}
}

static __always_inline void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter)
		*counter += 1;
}

SEC("xdp")
int ovl_uplink(struct xdp_md *ctx)
{
	enum ovl_reason reason = steer(ctx);
	long action;

	count(reason);
	if (reason >= OVL_FIRST_KERNEL_REASON)
		return XDP_PASS;
	action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	if (action != XDP_REDIRECT)
		count(OVL_NO_SOCKET);
	return action;
}

char LICENSE[] SEC("license") = "Apache-2.0";
