//! From destinations on the underlay to MACs in the tables: follows what the kernel knows of every
//! peer's next hop, of the node's own routes and their gateways, of hosts on the uplink's link that
//! pods send to, and of path MTUs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlane_api::status::NextHop;
use overlane_api::{Mode, Peer, Underlay};

use super::neighbors::{NeighborEvent, NeighborTable, Outcome, Resolution};
use super::process::Process;
use super::routes::{Interfaces, MAX_ROUTES, RouteMirror};
use crate::stages::Notice;
use crate::tables::compile::underlay::{self, MAX_HOSTS, Ways};
use crate::tables::peers::{Adjacency, tunnel_family};

/// How long a learned path MTU is believed (RFC 1191 section 6.3).
const PATH_MTU_AGE: Duration = Duration::from_secs(600);

/// What depends on which destination.
#[derive(Debug)]
pub(super) struct NextHops {
    pub(super) table: NeighborTable,
    /// Destination -> names of the peers whose next hop it tells.
    peers: HashMap<IpAddr, BTreeSet<String>>,
    /// Peer -> its destinations, the preferred one first.
    destinations: HashMap<String, Vec<IpAddr>>,
    routes: RouteMirror,
    /// Gateways of the node's own routes, each with the interface it is followed on.
    gateways: BTreeMap<IpAddr, u32>,
    hosts: Hosts,
    /// Learned path MTUs: peer -> when.
    path_mtus: HashMap<String, Instant>,
}

/// Hosts that pods send to on the uplink's link, in the order in which they were wanted.
#[derive(Debug, Default)]
struct Hosts {
    known: HashMap<IpAddr, u64>,
    order: BTreeMap<u64, IpAddr>,
    wanted: u64,
}

impl Hosts {
    fn contains(&self, host: IpAddr) -> bool {
        self.known.contains_key(&host)
    }

    /// Adds a host, as the youngest if it is new; what there was no room for is returned.
    fn insert(&mut self, host: IpAddr, most: usize) -> Option<IpAddr> {
        if self.contains(host) {
            return None;
        }
        self.wanted += 1;
        self.known.insert(host, self.wanted);
        self.order.insert(self.wanted, host);
        if self.known.len() <= most {
            return None;
        }
        let (_, oldest) = self.order.pop_first()?;
        self.known.remove(&oldest);
        Some(oldest)
    }
}

impl NextHops {
    pub(super) fn new(table: NeighborTable, routes: RouteMirror) -> Self {
        Self {
            table,
            peers: HashMap::new(),
            destinations: HashMap::new(),
            routes,
            gateways: BTreeMap::new(),
            hosts: Hosts::default(),
            path_mtus: HashMap::new(),
        }
    }
}

impl Process {
    /// Follows the next hop of a peer that was added or changed.
    pub(super) fn follow_peer(&mut self, name: &str) {
        self.forget_peer(name);
        let (Some(node), Some(peer)) = (self.compiler.node(), self.compiler.peer(name)) else {
            return;
        };
        let destinations = match peer.mode {
            Mode::Flat => return,
            Mode::Native => native_destinations(peer),
            Mode::Geneve | Mode::Vxlan => {
                let family = tunnel_family(node, peer);
                let of_family =
                    |a: &&IpAddr| Some(a.is_ipv4()) == family.map(|f| f == Underlay::Ipv4);
                peer.addresses.iter().filter(of_family).take(1).copied().collect()
            }
        };
        for destination in &destinations {
            self.next_hops.peers.entry(*destination).or_default().insert(name.to_owned());
            if let Err(error) = self.next_hops.table.watch(*destination) {
                tracing::warn!(peer = name, %error, "cannot follow the next hop");
            }
        }
        self.next_hops.destinations.insert(name.to_owned(), destinations);
        self.resolve_peer(name);
    }

    /// Stops following a peer's next hop.
    pub(super) fn forget_peer(&mut self, name: &str) {
        self.next_hops.path_mtus.remove(name);
        for destination in self.next_hops.destinations.remove(name).unwrap_or_default() {
            let Some(names) = self.next_hops.peers.get_mut(&destination) else { continue };
            names.remove(name);
            if names.is_empty() {
                self.next_hops.peers.remove(&destination);
                if !self.next_hops.hosts.contains(destination) {
                    self.next_hops.table.unwatch(destination);
                }
            }
        }
    }

