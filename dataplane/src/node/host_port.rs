//! The veth pair through which the node's own stack and its pods reach each other.
//!
//! ```text
//!   host stack -- overlane0 ======== overlane0x -- AF_XDP -- workers
//!                 an address, routes,              no addresses,
//!                 static neighbours                no IPv6
//! ```
//!
//! The host's end has a route for each prefix behind the dataplane, by way of a next hop that
//! exists only as a permanent neighbour entry: the host never asks for it by ARP or ND. The pair
//! goes with its owner: dropping a [`HostPort`] removes it, and what a killed process left behind
//! is replaced at the next start.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use overlane_api::{MacAddr, Node};

use super::links;
use super::netlink::{Netlink, NetlinkError};

/// Next hop of the host's IPv4 routes into the dataplane.
pub const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Address of the host's end, on one link with the next hop. It is the source of nothing that a route
/// is given a source for. Without one, loose reverse path filtering drops what the host is handed from
/// addresses that it reaches by its uplink, and it could not answer the next hop's.
const HOST_END_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 1, 2), 30);

/// Next hop of the host's IPv6 routes into the dataplane.
pub const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Longest name of the host's end, bytes: one less than an interface name can have, for the `x`.
pub const MAX_NAME_BYTES: usize = 14;

/// Why the host port cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// A name that no interface can have.
    #[error(
        "{0:?} cannot be the host port's name: use 1 to {MAX_NAME_BYTES} letters, digits, \
         '-', '_' or '.'"
    )]
    Name(String),
    /// Something else has the name.
    #[error(
        "interface {0} exists and is not a veth, so it was not left behind by a dataplane: rename \
         it, or choose another name for the host port"
    )]
    NameTaken(String),
    /// It was made, but is not there.
    #[error("interface {0} vanished while the host port was being made")]
    Vanished(String),
    /// A kernel setting cannot be written.
    #[error("cannot set {path} to {value}: {source}; is /proc/sys writable here?")]
    Sysctl {
        /// The setting.
        path: PathBuf,
        /// What it should be.
        value: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Somebody else's route is in the way.
    #[error(
        "the host has another route for {prefix} already: remove it (ip route del {prefix}), or \
         take the prefix out of the cluster's"
    )]
    RouteTaken {
        /// The prefix.
        prefix: IpNet,
    },
    /// The kernel refused something.
    #[error("host port {interface}: {source}")]
    Netlink {
        /// The host's end.
        interface: String,
        /// The cause.
        source: NetlinkError,
    },
}

/// What a host port is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPortSettings {
    /// Name of the host's end; the dataplane's is this with an `x` behind it.
    pub interface: String,
    /// MTU of both ends, bytes. Whatever the underlay brings can be given to the host.
    pub mtu: u32,
    /// Largest IP packet that the host is to send into the dataplane, bytes.
    pub route_mtu: u32,
    /// MAC behind the next hops: the node's gateway MAC.
    pub gateway_mac: MacAddr,
    /// Source of what the host sends into the dataplane, IPv4. Absent: no IPv4 routes.
    pub ipv4: Option<Ipv4Addr>,
    /// Source of what the host sends into the dataplane, IPv6. Absent: no IPv6 routes.
    pub ipv6: Option<Ipv6Addr>,
    /// RX and TX queues of each end, at least 1.
    pub queues: u32,
}

impl HostPortSettings {
    /// What `node` asks for, with one queue; none when it asks for no host port.
    #[must_use]
    pub fn of(node: &Node) -> Option<Self> {
        let port = node.host_port.as_ref()?;
        Some(Self {
            interface: port.interface.clone(),
            mtu: u32::from(node.pod_mtu.max(node.underlay_mtu)),
            route_mtu: u32::from(node.pod_mtu),
            gateway_mac: node.gateway_mac,
            ipv4: node.ipv4(),
            ipv6: node.ipv6(),
            queues: 1,
        })
    }

