//! Delivery without encapsulation: to a pod here, to the host, to a next hop on the underlay.

use overlane_api::MacAddr;

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;

use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::wire::ethernet::{self, Ethernet};

/// To the pod at `index`: its home worker delivers.
#[inline]
pub(super) fn to_endpoint(frame: &mut Frame, index: u32, cx: &Context<'_>) -> Verdict {
    let Some(endpoint) = cx.tables.endpoints.get(index) else {
        return Verdict::Drop(DropReason::NoRoute);
    };
    let Some(port) = endpoint.port else { return Verdict::Drop(DropReason::EndpointNotReady) };
    if endpoint.worker != cx.worker {
        return Verdict::HandOver(endpoint.worker);
    }
    set_addresses(frame, endpoint.mac, cx.tables.node.gateway_mac);
    Verdict::Send(port)
}

/// To the node's own stack.
pub(super) fn to_host(cx: &Context<'_>) -> Verdict {
    let Some(host) = cx.tables.node.host else {
        return Verdict::Drop(DropReason::HostUnavailable);
    };
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

/// Unencapsulated, to next hop `index` (flat mode).
pub(super) fn to_next_hop(
    frame: &mut Frame,
    index: u32,
    uplink: Verdict,
    cx: &Context<'_>,
) -> Verdict {
    match cx.tables.next_hops.get(index) {
        Some(Some(adjacency)) => {
            set_addresses(frame, adjacency.destination, adjacency.source);
            uplink
        }
        _ => Verdict::Hold,
    }
}

#[inline]
fn set_addresses(frame: &mut Frame, destination: MacAddr, source: MacAddr) {
    // Every packet that comes here has had its Ethernet header parsed.
    ethernet::set_addresses(frame.bytes_mut(), destination, source);
}
