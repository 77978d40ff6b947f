//! An ICMP error about a translated packet: the packet that it quotes is given back the addresses with
//! which it came, and the error goes to who sent it (RFC 5508 section 4.2).

use crate::flow::flows::Flows;
use crate::flow::half::Half;
use crate::flow::{Direction, HalfId};
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::meta::{Kind, Meta};
use crate::wire::quote::{self, QUOTE, Quote};
use crate::wire::sctp::{self, SctpMut};
use crate::wire::{checksum, icmpv4, icmpv6, ipv4, ipv6, peek, protocol, tcp, udp};

/// Translates the error in `ip`, whose direction is `half`. What it quotes was looked at when the
/// flow was found: a message that says something else by now is left as it is.
#[cold]
pub(super) fn step(ip: &mut [u8], meta: &mut Meta, half: HalfId, flows: &Flows) {
    // The destination of an error that was translated already is another's.
    let direction = half.direction();
    let done = match meta.kind {
        Kind::Ipv4 => step_v4(ip, meta, flows.v4.half(half), direction),
        _ => step_v6(ip, meta, flows.v6.half(half), direction),
    };
    debug_assert!(done.is_some(), "lookup/related has read the quote");
}

/// What the quoted packet is to be, and whom the error is from and for.
struct Changes<A> {
    quoted: FlowKey<A>,
    wanted: FlowKey<A>,
    source: A,
    destination: A,
}

fn changes<A: Address>(
    quote: &Quote<A>,
    half: &Half<A>,
    direction: Direction,
    source: A,
) -> Changes<A> {
    let quoted = FlowKey {
        source: quote.source,
        destination: quote.destination,
        source_port: quote.source_port,
        destination_port: quote.destination_port,
        protocol: quote.protocol,
    };
    let to = half.leaving_as();
    // Who answered in person is known by another address where the error goes; a router is not. But
    // where another address stands for the client, it stands for all that is behind it: from a
    // stranger the next node would take nothing (RFC 5508 section 4.3).
    let came_as = half.key().source;
    let is_hidden = direction == Direction::Forward && to.source != came_as;
    let source = if source == came_as || is_hidden { to.source } else { source };
    Changes { quoted, wanted: to.reversed(), source, destination: to.destination }
}

fn step_v4(ip: &mut [u8], meta: &mut Meta, half: &Half<u32>, direction: Direction) -> Option<()> {
    let (from, to) = (peek::source_v4(ip), peek::destination_v4(ip));
    let message = ip.get_mut(usize::from(meta.l4)..usize::from(meta.ip_len))?;
    let quote = quote::of_v4(message)?;
    let changes = changes(&quote, half, direction, from);
    let difference = changes.quoted.difference(&changes.wanted);
    let header = message.get_mut(QUOTE..)?.first_chunk_mut()?;
    ipv4::translate(header, changes.wanted.source, changes.wanted.destination, difference.ip);
    upper_layer(message, &quote, &changes, difference.l4)?;
    icmpv4::fill_checksum(message);
    let outer = checksum::difference32(from, changes.source)
        + checksum::difference32(to, changes.destination);
    let header = ip.first_chunk_mut()?;
    ipv4::translate(header, changes.source, changes.destination, checksum::fold(outer));
    (meta.source, meta.destination) = (changes.source, changes.destination);
    Some(())
}

fn step_v6(ip: &mut [u8], meta: &Meta, half: &Half<u128>, direction: Direction) -> Option<()> {
    let from = peek::source_v6(ip);
    let message_len = usize::from(meta.ip_len - meta.l4);
    let pseudo = peek::pseudo_v6(ip, protocol::ICMPV6, message_len);
    let message = ip.get_mut(usize::from(meta.l4)..usize::from(meta.ip_len))?;
    let quote = quote::of_v6(message, pseudo)?;
    let changes = changes(&quote, half, direction, from);
    let difference = changes.quoted.difference(&changes.wanted);
    let header = message.get_mut(QUOTE..)?.first_chunk_mut()?;
    ipv6::translate(header, changes.wanted.source, changes.wanted.destination);
    upper_layer(message, &quote, &changes, difference.l4)?;
    icmpv6::fill_checksum(message, changes.source.into(), changes.destination.into());
    ipv6::translate(ip.first_chunk_mut()?, changes.source, changes.destination);
    Some(())
}

/// The quoted ports, or identifier; and the quoted checksum, when the quote reaches as far.
fn upper_layer<A: Address>(
    message: &mut [u8],
    quote: &Quote<A>,
    changes: &Changes<A>,
    difference: u16,
) -> Option<()> {
    let length = quoted_length(message, quote.l4);
    let l4 = message.get_mut(quote.l4..)?;
    let at = match quote.protocol {
        protocol::TCP => tcp::CHECKSUM_OFFSET,
        protocol::UDP => udp::CHECKSUM_OFFSET,
        protocol::ICMP | protocol::ICMPV6 => icmpv4::CHECKSUM_OFFSET,
        _ => usize::MAX,
    };
    if let Some(field) = l4.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        let apply =
            if quote.protocol == protocol::UDP { checksum::udp_apply } else { checksum::apply };
        *field = apply(u16::from_be_bytes(*field), u64::from(difference)).to_be_bytes();
    }
    let (from, to) = (changes.wanted.source_port, changes.wanted.destination_port);
    if quote.protocol == protocol::SCTP
        && let Ok(mut header) = SctpMut::new(l4)
    {
        let old = (changes.quoted.source_port, changes.quoted.destination_port);
        header.adjust_checksum(sctp::ports_difference(old, (from, to)), length);
    }
    if at == icmpv4::CHECKSUM_OFFSET {
        *l4.get_mut(4..)?.first_chunk_mut::<2>()? = (from | to).to_be_bytes();
    } else {
        let both = u32::from(from) << 16 | u32::from(to);
        *l4.first_chunk_mut::<4>()? = both.to_be_bytes();
    }
    Some(())
}

/// Bytes of the quoted packet's upper layer, header included, before it was cut to be quoted. `l4` is
/// where that begins in the message.
fn quoted_length(message: &[u8], l4: usize) -> u16 {
    let total = match message.get(QUOTE..).and_then(<[u8]>::first_chunk::<6>) {
        Some([first, _, high, low, ..]) if first >> 4 == 4 => u16::from_be_bytes([*high, *low]),
        Some([.., high, low]) => {
            u16::from_be_bytes([*high, *low]).saturating_add(ipv6::HEADER_LEN as u16)
        }
        None => 0,
    };
    total.saturating_sub((l4 - QUOTE) as u16)
}