    fn dataplane_interface(&self) -> String {
        format!("{}x", self.interface)
    }

    /// MAC of the host's end: the gateway's with another second octet, so that it differs on
    /// every node and from every gateway MAC, and stays the same across restarts.
    fn host_mac(&self) -> MacAddr {
        let MacAddr([_, second, rest @ ..]) = self.gateway_mac;
        let [a, b, c, d] = rest;
        MacAddr([0x06, second ^ 0x20, a, b, c, d])
    }
}

fn check_name(name: &str) -> Result<(), HostPortError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let length = (1..=MAX_NAME_BYTES).contains(&name.len());
    if length && name.bytes().all(legal) && !name.bytes().all(|byte| byte == b'.') {
        Ok(())
    } else {
        Err(HostPortError::Name(name.to_owned()))
    }
}

/// The pair, as long as this value lives. Its interfaces are in the network namespace of the
/// thread that made it.
#[derive(Debug)]
pub struct HostPort {
    netlink: Netlink,
    settings: HostPortSettings,
    host_ifindex: u32,
    dataplane_ifindex: u32,
    routes: BTreeSet<IpNet>,
}

impl HostPort {
    /// Makes the pair and brings it up, without routes. A pair of the same names is replaced.
    ///
    /// # Errors
    /// What the kernel refused, or a name that is taken. Nothing is left behind then.
    pub fn create(settings: HostPortSettings) -> Result<Self, HostPortError> {
        check_name(&settings.interface)?;
        let interface = settings.interface.clone();
        let context = |source| HostPortError::Netlink { interface: interface.clone(), source };
        let mut netlink = Netlink::open().map_err(context)?;
        for name in [settings.interface.clone(), settings.dataplane_interface()] {
            if let Some(link) = links::by_name(&mut netlink, &name).map_err(context)? {
                if !link.is_veth {
                    return Err(HostPortError::NameTaken(name));
                }
                delete_link(&mut netlink, link.ifindex, &name).map_err(context)?;
            }
        }
        let pair = pair_message(&settings);
        netlink
            .request(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL, || {
                format!("make the veth pair {0} and {0}x", settings.interface)
            })
            .map_err(context)?;
        let mut index = |name: String| match links::by_name(&mut netlink, &name) {
            Ok(Some(link)) => Ok(link.ifindex),
            Ok(None) => Err(HostPortError::Vanished(name)),
            Err(source) => Err(context(source)),
        };
        let host_ifindex = index(settings.interface.clone())?;
        let dataplane_ifindex = index(settings.dataplane_interface())?;
        let routes = BTreeSet::new();
        // From here on an error drops the port, and so removes the pair.
        let mut port = Self { netlink, settings, host_ifindex, dataplane_ifindex, routes };
        port.quiet()?;
        port.bring_up(port.host_ifindex).map_err(context)?;
        port.bring_up(port.dataplane_ifindex).map_err(context)?;
        port.set_neighbors().map_err(context)?;
        port.set_address().map_err(context)?;
        Ok(port)
    }

    /// What the port was made from.
    #[must_use]
    pub const fn settings(&self) -> &HostPortSettings {
        &self.settings
    }

    /// Index of the host's end.
    #[must_use]
    pub const fn host_ifindex(&self) -> u32 {
        self.host_ifindex
    }

    /// MAC of the host's end.
    #[must_use]
    pub fn host_mac(&self) -> MacAddr {
        self.settings.host_mac()
    }

    /// Name of the dataplane's end, the one for AF_XDP.
    #[must_use]
    pub fn dataplane_interface(&self) -> String {
        self.settings.dataplane_interface()
    }

    /// Index of the dataplane's end.
    #[must_use]
    pub const fn dataplane_ifindex(&self) -> u32 {
        self.dataplane_ifindex
    }

    /// Prefixes that the host reaches through the port.
    pub fn routes(&self) -> impl Iterator<Item = &IpNet> {
        self.routes.iter()
    }

