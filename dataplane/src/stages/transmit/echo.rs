//! Packets for the gateway's own addresses: pings are answered, the rest has no receiver.

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin};
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::Ipv4Mut;
use crate::wire::ipv6::Ipv6Mut;
use crate::wire::{checksum, icmpv4, icmpv6, peek, protocol};

/// TTL and hop limit of what is sent from here.
pub(super) const OWN_TTL: u8 = 64;

/// Turns a ping to the gateway into its answer, in place, back to where it came from. One in fragments is
/// answered by as many: only the first has a header, whose checksum is of them all.
pub fn step(frame: &mut Frame, meta: &Meta, cx: &Context<'_>) -> Verdict {
    let from_link = matches!(meta.origin, Origin::Endpoint | Origin::Host);
    if !from_link || answer(frame, meta, cx).is_none() {
        return Verdict::Drop(DropReason::NoRoute);
    }
    Verdict::Send(meta.port)
}

fn answer(frame: &mut Frame, meta: &Meta, cx: &Context<'_>) -> Option<()> {
    let sender = Ethernet::parse(frame.bytes()).ok()?.source();
    let ip = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..)?;
    let l4 = usize::from(meta.l4);
    let (request, reply) = match meta.kind {
        Kind::Ipv4 if meta.protocol == protocol::ICMP => (icmpv4::ECHO_REQUEST, icmpv4::ECHO_REPLY),
        Kind::Ipv6 if meta.protocol == protocol::ICMPV6 => {
            (icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY)
        }
        _ => return None,
    };
    if l4 != 0 {
        into_reply(ip.get_mut(l4..)?, request, reply)?;
    }
    match meta.kind {
        Kind::Ipv4 => swap_v4(ip),
        _ => swap_v6(ip),
    }?;
    ethernet::set_addresses(frame.bytes_mut(), sender, cx.tables.node.gateway_mac);
    Some(())
}

fn into_reply(message: &mut [u8], request: u8, reply: u8) -> Option<()> {
    if message.len() < icmpv4::HEADER_LEN || message[0] != request || message[1] != 0 {
        return None;
    }
    message[0] = reply;
    let field = message.get_mut(icmpv4::CHECKSUM_OFFSET..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes([request, 0]);
    let new = u16::from_be_bytes([reply, 0]);
    // Addresses change places, which the checksum does not see.
    *field = checksum::update16(u16::from_be_bytes(*field), old, new).to_be_bytes();
    Some(())
}

fn swap_v4(ip: &mut [u8]) -> Option<()> {
    let (source, destination) = (peek::source_v4(ip), peek::destination_v4(ip));
    let mut header = Ipv4Mut::new(ip).ok()?;
    header.set_source(destination);
    header.set_destination(source);
    Some(())
}

fn swap_v6(ip: &mut [u8]) -> Option<()> {
    let (source, destination) = (peek::source_v6(ip), peek::destination_v6(ip));
    let mut header = Ipv6Mut::new(ip).ok()?;
    header.set_source(destination);
    header.set_destination(source);
    Some(())
}