    /// Puts what is known of a peer's next hop into the tables.
    fn resolve_peer(&mut self, name: &str) {
        let resolution = self.resolution(name);
        let adjacency = resolution.and_then(|r| self.adjacency(&r));
        self.compiler.set_adjacency(name, adjacency);
    }

    fn resolution(&self, name: &str) -> Option<Resolution> {
        let destinations = self.next_hops.destinations.get(name)?;
        let uplink = self.uplink.as_ref()?.ifindex;
        destinations.iter().find_map(|d| match self.next_hops.table.outcome(*d) {
            // A route through our own host port is no way to the underlay.
            Some(Outcome::Resolved(r)) if r.ifindex == uplink => Some(*r),
            _ => None,
        })
    }

    fn adjacency(&self, resolution: &Resolution) -> Option<Adjacency> {
        let uplink = self.uplink.as_ref()?;
        (resolution.ifindex == uplink.ifindex)
            .then(|| Adjacency { source: self.compiler.uplink().mac, destination: resolution.mac })
    }

    /// The next hop of a peer, for status.
    pub(super) fn next_hop_of(&self, name: &str) -> Option<NextHop> {
        self.resolution(name).map(|r| NextHop { address: r.next_hop, mac: r.mac })
    }

    /// All next hops anew: the uplink has come or changed.
    pub(super) fn resolve_all(&mut self) {
        for name in self.next_hops.destinations.keys().cloned().collect::<Vec<_>>() {
            self.resolve_peer(&name);
        }
        for gateway in self.next_hops.gateways.keys().copied().collect::<Vec<_>>() {
            self.resolve_gateway(gateway);
        }
        for host in self.next_hops.hosts.known.keys().copied().collect::<Vec<_>>() {
            self.resolve_host(host);
        }
    }

    /// Puts what is known of a gateway into the tables.
    fn resolve_gateway(&mut self, gateway: IpAddr) {
        let interface = self.next_hops.gateways.get(&gateway);
        let outcome = interface.and_then(|i| self.next_hops.table.neighbor_outcome(*i, gateway));
        let adjacency = self.adjacency_of(outcome);
        self.compiler.set_gateway(gateway, adjacency);
    }

    /// Puts what is known of a host into the tables. Says whether its MAC is known.
    fn resolve_host(&mut self, host: IpAddr) -> bool {
        let adjacency = self.adjacency_of(self.next_hops.table.outcome(host));
        self.compiler.set_next_hop(host, adjacency);
        adjacency.is_some()
    }

    fn adjacency_of(&self, outcome: Option<&Outcome>) -> Option<Adjacency> {
        match outcome? {
            Outcome::Resolved(resolution) => self.adjacency(resolution),
            Outcome::Unresolved(_) => None,
        }
    }

    /// The node's own routes, if they have changed. Says whether the tables changed.
    pub(super) fn process_routes(&mut self, now: Instant) -> bool {
        let interfaces = self.uplink.as_ref().map(|uplink| Interfaces {
            uplink: uplink.ifindex,
            host_port: self.host.as_ref().map(|host| host.pair.host_ifindex()),
        });
        let changes = self.next_hops.table.route_news();
        let ways = match self.next_hops.routes.refresh(interfaces, changes, now) {
            Ok(Some(ways)) => ways,
            Ok(None) => return false,
            Err(error) => {
                self.warn("routes", error.to_string());
                return false;
            }
        };
        match self.next_hops.routes.left_out() {
            0 => self.clear_warning("routes"),
            surplus => self.warn(
                "routes",
                format!(
                    "the node has {surplus} routes more than the {MAX_ROUTES} that pods can use: \
                     the longest prefixes are left out"
                ),
            ),
        }
        self.follow_gateways(&ways, interfaces.map(|interfaces| interfaces.uplink));
        if !self.compiler.set_ways(ways) {
            return false;
        }
        for gateway in self.next_hops.gateways.keys().copied().collect::<Vec<_>>() {
            self.resolve_gateway(gateway);
        }
        true
    }

    /// Follows the gateways of these routes, and no others.
    fn follow_gateways(&mut self, ways: &Ways, uplink: Option<u32>) {
        let wanted: BTreeMap<IpAddr, u32> =
            underlay::gateways(ways).filter_map(|gateway| Some((gateway, uplink?))).collect();
        for (gateway, interface) in &wanted {
            if let Err(error) = self.next_hops.table.watch_neighbor(*interface, *gateway) {
                tracing::warn!(%gateway, %error, "cannot follow a gateway");
            }
        }
        for (gateway, interface) in std::mem::replace(&mut self.next_hops.gateways, wanted) {
            if self.next_hops.gateways.get(&gateway) != Some(&interface) {
                self.next_hops.table.unwatch_neighbor(interface, gateway);
            }
        }
    }

