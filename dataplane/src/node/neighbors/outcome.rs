//! What is told about a destination.

use std::net::IpAddr;

use overlane_api::MacAddr;

/// Why a destination cannot be watched at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// No address of one other machine.
    #[error(
        "{0} is not a unicast address of another node: multicast, broadcast, loopback and \
         unspecified addresses are not reached over the underlay"
    )]
    NotUnicast(IpAddr),
}

/// Where a destination's packets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// Interface that they leave by.
    pub ifindex: u32,
    /// The gateway, or the destination itself when it is on the link.
    pub next_hop: IpAddr,
    /// The next hop's MAC.
    pub mac: MacAddr,
    /// The source address that the kernel would choose, if it says.
    pub prefsrc: Option<IpAddr>,
}

/// Why a destination has no next hop at present.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The kernel is asking for the next hop's MAC.
    #[error("the next hop {0} is being resolved")]
    Resolving(IpAddr),
    /// Nobody answers to the next hop's address.
    #[error(
        "the next hop {next_hop} on interface {ifindex} does not answer: is it up, and on this link?"
    )]
    NoAnswer {
        /// The interface.
        ifindex: u32,
        /// The address asked for.
        next_hop: IpAddr,
    },
    /// The next hop has no MAC.
    #[error("interface {ifindex} towards {next_hop} is not an Ethernet")]
    NotEthernet {
        /// The interface.
        ifindex: u32,
        /// The next hop.
        next_hop: IpAddr,
    },
    /// The kernel has no usable route.
    #[error("no route: {0} (see ip route get)")]
    NoRoute(String),
    /// The destination is an address of this node.
    #[error("it is an address of this node itself")]
    OwnAddress,
    /// The destination is a broadcast, anycast or multicast address here.
    #[error("it is not a unicast address here")]
    NotUnicast,
}

/// A destination's state: the last one told is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Packets can be sent.
    Resolved(Resolution),
    /// Packets cannot be sent, and why.
    Unresolved(Unresolved),
}

/// A destination's state has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighborEvent {
    /// The interface that it is a neighbour of; absent: it is followed by its route.
    pub interface: Option<u32>,
    /// The destination.
    pub destination: IpAddr,
    /// Its state now.
    pub outcome: Outcome,
}
