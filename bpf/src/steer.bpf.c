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

/* Bits of OVL_IS_...: one question to know what a destination is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ovl_address);
	__type(value, __u8);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ovl_node_port);
	__type(value, __u8);
} node_ports SEC(".maps");

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

/* What the address is: bits of OVL_IS_... */
static __always_inline __u8 what_is(const struct ovl_address *address)
{
	__u8 *bits = bpf_map_lookup_elem(&addresses, address);

	return bits ? *bits : 0;
}

static __always_inline __u8 what_is_v4(__be32 address)
{
	struct ovl_address key = { .words = { 0, 0, bpf_htonl(0xffff), address } };

	return what_is(&key);
}

static __always_inline __u8 what_is_v6(const __be32 *address)
{
	struct ovl_address key;

	__builtin_memcpy(key.words, address, sizeof(key.words));
	return what_is(&key);
}

static __always_inline int same_v6(const __be32 *one, const __be32 *other)
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] &&
	       one[3] == other[3];
}

/* A service's, and not the host's as well: the host stays reachable. */
static __always_inline int is_service(__u8 bits)
{
	return (bits & (OVL_IS_SERVICE | OVL_IS_NODE)) == OVL_IS_SERVICE;
}

static __always_inline int is_node_port(__u8 protocol, __be16 port)
{
	struct ovl_node_port key = { .protocol = protocol, .port = port };

	return bpf_map_lookup_elem(&node_ports, &key) != NULL;
}

/* A port, or an echo identifier, that flows leave the cluster with. */
static __always_inline int is_snat_port(const struct ovl_settings *set, __be16 port)
{
	__u16 number = bpf_ntohs(port);

	return set->snat_first && set->snat_first <= number && number <= set->snat_last;
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

/* A question for an address: `bits` say what that is, `is_local` whether it is in a prefix. */
static __always_inline enum ovl_reason steer_question(__u8 bits, int is_local,
						      const struct ovl_settings *set)
{
	if ((bits & (OVL_IS_ANNOUNCED | OVL_IS_NODE)) == OVL_IS_ANNOUNCED)
		return OVL_NEIGHBOR;
	if (!set->answer_neighbors || !is_local)
		return OVL_OTHER;
	return bits & OVL_IS_NODE ? OVL_NODE : OVL_NEIGHBOR;
}

static __always_inline enum ovl_reason steer_arp(struct rest rest, const struct ovl_settings *set)
{
	struct arp_packet *arp = take(&rest, sizeof(*arp));

	if (!arp)
		return OVL_TRUNCATED;
	if (arp->operation != bpf_htons(ARP_REQUEST) || arp->hardware != bpf_htons(ARP_ETHERNET) ||
	    arp->protocol != bpf_htons(ETHERTYPE_IPV4) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4)
		return OVL_OTHER;
	return steer_question(what_is_v4(arp->target), is_local_v4(arp->target), set);
}

/* ---- connections ---- */

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
}

/* Is `port` of the address with these bits one that this node translates? */
static __always_inline int is_translated(__u8 bits, __u8 protocol, __be16 port,
					 const struct ovl_settings *set)
{
	return (bits & OVL_IS_EGRESS && is_snat_port(set, port)) ||
	       (bits & OVL_IS_NODE && is_node_port(protocol, port));
}

/* A segment or datagram to an address with these bits. OVL_OTHER: none of a connection here. */
static __always_inline enum ovl_reason steer_ports(struct rest rest, __u8 bits, __u8 protocol,
						   const struct ovl_settings *set)
{
	struct ports *ports = take(&rest, sizeof(*ports));

	if (!ports)
		return OVL_OTHER;
	if (bits & OVL_IS_NODE && is_node_port(protocol, ports->destination))
		return OVL_NODE_PORT;
	if (bits & OVL_IS_EGRESS && is_snat_port(set, ports->destination))
		return OVL_EGRESS;
	return OVL_OTHER;
}

/* The quoted packet, whose transport header is next, was sent by a connection here with an
 * address of these bits: RFC 5508 section 4, RFC 4787 REQ-12. */
static __always_inline int quotes_flow(struct rest rest, __u8 bits, __u8 protocol, __u8 echo,
				       const struct ovl_settings *set)
{
	if (has_ports(protocol)) {
		struct ports *ports = take(&rest, sizeof(*ports));

		return ports && is_translated(bits, protocol, ports->source, set);
	}
	if (protocol == (echo == ICMP_ECHO_REQUEST ? PROTO_ICMP : PROTO_ICMPV6)) {
		struct icmp_header *icmp = take(&rest, sizeof(*icmp));

		return icmp && icmp->type == echo && icmp->code == 0 && bits & OVL_IS_EGRESS &&
		       is_snat_port(set, icmp->identifier);
	}
	return 0;
}

