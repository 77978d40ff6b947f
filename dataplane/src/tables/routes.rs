//! Destination address -> what has it.
//!
//! Endpoints and nodes are single addresses ([`super::hosts`]); pod ranges are prefixes, in one
//! hash table per prefix length that occurs (a cluster has one or two), tried longest first. What
//! the cluster does not have is looked for in the underlay's prefixes: the node's own routes.
//! However long one of those is, it takes no address from the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;
use ipnet::IpNet;

use super::hash::Map;
use super::hosts::{Hosts, Neighbor};
use crate::packet::meta::Route;

/// By prefix length, longest first.
type Prefixes<K> = Vec<Networks<K>>;

/// Networks that are compared one by one, which is quicker for so few.
const FEW: usize = 4;

/// The networks of one prefix length. Of most lengths there are few: a range for services, the node's
/// own routes. Of one there are many: a range for each node.
#[derive(Debug, Clone)]
struct Networks<K: Neighbor> {
    len: u8,
    mask: K,
    all: Map<K>,
    /// All of them, unless there have been more.
    few: Option<ArrayVec<(K, u32), FEW>>,
}

impl<K: Address> Networks<K> {
    fn new(len: u8) -> Self {
        Self { len, mask: K::mask(len), all: Map::<K>::default(), few: Some(ArrayVec::new()) }
    }

    /// The value of the network that `address` is in; 0: it is in none.
    #[inline(always)]
    fn get(&self, address: K) -> u32 {
        let network = address.network(self.mask);
        match &self.few {
            Some(few) => few.iter().find(|(own, _)| *own == network).map_or(0, |(_, value)| *value),
            None => self.all.get(network),
        }
    }

    /// Sets the value of the network that `address` is in; 0 removes it. Returns the former one.
    fn set(&mut self, address: K, value: u32) -> u32 {
        let network = address.network(self.mask);
        if let Some(few) = &mut self.few {
            few.retain(|(own, _)| *own != network);
            if value != 0 && few.try_push((network, value)).is_err() {
                self.few = None;
            }
        }
        self.all.set(network, value)
    }
}

/// Routes of one address family.
#[derive(Debug, Clone)]
pub struct Routes<K: Neighbor> {
    hosts: Hosts<K>,
    prefixes: Prefixes<K>,
    /// Asked when neither has the address.
    underlay: Prefixes<K>,
}

impl<K: Neighbor> Default for Routes<K> {
    fn default() -> Self {
        Self { hosts: Hosts::default(), prefixes: Vec::new(), underlay: Vec::new() }
    }
}

