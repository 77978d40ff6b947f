//! Addresses that this node answers for on the underlay's link, besides its own.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An address for which ARP requests and neighbour solicitations on the uplink are answered with
/// the uplink's MAC. Who chooses the node sees to it that one node of the link has it at a time;
/// the dataplane answers only while it is told so ([`crate::protocol::Op::Lease`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// A unicast address that is not the node's own.
    pub address: IpAddr,
}
