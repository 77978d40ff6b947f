//! Addresses that flows leave the cluster with, and which worker owns which of their ports.

use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::{PortRange, SnatSettings, Timeouts, WorkerId};

use crate::packet::blocks::BlockTable;

/// One address, and the owners of its ports.
#[derive(Debug, Clone)]
pub struct ExternalAddress {
    /// This node's own, or a gateway's that is here.
    pub address: IpAddr,
    /// Who owns which port.
    pub ports: Arc<BlockTable>,
}

/// All of them, and how long flows are remembered.
#[derive(Debug, Clone)]
pub struct External {
    v4: Box<[(u32, Arc<BlockTable>)]>,
    v6: Box<[(u128, Arc<BlockTable>)]>,
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// A port is kept from the same remote so long after both FINs, seconds.
    pub fin_cooldown: u32,
    /// The same after a RST, seconds.
    pub rst_cooldown: u32,
    /// Most flows with a port of these addresses that a pod may have at a time.
    pub max_ports_per_pod: Option<u32>,
}

impl Default for External {
    fn default() -> Self {
        Self::new(&SnatSettings::default(), std::iter::empty(), &Self::nothing())
    }
}

impl External {
    fn nothing() -> Self {
        let settings = SnatSettings::default();
        Self {
            v4: Box::new([]),
            v6: Box::new([]),
            timeouts: settings.timeouts,
            fin_cooldown: settings.fin_cooldown,
            rst_cooldown: settings.rst_cooldown,
            max_ports_per_pod: settings.max_ports_per_pod,
        }
    }

    /// These addresses with the ports that `settings` say. An address that `before` has with the same
    /// ports keeps their owners.
    #[must_use]
    pub fn new(
        settings: &SnatSettings,
        addresses: impl Iterator<Item = IpAddr>,
        before: &Self,
    ) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => {
                    let bits = address.to_bits();
                    v4.push((bits, keep(&before.v4, bits, settings.ports)));
                }
                IpAddr::V6(address) => {
                    let bits = address.to_bits();
                    v6.push((bits, keep(&before.v6, bits, settings.ports)));
                }
            }
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
            timeouts: settings.timeouts,
            fin_cooldown: settings.fin_cooldown,
            rst_cooldown: settings.rst_cooldown,
            max_ports_per_pod: settings.max_ports_per_pod,
        }
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = ExternalAddress> + '_ {
        let v4 = self.v4.iter().map(|(bits, ports)| ExternalAddress {
            address: IpAddr::V4((*bits).into()),
            ports: ports.clone(),
        });
        v4.chain(self.v6.iter().map(|(bits, ports)| ExternalAddress {
            address: IpAddr::V6((*bits).into()),
            ports: ports.clone(),
        }))
    }

    /// Do flows leave with this address?
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|(own, _)| *own == address.to_bits()),
            IpAddr::V6(address) => self.v6.iter().any(|(own, _)| *own == address.to_bits()),
        }
    }

    /// The worker that owns a port (host order) of an IPv4 address (host order).
    #[inline]
    #[must_use]
    pub fn owner_v4(&self, address: u32, port: u16) -> Option<WorkerId> {
        owner(&self.v4, address, port)
    }

    /// The worker that owns a port (host order) of an IPv6 address (host order).
    #[inline]
    #[must_use]
    pub fn owner_v6(&self, address: u128, port: u16) -> Option<WorkerId> {
        owner(&self.v6, address, port)
    }
}

/// There are 16 addresses at the most but this node's own, which comes first.
#[inline]
fn owner<A: Eq>(all: &[(A, Arc<BlockTable>)], address: A, port: u16) -> Option<WorkerId> {
    all.iter().find(|(own, _)| *own == address)?.1.owner(port)
}

fn keep<A: Eq>(before: &[(A, Arc<BlockTable>)], address: A, range: PortRange) -> Arc<BlockTable> {
    let known = before.iter().find(|(own, ports)| *own == address && ports.range() == range);
    known.map_or_else(|| Arc::new(BlockTable::new(range)), |(_, ports)| ports.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_outlive_a_change_that_is_not_theirs() {
        let settings = SnatSettings::default();
        let addresses: Vec<IpAddr> = vec!["10.0.1.4".parse().unwrap(), "fd00::4".parse().unwrap()];
        let first = External::new(&settings, addresses.iter().copied(), &External::default());
        let claimed = first.addresses().next().unwrap().ports.claim(WorkerId(3), 0).unwrap();
        let port = claimed.first_port();
        assert_eq!(first.owner_v4(0x0a00_0104, port), Some(WorkerId(3)));
        assert_eq!(first.owner_v4(0x0a00_0105, port), None);
        let second = External::new(&settings, addresses.iter().copied().take(1), &first);
        assert_eq!(second.owner_v4(0x0a00_0104, port), Some(WorkerId(3)));
        let other = SnatSettings { ports: PortRange::new(20_000, 29_999).unwrap(), ..settings };
        let third = External::new(&other, addresses.into_iter(), &second);
        assert_eq!(third.owner_v4(0x0a00_0104, port), None);
    }
}
