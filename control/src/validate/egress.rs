//! How pods leave the cluster: source NAT, gateways and rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Egress, EgressAction, Mode, PortRange, SnatSettings, Timeouts};

use super::refusal::named;
use super::{Check, Refusal, join, overlaps};
use crate::config::egress::{Action, EgressSetting, Gateway, Ports};
use crate::manifests::selector::Selector;

/// First port that source NAT may use: those below are for services (RFC 6335 section 6).
const FIRST_SNAT_PORT: u16 = 1024;
/// Longest timeout, seconds: a day for each of them is far beyond use.
const MAX_SECONDS: u64 = 7 * 86_400;
/// Most flows of one worker and family: 2^24 halves of IPv6 are 2 GiB.
const MAX_FLOWS: u64 = 1 << 23;
/// Fewest flows that are worth a table.
const MIN_FLOWS: u64 = 1 << 10;

/// A rule for pods that leave the cluster, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    /// Its name.
    pub name: String,
    /// Its place in the list.
    pub order: u32,
    /// Labels of the pods it means.
    pub pods: Option<Selector>,
    /// Labels of the namespaces whose pods it means.
    pub namespaces: Option<Selector>,
    /// Pods by address, when it has no selector.
    pub sources: Vec<IpNet>,
    /// Destinations it means; all when empty.
    pub destinations: Vec<IpNet>,
    /// What is done.
    pub action: EgressAction,
}

impl EgressRule {
    /// Does it choose pods by labels?
    #[must_use]
    pub const fn selects(&self) -> bool {
        self.pods.is_some() || self.namespaces.is_some()
    }
}

