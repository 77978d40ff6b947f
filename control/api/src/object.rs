//! The objects that make up a dataplane's desired state, their keys and the changes to them.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::announcement::Announcement;
use crate::egress::Egress;
use crate::endpoint::Endpoint;
use crate::node::Node;
use crate::peer::Peer;
use crate::service::Service;

/// One piece of desired state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// This node; there is one.
    Node(Node),
    /// Another node.
    Peer(Peer),
    /// A pod.
    Endpoint(Endpoint),
    /// One port of a service.
    Service(Service),
    /// A rule for pods that leave the cluster.
    Egress(Egress),
    /// An address that this node answers for on the underlay.
    Announcement(Announcement),
}

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectKey {
    /// This node.
    Node,
    /// Another node, by name.
    Peer(String),
    /// A pod, by `namespace/name`.
    Endpoint(String),
    /// One port of a service, by `namespace/name:port` (see [`Service::name`]).
    Service(String),
    /// A rule for pods that leave the cluster, by name.
    Egress(String),
    /// An address that this node answers for on the underlay.
    Announcement(IpAddr),
}

/// One step from the installed state towards the desired one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Add this object, or replace the one with the same key.
    Set(Object),
    /// Take the object away. Removing what is not there is not an error.
    Remove(ObjectKey),
}

impl Object {
    /// What names this object.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Node(_) => ObjectKey::Node,
            Self::Peer(peer) => ObjectKey::Peer(peer.name.clone()),
            Self::Endpoint(endpoint) => ObjectKey::Endpoint(endpoint.name.clone()),
            Self::Service(service) => ObjectKey::Service(service.name.clone()),
            Self::Egress(egress) => ObjectKey::Egress(egress.name.clone()),
            Self::Announcement(announcement) => ObjectKey::Announcement(announcement.address),
        }
    }

    /// A digest of the object's content: equal objects have equal digests, on every machine and
    /// in every process of the same version. Used to find out what differs without sending it.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Fnv::default();
        // Serialising plain data into a sink that cannot fail does not fail.
        let _ = serde_json::to_writer(&mut digest, self);
        digest.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Peer(name) => write!(f, "peer {name}"),
            Self::Endpoint(name) => write!(f, "endpoint {name}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Egress(name) => write!(f, "egress {name}"),
            Self::Announcement(address) => write!(f, "announcement {address}"),
        }
    }
}

/// FNV-1a, 64 bits.
#[derive(Debug, Clone)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Hash of `bytes`.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> u64 {
        let mut fnv = Self::default();
        fnv.add(bytes);
        fnv.0
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl std::io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Attachment;

    fn endpoint(address: &str) -> Object {
        Object::Endpoint(Endpoint {
            name: "default/web".into(),
            addresses: vec![address.parse().unwrap()],
            attachment: Attachment::Remote { peer: "b".into() },
        })
    }

    #[test]
    fn digest_tells_contents_apart_and_survives_the_wire() {
        let object = endpoint("10.244.2.10");
        let text = serde_json::to_string(&object).unwrap();
        let back: Object = serde_json::from_str(&text).unwrap();
        assert_eq!(back, object);
        assert_eq!(back.digest(), object.digest());
        assert_ne!(endpoint("10.244.2.11").digest(), object.digest());
        assert_eq!(Fnv::hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"endpoint":{"name":"x","addresses":[],"attachment":{"remote":{"peer":"b"}},"colour":1}}"#;
        assert!(serde_json::from_str::<Object>(text).unwrap_err().to_string().contains("colour"));
    }
}
