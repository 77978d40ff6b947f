//! How flows leave the cluster: with whose address.
//!
//! ```text
//! destination in non-masquerade ranges -> as it is
//! source --> class: the rules that name it --> destination --> the first of them that names it
//! ```
//!
//! Two binary searches, however many rules there are: the sources' borders cut the addresses into
//! pieces, pieces of the same rules are one class, and each class has the destinations' pieces, each
//! with the first rule that names it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use overlane_api::EgressAction;

use super::intervals::Spaces;

/// What to do with a flow that leaves the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressDecision {
    /// It takes this node's address of its family.
    Node(IpAddr),
    /// It takes an address of a NAT gateway, by the number of its [`Pool`].
    Gateway(u32),
    /// It keeps its own.
    None,
    /// It is dropped.
    Deny,
    /// It should take this node's address, but the node has none of its family.
    NoAddress,
}

/// Who has the addresses of a NAT gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This node.
    Here,
    /// Another, by index.
    Peer(u32),
    /// No node that is known.
    Nobody,
}

/// A NAT gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    addresses: Box<[IpAddr]>,
    /// Where its flows go to take their address.
    pub holder: Holder,
}

impl Pool {
    /// A gateway of these addresses.
    #[must_use]
    pub fn new(addresses: &[IpAddr], holder: Holder) -> Self {
        Self { addresses: addresses.into(), holder }
    }

    /// Its addresses of both families.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The address of its family that `pod` always takes (RFC 4787 REQ-2: paired): the one that
    /// hashes highest with the pod's, so that an address more or less moves no pods but its own.
    /// None: the gateway has no address of that family.
    #[must_use]
    pub fn paired(&self, pod: IpAddr) -> Option<IpAddr> {
        let family = self.addresses.iter().filter(|own| own.is_ipv4() == pod.is_ipv4());
        family.max_by_key(|own| (mix(bits(pod) ^ mix(bits(**own))), **own)).copied()
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Mixes all bits into all bits: two rounds of multiplication by an odd number.
const fn mix(value: u128) -> u128 {
    const ODD: u128 = 0xda94_2042_e4dd_58b5_9e37_79b9_7f4a_7c15;
    let value = (value ^ (value >> 67)).wrapping_mul(ODD);
    let value = (value ^ (value >> 59)).wrapping_mul(ODD);
    value ^ (value >> 64)
}

/// An action, without what belongs to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Node,
    Gateway,
    None,
    Deny,
}

/// A rule, as it comes into the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule<'a> {
    /// A rule's or the node's action; of a gateway, who holds its addresses.
    Action(&'a EgressAction, Holder),
    /// No rule has this number.
    Free,
}

/// All rules. Rule 0 is what is done when no other names a flow.
#[derive(Debug, Clone, Default)]
pub struct EgressTables {
    keep: Spaces,
    sources: Spaces,
    classes: Vec<Arc<Spaces>>,
    actions: Vec<Action>,
    pools: Vec<Option<Pool>>,
    holds_gateway: bool,
    uses_peer: bool,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl EgressTables {
    /// Tables of rules by number. `sources` has the number of each source's class, `classes` the
    /// number of each destination's rule, and `keep` is not 0 for destinations to which flows keep
    /// their address.
    #[must_use]
    pub fn new<'a>(
        keep: Spaces,
        sources: Spaces,
        classes: Vec<Arc<Spaces>>,
        rules: impl Iterator<Item = Rule<'a>>,
    ) -> Self {
        let (mut actions, mut pools) = (Vec::new(), Vec::new());
        for rule in rules {
            let (action, pool) = match rule {
                Rule::Free | Rule::Action(EgressAction::None, _) => (Action::None, None),
                Rule::Action(EgressAction::Node, _) => (Action::Node, None),
                Rule::Action(EgressAction::Deny, _) => (Action::Deny, None),
                Rule::Action(EgressAction::Gateway { addresses, .. }, holder) => {
                    (Action::Gateway, Some(Pool::new(addresses, holder)))
                }
            };
            actions.push(action);
            pools.push(pool);
        }
        let any =
            |is: fn(Holder) -> bool| pools.iter().flatten().any(|pool: &Pool| is(pool.holder));
        let holds_gateway = any(|holder| holder == Holder::Here);
        let uses_peer = any(|holder| matches!(holder, Holder::Peer(_)));
        Self {
            keep,
            sources,
            classes,
            actions,
            pools,
            holds_gateway,
            uses_peer,
            v4: None,
            v6: None,
        }
    }