    /// Makes the host send exactly these prefixes into the dataplane: what is new is added, then
    /// what is no longer wanted removed. Prefixes of a family of which the node has no address
    /// are passed over. Every prefix is tried.
    ///
    /// # Errors
    /// The first refusal. What could be changed is changed, and another call tries the rest.
    pub fn set_routes(&mut self, wanted: &[IpNet]) -> Result<(), HostPortError> {
        let wanted: BTreeSet<IpNet> = wanted
            .iter()
            .map(IpNet::trunc)
            .filter(|prefix| match prefix {
                IpNet::V4(_) => self.settings.ipv4.is_some(),
                IpNet::V6(_) => self.settings.ipv6.is_some(),
            })
            .collect();
        let mut outcome = Ok(());
        let new: Vec<IpNet> = wanted.difference(&self.routes).copied().collect();
        for prefix in new {
            match self.add_route(prefix) {
                Ok(()) => drop(self.routes.insert(prefix)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        let old: Vec<IpNet> = self.routes.difference(&wanted).copied().collect();
        for prefix in old {
            match self.remove_route(prefix) {
                Ok(()) => drop(self.routes.remove(&prefix)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    fn add_route(&mut self, prefix: IpNet) -> Result<(), HostPortError> {
        let message = RouteNetlinkMessage::NewRoute(self.route_message(prefix));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.request(message, flags, || format!("add a route for {prefix}")) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                Err(HostPortError::RouteTaken { prefix })
            }
            Err(source) => Err(self.context(source)),
        }
    }

    fn remove_route(&mut self, prefix: IpNet) -> Result<(), HostPortError> {
        let message = RouteNetlinkMessage::DelRoute(self.route_message(prefix));
        match self.netlink.request(message, 0, || format!("remove the route for {prefix}")) {
            Ok(_) => Ok(()),
            // Somebody was faster.
            Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
            Err(source) => Err(self.context(source)),
        }
    }

    fn context(&self, source: NetlinkError) -> HostPortError {
        HostPortError::Netlink { interface: self.settings.interface.clone(), source }
    }

    fn route_message(&self, prefix: IpNet) -> RouteMessage {
        let (family, next_hop, source) = match prefix {
            IpNet::V4(_) => {
                (AddressFamily::Inet, IpAddr::from(NEXT_HOP_V4), self.settings.ipv4.map(IpAddr::V4))
            }
            IpNet::V6(_) => (
                AddressFamily::Inet6,
                IpAddr::from(NEXT_HOP_V6),
                self.settings.ipv6.map(IpAddr::V6),
            ),
        };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = prefix.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(prefix.network())),
            RouteAttribute::Gateway(RouteAddress::from(next_hop)),
            RouteAttribute::Oif(self.host_ifindex),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(self.settings.route_mtu)]),
        ];
        message.attributes.extend(source.map(|from| RouteAttribute::PrefSource(from.into())));
        message
    }

    /// Keeps the kernel from speaking on the pair on its own account (router solicitations,
    /// duplicate address detection, multicast reports), and from dropping what pods send to the
    /// host because the way back is another.
    fn quiet(&self) -> Result<(), HostPortError> {
        let host = &self.settings.interface;
        let dataplane = self.settings.dataplane_interface();
        // Loose (2) wins over a strict system-wide setting (1), off (0) would not.
        set_sysctl("ipv4", host, "rp_filter", "2")?;
        if PathBuf::from("/proc/sys/net/ipv6").exists() {
            for (interface, name, value) in [
                (host, "accept_ra", "0"),
                (host, "autoconf", "0"),
                (host, "addr_gen_mode", "1"),
                (&dataplane, "disable_ipv6", "1"),
            ] {
                set_sysctl("ipv6", interface, name, value)?;
            }
        }
        Ok(())
    }

    fn bring_up(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let message = RouteNetlinkMessage::SetLink(message);
        self.netlink.request(message, 0, || format!("bring up interface {ifindex}")).map(|_| ())
    }

    fn set_neighbors(&mut self) -> Result<(), NetlinkError> {
        let v4 = self.settings.ipv4.map(|_| IpAddr::from(NEXT_HOP_V4));
        let v6 = self.settings.ipv6.map(|_| IpAddr::from(NEXT_HOP_V6));
        let MacAddr(mac) = self.settings.gateway_mac;
        for address in v4.into_iter().chain(v6) {
            let mut message = NeighbourMessage::default();
            message.header.family =
                if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.ifindex = self.host_ifindex;
            message.header.state = NeighbourState::Permanent;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::from(address)),
                NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            ];
            let message = RouteNetlinkMessage::NewNeighbour(message);
            self.netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE, || {
                format!("add the neighbour {address}")
            })?;
        }
        Ok(())
    }

    fn set_address(&mut self) -> Result<(), NetlinkError> {
        let (address, prefix_len) = HOST_END_V4;
        if self.settings.ipv4.is_none() {
            return Ok(());
        }
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.scope = AddressScope::Link;
        message.header.index = self.host_ifindex;
        let address = IpAddr::from(address);
        message.attributes =
            vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        let message = RouteNetlinkMessage::NewAddress(message);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.netlink.request(message, flags, || format!("add the address {address}")).map(|_| ())
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        let name = self.settings.interface.clone();
        if let Err(error) = delete_link(&mut self.netlink, self.host_ifindex, &name) {
            tracing::warn!(%error, interface = name, "the host port stays behind");
        }
    }
}

