//! Checks a configuration as a whole before anything starts. Everything that is wrong is
//! reported at once, each refusal with both fields, both values and what to do.

mod egress;
mod membership;
mod refusal;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{
    EncapSettings, HostPort, MacAddr, Mode, OuterDscp, PortRange, SnatSettings, Underlay, Vni,
};

pub use egress::EgressRule;
pub use membership::{Announce, MembershipSettings, NatGateway};
pub use refusal::{Named, Refusal};

use crate::config::{Config, DscpSetting, HostPortSetting};
use crate::host::Host;
use crate::membership::keys::KeySettings;

use crate::manifests::pod::{MAX_INTERFACE, is_interface_name};
use refusal::named;

/// Smallest MTU of a link that carries IPv6, bytes (RFC 8200 section 5).
const MIN_MTU_V6: u16 = 1280;
/// Smallest MTU of a link that carries IPv4 and is worth configuring, bytes (RFC 791: every
/// host takes 576).
const MIN_MTU_V4: u16 = 576;
/// Shortest prefix of an IPv4 service range (AKS and Kubernetes: no larger than a /12).
const MIN_SERVICE_PREFIX: u8 = 12;

/// A configuration that was checked as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validated {
    /// This node's name in the cluster.
    pub node_name: String,
    /// Interface towards the underlay.
    pub uplink: String,
    /// How other nodes are reached unless their Node says otherwise.
    pub mode: Mode,
    /// Ranges of the node network.
    pub node_cidrs: Vec<IpNet>,
    /// Pod ranges of the cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Service ranges.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses that pods use as their gateway.
    pub gateway_addresses: Vec<IpAddr>,
    /// The node's gateway MAC, if written.
    pub gateway_mac: Option<MacAddr>,
    /// The node's own addresses, if written.
    pub node_addresses: Vec<IpAddr>,
    /// Bytes.
    pub underlay_mtu: u16,
    /// The host port.
    pub host_port: Option<HostPort>,
    /// Source NAT.
    pub snat: SnatSettings,
    /// Rules for pods that leave the cluster.
    pub egress: Vec<EgressRule>,
    /// Flows that each worker can hold, of each family.
    pub flow_capacity: u32,
    /// The cluster's NodePorts.
    pub node_ports: PortRange,
    /// Ranges of addresses of this node, besides its own, that answer NodePorts.
    pub node_port_addresses: Vec<IpNet>,
    /// Are `externalIPs` answered?
    pub external_ips: bool,
    /// NAT gateways.
    pub gateways: Vec<NatGateway>,
    /// Which addresses one live node answers for.
    pub announce: Announce,
    /// How nodes know which of them live; absent: nothing needs it.
    pub membership: Option<MembershipSettings>,
    /// Where the keys are that its messages are authenticated with; absent: they are not.
    pub membership_keys: Option<KeySettings>,
    /// Facts of this machine.
    pub host: Host,
    /// Family of the outer header, if written.
    underlay: Option<Underlay>,
    /// podMTU, if written, bytes.
    pod_mtu: Option<u16>,
    /// Everything of the outer header but its family.
    encap: EncapSettings,
}

impl Validated {
    /// The outer header's settings on a node with `addresses`: IPv4 where the node has it.
    #[must_use]
    pub fn encap(&self, addresses: &[IpAddr]) -> EncapSettings {
        let underlay = self.underlay.unwrap_or_else(|| default_underlay(addresses.iter()));
        EncapSettings { underlay, ..self.encap.clone() }
    }

    /// MTU of the pods' interfaces under this outer header, bytes.
    #[must_use]
    pub fn pod_mtu(&self, underlay: Underlay) -> u16 {
        self.pod_mtu
            .unwrap_or_else(|| self.underlay_mtu.saturating_sub(overhead(self.mode, underlay)))
    }

    /// Where pods may have their addresses: the pod ranges, and in mode flat without such the
    /// node network.
    #[must_use]
    pub fn pod_ranges(&self) -> (&'static str, &[IpNet]) {
        if self.mode == Mode::Flat && self.pod_cidrs.is_empty() {
            ("nodeCIDR", &self.node_cidrs)
        } else {
            ("podCIDR", &self.pod_cidrs)
        }
    }
}

/// Bytes that a mode adds to each IP packet of a pod: outer IP header, UDP, Geneve without
/// options or VXLAN (8 each), inner Ethernet header.
#[must_use]
pub const fn overhead(mode: Mode, underlay: Underlay) -> u16 {
    match (mode.is_tunnel(), underlay) {
        (false, _) => 0,
        (true, Underlay::Ipv4) => 20 + 8 + 8 + 14,
        (true, Underlay::Ipv6) => 40 + 8 + 8 + 14,
    }
}