/// An address as a key: bits, host order.
pub trait Address: Neighbor + Ord {
    /// Bits of an address.
    const BITS: u8;
    /// The mask of a prefix length.
    fn mask(len: u8) -> Self;
    /// The address's network under `mask`.
    #[must_use]
    fn network(self, mask: Self) -> Self;
    /// The last address of its network under `mask`.
    #[must_use]
    fn last(self, mask: Self) -> Self;
    /// The address behind it; none behind the last of all.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    const BITS: u8 = 32;
    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(u32::from(32 - len.min(32))).unwrap_or(0)
    }
    #[inline]
    fn network(self, mask: Self) -> Self {
        self & mask
    }
    fn last(self, mask: Self) -> Self {
        self | !mask
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    const BITS: u8 = 128;
    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(u32::from(128 - len.min(128))).unwrap_or(0)
    }
    #[inline]
    fn network(self, mask: Self) -> Self {
        self & mask
    }
    fn last(self, mask: Self) -> Self {
        self | !mask
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl<K: Address> Routes<K> {
    /// What has `address`, by longest prefix; [`Route`] of nothing when none does.
    #[inline]
    #[must_use]
    pub fn get(&self, address: K) -> Route {
        let host = self.hosts.get(address);
        if host != 0 { Route(host) } else { self.get_prefix(address) }
    }

    /// What has the longest prefix that contains `address`.
    fn get_prefix(&self, address: K) -> Route {
        let route = longest(&self.prefixes, address);
        if route.is_some() { route } else { longest(&self.underlay, address) }
    }

    /// What has `address` itself, prefixes aside.
    #[must_use]
    pub fn host(&self, address: K) -> Route {
        Route(self.hosts.get(address))
    }

    /// Brings the lines near that [`Routes::get`] reads first. The tables of the prefixes are small,
    /// a range for each node, and seldom asked: endpoints are known by their addresses.
    #[inline]
    pub fn prefetch(&self, address: K) {
        self.hosts.prefetch(address);
    }

    /// Sets what has `address/len`; the route of nothing removes it. Returns the former one.
    pub fn set(&mut self, address: K, len: u8, route: Route) -> Route {
        if len >= K::BITS {
            return Route(self.hosts.set(address, route.0));
        }
        set_in(&mut self.prefixes, address, len, route)
    }

    /// Sets where `address/len` is reached outside of the cluster, as [`Routes::set`] does.
    pub fn set_underlay(&mut self, address: K, len: u8, route: Route) -> Route {
        set_in(&mut self.underlay, address, len.min(K::BITS), route)
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let prefixes = self.prefixes.iter().chain(&self.underlay);
        self.hosts.bytes() + prefixes.map(|networks| networks.all.bytes()).sum::<usize>()
    }
}

/// What has the longest of `prefixes` that contains `address`.
#[inline]
fn longest<K: Address>(prefixes: &[Networks<K>], address: K) -> Route {
    for networks in prefixes {
        let value = networks.get(address);
        if value != 0 {
            return Route(value);
        }
    }
    Route(0)
}

/// Sets what has `address/len`; the route of nothing removes it. Returns the former one.
fn set_in<K: Address>(prefixes: &mut Prefixes<K>, address: K, len: u8, route: Route) -> Route {
    match prefixes.binary_search_by(|networks| len.cmp(&networks.len)) {
        Ok(at) => {
            let networks = &mut prefixes[at];
            let old = networks.set(address, route.0);
            if networks.all.is_empty() {
                prefixes.remove(at);
            }
            Route(old)
        }
        Err(at) => {
            if route.is_some() {
                let mut networks = Networks::new(len);
                networks.set(address, route.0);
                prefixes.insert(at, networks);
            }
            Route(0)
        }
    }
}

/// Routes of both families.
#[derive(Debug, Clone, Default)]
pub struct RouteTables {
    /// IPv4, keys in host order.
    pub v4: Routes<u32>,
    /// IPv6, keys in host order.
    pub v6: Routes<u128>,
}

impl RouteTables {
    /// Sets what has `address` alone. Returns the former route.
    pub fn set_host(&mut self, address: IpAddr, route: Route) -> Route {
        match address {
            IpAddr::V4(address) => self.v4.set(address.to_bits(), 32, route),
            IpAddr::V6(address) => self.v6.set(address.to_bits(), 128, route),
        }
    }

    /// Sets what has `prefix`. Returns the former route.
    pub fn set_prefix(&mut self, prefix: IpNet, route: Route) -> Route {
        match prefix {
            IpNet::V4(net) => self.v4.set(net.network().to_bits(), net.prefix_len(), route),
            IpNet::V6(net) => self.v6.set(net.network().to_bits(), net.prefix_len(), route),
        }
    }

    /// Sets where `prefix` is reached outside of the cluster. Returns the former route.
    pub fn set_underlay(&mut self, prefix: IpNet, route: Route) -> Route {
        match prefix {
            IpNet::V4(net) => {
                self.v4.set_underlay(net.network().to_bits(), net.prefix_len(), route)
            }
            IpNet::V6(net) => {
                self.v6.set_underlay(net.network().to_bits(), net.prefix_len(), route)
            }
        }
    }

    /// What has the longest prefix that contains `address`, whatever has the address itself.
    #[must_use]
    pub fn prefix(&self, address: IpAddr) -> Route {
        match address {
            IpAddr::V4(address) => self.v4.get_prefix(address.to_bits()),
            IpAddr::V6(address) => self.v6.get_prefix(address.to_bits()),
        }
    }

    /// What has `address` itself, prefixes aside.
    #[must_use]
    pub fn host(&self, address: IpAddr) -> Route {
        match address {
            IpAddr::V4(address) => self.v4.host(address.to_bits()),
            IpAddr::V6(address) => self.v6.host(address.to_bits()),
        }
    }

    /// What has `address`.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Route {
        match address {
            IpAddr::V4(address) => self.get4(address),
            IpAddr::V6(address) => self.get6(address),
        }
    }

    /// What has `address`.
    #[inline]
    #[must_use]
    pub fn get4(&self, address: Ipv4Addr) -> Route {
        self.v4.get(address.to_bits())
    }

    /// What has `address`.
    #[inline]
    #[must_use]
    pub fn get6(&self, address: Ipv6Addr) -> Route {
        self.v6.get(address.to_bits())
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::meta::Target;
    use proptest::prelude::*;

    fn route(index: u32) -> Route {
        Route::new(Target::Peer(index))
    }

    #[test]
    fn the_longest_prefix_wins_and_removal_uncovers_the_shorter() {
        let mut routes = RouteTables::default();
        routes.set_prefix("10.244.0.0/16".parse().unwrap(), route(1));
        routes.set_prefix("10.244.2.0/24".parse().unwrap(), route(2));
        routes.set_host("10.244.2.10".parse().unwrap(), route(3));
        let get = |routes: &RouteTables, a: &str| routes.get(a.parse().unwrap());
        assert_eq!(get(&routes, "10.244.2.10"), route(3));
        assert_eq!(get(&routes, "10.244.2.11"), route(2));
        assert_eq!(get(&routes, "10.244.3.11"), route(1));
        assert_eq!(get(&routes, "10.245.3.11"), Route(0));
        assert_eq!(routes.set_host("10.244.2.10".parse().unwrap(), Route(0)), route(3));
        assert_eq!(routes.set_prefix("10.244.2.0/24".parse().unwrap(), Route(0)), route(2));
        assert_eq!(get(&routes, "10.244.2.10"), route(1));
        routes.set_prefix("::/0".parse().unwrap(), route(9));
        assert_eq!(get(&routes, "fd00::1"), route(9));
    }

    #[test]
    fn no_route_of_the_underlay_takes_an_address_from_the_cluster() {
        let mut routes = RouteTables::default();
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        routes.set_prefix(prefix("10.244.2.0/24"), route(1));
        routes.set_host("10.244.3.1".parse().unwrap(), route(2));
        routes.set_underlay(prefix("0.0.0.0/0"), route(3));
        routes.set_underlay(prefix("10.244.2.128/25"), route(4));
        routes.set_underlay(prefix("10.244.3.1/32"), route(5));
        routes.set_underlay(prefix("10.245.0.0/16"), Route::DEAD_END);
        routes.set_underlay(prefix("10.245.7.7/32"), route(6));
        for (address, expected) in [
            ("10.244.2.200", route(1)),
            ("10.244.3.1", route(2)),
            ("10.244.3.2", route(3)),
            ("10.245.7.7", route(6)),
            ("10.245.7.8", Route::DEAD_END),
            ("203.0.113.10", route(3)),
        ] {
            assert_eq!(routes.get(address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(routes.prefix("10.244.3.1".parse().unwrap()), route(5));
        assert_eq!(routes.set_underlay(prefix("0.0.0.0/0"), Route(0)), route(3));
        assert_eq!(routes.get("203.0.113.10".parse().unwrap()), Route(0));
        assert_eq!(routes.get("2001:db8::1".parse().unwrap()), Route(0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            // Many of one length, and few of each of the others; some go again.
            prefixes in prop::collection::vec((any::<u32>(), prop_oneof![Just(24_u8), 0_u8..=32]), 0..60),
            gone in prop::collection::vec(0_usize..60, 0..30),
            probes in prop::collection::vec((any::<u32>(), 0_usize..60), 0..60),
        ) {
            let mut routes = Routes::<u32>::default();
            let mut list: Vec<(u32, u8, Route)> = Vec::new();
            for (number, (address, len)) in (0_u32..).zip(&prefixes) {
                let network = address & u32::mask(*len);
                list.retain(|(n, l, _)| (*n, *l) != (network, *len));
                list.push((network, *len, route(number)));
                routes.set(*address, *len, route(number));
            }
            for at in gone {
                let Some((address, len)) = prefixes.get(at) else { continue };
                let network = address & u32::mask(*len);
                list.retain(|(n, l, _)| (*n, *l) != (network, *len));
                routes.set(*address, *len, Route(0));
            }
            for (noise, near) in probes {
                // Half of the probes lie near a prefix, or they would hardly ever hit.
                let near = prefixes.get(near).map_or(noise, |(a, _)| a ^ (noise & 0xff));
                for probe in [noise, near] {
                    let expected = list
                        .iter()
                        .filter(|(n, l, _)| probe & u32::mask(*l) == *n)
                        .max_by_key(|(_, l, _)| *l)
                        .map_or(Route(0), |(_, _, r)| *r);
                    prop_assert_eq!(routes.get(probe), expected);
                }
            }
        }
    }
}
