//! From destinations on the underlay to MACs in the tables: follows what the kernel knows of every
//! peer's next hop, of the hosts that flat mode sends to, and of path MTUs.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlane_api::status::NextHop;
use overlane_api::{Mode, Peer, Underlay};

use super::neighbors::{NeighborEvent, NeighborTable, Outcome, Resolution};
use super::process::Process;
use crate::stages::Notice;
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
    /// Hosts that flat mode sends to.
    hosts: BTreeSet<IpAddr>,
    /// Learned path MTUs: peer -> when.
    path_mtus: HashMap<String, Instant>,
}

impl NextHops {
    pub(super) fn new(table: NeighborTable) -> Self {
        Self {
            table,
            peers: HashMap::new(),
            destinations: HashMap::new(),
            hosts: BTreeSet::new(),
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
                if !self.next_hops.hosts.contains(&destination) {
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

    /// All peers anew: the uplink has come or changed.
    pub(super) fn resolve_all(&mut self) {
        for name in self.next_hops.destinations.keys().cloned().collect::<Vec<_>>() {
            self.resolve_peer(&name);
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
        if let Some(names) = self.next_hops.peers.get(&event.destination).cloned() {
            for name in names {
                self.resolve_peer(&name);
            }
        }
        if self.next_hops.hosts.contains(&event.destination) {
            let adjacency = match &event.outcome {
                Outcome::Resolved(resolution) => self.adjacency(resolution),
                Outcome::Unresolved(_) => None,
            };
            self.compiler.set_next_hop(event.destination, adjacency);
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
        const MOST: usize = 4096;
        if self.next_hops.hosts.len() >= MOST && !self.next_hops.hosts.contains(&address) {
            // The lowest address goes: any will do, it comes back when it is wanted.
            if let Some(oldest) = self.next_hops.hosts.pop_first() {
                self.next_hops.table.unwatch(oldest);
                self.compiler.set_next_hop(oldest, None);
            }
        }
        self.next_hops.hosts.insert(address);
        if self.next_hops.table.watch(address).is_err() {
            self.next_hops.hosts.remove(&address);
            return false;
        }
        let known = match self.next_hops.table.outcome(address) {
            Some(Outcome::Resolved(resolution)) => self.adjacency(&resolution.clone()),
            _ => None,
        };
        self.compiler.set_next_hop(address, known);
        known.is_some()
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
