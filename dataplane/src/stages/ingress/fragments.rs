//! Fragments from the uplink that are in no tunnel, to an address that flows or services have and the
//! host, perhaps, as well. The network hands them to any queue, and only the first one of a packet says
//! whose it is: all go to one worker, which remembers that, and from there on. So they change hands
//! twice; whole packets do once. Those to a service go on until they are where the client's flow is.

use std::net::IpAddr;

use super::decap;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::{Context, fragments};
use crate::wire::{ethernet, peek};

/// Goes on with the fragments that were handed over to be remembered here, or have waited here.
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    if vector.meta.iter().any(|meta| meta.is_fragment) {
        again(vector, cx);
    }
}

#[cold]
fn again(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        let is_asked = meta.is_fragment && !meta.is_known_fragment && meta.is_pending();
        if is_asked
            && meta.origin == Origin::Uplink
            && is_shared(frame, meta, cx)
            && let Err(verdict) = step(frame, meta, cx)
        {
            meta.verdict = verdict;
        }
    }
}

/// Is the fragment to an address whose packets are told apart by their ports? Those to a pod's own are
/// remembered where it is at home.
pub(super) fn is_shared(frame: &Frame, meta: &Meta, cx: &Context<'_>) -> bool {
    let tables = cx.tables;
    match meta.kind {
        Kind::Ipv4 => {
            let to = meta.destination;
            let is_external = || tables.external.has(IpAddr::V4(to.into()));
            to == tables.node.v4 || is_external() || tables.services.vip4(to).is_some()
        }
        _ => {
            let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
            let to = peek::destination_v6(ip);
            let is_external = || tables.external.has(IpAddr::V6(to.into()));
            to == tables.node.v6 || is_external() || tables.services.vip6(to).is_some()
        }
    }
}

/// Whose is the fragment? As [`decap::owner`], once its packet is known.
///
/// # Errors
/// Another worker knows or will know, it waits, it is dropped, or it is the host's.
#[cold]
#[inline(never)]
pub(super) fn step(
    frame: &mut Frame,
    meta: &mut Meta,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    let worker = fragments::worker(frame, meta, cx);
    if worker != cx.worker {
        return Err(Verdict::HandOver(worker));
    }
    fragments::step(frame, meta, cx)?;
    decap::owner(frame, meta, cx)
}
