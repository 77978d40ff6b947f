//! What a node is called in membership messages.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a live node is ready for. It says so itself, so that all nodes agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// Its dataplane does not forward.
    Away,
    /// Its dataplane forwards, but not for long yet: it takes nothing back from others.
    Standby,
    /// Announced addresses and gateways may be given to it.
    Ready,
}

/// A node as it is now. Every change of it makes another identity, of a higher generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The address that membership messages are sent to and come from.
    pub address: IpAddr,
    /// Of two identities with one address the higher is right. Milliseconds since 1970 at the
    /// start, so that a node that was started again is newer than before.
    pub generation: u64,
    /// What it is ready for.
    pub duty: Duty,
}

/// By how much the generation grows when others remember a higher one: after a clock was set back
/// by a day, 83 such steps, each as long as a message takes, find the way back in.
const STEP: u64 = 1 << 20;

impl Identity {
    /// The node at an address of which nothing else is known.
    #[must_use]
    pub const fn unknown(address: IpAddr) -> Self {
        Self { address, generation: 0, duty: Duty::Away }
    }

    /// The same node with another duty.
    #[must_use]
    pub const fn with_duty(&self, duty: Duty) -> Self {
        Self { address: self.address, generation: self.generation.saturating_add(1), duty }
    }
}

impl foca::Identity for Identity {
    type Addr = IpAddr;

    /// Declared dead by mistake, or by one that remembers a higher generation. Others may have
    /// taken over by now: it is not ready before it has been well for a while.
    fn renew(&self) -> Option<Self> {
        let duty = self.duty.min(Duty::Standby);
        Some(Self { generation: self.generation.saturating_add(STEP), duty, ..self.clone() })
    }

    fn addr(&self) -> IpAddr {
        self.address
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // Equal ones differ in duty only; any order does, if all have the same.
        (self.generation, self.duty) > (adversary.generation, adversary.duty)
    }
}
