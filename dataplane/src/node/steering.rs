//! What the uplink's program takes for connections: answers to flows that left with an address of
//! this node's, and what comes to services from outside.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlane_api::{Egress, EgressAction, FrontendKind, Mode, Node, PortRange, Service};
use overlane_bpf::{BpfError, UplinkSteering};

/// What is to be steered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Connections {
    /// Ports that flows leave with; absent: no flow leaves with another address.
    snat_ports: Option<PortRange>,
    /// Addresses that they leave with.
    egress: BTreeSet<IpAddr>,
    /// Addresses that services alone have.
    services: BTreeSet<IpAddr>,
    /// Ports of this node's addresses at which services answer: protocol number and port.
    node_ports: BTreeSet<(u8, u16)>,
}

impl Connections {
    /// No connections.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Flows that leave: by this node's own addresses when it `has_pods` and the settings or a rule
    /// say so, in flat mode only a rule; by `external` ones, which are the node's own and those of
    /// NAT gateways that it holds, when there are such, for other nodes' pods use them too.
    #[must_use]
    pub(super) fn with_egress<'a>(
        mut self,
        node: &Node,
        has_pods: bool,
        mut rules: impl Iterator<Item = &'a Egress>,
        external: impl Iterator<Item = IpAddr>,
    ) -> Self {
        let by_default = node.mode != Mode::Flat && node.snat.action == EgressAction::Node;
        let by_node =
            has_pods && (by_default || rules.any(|rule| rule.action == EgressAction::Node));
        self.egress =
            external.filter(|address| by_node || !node.addresses.contains(address)).collect();
        self.snat_ports = (!self.egress.is_empty()).then_some(node.snat.ports);
        self
    }

    /// Services that are seen from outside. One that answers at this node's own address takes its
    /// port and nothing else: the address is the host's as well.
    #[must_use]
    pub(super) fn with_services<'a>(
        mut self,
        node: &Node,
        services: impl Iterator<Item = &'a Service>,
    ) -> Self {
        for service in services {
            let outside = service.frontends.iter().filter(|f| f.kind != FrontendKind::ClusterIp);
            for frontend in outside {
                if node.addresses.contains(&frontend.address) {
                    self.node_ports.insert((service.protocol.number(), frontend.port));
                } else if frontend.kind != FrontendKind::NodePort {
                    self.services.insert(frontend.address);
                }
            }
        }
        self
    }

    /// May a fragment to one of this node's own addresses, or to those that flows leave with, be of a
    /// connection? Only its packet's first fragment tells.
    #[must_use]
    pub(super) fn may_come_in_fragments(&self) -> bool {
        self.snat_ports.is_some() || !self.node_ports.is_empty()
    }

    /// Tells the uplink's program; it writes what differs.
    ///
    /// # Errors
    /// The kernel's, or that a table is full; what was told before that is in force.
    pub(super) fn apply(&self, steering: &mut UplinkSteering) -> Result<(), BpfError> {
        let list = |set: &BTreeSet<IpAddr>| set.iter().copied().collect::<Vec<_>>();
        let node_ports: Vec<(u8, u16)> = self.node_ports.iter().copied().collect();
        steering.set_egress_addresses(&list(&self.egress))?;
        steering.set_snat_ports(self.snat_ports.map(|ports| ports.first()..=ports.last()))?;
        steering.set_node_ports(&node_ports)?;
        steering.set_service_addresses(&list(&self.services))
    }
}

#[cfg(test)]
mod tests {
    use overlane_api::{Algorithm, Forwarding, Frontend, Protocol, Reject, Scope, Underlay};

    use super::*;
    use crate::testing::objects;

    const POOL: &str = "203.0.113.7";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rule(action: EgressAction) -> Egress {
        Egress {
            name: "rule".into(),
            order: 1,
            sources: Vec::new(),
            destinations: Vec::new(),
            action,
        }
    }

    /// What is steered for flows that leave node a, which holds a gateway's address or not.
    fn egress(
        mode: Mode,
        action: EgressAction,
        has_pods: bool,
        rules: &[Egress],
        pool: bool,
    ) -> Connections {
        let mut node = objects::node(mode, Underlay::Ipv4);
        node.snat.action = action;
        let external = node.addresses.iter().copied().chain(pool.then(|| ip(POOL)));
        let external: Vec<IpAddr> = external.collect();
        Connections::none().with_egress(&node, has_pods, rules.iter(), external.into_iter())
    }

