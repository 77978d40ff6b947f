//! The hop: may the packet go that way, time to live, size.

use std::net::IpAddr;

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin};
use crate::packet::verdict::Verdict;
use crate::stages::{Context, Notice};
use crate::tables::Snapshot;
use crate::wire::{ethernet, peek};

/// Out on the underlay, to a peer. `mtu` is the largest IP packet that takes that
/// way, bytes; 0 when nothing does yet, and transmit says what is lacking.
///
/// # Errors
/// The verdict about a packet that may not go there.
#[inline(always)]
pub fn to_underlay(meta: &Meta, mtu: u16, tables: &Snapshot) -> Result<(), Verdict> {
    if meta.origin.is_underlay() && meta.flow == 0 && !meta.translated {
        return Err(not_through_us(meta, tables));
    }
    step(meta, mtu)
}

/// Out on the underlay, to a next hop that is no peer: to the outside, or in flat mode to anybody.
///
/// # Errors
/// The verdict about a packet that may not go there.
#[inline(always)]
pub fn to_outside(meta: &Meta, tables: &Snapshot) -> Result<(), Verdict> {
    // THE GUARD: no pod's address leaves the cluster. Only flat mode's are addresses of the
    // underlay; in other modes a pod's packet has a flow, for which the egress rules have decided.
    let is_decided = meta.flow != 0 || meta.translated;
    if meta.origin == Origin::Endpoint && !is_decided && !tables.node.pods_on_underlay {
        return Err(Verdict::Drop(DropReason::NoRoute));
    }
    to_underlay(meta, tables.node.underlay_mtu, tables)
}

/// What becomes of a packet from the underlay that is for somebody else there.
#[cold]
fn not_through_us(meta: &Meta, tables: &Snapshot) -> Verdict {
    match meta.origin {
        // A peer sends us what is here; what is not would go round in circles.
        Origin::Tunnel => Verdict::Drop(DropReason::InnerNotHere),
        // Plain traffic of the host that came our way: its stack knows what to do.
        _ => tables.node.host_verdict(),
    }
}

/// To an endpoint here, whose interface takes IP packets of at most `mtu` bytes.
///
/// # Errors
/// The verdict about a packet that may not go there.
#[inline(always)]
pub fn to_endpoint(meta: &Meta, mtu: u16) -> Result<(), Verdict> {
    step(meta, mtu)
}

/// Onto the underlay's link, to an address whose next hop nobody knows yet.
#[cold]
pub fn to_unknown(frame: &Frame, meta: &Meta, cx: &mut Context<'_>) -> Verdict {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let address = match meta.kind {
        Kind::Ipv4 => IpAddr::V4(meta.destination.into()),
        _ => IpAddr::V6(peek::destination_v6(ip).into()),
    };
    let _ = cx.notices.try_push(Notice::NextHopWanted(address));
    Verdict::Hold
}

/// Is there a hop left, and does the packet fit? Its time to live is lowered on its way out
/// (`transmit/rewrite`), so that an error quotes it as it came.
#[inline(always)]
fn step(meta: &Meta, mtu: u16) -> Result<(), Verdict> {
    if meta.forwarded && meta.ttl <= 1 {
        return Err(Verdict::Drop(DropReason::TtlExpired));
    }
    if meta.ip_len > mtu { too_big(mtu) } else { Ok(()) }
}

#[cold]
fn too_big(mtu: u16) -> Result<(), Verdict> {
    if mtu == 0 { Ok(()) } else { Err(Verdict::Drop(DropReason::PacketTooBig)) }
}