    /// With these addresses of this node.
    #[must_use]
    pub fn with_node(self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        Self { v4, v6, ..self }
    }

    /// What to do with a flow from a pod of address `source` to `destination`, which is the
    /// backend's if it went to a service, and neither a pod nor a node of the cluster.
    #[must_use]
    pub fn decide(&self, source: IpAddr, destination: IpAddr) -> EgressDecision {
        let Some(rule) = self.rule(source, destination) else { return EgressDecision::None };
        match self.actions.get(rule as usize) {
            Some(Action::Node) => {
                let address = match source {
                    IpAddr::V4(_) => self.v4.map(IpAddr::V4),
                    IpAddr::V6(_) => self.v6.map(IpAddr::V6),
                };
                address.map_or(EgressDecision::NoAddress, EgressDecision::Node)
            }
            Some(Action::Gateway) => EgressDecision::Gateway(rule),
            Some(Action::Deny) => EgressDecision::Deny,
            Some(Action::None) => EgressDecision::None,
            // Nothing is known yet, this node least of all.
            None => EgressDecision::NoAddress,
        }
    }

    /// The number of the rule that says so; none when the destination is one to which flows keep
    /// their address.
    #[must_use]
    pub fn rule(&self, source: IpAddr, destination: IpAddr) -> Option<u32> {
        if self.keep.get(destination) != 0 {
            return None;
        }
        let class = self.classes.get(self.sources.get(source) as usize);
        Some(class.map_or(0, |class| class.get(destination)))
    }

    /// A gateway by its number.
    #[must_use]
    pub fn pool(&self, number: u32) -> Option<&Pool> {
        self.pools.get(number as usize)?.as_ref()
    }

    /// Addresses with which flows leave from this node: its own, and those of gateways that it
    /// holds.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let own = self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6));
        let pools = self.pools.iter().flatten().filter(|pool| pool.holder == Holder::Here);
        own.chain(pools.flat_map(|pool| pool.addresses.iter().copied()))
    }

    /// Are addresses of a NAT gateway here?
    #[inline]
    #[must_use]
    pub fn holds_gateway(&self) -> bool {
        self.holds_gateway
    }

    /// Are addresses of a NAT gateway at a peer?
    #[inline]
    #[must_use]
    pub fn uses_peer(&self) -> bool {
        self.uses_peer
    }

    /// Is there any rule besides the node's own action?
    #[inline]
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.actions.len() > 1
    }

    /// Classes of sources.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Bytes of memory; destinations that classes share are counted with each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let classes = self.classes.iter().map(|class| class.bytes() + size_of::<Spaces>());
        self.keep.bytes() + self.sources.bytes() + classes.sum::<usize>() + self.actions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_keeps_its_address_of_the_gateway() {
        let addresses: Vec<IpAddr> = (1..=16).map(|n| IpAddr::from([203, 0, 113, n])).collect();
        let all = Pool::new(&addresses, Holder::Here);
        let less = Pool::new(&addresses[1..], Holder::Here);
        let pods = (0..4096_u32).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0af4_0100 + n)));
        let mut counts = std::collections::HashMap::new();
        for pod in pods {
            let own = all.paired(pod).unwrap();
            *counts.entry(own).or_insert(0) += 1;
            if own != addresses[0] {
                assert_eq!(less.paired(pod), Some(own));
            }
        }
        assert_eq!(counts.len(), 16);
        for (address, count) in counts {
            assert!((180..340).contains(&count), "{address}: {count} of 4096 pods");
        }
        assert_eq!(all.paired("fd12::10".parse().unwrap()), None);
    }
}
