//! Overlane's dataplane: what is done with each packet.
//!
//! The folder listing is the packet's path; the layers, from below, and what each may import:
//!
//! | layer | imports |
//! |---|---|
//! | [`wire`]: bytes and fields | types of overlane-api |
//! | [`packet`], [`stats`]: one packet while it is inside, and what is counted | wire, api |
//! | [`tables`]: what all workers share, immutable | packet, wire, api |
//! | [`flow`]: what one worker remembers of its flows | packet, api |
//! | [`stages`]: what is done with a vector of packets | wire, packet, tables, flow |
//! | [`io`]: where frames come from and go to | packet |
//! | [`worker`]: the poll loop | all above |
//!
//! `unsafe` is kept in `io/af_xdp`; the exceptions are `packet/prefetch.rs`, a hint to the cache, and
//! `packet/region.rs`, memory for large tables.

pub mod flow;
pub mod io;
pub mod node;
pub mod packet;
pub mod stages;
pub mod stats;
pub mod tables;
pub mod testing;
pub mod wire;
pub mod worker;
