//! The node's own routes out of the cluster: the main table of the kernel, as far as pods may use
//! it. A change is read by reading the table again, which has a few dozen routes on most nodes;
//! the larger it is, the less often.
//!
//! What decides by more than the destination is not followed: other tables and policy rules, TOS,
//! IPv6 sources. Of several next hops of a route the first one by the uplink is taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::netlink::{Netlink, NetlinkError};
use crate::tables::compile::underlay::{Way, Ways};

/// Most routes that are followed, those of the shortest prefixes first.
pub const MAX_ROUTES: usize = 1 << 16;

/// Shortest time between two readings.
const GAP: Duration = Duration::from_millis(250);

/// So many times as long as a reading takes is waited before the next.
const REST: u32 = 20;

/// The interfaces that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interfaces {
    /// Index of the uplink.
    pub uplink: u32,
    /// Index of the host port: what it leads to is Overlane's, its routes are none of the node's.
    pub host_port: Option<u32>,
}

/// Reads the routes when they may have changed.
#[derive(Debug)]
pub struct RouteMirror {
    netlink: Netlink,
    /// What the last reading was about: the interfaces, and the count of changes before it.
    read: Option<(Option<Interfaces>, u64)>,
    next: Option<Instant>,
    /// Routes that were too many at the last reading.
    left_out: usize,
}

impl RouteMirror {
    /// A mirror of the thread's network namespace. Nothing is read yet.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { netlink: Netlink::open()?, read: None, next: None, left_out: 0 })
    }

    /// The routes, if they may have changed since the last call: `changes` counts when that
    /// happens. Without interfaces there are none.
    ///
    /// # Errors
    /// When the kernel cannot be asked; a later call tries again.
    pub fn refresh(
        &mut self,
        interfaces: Option<Interfaces>,
        changes: u64,
        now: Instant,
    ) -> Result<Option<Ways>, NetlinkError> {
        let wanted = (interfaces, changes);
        let same_interfaces = self.read.is_some_and(|(read, _)| read == interfaces);
        let early = same_interfaces && self.next.is_some_and(|next| now < next);
        if self.read == Some(wanted) || early {
            return Ok(None);
        }
        let started = Instant::now();
        self.next = Some(now + GAP);
        let mut ways = match interfaces {
            Some(interfaces) => read(&self.dump()?, interfaces),
            None => Ways::new(),
        };
        self.left_out = limit(&mut ways, MAX_ROUTES);
        self.read = Some(wanted);
        self.next = Some(now + GAP.max(started.elapsed() * REST));
        Ok(Some(ways))
    }

    /// Routes beyond [`MAX_ROUTES`], which are left out.
    #[must_use]
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    fn dump(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            let question = RouteNetlinkMessage::GetRoute(message);
            match self.netlink.dump(&question, || "list routes".into()) {
                Ok(routes) => all.extend(routes),
                // The family, or its table, does not exist here.
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// Leaves the shortest prefixes in, for they cover most; says how many it took out.
fn limit(ways: &mut Ways, most: usize) -> usize {
    let surplus = ways.len().saturating_sub(most);
    if surplus > 0 {
        let mut prefixes: Vec<IpNet> = ways.keys().copied().collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.prefix_len()));
        for prefix in prefixes.iter().take(surplus) {
            ways.remove(prefix);
        }
    }
    surplus
}

/// The best route of each prefix: the one of the least metric, among equals the one that leaves by
/// the uplink, among those the first.
fn read(messages: &[RouteNetlinkMessage], interfaces: Interfaces) -> Ways {
    let mut best = std::collections::BTreeMap::<IpNet, (u32, Way)>::new();
    for message in messages {
        let RouteNetlinkMessage::NewRoute(route) = message else { continue };
        let Some((prefix, metric, way)) = read_route(route, interfaces) else { continue };
        let rank = |metric: u32, way: Way| (metric, way == Way::Elsewhere);
        match best.get(&prefix) {
            Some((other, there)) if rank(*other, *there) <= rank(metric, way) => {}
            _ => {
                best.insert(prefix, (metric, way));
            }
        }
    }
    best.into_iter().map(|(prefix, (_, way))| (prefix, way)).collect()
}

/// Reads a route: its prefix, its metric and where it leads. None when it is of no use to pods, or
/// decides by more than the destination.
fn read_route(route: &RouteMessage, interfaces: Interfaces) -> Option<(IpNet, u32, Way)> {
    let header = &route.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let skipped = RouteFlags::Cloned | RouteFlags::Dead;
    if header.flags.intersects(skipped) || header.tos != 0 || header.source_prefix_length != 0 {
        return None;
    }
    let (mut table, mut metric, mut encapsulated) = (u32::from(header.table), 0, false);
    let mut destination = unspecified;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => encapsulated = true,
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?.trunc();
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || !is_forwarded(prefix) {
        return None;
    }
    let way = match header.kind {
        RouteType::Unicast if encapsulated => Way::Elsewhere,
        RouteType::Unicast => way(route, interfaces)?,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            Way::Elsewhere
        }
        _ => return None,
    };
    Some((prefix, metric, way))
}

/// Are packets to addresses of `prefix` passed on at all? Multicast, loopback and link-local IPv6
/// addresses (RFC 4291 section 2.5.6) stay where they are.
fn is_forwarded(prefix: IpNet) -> bool {
    let (first, len) = (prefix.network(), prefix.prefix_len());
    let link_local = match first {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => len >= 10 && v6.is_unicast_link_local(),
    };
    let multicast = first.is_multicast() && len >= if first.is_ipv4() { 4 } else { 8 };
    let loopback = first.is_loopback() && len >= 8;
    !(link_local || multicast || loopback)
}

/// Where a unicast route leads; none when that is Overlane's own host port.
fn way(route: &RouteMessage, interfaces: Interfaces) -> Option<Way> {
    let next_hops = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(next_hops) => Some(next_hops),
        _ => None,
    });
    let Some(next_hops) = next_hops else {
        let interface = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })?;
        return match interface {
            index if index == interfaces.uplink => Some(through(&route.attributes)),
            index if Some(index) == interfaces.host_port => None,
            _ => Some(Way::Elsewhere),
        };
    };
    let usable = next_hops.iter().find(|hop| {
        let is_encapsulated = hop.attributes.iter().any(|attribute| {
            matches!(attribute, RouteAttribute::EncapType(_) | RouteAttribute::Encap(_))
        });
        hop.interface_index == interfaces.uplink
            && !hop.flags.contains(RouteNextHopFlags::Dead)
            && !is_encapsulated
    });
    Some(usable.map_or(Way::Elsewhere, |hop| through(&hop.attributes)))
}

/// The gateway that the attributes name, or the link.
fn through(attributes: &[RouteAttribute]) -> Way {
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    match gateway {
        Some(address) if !address.is_unspecified() => Way::Gateway(address),
        _ => Way::Link,
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod routes_tests;
