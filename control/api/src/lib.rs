//! What all Overlane processes share: number types with a meaning, the objects the dataplane
//! understands, and the socket protocol with its client.
//!
//! This crate is the leaf of the workspace: it imports nothing else of ours. Kubernetes words do
//! not occur here; `overlane-control` translates them into these objects.

pub mod announcement;
pub mod buckets;
pub mod client;
pub mod egress;
pub mod endpoint;
pub mod flow;
pub mod hgrm;
pub mod latency;
pub mod node;
pub mod object;
pub mod peer;
pub mod protocol;
pub mod service;
pub mod status;
pub mod types;

pub use announcement::Announcement;
pub use egress::{Egress, EgressAction, SnatSettings, Timeouts};
pub use endpoint::{Attachment, Endpoint};
pub use node::{EncapSettings, HostPort, Mode, Node, OuterDscp, OuterUdpChecksum, Underlay};
pub use object::{Change, Object, ObjectKey};
pub use peer::Peer;
pub use service::{
    Algorithm, Backend, BackendState, Forwarding, Frontend, FrontendKind, Protocol, Reject, Scope,
    Service,
};
pub use types::{MacAddr, PortRange, QueueId, TypeError, Vni, WorkerId};
