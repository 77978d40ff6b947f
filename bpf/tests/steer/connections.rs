//! Frames of connections that are translated here: to services, to NodePorts, back to flows that
//! left with an address of this node's, and errors about all of these.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlane_bpf::Reason;

use super::samples::*;

const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;

/// Behind Ethernet and IP, without options.
const L4_V4: usize = 34;
const L4_V6: usize = 54;

// ---- frames ----

/// What stands first in TCP, UDP and SCTP; the rest decides nothing.
fn segment(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0xa5; 20]].concat()
}

fn echo(kind: u8, code: u8, identifier: u16) -> Vec<u8> {
    [&[kind, code, 0, 0][..], &identifier.to_be_bytes(), &[0xa5; 18]].concat()
}

fn over_v4(to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = udp_v4(to, 0);
    frame.truncate(L4_V4);
    frame.extend(body);
    edit(frame, 23, protocol)
}

/// The same, sent by us: as an error quotes it.
fn sent_v4(from: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = over_v4(PEER_V4, protocol, body);
    frame[26..30].copy_from_slice(&from.octets());
    frame
}

fn sent_v6(from: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = over_v6(PEER_V6, protocol, body);
    frame[22..38].copy_from_slice(&from.octets());
    frame
}

fn error_v4(to: Ipv4Addr, kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    over_v4(to, ICMP, &[&[kind, code, 0, 0, 0, 0, 0x05, 0x78][..], &quoted[14..]].concat())
}

fn error_v6(to: Ipv6Addr, kind: u8, quoted: &[u8]) -> Vec<u8> {
    over_v6(to, ICMPV6, &[&[kind, 0, 0, 0, 0, 0, 0x05, 0x78][..], &quoted[14..]].concat())
}

/// To the node's own address, as an answer to a flow.
pub fn answer_v4(port: u16) -> Vec<u8> {
    over_v4(NODE_V4, TCP, &segment(443, port))
}

pub fn to_node_port_v4() -> Vec<u8> {
    over_v4(NODE_V4, TCP, &segment(40_000, 30_080))
}

pub fn ssh_v4() -> Vec<u8> {
    over_v4(NODE_V4, TCP, &segment(40_000, 22))
}

