//! What the control process says about itself.

use overlane_api::ObjectKey;
use overlane_api::protocol::ApiError;
use serde::{Deserialize, Serialize};

use crate::desired::AnnouncementStatus;
use crate::membership::MembershipStatus;
use crate::sources::Problem;

/// The whole state of the control process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// Its version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// This node's name.
    pub node: String,
    /// The connection to the dataplane.
    pub dataplane: Connection,
    /// What is desired.
    pub desired: Counts,
    /// What of it the dataplane has in exactly this form.
    pub in_force: usize,
    /// Objects of the dataplane that should go, and stay because something could not be read.
    pub held_back: usize,
    /// What is broken or contradictory.
    pub problems: Vec<Problem>,
    /// What waits for something.
    pub pending: Vec<String>,
    /// What was read and is not used.
    pub notes: Vec<String>,
    /// What the dataplane refused.
    pub refused: Vec<Refused>,
    /// What the dataplane accepted and could not yet put in force, at the last change; and what else
    /// is not as it should be.
    pub warnings: Vec<String>,
    /// Addresses that one node answers for on the node network.
    #[serde(default)]
    pub announcements: Vec<AnnouncementStatus>,
    /// How the nodes know of each other; absent: nothing needs it.
    #[serde(default)]
    pub membership: Option<MembershipStatus>,
}

/// How many objects there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// This node: 1, or 0 while it is not known.
    pub node: usize,
    /// Other nodes.
    pub peers: usize,
    /// Pods.
    pub endpoints: usize,
    /// Ports of services.
    pub services: usize,
    /// Rules for pods that leave the cluster.
    pub egress: usize,
    /// Addresses that this node answers for on the underlay.
    pub announcements: usize,
}

impl Counts {
    /// Counts keys.
    pub fn of<'a>(keys: impl Iterator<Item = &'a ObjectKey>) -> Self {
        let mut counts = Self::default();
        for key in keys {
            *counts.of_kind(key) += 1;
        }
        counts
    }

    /// The count of the kind of `key`.
    pub const fn of_kind(&mut self, key: &ObjectKey) -> &mut usize {
        match key {
            ObjectKey::Node => &mut self.node,
            ObjectKey::Peer(_) => &mut self.peers,
            ObjectKey::Endpoint(_) => &mut self.endpoints,
            ObjectKey::Service(_) => &mut self.services,
            ObjectKey::Egress(_) => &mut self.egress,
            ObjectKey::Announcement(_) => &mut self.announcements,
        }
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> usize {
        let objects = self.peers + self.endpoints + self.services + self.egress;
        self.node + objects + self.announcements
    }
}

/// The connection to the dataplane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Connection {
    /// It answers.
    Connected {
        /// Its version.
        version: String,
        /// Changes with every start of it.
        instance: u64,
    },
    /// It does not.
    Disconnected {
        /// Why; empty before the first try.
        error: String,
    },
}

impl Default for Connection {
    fn default() -> Self {
        Self::Disconnected { error: String::new() }
    }
}

/// An object that the dataplane refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The object.
    pub object: ObjectKey,
    /// Its reason.
    pub error: ApiError,
}
