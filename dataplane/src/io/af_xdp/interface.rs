//! What a network device is, and what AF_XDP can do with it.

use std::io;

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use overlane_api::MacAddr;

use super::ethtool::{Channels, Ethtool};
use super::netlink::{self, RouteSocket};

/// `NETDEV_XDP_ACT_BASIC` and `NETDEV_XDP_ACT_REDIRECT`
const NATIVE: u64 = 1 | 2;
/// `NETDEV_XDP_ACT_NDO_XMIT`
const REDIRECT_TARGET: u64 = 4;
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`
const XSK_ZERO_COPY: u64 = 8;

/// A device cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} of network device {name}: {source}")]
pub struct InterfaceError {
    /// What was tried.
    pub what: &'static str,
    /// The device.
    pub name: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// The other end of a veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLink {
    /// Its number in its network namespace.
    pub index: u32,
    /// What this namespace calls the peer's; none: it is this one.
    pub namespace: Option<i32>,
}

/// A network device of the calling thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number in its namespace.
    pub index: u32,
    /// Its address.
    pub mac: MacAddr,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Is it switched on?
    pub is_up: bool,
    /// Queues in use.
    pub queues: Channels,
    /// Its driver, where the kernel says.
    pub driver: Option<String>,
    /// What it is linked to: a veth's peer.
    pub peer: Option<PeerLink>,
}

impl Interface {
    /// Looks at device `name`.
    ///
    /// # Errors
    /// [`InterfaceError`] when there is none.
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError { what: "read the state", name: name.into(), source };
        let link = RouteSocket::open().and_then(|s| s.link_by_name(name)).map_err(failed)?;
        Ok(Self::from_link(&link))
    }

    pub(super) fn from_link(link: &LinkMessage) -> Self {
        let mut found = Self {
            name: String::new(),
            index: link.header.index,
            mac: MacAddr([0; 6]),
            mtu: 0,
            is_up: link.header.flags.contains(LinkFlags::Up),
            queues: Channels { rx: 1, tx: 1 },
            driver: None,
            peer: None,
        };
        let (mut peer_index, mut namespace) = (None, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                LinkAttribute::Link(index) => peer_index = Some(*index),
                LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
                LinkAttribute::Address(bytes) => {
                    if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                        found.mac = MacAddr(mac);
                    }
                }
                _ => {}
            }
        }
        found.peer = peer_index.filter(|&i| i != 0).map(|index| PeerLink { index, namespace });
        if let Ok(ethtool) = Ethtool::open(&found.name) {
            found.driver = ethtool.driver().ok();
            // A device without that question has one queue of each kind.
            found.queues = ethtool.channels().unwrap_or(found.queues);
        }
        found
    }
}

/// What a device's driver can do with XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpSupport {
    /// It runs XDP programs itself and redirects: AF_XDP needs both to be fast. A veth says so
    /// only while it receives on at least as many queues as its peer sends on.
    pub native: bool,
    /// It sends frames that XDP programs redirect to it. A veth only while an XDP program or GRO is
    /// on its peer.
    pub redirect_target: bool,
    /// It can use a UMEM without copies. It may still refuse when a queue is opened (an MTU that
    /// is too large for a chunk, say): then a UMEM for copies is the way.
    pub zero_copy: bool,
}

/// What the driver of device `name` says that it can do with XDP; none before kernel 6.3, where
/// nobody can tell.
///
/// # Errors
/// [`InterfaceError`] when there is no such device.
pub fn xdp_support(name: &str) -> Result<Option<XdpSupport>, InterfaceError> {
    let index = Interface::find(name)?.index;
    let features = netlink::xdp_features(index).map_err(|source| InterfaceError {
        what: "read the XDP features",
        name: name.into(),
        source,
    })?;
    Ok(features.map(|bits| XdpSupport {
        native: bits & NATIVE == NATIVE,
        redirect_target: bits & REDIRECT_TARGET != 0,
        zero_copy: bits & XSK_ZERO_COPY != 0,
    }))
}
