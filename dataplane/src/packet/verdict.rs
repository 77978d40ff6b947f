//! What becomes of a packet.

use overlane_api::WorkerId;

use super::drop::DropReason;

/// Number of a port (one device queue) in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// As an index.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What becomes of a packet. `Pending` until a step has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No step has decided yet.
    Pending,
    /// Leaves through a port of this worker.
    Send(PortId),
    /// Leaves through a port of that worker: the frame is handed over ready to send.
    SendElsewhere(WorkerId, PortId),
    /// Belongs to an endpoint whose home is that worker, which decides on the rest.
    HandOver(WorkerId),
    /// Leaves through the host port, for the node's own stack.
    ToHost(PortId),
    /// Waits for its next hop to be resolved.
    Hold,
    /// Waits for the first fragment of its packet, or as that for the last one.
    Wait,
    /// Not delivered.
    Drop(DropReason),
}
