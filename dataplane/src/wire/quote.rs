//! What an ICMP error quotes: the start of the packet that it is about (RFC 792, RFC 4443 section 3).
//!
//! ```text
//! message: 0            8                 8 + header     + 8
//!         +------------+-----------------+--------------+------------------
//!         | ICMP error | quoted IP header| ports, ...   | what more there is
//!         +------------+-----------------+--------------+------------------
//! ```

use super::icmpv4::{self, Icmpv4};
use super::icmpv6::{self, Icmpv6};
use super::ipv4::Ipv4;
use super::ipv6::Ipv6;
use super::protocol;

/// Offset of the quoted packet in a message.
pub const QUOTE: usize = icmpv4::HEADER_LEN;

/// The packet that an error is about, as far as it tells of which flow it was. Numbers in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote<A> {
    /// Its source address.
    pub source: A,
    /// Its destination address.
    pub destination: A,
    /// Its source port; of an echo request, the identifier; else 0.
    pub source_port: u16,
    /// Its destination port; of an echo reply, the identifier; else 0.
    pub destination_port: u16,
    /// What it carries.
    pub protocol: u8,
    /// Offset of its upper-layer header in the message.
    pub l4: usize,
}

/// The quote of an ICMP error about an IPv4 packet: destination unreachable, time exceeded or parameter
/// problem. None: it is no such message, its checksum or the quoted header's is wrong (RFC 5508 REQ-3),
/// or there is too little of the packet (a fragment but the first, say).
#[must_use]
pub fn of_v4(message: &[u8]) -> Option<Quote<u32>> {
    let icmp = Icmpv4::parse(message).ok()?;
    let about_packets = matches!(
        icmp.message_type(),
        icmpv4::DESTINATION_UNREACHABLE | icmpv4::TIME_EXCEEDED | icmpv4::PARAMETER_PROBLEM
    );
    if !about_packets || !icmp.verify_checksum() {
        return None;
    }
    let ip = Ipv4::parse_quoted(icmp.payload()).ok()?;
    if !ip.verify_checksum() || ip.is_later_fragment() {
        return None;
    }
    let l4 = QUOTE + ip.header_len();
    let (source_port, destination_port) = ports(ip.protocol(), message.get(l4..)?)?;
    Some(Quote {
        source: ip.source_u32(),
        destination: ip.destination_u32(),
        source_port,
        destination_port,
        protocol: ip.protocol(),
        l4,
    })
}

/// The same of an ICMPv6 error: types 1 to 4. `pseudo` is the sum of the message's pseudo-header.
#[must_use]
pub fn of_v6(message: &[u8], pseudo: u64) -> Option<Quote<u128>> {
    let icmp = Icmpv6::parse(message).ok()?;
    let about_packets = matches!(
        icmp.message_type(),
        icmpv6::DESTINATION_UNREACHABLE
            | icmpv6::PACKET_TOO_BIG
            | icmpv6::TIME_EXCEEDED
            | icmpv6::PARAMETER_PROBLEM
    );
    if !about_packets || !icmp.verify_checksum(pseudo) {
        return None;
    }
    let ip = Ipv6::parse_quoted(icmp.payload()).ok()?;
    let upper = ip.upper_layer().ok()?;
    if !upper.has_header() {
        return None;
    }
    let l4 = QUOTE + upper.offset;
    let (source_port, destination_port) = ports(upper.protocol, message.get(l4..)?)?;
    Some(Quote {
        source: ip.source_u128(),
        destination: ip.destination_u128(),
        source_port,
        destination_port,
        protocol: upper.protocol,
        l4,
    })
}

/// The ports, or an echo's identifier in the place of the one who asks. At least eight bytes of the
/// upper layer are quoted (RFC 792).
fn ports(protocol: u8, l4: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d, e, f, _, _] = l4.first_chunk()?;
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let identifier = u16::from_be_bytes([e, f]);
            match (protocol, a) {
                (protocol::ICMP, icmpv4::ECHO_REQUEST)
                | (protocol::ICMPV6, icmpv6::ECHO_REQUEST) => Some((identifier, 0)),
                (protocol::ICMP, icmpv4::ECHO_REPLY) | (protocol::ICMPV6, icmpv6::ECHO_REPLY) => {
                    Some((0, identifier))
                }
                _ => None,
            }
        }
        _ => None,
    }
}
