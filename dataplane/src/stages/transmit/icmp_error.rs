//! ICMP and ICMPv6 errors about packets that were dropped: time exceeded, fragmentation needed and
//! packet too big with the right MTU, no route, no such port (RFC 792, RFC 1191, RFC 1812 section
//! 4.3, RFC 4443); and the RST for a TCP connection to a service that cannot answer.
//!
//! Never about another ICMP error, a fragment other than the first, or a source that is no single
//! host (RFC 1122 section 3.2.2). The rate is limited per worker.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlane_api::Reject;

use super::echo::OWN_TTL;
use super::reset;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::vector::{Packet, Vector};
use crate::packet::verdict::Verdict;
use crate::stages::{Context, keys};
use crate::wire::icmpv4::{self, Icmpv4Header};
use crate::wire::icmpv6::{self, Icmpv6Header};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::{ethernet, peek, protocol};

/// Longest IPv4 packet with an error in it, bytes (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;

/// Longest IPv6 packet with an error in it, bytes (RFC 4443 section 2.4).
const MAX_V6: usize = 1280;

/// A token bucket: 1,000 errors a second, bursts of 50, as Linux has it for all ICMP
/// (`net.ipv4.icmp_msgs_per_sec` and `icmp_msgs_burst`).
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    tokens: u64,
    refilled_ns: u64,
}

impl RateLimit {
    const BURST: u64 = 50;
    const INTERVAL_NS: u64 = 1_000_000;

    /// A full bucket.
    #[must_use]
    pub const fn new() -> Self {
        Self { tokens: Self::BURST, refilled_ns: 0 }
    }

    /// May one more be sent at `now_ns`?
    pub fn allow(&mut self, now_ns: u64) -> bool {
        let due = now_ns.saturating_sub(self.refilled_ns) / Self::INTERVAL_NS;
        if due > 0 {
            self.tokens = (self.tokens + due).min(Self::BURST);
            self.refilled_ns += due * Self::INTERVAL_NS;
        }
        let allowed = self.tokens > 0;
        self.tokens -= u64::from(allowed);
        allowed
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the errors that are due about this vector's dropped packets.
pub(super) fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        let Verdict::Drop(reason) = meta.verdict else { continue };
        let Some(error) = error_of(reason, frame, meta, cx) else { continue };
        if !deserves_error(frame, meta) {
            continue;
        }
        if !cx.icmp_limit.allow(cx.now_ns) {
            continue;
        }
        // No frame, no room: the packet is dropped all the same, by its own reason.
        let Some(answer) = cx.pool.take() else { continue };
        match build(answer, frame, meta, error, cx) {
            Ok(packet) => {
                if let Err(packet) = cx.made.push(packet) {
                    cx.pool.give(packet.frame);
                }
            }
            Err(answer) => cx.pool.give(answer),
        }
    }
}

/// Type, code and the word behind the checksum.
#[derive(Debug, Clone, Copy)]
struct Error {
    v4: (u8, u8),
    v6: (u8, u8),
    rest: u32,
    /// In the name of the address that was asked.
    for_destination: bool,
    /// TCP is answered with a RST instead.
    resets: bool,
}

impl Error {
    /// An error in this node's name, without anything in the word behind the checksum.
    const fn plain(v4: (u8, u8), v6: (u8, u8)) -> Self {
        Self { v4, v6, rest: 0, for_destination: false, resets: false }
    }
}

fn error_of(reason: DropReason, frame: &Frame, meta: &Meta, cx: &Context<'_>) -> Option<Error> {
    match reason {
        DropReason::TtlExpired => Some(Error::plain(
            (icmpv4::TIME_EXCEEDED, icmpv4::CODE_TTL_EXCEEDED),
            (icmpv6::TIME_EXCEEDED, icmpv6::CODE_HOP_LIMIT_EXCEEDED),
        )),
        DropReason::PacketTooBig => {
            let mtu = u32::from(keys::mtu(frame, meta, cx.tables));
            // IPv6 knows no smaller MTU than 1280 (RFC 8200 section 5).
            let rest = if meta.kind == Kind::Ipv4 { mtu } else { mtu.max(1280) };
            let too_big = Error::plain(
                (icmpv4::DESTINATION_UNREACHABLE, icmpv4::CODE_FRAGMENTATION_NEEDED),
                (icmpv6::PACKET_TOO_BIG, 0),
            );
            Some(Error { rest, ..too_big })
        }
        DropReason::NoRoute if meta.route.target() == Target::None => Some(Error::plain(
            (icmpv4::DESTINATION_UNREACHABLE, icmpv4::CODE_NET_UNREACHABLE),
            (icmpv6::DESTINATION_UNREACHABLE, icmpv6::CODE_NO_ROUTE),
        )),
        DropReason::EgressDenied | DropReason::SnatPortsExhausted | DropReason::SnatPodLimit => {
            Some(Error::plain(
                (icmpv4::DESTINATION_UNREACHABLE, icmpv4::CODE_ADMIN_PROHIBITED),
                (icmpv6::DESTINATION_UNREACHABLE, icmpv6::CODE_ADMIN_PROHIBITED),
            ))
        }
        DropReason::ServiceUnknownPort | DropReason::ServiceNoBackend => {
            let refused = Error::plain(
                (icmpv4::DESTINATION_UNREACHABLE, icmpv4::CODE_PORT_UNREACHABLE),
                (icmpv6::DESTINATION_UNREACHABLE, icmpv6::CODE_PORT_UNREACHABLE),
            );
            Some(Error { for_destination: true, resets: resets(frame, meta, cx), ..refused })
        }
        _ => None,
    }
}

