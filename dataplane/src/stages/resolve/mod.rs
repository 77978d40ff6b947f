//! What is decided for a packet that no earlier packet decided for: its route and hop; and for the
//! first packet of a flow, the service's backend and the source it leaves the cluster with.

mod ahead;
pub mod connect;
mod direct;
mod egress;
mod family;
pub mod gateway;
pub mod hop;
pub mod route;
mod service;
