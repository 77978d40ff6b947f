//! ICMP errors to the flows that they are about (RFC 5508 section 4).
//!
//! An error quotes a packet as it left here. The flow's other direction is the one in which the error
//! goes: its key is the quoted packet's, reversed. The quoted packet is given back its addresses as
//! it came, and the error goes to who sent it; nothing is recorded: errors keep no flow alive and end
//! none (RFC 5508 REQ-6).

use crate::flow::HalfId;
use crate::flow::table::FlowTable;
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Route};
use crate::stages::Context;
use crate::wire::quote::{self, Quote};
use crate::wire::{ethernet, icmpv4, icmpv6, peek, protocol};

/// Is the packet an ICMP error? Only asked of packets without an echo's identifier.
#[inline(always)]
pub(super) fn is_error(frame: &Frame, meta: &Meta) -> bool {
    match meta.protocol {
        protocol::ICMP => kind(frame, meta).is_some_and(icmpv4::is_error),
        protocol::ICMPV6 => kind(frame, meta).is_some_and(icmpv6::is_error),
        _ => false,
    }
}

fn kind(frame: &Frame, meta: &Meta) -> Option<u8> {
    let at = ethernet::HEADER_LEN + usize::from(meta.l4);
    (meta.l4 != 0).then(|| frame.bytes().get(at).copied()).flatten()
}

/// Leaves the error to the flow it is about, if there is one.
#[cold]
pub(super) fn step(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) {
    let found = match meta.kind {
        Kind::Ipv4 => {
            let destination = meta.destination;
            let found =
                quoted_v4(frame, meta).and_then(|quote| find(&cx.flows.v4, &quote, destination));
            found.map(|(half, to)| (half, cx.tables.routes.v4.get(to)))
        }
        _ => {
            let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
            let found = quoted_v6(frame, meta)
                .and_then(|quote| find(&cx.flows.v6, &quote, peek::destination_v6(ip)));
            found.map(|(half, to)| (half, cx.tables.routes.v6.get(to)))
        }
    };
    if let Some((half, route)) = found {
        take(meta, half, route);
    }
}

fn take(meta: &mut Meta, half: HalfId, route: Route) {
    meta.flow = half.to_number();
    meta.is_related = true;
    meta.route = route;
}

/// The direction in which the error goes, and to whom.
fn find<A: Address>(table: &FlowTable<A>, quote: &Quote<A>, destination: A) -> Option<(HalfId, A)> {
    let key = FlowKey {
        source: quote.destination,
        destination: quote.source,
        source_port: quote.destination_port,
        destination_port: quote.source_port,
        protocol: quote.protocol,
    };
    // It is told to who the packet seemed to come from, and nobody else (RFC 4787 REQ-12).
    if quote.source != destination {
        return None;
    }
    let half = table.find(table.hash(&key), &key)?;
    Some((half, table.half(half).leaving_as().destination))
}

fn quoted_v4(frame: &Frame, meta: &Meta) -> Option<Quote<u32>> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    quote::of_v4(ip.get(usize::from(meta.l4)..usize::from(meta.ip_len))?)
}

fn quoted_v6(frame: &Frame, meta: &Meta) -> Option<Quote<u128>> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    let message = ip.get(usize::from(meta.l4)..usize::from(meta.ip_len))?;
    quote::of_v6(message, peek::pseudo_v6(ip, protocol::ICMPV6, message.len()))
}