/// Does the service that was asked refuse TCP connections by RST?
fn resets(frame: &Frame, meta: &Meta, cx: &Context<'_>) -> bool {
    let services = &cx.tables.services;
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let vip = match (meta.route.target(), meta.kind) {
        (Target::Service(vip), _) => Some(vip),
        // A port of this node's.
        (_, Kind::Ipv4) => services.vip4(meta.destination),
        _ => services.vip6(peek::destination_v6(ip)),
    };
    vip.and_then(|vip| services.frontend(vip, meta.protocol, meta.destination_port))
        .and_then(|frontend| services.service(frontend.service))
        .is_none_or(|service| service.reject == Reject::Rst)
}

fn deserves_error(frame: &Frame, meta: &Meta) -> bool {
    let Some(ip) = frame.bytes().get(ethernet::HEADER_LEN..) else { return false };
    if meta.l4 == 0 || meta.origin == Origin::Local {
        return false;
    }
    let kind = ip.get(usize::from(meta.l4)).copied();
    match meta.kind {
        Kind::Ipv4 => {
            let source = Ipv4Addr::from_bits(peek::source_v4(ip));
            let single = !source.is_unspecified()
                && !source.is_loopback()
                && !source.is_multicast()
                && !source.is_broadcast();
            let is_error = meta.protocol == protocol::ICMP && kind.is_none_or(icmpv4::is_error);
            single && !is_error
        }
        Kind::Ipv6 => {
            let source = Ipv6Addr::from_bits(peek::source_v6(ip));
            let single = !source.is_unspecified() && !source.is_multicast();
            let is_error = meta.protocol == protocol::ICMPV6 && kind.is_none_or(icmpv6::is_error);
            single && !is_error
        }
        Kind::Arp | Kind::LinkV6 => false,
    }
}

fn build(
    mut answer: Frame,
    about: &Frame,
    meta: &Meta,
    error: Error,
    cx: &Context<'_>,
) -> Result<Packet, Frame> {
    let quoted = about.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let is_reset = error.resets && meta.protocol == protocol::TCP;
    let len = match meta.kind {
        _ if is_reset => {
            let mac = cx.tables.node.gateway_mac;
            reset::build(&mut answer, about, meta).and_then(|len| {
                let ethertype = match meta.kind {
                    Kind::Ipv4 => ethernet::ETHERTYPE_IPV4,
                    _ => ethernet::ETHERTYPE_IPV6,
                };
                ethernet::write(answer.bytes_mut().first_chunk_mut()?, mac, mac, ethertype);
                Some(len)
            })
        }
        Kind::Ipv4 => build_v4(&mut answer, quoted, meta, error, cx),
        _ => build_v6(&mut answer, quoted, meta, error, cx),
    };
    let Some(ip_len) = len else { return Err(answer) };
    let mut made = Meta::new(meta.port, Origin::Local);
    made.kind = meta.kind;
    made.ip_len = ip_len as u16;
    made.ttl = OWN_TTL;
    made.forwarded = false;
    made.dont_fragment = meta.kind == Kind::Ipv6;
    made.hash = meta.hash;
    match meta.kind {
        Kind::Ipv4 => {
            (made.protocol, made.l4) = (protocol::ICMP, ipv4::MIN_HEADER_LEN as u16);
            let ip = answer.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
            (made.source, made.destination) = (peek::source_v4(ip), peek::destination_v4(ip));
        }
        _ => (made.protocol, made.l4) = (protocol::ICMPV6, ipv6::HEADER_LEN as u16),
    }
    if is_reset {
        made.protocol = protocol::TCP;
    }
    Ok(Packet { frame: answer, meta: made, received_ns: 0 })
}