/* A later fragment has no ports: whose it is, nobody can say here. The dataplane can ask for all
 * fragments, first ones as well, to an address where flows may be; what is the host's it gives back. */
static __always_inline int is_asked_for(__u8 bits, __u8 protocol, __u8 icmp,
					const struct ovl_settings *set)
{
	if (!set->take_fragments || (!has_ports(protocol) && protocol != icmp))
		return 0;
	return bits & OVL_IS_NODE || (bits & OVL_IS_EGRESS && set->snat_first);
}

static __always_inline enum ovl_reason steer_later_fragment(__u8 bits, __u8 protocol)
{
	return bits & OVL_IS_NODE && protocol == PROTO_UDP ? OVL_FRAGMENT : OVL_OTHER;
}

/* ---- IPv4 ---- */

/* An ICMP error to an address with these bits: about a tunnel packet of this node (RFC 1191
 * section 4), or about a packet of a connection here. */
static __always_inline enum ovl_reason steer_error_v4(struct rest rest, struct icmp_header *icmp,
						      __be32 destination, __u8 bits,
						      const struct ovl_settings *set)
{
	struct ipv4_header *quoted;
	struct rest tunnel;
	int malformed;

	quoted = take_ipv4(&rest, &malformed);
	if (!quoted || (quoted->fragment & bpf_htons(IPV4_OFFSET_MASK)))
		return OVL_OTHER;
	tunnel = rest;
	if (icmp->type == ICMP_UNREACHABLE && icmp->code == ICMP_FRAGMENTATION_NEEDED &&
	    bits & OVL_IS_NODE && quoted->protocol == PROTO_UDP && is_tunnel(&tunnel, set) &&
	    what_is_v4(quoted->source) & OVL_IS_NODE)
		return OVL_PATH_MTU;
	if (quoted->source == destination &&
	    quotes_flow(rest, bits, quoted->protocol, ICMP_ECHO_REQUEST, set))
		return OVL_FLOW_ERROR;
	return OVL_OTHER;
}

static __always_inline enum ovl_reason steer_icmp(struct rest rest, __be32 destination, __u8 bits,
						  const struct ovl_settings *set)
{
	struct icmp_header *icmp = take(&rest, sizeof(*icmp));

	if (!icmp)
		return OVL_OTHER;
	switch (icmp->type) {
	case ICMP_ECHO_REPLY:
		return icmp->code == 0 && bits & OVL_IS_EGRESS && is_snat_port(set, icmp->identifier) ?
			OVL_EGRESS : OVL_OTHER;
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return steer_error_v4(rest, icmp, destination, bits, set);
	default:
		return OVL_OTHER;
	}
}

static __always_inline enum ovl_reason steer_ipv4(struct rest rest, const struct ovl_settings *set)
{
	int malformed;
	struct ipv4_header *ip = take_ipv4(&rest, &malformed);
	enum ovl_reason reason = OVL_OTHER;
	struct rest tunnel = rest;
	__be32 destination;
	__u8 protocol, bits;

	if (!ip)
		return malformed ? OVL_PROTOCOL : OVL_TRUNCATED;
	destination = ip->destination;
	protocol = ip->protocol;
	bits = what_is_v4(destination);
	if (is_service(bits) && (has_ports(protocol) || protocol == PROTO_ICMP))
		return OVL_SERVICE;
	if (ip->fragment & bpf_htons(IPV4_OFFSET_MASK | IPV4_MORE_FRAGMENTS) &&
	    is_asked_for(bits, protocol, PROTO_ICMP, set))
		reason = OVL_EGRESS;
	else if (ip->fragment & bpf_htons(IPV4_OFFSET_MASK))
		reason = steer_later_fragment(bits, protocol);
	else if (protocol == PROTO_UDP && bits & OVL_IS_NODE && is_tunnel(&tunnel, set))
		reason = OVL_TUNNEL;
	else if (bits && has_ports(protocol))
		reason = steer_ports(rest, bits, protocol, set);
	else if (bits && protocol == PROTO_ICMP)
		reason = steer_icmp(rest, destination, bits, set);
	if (reason != OVL_OTHER || !is_local_v4(destination))
		return reason;
	return bits & OVL_IS_NODE ? OVL_NODE : OVL_PREFIX;
}

/* ---- IPv6 ---- */