    /// What the kernel has to tell about neighbours and routes. Says whether the tables changed.
    pub(super) fn process_neighbors(&mut self, now: Instant) -> bool {
        let events = match self.next_hops.table.process(now) {
            Ok(events) => events,
            Err(error) => {
                self.warn("neighbors", error.to_string());
                return false;
            }
        };
        if let Err(error) = self.next_hops.table.tick(now) {
            self.warn("neighbors", error.to_string());
        }
        for event in &events {
            self.neighbor_event(event);
        }
        !events.is_empty()
    }

    fn neighbor_event(&mut self, event: &NeighborEvent) {
        tracing::debug!(destination = %event.destination, outcome = ?event.outcome, "next hop");
        if event.interface.is_some() {
            self.resolve_gateway(event.destination);
            return;
        }
        if let Some(names) = self.next_hops.peers.get(&event.destination).cloned() {
            for name in names {
                self.resolve_peer(&name);
            }
        }
        if self.next_hops.hosts.contains(event.destination) {
            self.resolve_host(event.destination);
        }
    }

    /// What the workers noticed. Says whether the tables changed.
    pub(super) fn process_notices(&mut self, now: Instant) -> bool {
        let mut changed = false;
        while let Some(notice) = self.workers.notice() {
            match notice {
                Notice::NextHopWanted(address) => changed |= self.want_next_hop(address),
                Notice::PathMtu(address, mtu) => changed |= self.learn_path_mtu(address, mtu, now),
            }
        }
        changed | self.age_path_mtus(now)
    }

    fn want_next_hop(&mut self, address: IpAddr) -> bool {
        if let Err(error) = self.next_hops.table.watch(address) {
            tracing::debug!(%error, "no next hop");
            return false;
        }
        // The oldest goes; it comes back when it is wanted.
        if let Some(oldest) = self.next_hops.hosts.insert(address, MAX_HOSTS) {
            if !self.next_hops.peers.contains_key(&oldest) {
                self.next_hops.table.unwatch(oldest);
            }
            self.compiler.set_next_hop(oldest, None);
        }
        self.resolve_host(address)
    }

    fn learn_path_mtu(&mut self, address: IpAddr, mtu: u16, now: Instant) -> bool {
        let Some(name) = self.compiler.peer_at(address).map(|peer| peer.name.clone()) else {
            return false;
        };
        tracing::info!(peer = name, mtu, "the path carries less than the underlay's MTU");
        self.compiler.set_path_mtu(&name, Some(mtu));
        self.next_hops.path_mtus.insert(name, now);
        true
    }

    fn age_path_mtus(&mut self, now: Instant) -> bool {
        let old = |learned: &Instant| now.saturating_duration_since(*learned) > PATH_MTU_AGE;
        let aged: Vec<String> = self
            .next_hops
            .path_mtus
            .iter()
            .filter(|(_, learned)| old(learned))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &aged {
            self.next_hops.path_mtus.remove(name);
            self.compiler.set_path_mtu(name, None);
        }
        !aged.is_empty()
    }
}

/// Where a native peer's next hop is asked for: a route to its pods says it; without one of its
/// own, the peer itself is the next hop if it is on the link, or the way to it is.
fn native_destinations(peer: &Peer) -> Vec<IpAddr> {
    let pods = peer.pod_cidrs.iter().filter_map(|cidr| cidr.hosts().next());
    let mut destinations: Vec<IpAddr> = pods.collect();
    destinations.sort_by_key(IpAddr::is_ipv6);
    destinations.extend(&peer.addresses);
    destinations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_wanted_first_goes_first() {
        let host = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut hosts = Hosts::default();
        // The lowest address is not the oldest.
        assert_eq!([9, 1, 5].map(|n| hosts.insert(host(n), 3)), [None; 3]);
        assert_eq!(hosts.insert(host(9), 3), None, "wanted again, and as old as before");
        assert_eq!(hosts.insert(host(7), 3), Some(host(9)));
        assert_eq!(hosts.insert(host(9), 3), Some(host(1)));
        assert!(hosts.contains(host(5)) && !hosts.contains(host(1)));
    }
}