/// Is `inner` wholly inside one of `ranges`?
#[must_use]
pub fn is_inside(inner: &IpNet, ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| range.contains(inner))
}

/// Do the ranges share an address?
#[must_use]
pub fn overlaps(first: &IpNet, second: &IpNet) -> bool {
    first.contains(second) || second.contains(first)
}

/// `a, b, c` for messages.
#[must_use]
pub fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks `config` as a whole, and against the machine it is for.
///
/// # Errors
/// Everything that is refused, in the order of the fields.
pub fn validate(config: Config, host: Host) -> Result<Validated, Vec<Refusal>> {
    let mut check = Check { config: &config, host: &host, refusals: Vec::new() };
    check.names();
    check.ranges();
    check.services();
    check.addresses();
    let encap = check.encap();
    let (underlay_mtu, pod_mtu) = check.mtus();
    let host_port = check.host_port();
    let node_ports = check.node_ports();
    let snat = check.snat(node_ports);
    check.gateways();
    let egress = check.egress();
    let flow_capacity = check.flow_capacity();
    let membership = check.membership(snat.ports, node_ports, encap.as_ref());
    let membership_keys = check.membership_keys();
    let gateways = check.nat_gateways();
    let Some(encap) = encap.filter(|_| check.refusals.is_empty()) else {
        return Err(check.refusals);
    };
    Ok(Validated {
        node_name: config.node_name,
        uplink: config.uplink,
        mode: config.mode,
        node_cidrs: config.node_cidr,
        pod_cidrs: config.pod_cidr,
        service_cidrs: config.service_cidr,
        gateway_addresses: config.gateway_ips,
        gateway_mac: config.gateway_mac,
        node_addresses: config.node_addresses,
        underlay_mtu,
        host_port,
        snat,
        egress,
        flow_capacity,
        node_ports,
        node_port_addresses: config.node_port_addresses,
        external_ips: config.enable_external_ips,
        gateways,
        announce: config.announce,
        membership,
        membership_keys,
        host,
        underlay: config.underlay,
        pod_mtu,
        encap,
    })
}

fn default_underlay<'a>(mut addresses: impl Iterator<Item = &'a IpAddr>) -> Underlay {
    if addresses.any(IpAddr::is_ipv4) { Underlay::Ipv4 } else { Underlay::Ipv6 }
}

/// The checks and what they found.
struct Check<'a> {
    config: &'a Config,
    host: &'a Host,
    refusals: Vec<Refusal>,
}

