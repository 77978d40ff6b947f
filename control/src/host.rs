//! What the configuration must agree with on this machine: facts of the network namespace that
//! the control process runs in.

use std::net::IpAddr;
use std::path::Path;

use overlane_api::PortRange;

/// Where Linux keeps the range of the ports it chooses itself; of the reader's namespace.
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Facts of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The ports that the host chooses for its own connections; absent: not known.
    pub local_ports: Option<PortRange>,
    /// Addresses of its interfaces, sorted, without loopback and link-local ones.
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Reads them.
    #[must_use]
    pub fn read() -> Self {
        let local_ports = local_ports(Path::new(LOCAL_PORT_RANGE));
        if local_ports.is_none() {
            tracing::warn!("cannot read {LOCAL_PORT_RANGE}: snat.ports is not compared with it");
        }
        Self { local_ports, addresses: interface_addresses() }
    }
}

fn local_ports(path: &Path) -> Option<PortRange> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    PortRange::new(numbers.next()?.ok()?, numbers.next()?.ok()?).ok()
}

/// Addresses of this machine's interfaces, sorted, without loopback and link-local ones.
#[must_use]
pub fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| !address.is_loopback() && !is_link_local(address))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_read_as_the_kernel_writes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "32768\t60999\n").unwrap();
        assert_eq!(local_ports(file.path()), PortRange::new(32768, 60999).ok());
        std::fs::write(file.path(), "32768\n").unwrap();
        assert_eq!(local_ports(file.path()), None);
        assert_eq!(local_ports(Path::new("/no/such/file")), None);
    }

    #[test]
    fn addresses_are_such_that_others_can_reach() {
        for address in Host::read().addresses {
            assert!(!address.is_loopback() && !is_link_local(&address), "{address}");
        }
    }
}
