//! Benchmarks of the dataplane.
//!
//! - [`pipeline`]: what a packet costs from port to port, in memory.
//! - [`baseline`]: have the instructions for a packet risen?
//! - [`tables`], [`services`]: what the tables cost with a large cluster in them.
//! - [`connections`]: what many services, flows and workers do to connections.
//! - [`search`]: the highest load with little enough loss, by trials of a [`trial::Measurer`].
//! - [`steady`]: what a worker does besides moving packets: nothing, as this shows.
//!
//! All drive the real workers, stages and tables; only the ports are memory.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of peers, endpoints, flows, workers and bytes are checked when they come in"
)]

pub mod baseline;
pub mod callgrind;
pub mod child;
pub mod connections;
pub mod error;
pub mod frames;
pub mod machine;
pub mod measure;
pub mod pipeline;
pub mod rig;
pub mod scenario;
pub mod search;
pub mod services;
pub mod steady;
pub mod tables;
pub mod topology;
pub mod trial;
