//! The underlay beyond the cluster: the node's own routes, the next hops they lead to, and single
//! addresses on the uplink's link, each its own next hop.
//!
//! ```text
//! kernel's route                            here
//! via a gateway, by the uplink              the gateway's next hop
//! on the uplink's link                      asked for address by address
//! by another interface, unreachable, ...    dead end
//! none, and a range of the cluster's        dead end, whatever route contains it
//! none, in flat mode                        asked for address by address
//! ```
//! So no route of the node's, not even the default one, takes a pod's packet for an address of the
//! cluster that no pod has to the outside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Mode, Node};

use super::{Compiler, everything};
use crate::packet::meta::{Route, Target};
use crate::tables::peers::Adjacency;

/// Most addresses on the link that are known one by one.
pub const MAX_HOSTS: usize = 1 << 16;

/// Where a route of the node's leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the uplink to this gateway.
    Gateway(IpAddr),
    /// By the uplink, to whoever has the address on its link.
    Link,
    /// Nowhere that pods can go: by another interface, or to nobody.
    Elsewhere,
}

/// Routes of the node's: the best one of each prefix.
pub type Ways = BTreeMap<IpNet, Way>;

/// The underlay as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Underlay {
    /// The node's own routes.
    ways: Ways,
    /// What is in the tables because of them.
    installed: BTreeMap<IpNet, Route>,
    /// Places of the gateways' next hops.
    gateways: HashMap<IpAddr, u32>,
    /// Places of single addresses.
    hosts: BTreeMap<IpAddr, u32>,
    /// Places that nobody has.
    free: Vec<u32>,
}

impl Underlay {
    /// What the tables are to have.
    fn wanted(&self, node: &Node) -> BTreeMap<IpNet, Route> {
        let mut wanted = BTreeMap::new();
        let flat = node.mode == Mode::Flat;
        let ranges = node.cluster_cidrs.iter().chain(&node.pod_cidrs);
        let ours: Vec<IpNet> = if flat { Vec::new() } else { ranges.map(IpNet::trunc).collect() };
        if flat {
            wanted.extend(everything().map(|all| (all, Route::new(Target::UnderlayUnknown))));
        }
        for (prefix, way) in &self.ways {
            if !ours.iter().any(|range| range.contains(prefix)) {
                wanted.insert(*prefix, self.route(*way));
            }
        }
        wanted.extend(ours.into_iter().map(|range| (range, Route::DEAD_END)));
        wanted
    }

    fn route(&self, way: Way) -> Route {
        let gateway = |address: &IpAddr| self.gateways.get(address).copied().map(Target::Underlay);
        match way {
            Way::Gateway(address) => gateway(&address).map_or(Route::DEAD_END, Route::new),
            Way::Link => Route::new(Target::UnderlayUnknown),
            Way::Elsewhere => Route::DEAD_END,
        }
    }
}

/// The gateways among `ways`.
pub fn gateways(ways: &Ways) -> impl Iterator<Item = IpAddr> {
    ways.values().filter_map(|way| match way {
        Way::Gateway(address) => Some(*address),
        Way::Link | Way::Elsewhere => None,
    })
}

impl Compiler {
    /// Tells the node's own routes, instead of those told before. Gateways that are new are not
    /// resolved: what is sent there waits. Says whether anything is different.
    pub fn set_ways(&mut self, ways: Ways) -> bool {
        if ways == self.underlay.ways {
            return false;
        }
        self.underlay.ways = ways;
        let mut gone = std::mem::take(&mut self.underlay.gateways);
        let wanted: BTreeSet<IpAddr> = gateways(&self.underlay.ways).collect();
        for address in wanted {
            let place = gone.remove(&address).or_else(|| self.claim_place(None));
            self.underlay.gateways.extend(place.map(|place| (address, place)));
        }
        self.route_underlay();
        for place in gone.into_values() {
            self.free_place(place);
        }
        true
    }

    /// Brings the underlay's routes up to date with the node and its own routes.
    pub(super) fn route_underlay(&mut self) {
        let wanted =
            self.node.as_ref().map_or_else(BTreeMap::new, |node| self.underlay.wanted(node));
        let installed = std::mem::take(&mut self.underlay.installed);
        for prefix in installed.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            self.tables.routes.set_underlay(*prefix, Route(0));
        }
        for (prefix, route) in &wanted {
            if installed.get(prefix) != Some(route) {
                self.tables.routes.set_underlay(*prefix, *route);
            }
        }
        self.underlay.installed = wanted;
        for prefix in everything() {
            self.settle_hosts(prefix);
        }
    }

    /// Forgets the addresses in `range` that are not, or no longer, to be asked for one by one.
    pub(super) fn settle_hosts(&mut self, range: IpNet) {
        let hosts = self.underlay.hosts.range(range.network()..=range.broadcast());
        let moved: Vec<IpAddr> =
            hosts.map(|(address, _)| *address).filter(|host| !self.is_on_link(*host)).collect();
        for address in moved {
            self.forget_next_hop(address);
        }
    }

    /// Is `address` to be asked for by itself?
    fn is_on_link(&self, address: IpAddr) -> bool {
        self.tables.routes.prefix(address).target() == Target::UnderlayUnknown
    }

    /// Tells the MACs towards a gateway of the node's routes; none: not resolved.
    pub fn set_gateway(&mut self, gateway: IpAddr, adjacency: Option<Adjacency>) {
        let place = self.underlay.gateways.get(&gateway);
        if let Some(place) = place.and_then(|place| self.tables.next_hops.get_mut(*place)) {
            *place = adjacency;
        }
    }

    /// Tells the MACs towards `destination` on the uplink's link: it becomes a host route of its
    /// own, if nobody else has the address. None: not resolved. Beyond [`MAX_HOSTS`] nothing is
    /// learned.
    pub fn set_next_hop(&mut self, destination: IpAddr, adjacency: Option<Adjacency>) {
        let taken = self.tables.routes.host(destination);
        if taken.is_some() && !matches!(taken.target(), Target::Underlay(_)) {
            return;
        }
        let Some(adjacency) = adjacency.filter(|_| self.is_on_link(destination)) else {
            self.forget_next_hop(destination);
            return;
        };
        if let Some(place) = self.underlay.hosts.get(&destination) {
            if let Some(place) = self.tables.next_hops.get_mut(*place) {
                *place = Some(adjacency);
            }
        } else if self.underlay.hosts.len() < MAX_HOSTS
            && let Some(place) = self.claim_place(Some(adjacency))
        {
            self.underlay.hosts.insert(destination, place);
            self.tables.routes.set_host(destination, Route::new(Target::Underlay(place)));
        }
    }

    pub(super) fn forget_next_hop(&mut self, destination: IpAddr) {
        if let Some(place) = self.underlay.hosts.remove(&destination) {
            self.free_place(place);
            self.tables.routes.set_host(destination, Route(0));
        }
    }

    /// A place in the table of next hops.
    fn claim_place(&mut self, adjacency: Option<Adjacency>) -> Option<u32> {
        let Some(place) = self.underlay.free.pop() else {
            let place = u32::try_from(self.tables.next_hops.len()).ok()?;
            self.tables.next_hops.push(adjacency);
            return Some(place);
        };
        *self.tables.next_hops.get_mut(place)? = adjacency;
        Some(place)
    }

    fn free_place(&mut self, place: u32) {
        if let Some(hop) = self.tables.next_hops.get_mut(place) {
            *hop = None;
            self.underlay.free.push(place);
        }
    }
}
