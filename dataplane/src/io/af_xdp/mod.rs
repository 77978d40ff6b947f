//! AF_XDP: frames from and to a kernel device, without a copy of ours.
//!
//! All `unsafe` of this crate is in this folder, behind a safe surface. What makes it sound is
//! one rule: a chunk of the UMEM is either a [`Frame`](crate::packet::frame::Frame) somewhere in
//! this process, or it is on a ring of exactly one [`AfXdpPort`], which remembers that it gave
//! it to the kernel and refuses any address of the kernel's that it has not given.
//!
//! - [`plan`]: how many chunks fit in a memory budget.
//! - [`umem`]: the memory that is shared with the kernel.
//! - `outstanding`: which chunks a port has given to the kernel.
//! - `fill_target`: how many of them wait for packets that may come.
//! - `socket`: binding and options of one socket.
//! - `tx_ring`: our own TX ring, because packets may start in front of where they were received.
//! - [`port`]: the [`Port`](super::Port) of one device queue.
//! - [`burst`]: sends what all ports of a worker have in one call.
//! - `gso`: sends a packet's segments as one, where that is cheaper.
//! - [`interface`]: what a device is and can do.
//! - [`ethtool`]: its features, as `ethtool -k` and `-K` know them.
//! - `netlink`: questions to the kernel for both.
//! - [`offload`]: makes a pod's end of a veth pair send packets that AF_XDP can carry.

#![allow(unsafe_code)]

pub mod burst;
pub mod ethtool;
mod fill_target;
mod gso;
pub mod interface;
mod netlink;
pub mod offload;
mod outstanding;
pub mod plan;
pub mod port;
mod socket;
mod tx_ring;
pub mod umem;

pub use plan::{MemoryPlan, RingSizes};
pub use port::{AfXdpPort, Coalesce, OpenPort, TxCounters};
pub use socket::{BusyPoll, OpenError};
pub use umem::{BindMode, Umem, UmemError, UmemOptions};
