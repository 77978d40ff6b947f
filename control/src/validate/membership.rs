//! Announced addresses, and how nodes know which of them live.

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{EncapSettings, PortRange};

use super::Check;
use super::refusal::{Refusal, named};
use crate::membership::keys::KeySettings;

/// Which addresses one live node answers for.
pub use crate::config::membership::Announce;

/// A NAT gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatGateway {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Names of the nodes that can hold them, in order of preference.
    pub nodes: Vec<String>,
}

/// How nodes keep track of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipSettings {
    /// UDP port, host byte order.
    pub port: u16,
    /// How often another node is asked whether it lives.
    pub probe_interval: Duration,
    /// How long a node that does not answer may still say that it lives.
    pub suspicion: Duration,
    /// How long a node must have forwarded until it takes addresses back.
    pub take_back_after: Duration,
}

impl MembershipSettings {
    /// How long the dataplane answers for announced addresses without a word from control: less
    /// than other nodes need to find out that control is dead, which is an interval and the
    /// suspicion at least.
    #[must_use]
    pub fn lease(&self) -> Duration {
        (self.probe_interval + self.suspicion) * 2 / 3
    }
}

impl Check<'_> {
    /// How nodes keep track of each other; none when no setting needs it: nothing is announced
    /// but gateways of one node.
    pub(super) fn membership(
        &mut self,
        snat: PortRange,
        node_ports: PortRange,
        encap: Option<&EncapSettings>,
    ) -> Option<MembershipSettings> {
        let config = self.config;
        let written = &config.membership;
        let port = named("membership.port", written.port);
        let bounds: [(_, u64, u64, u64, _); 4] = [
            (port.clone(), written.port, 1, 65535, None),
            (
                named("membership.probeIntervalMs", written.probe_interval_ms),
                written.probe_interval_ms,
                100,
                10_000,
                Some("milliseconds"),
            ),
            (
                named("membership.suspicionMs", written.suspicion_ms),
                written.suspicion_ms,
                100,
                60_000,
                Some("milliseconds"),
            ),
            (
                named("membership.takeBackAfter", written.take_back_after),
                written.take_back_after,
                0,
                3600,
                Some("seconds"),
            ),
        ];
        for (field, value, least, most, why) in bounds {
            self.number(field, value, least, most, why);
        }
        let number = u16::try_from(written.port).unwrap_or_default();
        let mut tunnels = encap.iter().flat_map(|encap| [encap.geneve_port, encap.vxlan_port]);
        let taken = [
            (snat.contains(number), named("snat.ports", snat)),
            (node_ports.contains(number), named("nodePortRange", node_ports)),
            (tunnels.any(|tunnel| tunnel == number), named("a tunnel's port", number)),
        ];
        let is_needed = config.announce.load_balancer
            || config.announce.external
            || config.gateways.iter().any(|gateway| gateway.nodes.len() > 1);
        for (_, second) in taken.into_iter().filter(|(is_taken, _)| is_needed && *is_taken) {
            self.refuse(Refusal::PortsOverlap {
                first: port.clone(),
                second,
                advice: "packets to that port would not reach the control process; choose another, the same on all nodes",
            });
        }
        self.check_membership_keys();
        if config.announce.external && !config.enable_external_ips {
            self.refuse(Refusal::Contradiction {
                first: named("announce.externalIPs", true),
                second: named("enableExternalIPs", false),
                advice: "addresses that are not served cannot be announced; set both or neither",
            });
        }
        is_needed.then(|| MembershipSettings {
            port: number,
            probe_interval: Duration::from_millis(written.probe_interval_ms),
            suspicion: Duration::from_millis(written.suspicion_ms),
            take_back_after: Duration::from_secs(written.take_back_after),
        })
    }

    /// Where the keys of membership messages are; none: they are not authenticated. The file is read by who
    /// needs the keys.
    pub(super) fn membership_keys(&self) -> Option<KeySettings> {
        let written = &self.config.membership;
        let file = written.key_file.clone()?;
        Some(KeySettings { file, accept_unsigned: written.accept_unsigned })
    }

    fn check_membership_keys(&mut self) {
        let written = &self.config.membership;
        match &written.key_file {
            Some(file) if !file.is_absolute() => {
                let path = named("membership.keyFile", file.display());
                self.refuse(Refusal::Relative { path });
            }
            None if written.accept_unsigned => self.refuse(Refusal::Contradiction {
                first: named("membership.acceptUnsigned", true),
                second: named("membership.keyFile", "absent"),
                advice: "without a key no message is signed and all are accepted; name the file, or leave this out",
            }),
            _ => {}
        }
    }

    /// The gateways, by themselves.
    pub(super) fn nat_gateways(&self) -> Vec<NatGateway> {
        let gateways = self.config.gateways.iter().map(|gateway| NatGateway {
            name: gateway.name.clone(),
            addresses: gateway.addresses.clone(),
            nodes: gateway.nodes.clone(),
        });
        gateways.collect()
    }
}