impl Check<'_> {
    fn refuse(&mut self, refusal: Refusal) {
        self.refusals.push(refusal);
    }

    fn names(&mut self) {
        if self.config.node_name.is_empty() {
            let advice = "write the name of this machine's Node";
            self.refuse(Refusal::Empty { field: "nodeName", advice });
        }
        self.interface("uplink", &self.config.uplink, MAX_INTERFACE);
        if self.config.node_cidr.is_empty() {
            let advice = "write the range of the node network (the VNet)";
            self.refuse(Refusal::Empty { field: "nodeCIDR", advice });
        }
        if self.config.pod_cidr.is_empty() && self.config.mode != Mode::Flat {
            let advice = "write the pod range of the cluster; only mode flat does without";
            self.refuse(Refusal::Empty { field: "podCIDR", advice });
        }
        if self.config.gateway_ips.is_empty() {
            let advice = "leave it out for the default, 169.254.1.1 and fe80::1";
            self.refuse(Refusal::Empty { field: "gatewayIPs", advice });
        }
    }

    fn interface(&mut self, field: &'static str, name: &str, most: usize) {
        if !is_interface_name(name) || name.len() > most {
            self.refuse(Refusal::Interface { interface: named(field, format!("{name:?}")), most });
        }
    }

    fn ranges(&mut self) {
        let config = self.config;
        let fields = [
            ("podCIDR", &config.pod_cidr),
            ("serviceCIDR", &config.service_cidr),
            ("nodeCIDR", &config.node_cidr),
        ];
        let all: Vec<(&'static str, IpNet)> = fields
            .iter()
            .flat_map(|(field, ranges)| ranges.iter().map(move |range| (*field, *range)))
            .collect();
        for (place, (field, range)) in all.iter().enumerate() {
            if range.trunc() != *range {
                let network = range.trunc();
                self.refuse(Refusal::HostBits { range: named(field, range), network });
            }
            for (other_field, other) in all.iter().skip(place + 1) {
                // In mode flat pods have addresses of the node network.
                let flat =
                    config.mode == Mode::Flat && (*field, *other_field) == ("podCIDR", "nodeCIDR");
                if !flat && overlaps(range, other) {
                    let (first, second) = (named(field, range), named(other_field, other));
                    self.refuse(Refusal::Overlap { first, second });
                }
            }
        }
        if config.mode == Mode::Flat {
            for range in config.pod_cidr.iter().filter(|range| !is_inside(range, &config.node_cidr))
            {
                self.refuse(Refusal::Outside {
                    inner: named("podCIDR", range),
                    outer: named("nodeCIDR", join(&config.node_cidr)),
                    advice: "in mode flat pods have addresses of the node network",
                });
            }
        }
    }

    fn services(&mut self) {
        let config = self.config;
        for range in &config.service_cidr {
            if matches!(range, IpNet::V4(_)) && range.prefix_len() < MIN_SERVICE_PREFIX {
                let range = named("serviceCIDR", range);
                self.refuse(Refusal::ServiceTooLarge { range, limit: MIN_SERVICE_PREFIX });
            }
        }
        for dns in &config.dns_service_ip {
            let Some(range) = config.service_cidr.iter().find(|range| range.contains(dns)) else {
                self.refuse(Refusal::Outside {
                    inner: named("dnsServiceIP", dns),
                    outer: named("serviceCIDR", or_none(&config.service_cidr)),
                    advice: "the DNS service needs an address of the service range",
                });
                continue;
            };
            if Some(*dns) == first_address(range) {
                let (dns, range) = (named("dnsServiceIP", dns), named("serviceCIDR", range));
                self.refuse(Refusal::DnsReserved { dns, range });
            }
        }
    }

    fn addresses(&mut self) {
        let config = self.config;
        for address in &config.node_addresses {
            if !config.node_cidr.iter().any(|range| range.contains(address)) {
                self.refuse(Refusal::Outside {
                    inner: named("nodeAddresses", address),
                    outer: named("nodeCIDR", or_none(&config.node_cidr)),
                    advice: "write the node's address on the node network, or correct nodeCIDR",
                });
            }
        }
        for (place, first) in config.node_addresses.iter().enumerate() {
            let mut rest = config.node_addresses.iter().skip(place + 1);
            if let Some(second) = rest.find(|other| other.is_ipv4() == first.is_ipv4()) {
                self.refuse(Refusal::Contradiction {
                    first: named("nodeAddresses", first),
                    second: named("nodeAddresses", second),
                    advice: "write one address of each family",
                });
            }
        }
        let gateways: BTreeSet<&IpAddr> = config.gateway_ips.iter().collect();
        for (gateway, range) in gateways.into_iter().flat_map(|gateway| {
            let inside = config.service_cidr.iter().filter(move |range| range.contains(gateway));
            inside.map(move |range| (gateway, range))
        }) {
            self.refuse(Refusal::Inside {
                inner: named("gatewayIPs", gateway),
                outer: named("serviceCIDR", range),
                advice: "choose an address that no service can get",
            });
        }
        if let Some(mac) = config.gateway_mac.filter(|mac| mac.is_group()) {
            self.refuse(Refusal::Contradiction {
                first: named("gatewayMAC", mac),
                second: named("its", "group bit"),
                advice: "write a unicast address, or leave it out",
            });
        }
    }

    fn number(
        &mut self,
        number: Named,
        value: u64,
        least: u64,
        most: u64,
        why: Option<&'static str>,
    ) {
        if !(least..=most).contains(&value) {
            self.refuse(Refusal::Range { number, least, most, why });
        }
    }

    /// The outer header's settings; none when the VNI was refused.
    fn encap(&mut self) -> Option<EncapSettings> {
        let config = self.config;
        let why = Some("a VNI has 24 bits");
        self.number(named("vni", config.vni), config.vni, 0, Vni::MAX.into(), why);
        let ttl = config.outer.ttl;
        self.number(named("outer.ttl", ttl), ttl, 1, 255, None);
        let dscp = match config.outer.dscp {
            DscpSetting::Copy => OuterDscp::Copy,
            DscpSetting::Fixed(value) => {
                let why = Some("a DSCP has 6 bits");
                self.number(named("outer.dscp", value), value, 0, 63, why);
                OuterDscp::Fixed(u8::try_from(value).unwrap_or_default())
            }
        };
        let (geneve_port, vxlan_port) = self.tunnel_ports();
        let vni = u32::try_from(config.vni).ok().and_then(|vni| Vni::new(vni).ok());
        vni.map(|vni| EncapSettings {
            vni,
            geneve_port,
            vxlan_port,
            underlay: self.expected_underlay(),
            udp_checksum: config.outer.udp_checksum,
            accept_zero_udp_checksum_v6: config.outer.accept_zero_udp_checksum6,
            vxlan_strict: config.outer.vxlan_strict,
            dscp,
            ttl: u8::try_from(ttl).unwrap_or_default(),
        })
    }

    /// Ports of Geneve and VXLAN. `tunnelPort` is the port of the configured mode; peers in the
    /// other tunnel mode are reached at that mode's registered port.
    fn tunnel_ports(&mut self) -> (u16, u16) {
        let (geneve, vxlan) = (6081, 4789);
        let Some(written) = self.config.tunnel_port else { return (geneve, vxlan) };
        let mode = self.config.mode;
        self.number(named("tunnelPort", written), written, 1, 65535, None);
        let port = u16::try_from(written).unwrap_or_default();
        let other = match mode {
            Mode::Geneve => vxlan,
            Mode::Vxlan => geneve,
            Mode::Native | Mode::Flat => {
                self.refuse(Refusal::Contradiction {
                    first: named("tunnelPort", written),
                    second: named("mode", mode),
                    advice: "this mode has no tunnel; remove tunnelPort or choose geneve or vxlan",
                });
                return (geneve, vxlan);
            }
        };
        if port == other {
            self.refuse(Refusal::Contradiction {
                first: named("tunnelPort", written),
                second: named("mode", mode),
                advice: "that port is the other tunnel mode's, whose peers could not be told apart; choose another",
            });
        }
        if mode == Mode::Geneve { (port, vxlan) } else { (geneve, port) }
    }

    /// The family of the outer header as far as the configuration alone tells.
    fn expected_underlay(&self) -> Underlay {
        let config = self.config;
        config.underlay.unwrap_or_else(|| {
            if config.node_addresses.is_empty() {
                let networks: Vec<IpAddr> = config.node_cidr.iter().map(IpNet::network).collect();
                default_underlay(networks.iter())
            } else {
                default_underlay(config.node_addresses.iter())
            }
        })
    }

    fn mtus(&mut self) -> (u16, Option<u16>) {
        let config = self.config;
        let underlay = self.expected_underlay();
        let (family, least) = match underlay {
            Underlay::Ipv4 => (4, MIN_MTU_V4),
            Underlay::Ipv6 => (6, MIN_MTU_V6),
        };
        if !config.node_cidr.is_empty()
            && !config.node_cidr.iter().any(|range| matches!(range, IpNet::V4(_)) == (family == 4))
        {
            self.refuse(Refusal::Contradiction {
                first: named("underlay", family),
                second: named("nodeCIDR", join(&config.node_cidr)),
                advice: "the node network has no address of that family; add its range or change underlay",
            });
        }
        let written = config.underlay_mtu;
        self.number(named("underlayMTU", written), written, least.into(), 65535, None);
        let underlay_mtu = u16::try_from(written).unwrap_or(u16::MAX);
        let extra = overhead(config.mode, underlay);
        let largest = underlay_mtu.saturating_sub(extra);
        let pod_mtu = config.pod_mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
        let pod = named("podMTU", config.pod_mtu.unwrap_or(largest.into()));
        if config.pod_mtu.is_some_and(|mtu| mtu > largest.into()) {
            self.refuse(Refusal::MtuDoesNotFit {
                pod: pod.clone(),
                overhead: extra,
                mode: config.mode,
                family,
                underlay: named("underlayMTU", written),
                largest,
            });
        }
        self.pod_mtu_carries(pod, pod_mtu.unwrap_or(largest));
        (underlay_mtu, pod_mtu)
    }

    fn pod_mtu_carries(&mut self, pod: Named, mtu: u16) {
        let ranges = &self.config.pod_cidr;
        let v6 = ranges.iter().find(|range| matches!(range, IpNet::V6(_)));
        let range = v6.or(ranges.first());
        let least = if v6.is_some() { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if let Some(range) = range.filter(|_| mtu < least) {
            self.refuse(Refusal::MtuTooSmall { mtu: pod, carries: named("podCIDR", range), least });
        }
    }

    fn host_port(&mut self) -> Option<HostPort> {
        let HostPortSetting::Interface(interface) = &self.config.host_port else { return None };
        // The dataplane's end is this name and an `x`.
        self.interface("hostPort.interface", interface, MAX_INTERFACE - 1);
        if *interface == self.config.uplink {
            self.refuse(Refusal::Contradiction {
                first: named("hostPort.interface", interface),
                second: named("uplink", &self.config.uplink),
                advice: "the host port is a new interface; give it a name of its own",
            });
        }
        Some(HostPort { interface: interface.clone() })
    }
}

fn first_address(range: &IpNet) -> Option<IpAddr> {
    match range.network() {
        IpAddr::V4(network) => {
            u32::from(network).checked_add(1).map(|first| IpAddr::V4(first.into()))
        }
        IpAddr::V6(network) => {
            u128::from(network).checked_add(1).map(|first| IpAddr::V6(first.into()))
        }
    }
}

fn or_none<T: ToString>(values: &[T]) -> String {
    if values.is_empty() { "(none)".to_owned() } else { join(values) }
}
