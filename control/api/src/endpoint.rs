//! A pod, here or elsewhere.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::{MacAddr, WorkerId};

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Attachment {
    /// On this node, behind an interface of this node's namespace.
    Local {
        /// The node's end of the pod's veth.
        interface: String,
        /// The pod's own MAC; absent: read from the veth's other end.
        #[serde(default)]
        mac: Option<MacAddr>,
        /// Its home worker; absent: the dataplane chooses the one with the fewest pods.
        #[serde(default)]
        worker: Option<WorkerId>,
    },
    /// On another node.
    Remote {
        /// That node's name.
        peer: String,
    },
}

/// A pod with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `namespace/name`, unique in the cluster.
    pub name: String,
    /// At most one address of each family.
    pub addresses: Vec<IpAddr>,
    /// Where it is.
    pub attachment: Attachment,
}