    fn addresses(connections: &Connections) -> Vec<IpAddr> {
        assert_eq!(connections.snat_ports.is_some(), !connections.egress.is_empty());
        assert_eq!(connections.may_come_in_fragments(), !connections.egress.is_empty());
        connections.egress.iter().copied().collect()
    }

    #[test]
    fn answers_come_to_the_nodes_addresses_when_its_pods_leave_with_them() {
        let own = objects::node_addresses(0);
        for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native] {
            let found = egress(mode, EgressAction::Node, true, &[], false);
            assert_eq!(addresses(&found), own);
            assert_eq!(found.snat_ports, Some(PortRange::SNAT_DEFAULT));
            assert_eq!(
                egress(mode, EgressAction::Node, false, &[], false),
                Connections::none(),
                "no pods"
            );
            for action in [EgressAction::None, EgressAction::Deny] {
                assert_eq!(egress(mode, action, true, &[], false), Connections::none());
            }
        }
    }

    #[test]
    fn a_rule_is_enough_and_flat_mode_needs_one() {
        let node_rule = [rule(EgressAction::Deny), rule(EgressAction::Node)];
        for mode in [Mode::Native, Mode::Flat] {
            for action in [EgressAction::None, EgressAction::Deny] {
                let found = egress(mode, action.clone(), true, &node_rule, false);
                assert_eq!(addresses(&found), objects::node_addresses(0));
                let found = egress(mode, action, true, &node_rule[..1], false);
                assert_eq!(found, Connections::none());
            }
        }
        let found = egress(Mode::Flat, EgressAction::Node, true, &[], false);
        assert_eq!(found, Connections::none(), "pods' addresses are the underlay's own");
    }

    #[test]
    fn a_gateways_addresses_are_answered_to_where_they_are() {
        let gateway = EgressAction::Gateway { addresses: vec![ip(POOL)], nodes: vec!["a".into()] };
        let rules = [rule(gateway)];
        for has_pods in [false, true] {
            let found = egress(Mode::Geneve, EgressAction::None, has_pods, &rules, true);
            assert_eq!(addresses(&found), [ip(POOL)], "for other nodes' pods as well");
        }
        let found = egress(Mode::Geneve, EgressAction::Node, true, &rules, true);
        assert_eq!(addresses(&found), [ip("10.0.1.4"), ip(POOL), ip("fd00:10:0:1::4")]);
        let elsewhere = egress(Mode::Geneve, EgressAction::None, true, &rules, false);
        assert_eq!(elsewhere, Connections::none());
    }

    fn service(protocol: Protocol, frontends: &[(&str, u16, FrontendKind)]) -> Service {
        let frontends = frontends.iter().map(|(address, port, kind)| Frontend {
            address: ip(address),
            port: *port,
            kind: *kind,
        });
        Service {
            name: format!("default/web:{protocol}"),
            protocol,
            frontends: frontends.collect(),
            backends: Vec::new(),
            internal: Scope::Cluster,
            external: Scope::Cluster,
            affinity_seconds: None,
            source_ranges: Vec::new(),
            reject: Reject::Rst,
            forwarding: Forwarding::Snat,
            algorithm: Algorithm::Maglev,
            health_check_port: Some(30_900),
        }
    }

    #[test]
    fn services_are_steered_by_what_the_outside_sees_of_them() {
        use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
        let services = [
            service(
                Protocol::Tcp,
                &[
                    ("10.96.0.20", 80, ClusterIp),
                    ("10.0.1.4", 30_080, NodePort),
                    ("fd00:10:0:1::4", 30_080, NodePort),
                    ("198.51.100.7", 80, LoadBalancer),
                    ("2001:db8:51::7", 80, LoadBalancer),
                ],
            ),
            service(
                Protocol::Udp,
                &[
                    ("198.51.100.7", 53, LoadBalancer),
                    ("198.51.100.9", 53, ExternalIp),
                    // The node's own: the rest of it is the host's.
                    ("10.0.1.4", 53, ExternalIp),
                    // Of another node: what does that here?
                    ("10.0.1.5", 30_053, NodePort),
                ],
            ),
        ];
        let node = objects::node(Mode::Geneve, Underlay::Ipv4);
        let found = Connections::none().with_services(&node, services.iter());
        let expected = [ip("198.51.100.7"), ip("198.51.100.9"), ip("2001:db8:51::7")];
        assert_eq!(found.services, expected.into());
        assert_eq!(found.node_ports, [(6, 30_080), (17, 53)].into());
        assert!(found.may_come_in_fragments());
        assert_eq!((found.snat_ports, found.egress), (None, BTreeSet::new()));
    }
}
