//! To the node of a backend that answers the client itself: with an option that names the service, where
//! that node needs it.

use arrayvec::ArrayVec;

use super::{encap, rewrite};
use crate::flow::HalfId;
use crate::flow::flows::Flows;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::packet::verdict::Verdict;
use crate::stages::keys::{self, tcp_flags};
use crate::tables::peers::PeerEntry;
use crate::wire::geneve;

/// Longest option, bytes.
const OPTION: usize = geneve::OPTION_HEADER_LEN + geneve::SERVICE_V6;

/// Translates the packet and puts the peer's headers in front of it. `uplink` is the verdict of what
/// leaves by it.
#[inline(never)]
pub fn step(
    frame: &mut Frame,
    meta: &mut Meta,
    peer: &PeerEntry,
    uplink: &Verdict,
    flows: &mut Flows,
) -> Verdict {
    let option = match keys::service_option(meta, tcp_flags(frame, meta)) {
        0 => None,
        _ => option(meta, flows),
    };
    rewrite::step(frame, meta, flows);
    match option {
        None => encap::step(frame, meta, peer, uplink),
        // It would come without its option after a wait, and so for nothing.
        Some(_) if !peer.resolved => Verdict::Drop(DropReason::NeighborUnresolved),
        Some(option) => encap::with_option(frame, meta, peer, &option, uplink),
    }
}

/// The option that names the service which the packet's flow is to.
fn option(meta: &Meta, flows: &Flows) -> Option<ArrayVec<u8, OPTION>> {
    let half = HalfId::from_number(meta.flow)?;
    let mut data = ArrayVec::<u8, { geneve::SERVICE_V6 }>::new();
    let port = match meta.kind {
        Kind::Ipv4 => {
            let key = flows.v4.half(half).key();
            data.try_extend_from_slice(&key.destination.to_be_bytes()).ok()?;
            key.destination_port
        }
        _ => {
            let key = flows.v6.half(half).key();
            data.try_extend_from_slice(&key.destination.to_be_bytes()).ok()?;
            key.destination_port
        }
    };
    let [high, low] = port.to_be_bytes();
    data.try_extend_from_slice(&[high, low, 0, 0]).ok()?;
    let mut bytes = [0; OPTION];
    let len = geneve::write_option(&mut bytes, geneve::SERVICE_CLASS, geneve::SERVICE_TYPE, &data)?;
    let mut option = ArrayVec::new();
    option.try_extend_from_slice(bytes.get(..len)?).ok()?;
    Some(option)
}
