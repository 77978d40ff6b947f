//! What the kernel knows about a destination: its route lookup and its neighbour entry.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use overlane_api::MacAddr;

use super::Unresolved;
use crate::node::netlink::{Netlink, NetlinkError};

/// A neighbour: its interface and address.
pub(super) type Key = (u32, IpAddr);

/// Result of a route lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Via {
    /// Who takes the packet on the link: the gateway, or the destination itself.
    pub(super) key: Key,
    /// The source address that the kernel would choose.
    pub(super) source: Option<IpAddr>,
}

/// A neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The MAC; absent while the kernel does not know it, and on links without.
    pub(super) mac: Option<MacAddr>,
    /// The entry's state.
    pub(super) state: NeighbourState,
}

impl Entry {
    /// The MAC, if packets may be sent to it now.
    pub(super) fn usable(&self) -> Option<MacAddr> {
        use NeighbourState as S;
        let valid = matches!(
            self.state,
            S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp
        );
        self.mac.filter(|mac| valid && !mac.is_group() && *mac != MacAddr::default())
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Looks `destination` up in the kernel's routes, policy rules included.
pub(super) fn route(
    netlink: &mut Netlink,
    destination: IpAddr,
) -> Result<Result<Via, Unresolved>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unspec;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(destination))];
    let message = RouteNetlinkMessage::GetRoute(message);
    match netlink.request(message, 0, || format!("find a route to {destination}")) {
        Ok(answers) => Ok(answers
            .iter()
            .find_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(read_route(destination, route)),
                _ => None,
            })
            .unwrap_or_else(|| Err(Unresolved::NoRoute("no answer".into())))),
        Err(error) => match error.errno() {
            Some(errno) => Ok(Err(Unresolved::NoRoute(errno.desc().to_lowercase()))),
            None => Err(error),
        },
    }
}

fn read_route(destination: IpAddr, route: &RouteMessage) -> Result<Via, Unresolved> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::OwnAddress),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(Unresolved::NotUnicast);
        }
        other => {
            let kind = format!("{other:?}").to_lowercase();
            return Err(Unresolved::NoRoute(format!("the route's type is {kind}")));
        }
    }
    let (mut ifindex, mut next_hop, mut source) = (None, destination, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => next_hop = ip(address).unwrap_or(next_hop),
            RouteAttribute::Via(RouteVia::Inet(address)) => next_hop = (*address).into(),
            RouteAttribute::Via(RouteVia::Inet6(address)) => next_hop = (*address).into(),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => Ok(Via { key: (ifindex, next_hop), source }),
        None => Err(Unresolved::NoRoute("the route leads to no interface".into())),
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The kernel's entry for a neighbour, if it has one.
pub(super) fn neighbor(
    netlink: &mut Netlink,
    (ifindex, address): Key,
) -> Result<Option<Entry>, NetlinkError> {
    let message = RouteNetlinkMessage::GetNeighbour(question(ifindex, address));
    match netlink.request(message, 0, || format!("show the neighbour {address}")) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => read_neighbor(message).map(|(_, e)| e),
            _ => None,
        })),
        // No entry, or no such interface any more.
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn question(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::from(address))];
    message
}

/// Reads a neighbour message; none when it is about something else than an IP neighbour.
pub(super) fn read_neighbor(message: &NeighbourMessage) -> Option<(Key, Entry)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            _ => {}
        }
    }
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    address.map(|address| {
        ((message.header.ifindex, address), Entry { mac, state: message.header.state })
    })
}

/// Makes the kernel resolve a neighbour, or check one that it has not heard of for a while, as
/// if it had a packet to send (`ip neigh ... use`). Never to be done to a permanent entry: the
/// kernel would make an ordinary one of it.
pub(super) fn solicit(netlink: &mut Netlink, (ifindex, address): Key) -> Result<(), NetlinkError> {
    let mut message = question(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    message.header.state = NeighbourState::None;
    let message = RouteNetlinkMessage::NewNeighbour(message);
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    netlink.request(message, flags, || format!("resolve the neighbour {address}")).map(|_| ())
}
