//! Benchmarks of the dataplane.
//!
//! - [`pipeline`]: what a packet costs from port to port, in memory.
//! - [`counters`]: what the processor counts meanwhile, where it does.
//! - [`baseline`]: have the instructions for a packet risen?
//! - [`tables`], [`services`]: what the tables cost with a large cluster in them.
//! - [`connections`]: what many services, flows and workers do to connections.
//! - [`crossing`]: what a second worker gives, when answers arrive at the wrong one.
//! - [`search`]: the highest load with little enough loss, by trials of a [`trial::Measurer`].
//! - [`steady`]: what a worker does besides moving packets: nothing, as this shows.
//!
//! These drive the real workers, stages and tables; only the ports are memory. What drives a kernel's
//! interfaces:
//!
//! - [`traffic`], [`writer`]: what generators send, and the frames of it.
//! - [`live`]: the generator that no single core's receiver keeps up with.
//! - [`receive`]: what became of the packets, and how long they took.
//! - [`generate`], [`reflect`], [`station`]: generator, far end and receiver over AF_XDP.
//! - [`sink`]: counts and drops what arrives, at little cost.
//! - [`forward`]: the raw AF_XDP forwarder, which moves frames between two interfaces and does
//!   nothing else: what any dataplane over AF_XDP can reach at most.
//! - [`raw_costs`]: that forwarder, sent with and received from in one way or another.
//! - [`bed`]: namespaces, and the forwarders that are compared on them.
//! - [`compare`]: the same job through all of them; [`ends`] plays both ends, [`meter`] reads what
//!   processor time they take.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of peers, endpoints, flows, workers and bytes are checked when they come in"
)]

pub mod about;
pub mod bare_lane;
pub mod baseline;
pub mod bed;
pub mod bed_commands;
pub mod callgrind;
pub mod child;
pub mod churn;
pub mod compare;
pub mod connections;
pub mod counters;
pub mod crossing;
pub mod device;
pub mod ends;
pub mod error;
pub mod forward;
pub mod frames;
pub mod generate;
pub mod latency;
mod layers;
pub mod live;
pub mod machine;
pub mod measure;
pub mod meter;
pub mod namespace;
pub mod ndr;
pub mod path;
pub mod pipeline;
pub mod progress;
pub mod raw_costs;
pub mod receive;
pub mod reflect;
pub mod report;
pub mod rig;
pub mod scenario;
pub mod search;
pub mod sent;
pub mod services;
pub mod sink;
mod skeleton;
pub mod soak;
pub mod station;
pub mod steady;
pub mod tables;
pub mod text;
pub mod threads;
pub mod topology;
pub mod traffic;
pub mod trial;
pub mod wire_commands;
pub mod writer;
#[cfg(test)]
mod writer_samples;