impl Check<'_> {
    /// The range of NodePorts.
    pub(super) fn node_ports(&mut self) -> PortRange {
        match self.config.node_port_range {
            Some(written) => {
                let range = self.port_range("nodePortRange", written, 1);
                range.unwrap_or(PortRange::NODE_PORTS)
            }
            None => PortRange::NODE_PORTS,
        }
    }

    fn port_range(&mut self, field: &'static str, written: Ports, least: u16) -> Option<PortRange> {
        for port in [written.first, written.last] {
            if !(u64::from(least)..=65535).contains(&port) {
                let number = named(field, written);
                let why = (least == FIRST_SNAT_PORT)
                    .then_some("ports below 1024 belong to the host's services");
                self.refuse(Refusal::Range { number, least: least.into(), most: 65535, why });
                return None;
            }
        }
        let (first, last) = (u16::try_from(written.first).ok()?, u16::try_from(written.last).ok()?);
        let range = PortRange::new(first, last).ok();
        if range.is_none() {
            let (first, second) = (named(field, written), named("its", "order"));
            let advice = "write the smaller port first";
            self.refuse(Refusal::Contradiction { first, second, advice });
        }
        range
    }

    /// Source NAT's settings.
    pub(super) fn snat(&mut self, node_ports: PortRange) -> SnatSettings {
        let written = &self.config.snat;
        let defaults = SnatSettings::default();
        let ports = self.snat_ports(written.ports, node_ports).unwrap_or(defaults.ports);
        let mut timeouts = Timeouts::default();
        for (field, value, place) in written.timeouts.fields(&mut timeouts) {
            *place = self.seconds(field, value, 1, *place);
        }
        let (fin, rst) = (defaults.fin_cooldown, defaults.rst_cooldown);
        let max_ports_per_pod = written.max_ports_per_pod.map(|most| {
            let ports = u64::from(ports.count());
            self.number(named("snat.maxPortsPerPod", most), most, 1, ports, None);
            u32::try_from(most).unwrap_or(u32::MAX)
        });
        let gateway = written.gateway.as_deref();
        SnatSettings {
            ports,
            non_masquerade: self.non_masquerade(),
            action: self.action(["snat.action", "snat.gateway"], written.action, gateway),
            fin_cooldown: self.seconds("snat.finCooldown", written.fin_cooldown, 0, fin),
            rst_cooldown: self.seconds("snat.rstCooldown", written.rst_cooldown, 0, rst),
            timeouts,
            max_ports_per_pod,
        }
    }

    fn snat_ports(&mut self, written: Option<Ports>, node_ports: PortRange) -> Option<PortRange> {
        let written = written.unwrap_or_else(|| PortRange::SNAT_DEFAULT.into());
        let ports = self.port_range("snat.ports", written, FIRST_SNAT_PORT)?;
        if ports.overlaps(node_ports) {
            let (first, second) = (named("snat.ports", ports), named("nodePortRange", node_ports));
            self.refuse(Refusal::PortsOverlap {
                first,
                second,
                advice: "a packet to such a port could be meant for a service or for a pod; choose ranges that share no port",
            });
        }
        if let Some(local) = self.host.local_ports.filter(|local| ports.overlaps(*local)) {
            let (first, second) = (named("snat.ports", ports), named("ip_local_port_range", local));
            self.refuse(Refusal::PortsOverlap {
                first,
                second,
                advice: "the host takes ports of its own from there, which Overlane does not see; choose other ports, or move the host's with sysctl net.ipv4.ip_local_port_range",
            });
        }
        Some(ports)
    }

    fn seconds(
        &mut self,
        field: &'static str,
        written: Option<u64>,
        least: u64,
        default: u32,
    ) -> u32 {
        let Some(written) = written else { return default };
        self.number(named(field, written), written, least, MAX_SECONDS, Some("seconds"));
        u32::try_from(written).unwrap_or(default)
    }

    /// Pods reach each other with their own addresses; in mode flat they have addresses of the
    /// node network, which everything there can answer.
    fn non_masquerade(&mut self) -> Vec<IpNet> {
        let config = self.config;
        let written = &config.snat.non_masquerade;
        for range in written.iter().filter(|range| range.trunc() != **range) {
            let network = range.trunc();
            let range = named("snat.nonMasqueradeCIDRs", range);
            self.refuse(Refusal::HostBits { range, network });
        }
        let flat: &[IpNet] = if config.mode == Mode::Flat { &config.node_cidr } else { &[] };
        let all: BTreeSet<IpNet> =
            written.iter().chain(&config.pod_cidr).chain(flat).copied().collect();
        all.into_iter().collect()
    }

    /// Flows of each worker.
    pub(super) fn flow_capacity(&mut self) -> u32 {
        let Some(written) = self.config.flow_capacity else {
            return overlane_api::node::DEFAULT_FLOW_CAPACITY;
        };
        self.number(named("flowCapacity", written), written, MIN_FLOWS, MAX_FLOWS, None);
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn action(
        &mut self,
        [field, gateway_field]: [&'static str; 2],
        action: Action,
        gateway: Option<&str>,
    ) -> EgressAction {
        if action != Action::Gateway
            && let Some(gateway) = gateway
        {
            self.refuse(Refusal::Contradiction {
                first: named(gateway_field, gateway),
                second: named(field, action),
                advice: "a gateway is used only with the action `gateway`; write it, or remove the gateway",
            });
        }
        match action {
            Action::Node => EgressAction::Node,
            Action::None => EgressAction::None,
            Action::Deny => EgressAction::Deny,
            Action::Gateway => self.gateway(gateway_field, gateway),
        }
    }

    fn gateway(&mut self, field: &'static str, gateway: Option<&str>) -> EgressAction {
        let gateways = &self.config.gateways;
        let Some(name) = gateway else {
            let advice = "the action `gateway` needs the name of one of `gateways`";
            self.refuse(Refusal::Empty { field, advice });
            return EgressAction::Deny;
        };
        match gateways.iter().find(|known| known.name == name) {
            Some(known) => EgressAction::Gateway {
                addresses: known.addresses.clone(),
                nodes: known.nodes.clone(),
            },
            None => {
                let names: Vec<&str> = gateways.iter().map(|known| known.name.as_str()).collect();
                self.refuse(Refusal::Unknown {
                    value: named(field, name),
                    known: named("gateways", super::or_none(&names)),
                });
                EgressAction::Deny
            }
        }
    }

    /// The gateways by themselves; they are used by name.
    pub(super) fn gateways(&mut self) {
        let config = self.config;
        let mut names = BTreeSet::new();
        let mut owners: Vec<(IpAddr, &str)> = Vec::new();
        for gateway in &config.gateways {
            let Gateway { name, addresses, nodes } = gateway;
            if name.is_empty() || nodes.is_empty() {
                let advice = "a gateway needs a name and the nodes that hold its addresses";
                let field = if name.is_empty() { "gateways.name" } else { "gateways.nodes" };
                self.refuse(Refusal::Empty { field, advice });
            }
            if !names.insert(name) {
                self.refuse(Refusal::Twice { value: named("gateways.name", name) });
            }
            let (count, most) = (addresses.len(), Egress::MAX_ADDRESSES);
            if !(1..=most).contains(&count) {
                let number = named("gateways.addresses", format!("of {name:?}: {count}"));
                let why = Some("a NAT gateway has 16 addresses at most");
                let (least, most) = (1, u64::try_from(most).unwrap_or(u64::MAX));
                self.refuse(Refusal::Range { number, least, most, why });
            }
            for address in addresses {
                match owners.iter().find(|(other, _)| other == address) {
                    Some((_, owner)) => self.refuse(Refusal::Contradiction {
                        first: named("gateways.addresses", format!("{address} of {name:?}")),
                        second: named("gateways.addresses", format!("{address} of {owner:?}")),
                        advice: "an address belongs to one gateway; remove it from one of the two",
                    }),
                    None => owners.push((*address, name)),
                }
                self.gateway_address(*address);
            }
        }
    }

    fn gateway_address(&mut self, address: IpAddr) {
        let config = self.config;
        let fields = [("podCIDR", &config.pod_cidr), ("serviceCIDR", &config.service_cidr)];
        for (field, range) in
            fields.iter().flat_map(|(field, ranges)| ranges.iter().map(move |range| (field, range)))
        {
            if range.contains(&address) {
                self.refuse(Refusal::Inside {
                    inner: named("gateways.addresses", address),
                    outer: named(field, range),
                    advice: "choose an address that no pod and no service can get",
                });
            }
        }
    }

    /// The rules, in the order of the list.
    pub(super) fn egress(&mut self) -> Vec<EgressRule> {
        let config = self.config;
        let mut names = BTreeSet::new();
        let mut rules = Vec::with_capacity(config.egress.len());
        for (order, written) in config.egress.iter().enumerate() {
            if written.name.is_empty() {
                let advice = "a rule needs a name: listings and messages show it";
                self.refuse(Refusal::Empty { field: "egress.name", advice });
            } else if !names.insert(&written.name) {
                self.refuse(Refusal::Twice { value: named("egress.name", &written.name) });
            }
            rules.push(self.rule(u32::try_from(order).unwrap_or(u32::MAX), written));
        }
        rules
    }

    fn rule(&mut self, order: u32, written: &EgressSetting) -> EgressRule {
        let config = self.config;
        let selectors = [&written.pod_selector, &written.namespace_selector];
        if !written.sources.is_empty() && selectors.iter().any(|selector| selector.is_some()) {
            self.refuse(Refusal::Contradiction {
                first: named("egress.sourceCIDRs", join(&written.sources)),
                second: named("the selectors of rule", &written.name),
                advice: "choose pods by labels or by address; make two rules for both",
            });
        }
        for requirement in selectors.into_iter().flatten().filter_map(Selector::malformed) {
            self.refuse(Refusal::Contradiction {
                first: named(
                    "operator",
                    format!("{:?} of {:?}", requirement.operator, requirement.key),
                ),
                second: named("values", format!("[{}]", join(&requirement.values))),
                advice: "In and NotIn need values, Exists and DoesNotExist have none",
            });
        }
        for range in &written.sources {
            let pods = if config.mode == Mode::Flat { &config.node_cidr } else { &config.pod_cidr };
            if !pods.iter().any(|pods| overlaps(pods, range)) {
                self.refuse(Refusal::Outside {
                    inner: named("egress.sourceCIDRs", range),
                    outer: named("podCIDR", super::or_none(pods)),
                    advice: "no pod has an address there",
                });
            }
        }
        let gateway = written.gateway.as_deref();
        EgressRule {
            name: written.name.clone(),
            order,
            pods: written.pod_selector.clone(),
            namespaces: written.namespace_selector.clone(),
            sources: sorted(&written.sources),
            destinations: sorted(&written.destinations),
            action: self.action(["egress.action", "egress.gateway"], written.action, gateway),
        }
    }
}

fn sorted(ranges: &[IpNet]) -> Vec<IpNet> {
    let ranges: BTreeSet<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    ranges.into_iter().collect()
}
