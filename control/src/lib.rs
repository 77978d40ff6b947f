//! The control side of Overlane: what should be.
//!
//! A node's configuration ([`config`], checked by [`validate`]) and Kubernetes manifests (read by
//! a [`sources::Source`], translated by [`manifests`]) become the [`desired`] objects;
//! [`reconcile`] pushes what differs from the dataplane's. Kubernetes words stop at
//! [`manifests`]. Nothing here touches a packet: forwarding goes on while this process is away.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod desired;
pub mod election;
pub mod health;
pub mod host;
pub mod lease;
pub mod manifests;
pub mod membership;
pub mod reconcile;
pub mod socket;
pub mod sources;
pub mod status;
pub mod validate;

/// Version of this program, as `overlane version` shows it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
