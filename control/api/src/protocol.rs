//! The dataplane's socket: newline-delimited JSON, one request a line, one response a line, in
//! order. Every request carries the protocol version; an unknown version or operation is refused
//! by name and changes nothing.

use serde::{Deserialize, Serialize};

use crate::flow::{FlowFilter, FlowReport, NatReport, NatUsage};
use crate::latency::LatencyReport;
use crate::object::{Change, ObjectKey};
use crate::status::{DropReport, EndpointStatus, PeerStatus, ServiceStatus, Status};

/// Version of the protocol. It moves when an old peer would misread a new message.
pub const VERSION: u32 = 1;

/// Longest request line that a server reads, bytes.
pub const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Most changes that a client puts into one request.
pub const MAX_CHANGES: usize = 1000;

/// A question or an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Chosen by the sender, repeated in the response.
    pub id: u64,
    /// What is asked.
    pub op: Op,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Who are you?
    Hello,
    /// What is installed? Answered with keys and digests.
    Installed,
    /// Apply these changes in order: all of them, or none and an error that names the first
    /// change refused.
    Apply {
        /// At most [`MAX_CHANGES`].
        changes: Vec<Change>,
    },
    /// The sender sees to it that no other node answers for this node's announcements: they are in
    /// force for so long from now on, and no longer unless this is asked again. What is installed
    /// of them stays.
    Lease {
        /// Milliseconds; 0 ends it at once.
        milliseconds: u32,
    },
    /// The whole state on one screen.
    Status,
    /// Local endpoints.
    Endpoints,
    /// This node's peers.
    Peers,
    /// Drops by reason.
    Drops,
    /// Services, as they are in force.
    Services,
    /// Flows, as the workers hold them.
    Flows {
        /// Which.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Forget flows: the next packet of each is looked at as if it were the first.
    FlushFlows {
        /// Which. [`FlowFilter::limit`] does not apply.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Source NAT bindings: which external port stands for which pod's.
    NatBindings {
        /// Which: of the flows that have one.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// How full the external ports are.
    NatUsage,
    /// How long packets are inside.
    Latency {
        /// Begin anew after this answer, for everybody.
        #[serde(default)]
        reset: bool,
    },
}

/// The answer to the request of the same id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The request's id; 0 when the request could not be read.
    pub id: u64,
    /// What came of it.
    pub result: Result<Reply, ApiError>,
}

/// What came of a request that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Op::Hello`].
    Hello {
        /// The dataplane's version.
        version: String,
        /// Changes with every start of the dataplane.
        instance: u64,
    },
    /// To [`Op::Installed`].
    Installed {
        /// Everything installed, with the digest of its content.
        objects: Vec<(ObjectKey, u64)>,
    },
    /// To [`Op::Apply`].
    Applied {
        /// Generation of the tables that contain the changes.
        generation: u64,
        /// What was accepted but is not yet in force, and why (an interface that does not exist
        /// yet, say).
        warnings: Vec<String>,
    },
    /// To [`Op::Lease`].
    Lease {
        /// Does the node forward: is its uplink open, with a carrier, and its node described?
        forwarding: bool,
    },
    /// To [`Op::Status`].
    Status(Box<Status>),
    /// To [`Op::Endpoints`].
    Endpoints(Vec<EndpointStatus>),
    /// To [`Op::Peers`].
    Peers(Vec<PeerStatus>),
    /// To [`Op::Drops`].
    Drops(DropReport),
    /// To [`Op::Services`].
    Services(Vec<ServiceStatus>),
    /// To [`Op::Flows`].
    Flows(FlowReport),
    /// To [`Op::FlushFlows`].
    Flushed {
        /// How many flows were forgotten.
        flows: u64,
    },
    /// To [`Op::NatBindings`].
    NatBindings(NatReport),
    /// To [`Op::NatUsage`].
    NatUsage(Vec<NatUsage>),
    /// To [`Op::Latency`].
    Latency(LatencyReport),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}{}{}", .place.as_ref().map(|p| format!(" (at {p})")).unwrap_or_default(), .hint.as_ref().map(|h| format!(": {h}")).unwrap_or_default())]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// What was wrong, with the value.
    pub what: String,
    /// Where: an object and field, a byte position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// For programs: what kind of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is not a request.
    Malformed,
    /// The sender speaks another version.
    Version,
    /// An object cannot be installed as it is.
    Refused,
    /// The dataplane could not do it; trying again may help.
    Failed,
    /// The sender may not ask this.
    Denied,
    /// Known, and not done by this version.
    Unsupported,
}

impl ApiError {
    /// An error of kind `code`.
    #[must_use]
    pub fn new(code: ErrorCode, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), place: None, hint: None }
    }

    /// Adds where it is.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
