//! Delivery without encapsulation: to a pod here, to the host, to a next hop on the underlay.

use overlane_api::MacAddr;

use super::rewrite::{self, HEADERS};
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::Meta;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::tables::endpoints::EndpointEntry;
use crate::wire::ethernet::{self, Ethernet};

/// To the pod `endpoint`: its home worker delivers.
#[inline(always)]
pub fn to_endpoint(
    frame: &mut Frame,
    meta: &mut Meta,
    endpoint: &EndpointEntry,
    cx: &Context<'_>,
) -> Verdict {
    let Some(port) = endpoint.port else { return Verdict::Drop(DropReason::EndpointNotReady) };
    if endpoint.worker != cx.worker {
        return Verdict::HandOver(endpoint.worker);
    }
    let Some(headers) = frame.bytes_mut().first_chunk_mut::<HEADERS>() else {
        return Verdict::Drop(DropReason::FrameTruncated);
    };
    ethernet::set_addresses(headers, endpoint.mac, cx.tables.node.gateway_mac);
    if let Some(ip) = headers.last_chunk_mut() {
        rewrite::take_hop(ip, meta);
    }
    Verdict::Send(port)
}

/// To the node's own stack.
#[must_use]
pub fn to_host(cx: &Context<'_>) -> Verdict {
    let Some(host) = cx.tables.node.host else {
        return Verdict::Drop(DropReason::HostUnavailable);
    };
    if host.worker != cx.worker {
        // The host's flows are remembered where its port is served.
        return Verdict::HandOver(host.worker);
    }
    Verdict::ToHost(host.port)
}

/// Addresses a frame to the host's end of the host port; the host's stack takes no other.
pub(super) fn address_to_host(frame: &mut Frame, cx: &Context<'_>) {
    let Some(host) = cx.tables.node.host else { return };
    let is_group = Ethernet::parse(frame.bytes()).is_ok_and(|e| e.destination().is_group());
    if !is_group {
        set_addresses(frame, host.mac, cx.tables.node.gateway_mac);
    }
}

/// Unencapsulated, to next hop `index`.
pub fn to_next_hop(
    frame: &mut Frame,
    meta: &mut Meta,
    index: u32,
    uplink: &Verdict,
    cx: &Context<'_>,
) -> Verdict {
    match cx.tables.next_hops.get(index) {
        Some(Some(adjacency)) => {
            rewrite::take_hop_in(frame, meta);
            set_addresses(frame, adjacency.destination, adjacency.source);
            *uplink
        }
        _ => Verdict::Hold,
    }
}

#[inline]
fn set_addresses(frame: &mut Frame, destination: MacAddr, source: MacAddr) {
    // Every packet that comes here has had its Ethernet header parsed.
    ethernet::set_addresses(frame.bytes_mut(), destination, source);
}
