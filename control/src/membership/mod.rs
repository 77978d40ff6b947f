//! Which nodes live: the control processes tell each other, by SWIM over UDP, that they and their
//! dataplanes do.
//!
//! | file | job |
//! |---|---|
//! | `identity` | what a node says of itself |
//! | `swim` | the protocol, without sockets and clocks |
//! | `readiness` | when this node is ready for what others may have |
//! | `keys` | the file with the key, if there is one |
//! | `seal` | messages signed with it, each believed once |
//! | `agent` | the thread around them |
//!
//! Without a key messages are not authenticated: they are believed when they come from the address of a
//! node of the cluster. Whoever can send from such an address can say that a node is dead. With a key it takes
//! the key.

pub mod agent;
pub mod identity;
pub mod keys;
mod readiness;
pub mod seal;
mod swim;

use std::collections::{BTreeMap, BTreeSet};

use overlane_api::EgressAction;
use serde::{Deserialize, Serialize};

use crate::validate::Validated;

pub use identity::Duty;
pub use swim::Datagrams;

/// How a node is, as this one sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Ready for announced addresses and gateways.
    Live,
    /// Its dataplane forwards, but not for long yet.
    Standby,
    /// Its control lives, its dataplane does not forward.
    NotForwarding,
    /// It did not answer, and may still do. It keeps what it has.
    Suspect,
    /// It did not answer, or said farewell.
    Dead,
    /// Nothing was ever heard of it.
    Unknown,
}

impl Liveness {
    /// May it be given addresses?
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Live | Self::Suspect)
    }

    /// As people read it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Standby => "standby",
            Self::NotForwarding => "not forwarding",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

/// Which nodes can be given something, for those that choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Names of the nodes that are ready, this one among them; absent: nobody keeps track, and a
    /// node that is alone in a list is taken to be.
    ready: Option<BTreeSet<String>>,
    /// May this node answer for what it is given?
    may_answer: bool,
}

impl Members {
    /// At the start: nobody is ready, or nobody keeps track because the configuration needs it not.
    #[must_use]
    pub fn of(config: &Validated) -> Self {
        match &config.membership {
            Some(_) => Self::tracked(BTreeSet::new(), false),
            None => Self { ready: None, may_answer: true },
        }
    }

    /// These are ready.
    #[must_use]
    pub fn tracked(ready: BTreeSet<String>, may_answer: bool) -> Self {
        Self { ready: Some(ready), may_answer }
    }

    /// Is `node` ready?
    #[must_use]
    pub fn is_ready(&self, node: &str) -> bool {
        self.ready.as_ref().is_none_or(|ready| ready.contains(node))
    }

    /// The nodes that are ready; absent: nobody keeps track.
    #[must_use]
    pub fn ready(&self) -> Option<impl Iterator<Item = &str> + Clone> {
        self.ready.as_ref().map(|ready| ready.iter().map(String::as_str))
    }

    /// May this node answer for what it is given?
    #[must_use]
    pub const fn may_answer(&self) -> bool {
        self.may_answer
    }

    /// A gateway's action with the node that holds it now first: of those that are ready the first
    /// in order of preference. Other actions are as they are.
    #[must_use]
    pub fn with_holder(&self, action: &EgressAction) -> EgressAction {
        match action {
            EgressAction::Gateway { addresses, nodes } => EgressAction::Gateway {
                addresses: addresses.clone(),
                nodes: self.ready_first(nodes),
            },
            other => other.clone(),
        }
    }

    /// `nodes` with those that are ready first, in their order.
    #[must_use]
    pub fn ready_first(&self, nodes: &[String]) -> Vec<String> {
        let (mut ready, rest): (Vec<String>, Vec<String>) =
            nodes.iter().cloned().partition(|node| self.is_ready(node));
        ready.extend(rest);
        ready
    }
}

/// Another node, or this one, as `overlane node list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// How it is.
    pub liveness: Liveness,
    /// Seconds since that is so; absent: since this process was started.
    pub since_s: Option<u64>,
}

/// How membership goes, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipStatus {
    /// Where this node is heard; absent: nowhere, and a warning says why.
    pub address: Option<std::net::SocketAddr>,
    /// What this node is ready for.
    pub duty: Option<Duty>,
    /// Number of nodes by how they are, this one included.
    pub nodes: BTreeMap<Liveness, usize>,
    /// What has come in and gone out.
    pub datagrams: Datagrams,
    /// Are messages signed, and those that are not refused?
    #[serde(default)]
    pub authenticated: bool,
}