/// Deletes an interface, and with a veth its other end, routes and neighbours too. One that is
/// gone already is no error.
fn delete_link(netlink: &mut Netlink, ifindex: u32, name: &str) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let message = RouteNetlinkMessage::DelLink(message);
    match netlink.request(message, 0, || format!("remove interface {name}")) {
        Err(error) if error.errno() != Some(Errno::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// The request that makes both ends at once.
fn pair_message(settings: &HostPortSettings) -> LinkMessage {
    let end = |name: String| {
        let mut end = LinkMessage::default();
        end.attributes = vec![
            LinkAttribute::IfName(name),
            LinkAttribute::Mtu(settings.mtu),
            LinkAttribute::NumTxQueues(settings.queues.max(1)),
            LinkAttribute::NumRxQueues(settings.queues.max(1)),
        ];
        end
    };
    let far = end(settings.dataplane_interface());
    let mut near = end(settings.interface.clone());
    near.attributes.push(LinkAttribute::Address(settings.host_mac().0.to_vec()));
    near.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
    ]));
    near
}

/// Writes a setting of an interface; `/proc/sys/net` shows the namespace of the thread.
fn set_sysctl(
    family: &str,
    interface: &str,
    name: &str,
    value: &'static str,
) -> Result<(), HostPortError> {
    let path: PathBuf = ["/proc/sys/net", family, "conf", interface, name].iter().collect();
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| HostPortError::Sysctl { path, value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["overlane0", "a", "ovl.0", "fourteen-bytes"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for wrong in ["", ".", "..", "a/b", "a b", "fifteen-bytes-x", "ü"] {
            assert!(matches!(check_name(wrong), Err(HostPortError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn host_mac_is_a_local_unicast_address_and_not_the_gateways() {
        let settings = HostPortSettings {
            interface: "overlane0".into(),
            mtu: 1500,
            route_mtu: 1450,
            gateway_mac: MacAddr([0x02, 0x4f, 10, 0, 1, 4]),
            ipv4: None,
            ipv6: None,
            queues: 1,
        };
        let mac = settings.host_mac();
        assert_eq!(mac, MacAddr([0x06, 0x6f, 10, 0, 1, 4]));
        assert!(!mac.is_group());
        assert_eq!(settings.dataplane_interface(), "overlane0x");
    }
}