/// Does the answer leave to a pod or to the host, and not through the uplink?
fn goes_inside(meta: &Meta) -> bool {
    matches!(meta.origin, Origin::Endpoint | Origin::Host)
}

fn build_v4(
    answer: &mut Frame,
    quoted: &[u8],
    meta: &Meta,
    error: Error,
    cx: &Context<'_>,
) -> Option<usize> {
    const ICMP: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;
    const QUOTE: usize = ICMP + icmpv4::HEADER_LEN;
    let node = &cx.tables.node;
    let inside = goes_inside(meta) && node.gateway_v4 != 0;
    let source = match inside {
        _ if error.for_destination => peek::destination_v4(quoted),
        true => node.gateway_v4,
        false => node.v4,
    };
    if source == 0 {
        return None;
    }
    let quote = quoted.len().min(MAX_V4 - ipv4::MIN_HEADER_LEN - icmpv4::HEADER_LEN);
    answer.set_len(QUOTE + quote).ok()?;
    let bytes = answer.bytes_mut();
    bytes.get_mut(QUOTE..)?.copy_from_slice(quoted.get(..quote)?);
    let header = Icmpv4Header { message_type: error.v4.0, code: error.v4.1, rest: error.rest };
    header.write(bytes.get_mut(ICMP..)?.first_chunk_mut()?);
    icmpv4::fill_checksum(bytes.get_mut(ICMP..)?);
    let ip_len = bytes.len() - ethernet::HEADER_LEN;
    let header = Ipv4Header {
        tos: 0,
        total_len: ip_len as u16,
        identification: 0,
        fragment: 0,
        ttl: OWN_TTL,
        protocol: protocol::ICMP,
        source: source.into(),
        destination: peek::source_v4(quoted).into(),
    };
    header.write(bytes.get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
    write_ethernet(bytes, ethernet::ETHERTYPE_IPV4, cx)?;
    Some(ip_len)
}

fn build_v6(
    answer: &mut Frame,
    quoted: &[u8],
    meta: &Meta,
    error: Error,
    cx: &Context<'_>,
) -> Option<usize> {
    const ICMP: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
    const QUOTE: usize = ICMP + icmpv6::HEADER_LEN;
    let node = &cx.tables.node;
    let inside = goes_inside(meta) && node.gateway_v6 != 0;
    let source = match inside {
        _ if error.for_destination => peek::destination_v6(quoted),
        true => node.gateway_v6,
        false => node.v6,
    };
    if source == 0 {
        return None;
    }
    let (source, destination) =
        (Ipv6Addr::from_bits(source), Ipv6Addr::from_bits(peek::source_v6(quoted)));
    let quote = quoted.len().min(MAX_V6 - ipv6::HEADER_LEN - icmpv6::HEADER_LEN);
    answer.set_len(QUOTE + quote).ok()?;
    let bytes = answer.bytes_mut();
    bytes.get_mut(QUOTE..)?.copy_from_slice(quoted.get(..quote)?);
    let header = Icmpv6Header { message_type: error.v6.0, code: error.v6.1, rest: error.rest };
    header.write(bytes.get_mut(ICMP..)?.first_chunk_mut()?);
    icmpv6::fill_checksum(bytes.get_mut(ICMP..)?, source, destination);
    let ip_len = bytes.len() - ethernet::HEADER_LEN;
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: (ip_len - ipv6::HEADER_LEN) as u16,
        next_header: protocol::ICMPV6,
        hop_limit: OWN_TTL,
        source,
        destination,
    };
    header.write(bytes.get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
    write_ethernet(bytes, ethernet::ETHERTYPE_IPV6, cx)?;
    Some(ip_len)
}

/// The way out writes the addresses; the EtherType stays.
fn write_ethernet(bytes: &mut [u8], ethertype: u16, cx: &Context<'_>) -> Option<()> {
    let mac = cx.tables.node.gateway_mac;
    ethernet::write(bytes.first_chunk_mut()?, mac, mac, ethertype);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_in_bursts_of_fifty_and_a_thousand_a_second() {
        let mut limit = RateLimit::new();
        let burst = (0..1000).filter(|_| limit.allow(0)).count();
        assert_eq!(burst, 50);
        let second = (0..100_000_u64).filter(|n| limit.allow(n * 10_000)).count();
        assert!((999..=1001).contains(&second), "{second}");
    }
}
