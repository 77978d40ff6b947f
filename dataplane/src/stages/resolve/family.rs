//! What the two families of addresses call the same things.

use crate::flow::affinity::AffinityTable;
use crate::flow::flows::Flows;
use crate::flow::ports::PortAllocator;
use crate::flow::table::FlowTable;
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Route};
use crate::stages::keys;
use crate::tables::Snapshot;
use crate::tables::peers::PeerEntry;
use crate::tables::services::{BackendAddress, ServiceEntry, Spread};

/// A family of addresses, for what opens flows.
pub(super) trait Family: Address + BackendAddress {
    /// The packet's key.
    fn key(frame: &Frame, meta: &Meta) -> FlowKey<Self>;
    /// The key of the flow's direction in which the packet, an ICMP error, goes.
    fn related_key(frame: &Frame, meta: &Meta) -> Option<FlowKey<Self>>;
    /// The worker's flows of this family.
    fn table(flows: &mut Flows) -> &mut FlowTable<Self>;
    /// The worker's flows of this family, and their source ports outside.
    fn parts(flows: &mut Flows) -> (&mut FlowTable<Self>, &mut PortAllocator<Self>);
    /// The backends that this worker's clients stay with.
    fn affinity(flows: &mut Flows) -> &mut AffinityTable<Self>;
    /// From its bytes in network order.
    fn from_network(bytes: &[u8]) -> Option<Self>;
    /// What has the address.
    fn route(self, tables: &Snapshot) -> Route;
    /// Brings near what [`Family::route`] will read.
    fn prefetch_route(self, tables: &Snapshot);
    /// The VIP number of the address; none: it is no service's.
    fn vip(self, tables: &Snapshot) -> Option<u32>;
    /// The peer whose own address it is: its index plus 1; 0: it is none's.
    fn peer(self, tables: &Snapshot) -> u32;
    /// Is it another node's own address?
    fn is_peer(self, tables: &Snapshot) -> bool {
        self.peer(tables) != 0
    }
    /// Has the peer an own address of this family?
    fn is_family_of(peer: &PeerEntry) -> bool;
    /// The backends of a service.
    fn backends(service: &ServiceEntry) -> &Spread<Self>;
    /// The gateway's address as the source of what a pod, or else the host, sends to itself; 0: none.
    fn gateway(tables: &Snapshot, is_pod: bool) -> Self;
    /// This node's address; 0: none.
    fn own(tables: &Snapshot) -> Self;
}

impl Family for u32 {
    fn key(_: &Frame, meta: &Meta) -> FlowKey<Self> {
        keys::key_v4(meta)
    }
    fn related_key(frame: &Frame, meta: &Meta) -> Option<FlowKey<Self>> {
        keys::related_v4(frame, meta)
    }
    fn table(flows: &mut Flows) -> &mut FlowTable<Self> {
        &mut flows.v4
    }
    fn parts(flows: &mut Flows) -> (&mut FlowTable<Self>, &mut PortAllocator<Self>) {
        (&mut flows.v4, &mut flows.ports_v4)
    }
    fn affinity(flows: &mut Flows) -> &mut AffinityTable<Self> {
        &mut flows.affinity_v4
    }
    fn from_network(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
    fn route(self, tables: &Snapshot) -> Route {
        tables.routes.v4.get(self)
    }
    fn prefetch_route(self, tables: &Snapshot) {
        tables.routes.v4.prefetch(self);
    }
    fn vip(self, tables: &Snapshot) -> Option<u32> {
        tables.services.vip4(self)
    }
    fn peer(self, tables: &Snapshot) -> u32 {
        tables.peers_v4.get(self)
    }
    fn is_family_of(peer: &PeerEntry) -> bool {
        peer.v4 != 0
    }
    fn backends(service: &ServiceEntry) -> &Spread<Self> {
        &service.v4
    }
    fn gateway(tables: &Snapshot, _: bool) -> Self {
        tables.node.gateway_v4
    }
    fn own(tables: &Snapshot) -> Self {
        tables.node.v4
    }
}

impl Family for u128 {
    fn key(frame: &Frame, meta: &Meta) -> FlowKey<Self> {
        keys::key_v6(frame, meta)
    }
    fn related_key(frame: &Frame, meta: &Meta) -> Option<FlowKey<Self>> {
        keys::related_v6(frame, meta)
    }
    fn table(flows: &mut Flows) -> &mut FlowTable<Self> {
        &mut flows.v6
    }
    fn parts(flows: &mut Flows) -> (&mut FlowTable<Self>, &mut PortAllocator<Self>) {
        (&mut flows.v6, &mut flows.ports_v6)
    }
    fn affinity(flows: &mut Flows) -> &mut AffinityTable<Self> {
        &mut flows.affinity_v6
    }
    fn from_network(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
    fn route(self, tables: &Snapshot) -> Route {
        tables.routes.v6.get(self)
    }
    fn prefetch_route(self, tables: &Snapshot) {
        tables.routes.v6.prefetch(self);
    }
    fn vip(self, tables: &Snapshot) -> Option<u32> {
        tables.services.vip6(self)
    }
    fn peer(self, tables: &Snapshot) -> u32 {
        tables.peers_v6.get(self)
    }
    fn is_family_of(peer: &PeerEntry) -> bool {
        peer.has_v6
    }
    fn backends(service: &ServiceEntry) -> &Spread<Self> {
        &service.v6
    }
    fn gateway(tables: &Snapshot, is_pod: bool) -> Self {
        if is_pod { tables.node.gateway_v6 } else { tables.node.gateway_v6_of_host }
    }
    fn own(tables: &Snapshot) -> Self {
        tables.node.v6
    }
}