/* As steer_error_v4 (RFC 4443 section 3). Tunnel packets of ours have no extension headers. */
static __always_inline enum ovl_reason steer_error_v6(struct rest rest, __u8 type,
						      struct ipv6_header *ip, __u8 bits,
						      const struct ovl_settings *set)
{
	int malformed;
	struct ipv6_header *quoted = take_ipv6(&rest, &malformed);
	struct rest tunnel = rest;
	struct transport transport;

	if (!quoted)
		return OVL_OTHER;
	if (type == ICMPV6_TOO_BIG && bits & OVL_IS_NODE && quoted->next_header == PROTO_UDP &&
	    is_tunnel(&tunnel, set) && what_is_v6(quoted->source) & OVL_IS_NODE)
		return OVL_PATH_MTU;
	if (!same_v6(quoted->source, ip->destination))
		return OVL_OTHER;
	transport = take_extensions(&rest, quoted->next_header);
	if (!transport.later_fragment &&
	    quotes_flow(rest, bits, transport.protocol, ICMPV6_ECHO_REQUEST, set))
		return OVL_FLOW_ERROR;
	return OVL_OTHER;
}

/* A solicitation whose target is ours: its destination is a multicast group or, when a neighbour
 * checks what it knows, the target itself. */
static __always_inline enum ovl_reason steer_solicitation(struct rest rest, __u8 hop_limit,
							  const struct ovl_settings *set)
{
	__be32 *target = take(&rest, 16);

	/* RFC 4861 section 7.1.1: any other hop limit comes from off the link */
	if (!target || hop_limit != 255)
		return OVL_OTHER;
	return steer_question(what_is_v6(target), is_local_v6(target), set);
}

static __always_inline enum ovl_reason steer_icmpv6(struct rest rest, struct ipv6_header *ip,
						    __u8 bits, const struct ovl_settings *set)
{
	struct icmp_header *icmp = take(&rest, sizeof(*icmp));

	if (!icmp)
		return OVL_OTHER;
	switch (icmp->type) {
	case ICMPV6_NEIGHBOR_SOLICITATION:
		return icmp->code == 0 ? steer_solicitation(rest, ip->hop_limit, set) : OVL_OTHER;
	case ICMPV6_ECHO_REPLY:
		return icmp->code == 0 && bits & OVL_IS_EGRESS && is_snat_port(set, icmp->identifier) ?
			OVL_EGRESS : OVL_OTHER;
	case ICMPV6_UNREACHABLE:
	case ICMPV6_TOO_BIG:
	case ICMPV6_TIME_EXCEEDED:
	case ICMPV6_PARAMETER_PROBLEM:
		return bits ? steer_error_v6(rest, icmp->type, ip, bits, set) : OVL_OTHER;
	default:
		return OVL_OTHER;
	}
}

/* What a packet of this family asks for besides its destination. */
static __always_inline enum ovl_reason steer_transport_v6(struct rest rest, struct ipv6_header *ip,
							  struct transport transport, __u8 bits,
							  const struct ovl_settings *set)
{
	struct rest tunnel = rest;

	if (transport.fragment && is_asked_for(bits, transport.protocol, PROTO_ICMPV6, set))
		return OVL_EGRESS;
	if (transport.later_fragment)
		return steer_later_fragment(bits, transport.protocol);
	if (transport.protocol == PROTO_ICMPV6)
		return steer_icmpv6(rest, ip, bits, set);
	if (transport.protocol == PROTO_UDP && bits & OVL_IS_NODE && is_tunnel(&tunnel, set))
		return OVL_TUNNEL;
	if (bits && has_ports(transport.protocol))
		return steer_ports(rest, bits, transport.protocol, set);
	return OVL_OTHER;
}

static __always_inline enum ovl_reason steer_ipv6(struct rest rest, int group,
						  const struct ovl_settings *set)
{
	int malformed;
	struct ipv6_header *ip = take_ipv6(&rest, &malformed);
	struct transport transport;
	enum ovl_reason reason;
	__u8 bits;

	if (!ip)
		return malformed ? OVL_PROTOCOL : OVL_TRUNCATED;
	transport = take_extensions(&rest, ip->next_header);
	bits = group ? 0 : what_is_v6(ip->destination);
	reason = steer_transport_v6(rest, ip, transport, bits, set);
	if (group)
		return reason == OVL_NEIGHBOR ? OVL_NEIGHBOR : OVL_GROUP;
	if (reason == OVL_OTHER && is_service(bits) &&
	    (has_ports(transport.protocol) || transport.protocol == PROTO_ICMPV6))
		return OVL_SERVICE;
	if (reason != OVL_OTHER || !is_local_v6(ip->destination))
		return reason;
	return bits & OVL_IS_NODE ? OVL_NODE : OVL_PREFIX;
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