/// Who has these?
pub fn questions_for(v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<Vec<u8>> {
    vec![arp(1, v4), solicitation(v6, 255, 0), probe(v6)]
}

/// Pieces to node and egress addresses, the first ones to ports of the host; taken only when asked for.
pub fn fragments() -> Vec<Sample> {
    let first = [(44, fragment(0, true))];
    let v4 = |to, protocol, body: &[u8]| fragmented(over_v4(to, protocol, body), 0, true);
    let v6 = |to, protocol, body: &[u8]| extended(over_v6(to, protocol, body), &first);
    let (nfs, ping) = (segment(443, 2049), echo(8, 0, 1));
    let mut all = later_fragments();
    all.extend([
        steered("first UDP fragment to the node", Reason::Egress, L4_V4, v4(NODE_V4, UDP, &nfs)),
        steered("first SCTP fragment to the node", Reason::Egress, L4_V4, v4(NODE_V4, SCTP, &nfs)),
        steered("first fragment of a ping", Reason::Egress, L4_V4, v4(NODE_V4, ICMP, &ping)),
        steered("first fragment on IPv6", Reason::Egress, L4_V6 + 8, v6(NODE_V6, TCP, &nfs)),
        steered("first fragment of a ping on IPv6", Reason::Egress, L4_V6 + 8, {
            v6(NODE_V6, ICMPV6, &echo(128, 0, 1))
        }),
    ]);
    all
}

/// Fragments that are the host's, whatever is asked for: no flow carries such.
pub fn other_fragments() -> Vec<Sample> {
    let later = [(44, fragment(185, false))];
    let atomic = [(44, fragment(0, false))];
    vec![
        passed(
            "later ESP fragment",
            Reason::Other,
            fragmented(over_v4(NODE_V4, 50, &segment(1, 1)), 185, true),
        ),
        passed(
            "later ESP fragment on IPv6",
            Reason::Other,
            extended(over_v6(NODE_V6, 50, &[0; 20]), &later),
        ),
        passed(
            "whole packet with a fragment header",
            Reason::Other,
            extended(over_v6(NODE_V6, TCP, &segment(443, 22)), &atomic),
        ),
        passed(
            "fragment to nobody",
            Reason::Other,
            fragmented(over_v4(PEER_V4, UDP, &segment(1, 1)), 185, true),
        ),
    ]
}

fn later_fragments() -> Vec<Sample> {
    let later = [(44, fragment(185, false))];
    let v4 = |to, protocol| fragmented(over_v4(to, protocol, &segment(443, 20_000)), 185, true);
    let v6 = |to, protocol| extended(over_v6(to, protocol, &segment(443, 20_000)), &later);
    vec![
        steered("later TCP fragment to the node", Reason::Egress, L4_V4, v4(NODE_V4, TCP)),
        steered("later UDP fragment to the node", Reason::Egress, L4_V4, v4(NODE_V4, UDP)),
        steered("later ICMP fragment to a pool", Reason::Egress, L4_V4, v4(POOL_V4, ICMP)),
        steered("later fragment on IPv6", Reason::Egress, L4_V6 + 8, v6(NODE_V6, UDP)),
        steered("later ICMPv6 fragment to a pool", Reason::Egress, L4_V6 + 8, v6(POOL_V6, ICMPV6)),
    ]
}

// ---- for the dataplane ----

pub fn for_the_dataplane() -> Vec<Sample> {
    let mut all = services();
    all.extend(node_ports_and_answers());
    all.extend(errors());
    all
}

fn services() -> Vec<Sample> {
    let to_v4 = |protocol, body: &[u8]| over_v4(VIP_V4, protocol, body);
    let to_v6 = |protocol, body: &[u8]| over_v6(VIP_V6, protocol, body);
    let any = segment(1, 1);
    let later = [(44, fragment(185, false))];
    let v4 = |name, frame| steered(name, Reason::Service, L4_V4, frame);
    let v6 = |name, frame| steered(name, Reason::Service, L4_V6, frame);
    vec![
        v4("TCP to a service", to_v4(TCP, &any)),
        v4("UDP to a service", to_v4(UDP, &any)),
        v4("SCTP to a service", to_v4(SCTP, &any)),
        v4("ping to a service", to_v4(ICMP, &echo(8, 0, 1))),
        v4("tunnel port of a service", to_v4(UDP, &segment(1, 6081))),
        v4("later fragment to a service", fragmented(to_v4(TCP, &any), 185, false)),
        steered("options to a service", Reason::Service, 74, with_options(to_v4(TCP, &any), 10)),
        v6("TCP to a service on IPv6", to_v6(TCP, &any)),
        v6("UDP to a service on IPv6", to_v6(UDP, &any)),
        v6("SCTP to a service on IPv6", to_v6(SCTP, &any)),
        v6("ping to a service on IPv6", to_v6(ICMPV6, &echo(128, 0, 1))),
        steered(
            "extensions before a service's TCP",
            Reason::Service,
            L4_V6 + 16,
            extended(to_v6(TCP, &any), &[(0, extension(1)), (60, extension(1))]),
        ),
        steered(
            "later fragment to a service on IPv6",
            Reason::Service,
            L4_V6 + 8,
            extended(to_v6(TCP, &any), &later),
        ),
        steered(
            "ARP request for an announced address",
            Reason::Neighbor,
            42,
            padded(arp(1, VIP_V4)),
        ),
        steered(
            "solicitation for a service",
            Reason::Neighbor,
            78,
            padded(solicitation(VIP_V6, 255, 0)),
        ),
    ]
}

fn node_ports_and_answers() -> Vec<Sample> {
    use Reason::{Egress, NodePort};
    let v4 = |to, protocol, port| over_v4(to, protocol, &segment(443, port));
    let v6 = |to, protocol, port| over_v6(to, protocol, &segment(443, port));
    let (ports_v4, ports_v6) = (L4_V4 + 4, L4_V6 + 4);
    let first = [(44, fragment(0, true))];
    vec![
        steered("TCP NodePort", NodePort, ports_v4, v4(NODE_V4, TCP, 30_080)),
        steered("UDP NodePort", NodePort, ports_v4, v4(NODE_V4, UDP, 30_053)),
        steered("SCTP NodePort", NodePort, ports_v4, v4(NODE_V4, SCTP, 30_090)),
        steered("TCP NodePort on IPv6", NodePort, ports_v6, v6(NODE_V6, TCP, 30_080)),
        steered("UDP NodePort on IPv6", NodePort, ports_v6, v6(NODE_V6, UDP, 30_053)),
        steered(
            "NodePort behind options",
            NodePort,
            ports_v4 + 12,
            with_options(v4(NODE_V4, TCP, 30_080), 3),
        ),
        steered("TCP answer", Egress, ports_v4, v4(NODE_V4, TCP, 20_000)),
        steered("UDP answer", Egress, ports_v4, v4(NODE_V4, UDP, 20_000)),
        steered("SCTP answer", Egress, ports_v4, v4(POOL_V4, SCTP, 20_000)),
        steered("TCP answer to a pool", Egress, ports_v4, v4(POOL_V4, TCP, 20_000)),
        steered(
            "first fragment of an answer",
            Egress,
            ports_v4,
            fragmented(v4(NODE_V4, UDP, 20_000), 0, true),
        ),
        steered(
            "answer behind options",
            Egress,
            ports_v4 + 40,
            with_options(v4(NODE_V4, TCP, 20_000), 10),
        ),
        steered("TCP answer on IPv6", Egress, ports_v6, v6(NODE_V6, TCP, 20_000)),
        steered("UDP answer to a pool on IPv6", Egress, ports_v6, v6(POOL_V6, UDP, 20_000)),
        steered(
            "first fragment of an answer on IPv6",
            Egress,
            ports_v6 + 8,
            extended(v6(NODE_V6, UDP, 20_000), &first),
        ),
        steered(
            "answer behind extensions",
            Egress,
            ports_v6 + 24,
            extended(v6(NODE_V6, TCP, 20_000), &[(0, extension(1)), (43, extension(2))]),
        ),
        steered("pong", Egress, L4_V4 + 8, over_v4(NODE_V4, ICMP, &echo(0, 0, 20_000))),
        steered("pong to a pool", Egress, L4_V4 + 8, over_v4(POOL_V4, ICMP, &echo(0, 0, 20_000))),
        steered("pong on IPv6", Egress, L4_V6 + 8, over_v6(NODE_V6, ICMPV6, &echo(129, 0, 20_000))),
    ]
}

fn errors() -> Vec<Sample> {
    let (v4, v6) = (L4_V4 + 8 + 20, L4_V6 + 8 + 40);
    let flow = |name, headers, frame| steered(name, Reason::FlowError, headers, frame);
    let from_v4 = |from, protocol| sent_v4(from, protocol, &segment(20_000, 443));
    let from_v6 = |from, protocol| sent_v6(from, protocol, &segment(20_000, 443));
    let tcp_v4 = || from_v4(NODE_V4, TCP);
    let tcp_v6 = || from_v6(NODE_V6, TCP);
    let ping = sent_v4(NODE_V4, ICMP, &echo(8, 0, 20_000));
    let ping_v6 = sent_v6(POOL_V6, ICMPV6, &echo(128, 0, 20_000));
    let port_v4 = sent_v4(NODE_V4, TCP, &segment(30_080, 40_000));
    let port_v6 = sent_v6(NODE_V6, UDP, &segment(30_053, 40_000));
    let options = with_options(tcp_v4(), 2);
    let behind = extended(tcp_v6(), &[(60, extension(1))]);
    let first = fragmented(tcp_v4(), 0, true);
    vec![
        flow("unreachable about a flow", v4 + 4, error_v4(NODE_V4, 3, 1, &tcp_v4())),
        flow("port unreachable", v4 + 4, error_v4(NODE_V4, 3, 3, &from_v4(NODE_V4, UDP))),
        flow("too big for a flow", v4 + 4, error_v4(NODE_V4, 3, 4, &tcp_v4())),
        flow("time exceeded", v4 + 4, error_v4(POOL_V4, 11, 0, &from_v4(POOL_V4, SCTP))),
        flow("parameter problem", v4 + 4, error_v4(NODE_V4, 12, 0, &tcp_v4())),
        flow("about a first fragment", v4 + 4, error_v4(NODE_V4, 11, 0, &first)),
        flow("about a ping", v4 + 8, error_v4(NODE_V4, 3, 1, &ping)),
        flow("quotes options", v4 + 12, error_v4(NODE_V4, 3, 1, &options)),
        flow("about a NodePort", v4 + 4, error_v4(NODE_V4, 3, 4, &port_v4)),
        flow("error behind options", v4 + 16, with_options(error_v4(NODE_V4, 3, 1, &tcp_v4()), 3)),
        flow("unreachable on IPv6", v6 + 4, error_v6(NODE_V6, 1, &tcp_v6())),
        flow("too big on IPv6", v6 + 4, error_v6(NODE_V6, 2, &from_v6(NODE_V6, UDP))),
        flow("time exceeded on IPv6", v6 + 4, error_v6(POOL_V6, 3, &from_v6(POOL_V6, TCP))),
        flow("parameter problem on IPv6", v6 + 4, error_v6(NODE_V6, 4, &tcp_v6())),
        flow("about a ping on IPv6", v6 + 8, error_v6(POOL_V6, 1, &ping_v6)),
        flow("quotes an extension", v6 + 12, error_v6(NODE_V6, 1, &behind)),
        flow("about a NodePort on IPv6", v6 + 4, error_v6(NODE_V6, 2, &port_v6)),
        flow(
            "error behind an extension",
            v6 + 12,
            extended(error_v6(NODE_V6, 1, &tcp_v6()), &[(0, extension(1))]),
        ),
        steered(
            "error to a service",
            Reason::Service,
            L4_V4,
            error_v4(VIP_V4, 3, 1, &from_v4(VIP_V4, TCP)),
        ),
    ]
}

// ---- for the kernel ----

pub fn for_the_kernel() -> Vec<Sample> {
    let mut all = not_ours();
    all.extend(errors_not_ours());
    all
}

fn not_ours() -> Vec<Sample> {
    use Reason::{Fragment, Group, Other};
    let v4 = |to, protocol, port| over_v4(to, protocol, &segment(443, port));
    let v6 = |to, protocol, port| over_v6(to, protocol, &segment(443, port));
    let other = |name, frame| passed(name, Other, frame);
    let five: Vec<_> = std::iter::repeat_n((60, extension(1)), 5).collect();
    let later = [(44, fragment(185, false))];
    vec![
        other("NodePort of another protocol", v4(NODE_V4, UDP, 30_080)),
        other("NodePort of another node", v4(PEER_V4, TCP, 30_080)),
        other("NodePort number of a pool", v4(POOL_V4, TCP, 30_080)),
        other("health check port", v4(NODE_V4, TCP, 30_081)),
        other("from a NodePort number", over_v4(NODE_V4, TCP, &segment(30_080, 40_000))),
        other("below the range", v4(NODE_V4, TCP, 10_239)),
        other("above the range", v4(POOL_V4, TCP, 30_000)),
        other("range of another node", v4(PEER_V4, TCP, 20_000)),
        other("GRE to the node", v4(NODE_V4, 47, 20_000)),
        other("GRE to a service", v4(VIP_V4, 47, 20_000)),
        other("ping to an egress address", over_v4(NODE_V4, ICMP, &echo(8, 0, 20_000))),
        other("pong of the host's", over_v4(NODE_V4, ICMP, &echo(0, 0, 30_000))),
        other("pong with a code", over_v4(NODE_V4, ICMP, &echo(0, 1, 20_000))),
        other("timestamp reply", over_v4(NODE_V4, ICMP, &echo(14, 0, 20_000))),
        passed("later fragment to the node", Fragment, fragmented(v4(NODE_V4, UDP, 9), 185, true)),
        other("later TCP fragment to the node", fragmented(v4(NODE_V4, TCP, 20_000), 185, true)),
        other("later fragment to a pool", fragmented(v4(POOL_V4, UDP, 20_000), 185, true)),
        passed("answer to a broadcast MAC", Group, to_mac(v4(NODE_V4, TCP, 20_000), [0xff; 6])),
        passed(
            "service under a group MAC",
            Group,
            to_mac(v4(VIP_V4, TCP, 80), [1, 0, 0x5e, 0, 0, 1]),
        ),
        other("NodePort of another protocol on IPv6", v6(NODE_V6, UDP, 30_080)),
        other("below the range on IPv6", v6(NODE_V6, TCP, 10_239)),
        other("range of another node on IPv6", v6(PEER_V6, TCP, 20_000)),
        other("ping to an egress address on IPv6", over_v6(NODE_V6, ICMPV6, &echo(128, 0, 20_000))),
        other("pong of the host's on IPv6", over_v6(NODE_V6, ICMPV6, &echo(129, 0, 30_000))),
        other("five extensions before an answer", extended(v6(NODE_V6, TCP, 20_000), &five)),
        other("five extensions before a service", extended(v6(VIP_V6, TCP, 80), &five)),
        other("too long an extension", extended(v6(NODE_V6, TCP, 20_000), &[(60, overlong())])),
        other("ESP to a service on IPv6", v6(VIP_V6, 50, 1)),
        other("later fragment to a pool on IPv6", extended(v6(POOL_V6, UDP, 20_000), &later)),
        other("ARP reply about a service", arp(2, VIP_V4)),
        other("ARP request for a pool", arp(1, POOL_V4)),
        passed("solicitation for a pool", Group, solicitation(POOL_V6, 255, 0)),
        passed("solicitation for a service from off the link", Group, solicitation(VIP_V6, 64, 0)),
    ]
}

fn errors_not_ours() -> Vec<Sample> {
    let other = |name, frame| passed(name, Reason::Other, frame);
    let v4 = |quoted: &[u8]| error_v4(NODE_V4, 3, 1, quoted);
    let v6 = |quoted: &[u8]| error_v6(NODE_V6, 1, quoted);
    let own = || sent_v4(NODE_V4, TCP, &segment(20_000, 443));
    let own_v6 = || sent_v6(NODE_V6, TCP, &segment(20_000, 443));
    let later = [(44, fragment(185, false))];
    vec![
        other("about the host's own", v4(&sent_v4(NODE_V4, TCP, &segment(40_000, 443)))),
        other("about what came in", v4(&sent_v4(NODE_V4, TCP, &segment(443, 20_000)))),
        other("about another's", v4(&sent_v4(PEER_V4, TCP, &segment(20_000, 443)))),
        other("about a pool's, to the node", v4(&sent_v4(POOL_V4, TCP, &segment(20_000, 443)))),
        other("to another", error_v4(PEER_V4, 3, 1, &own())),
        other("source quench", error_v4(NODE_V4, 4, 0, &own())),
        other("redirect", error_v4(NODE_V4, 5, 1, &own())),
        other("about a later fragment", v4(&fragmented(own(), 185, false))),
        other("about a pong", v4(&sent_v4(NODE_V4, ICMP, &echo(0, 0, 20_000)))),
        other("about the host's ping", v4(&sent_v4(NODE_V4, ICMP, &echo(8, 0, 30_000)))),
        other("about GRE", v4(&sent_v4(NODE_V4, 47, &segment(20_000, 443)))),
        other("about ICMPv6 in IPv4", v4(&sent_v4(NODE_V4, ICMPV6, &echo(8, 0, 20_000)))),
        other(
            "about UDP from a TCP NodePort",
            v4(&sent_v4(NODE_V4, UDP, &segment(30_080, 40_000))),
        ),
        other("quotes IPv6", v4(&edit(own(), 14, 0x65))),
        other("quotes a header of 16 bytes", v4(&edit(own(), 14, 0x44))),
        other("a piece of an error", fragmented(v4(&own()), 185, false)),
        other("about the host's own on IPv6", v6(&sent_v6(NODE_V6, TCP, &segment(40_000, 443)))),
        other("about another's on IPv6", v6(&sent_v6(PEER_V6, TCP, &segment(20_000, 443)))),
        other(
            "about a pool's, to the node, on IPv6",
            v6(&sent_v6(POOL_V6, TCP, &segment(20_000, 443))),
        ),
        other("to another on IPv6", error_v6(PEER_V6, 1, &own_v6())),
        other("redirect on IPv6", error_v6(NODE_V6, 137, &own_v6())),
        other("about a later fragment on IPv6", v6(&extended(own_v6(), &later))),
        other("about the host's ping on IPv6", v6(&sent_v6(NODE_V6, ICMPV6, &echo(128, 0, 9)))),
        other("quotes IPv4", v6(&edit(own_v6(), 14, 0x45))),
    ]
}
