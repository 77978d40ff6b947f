//! The process around the workers: its settings, its socket, and what it knows and changes in the
//! node's own network stack. Everything here runs on the slow thread or a thread of its own; no
//! worker calls into this module.
//!
//! | file | job |
//! |---|---|
//! | `settings` | command line to checked settings |
//! | `socket` | newline-delimited JSON on a Unix socket, one [`socket::Call`] per request |
//! | `netlink` | synchronous rtnetlink requests, and a non-blocking event socket |
//! | `links` | interfaces as they come, change and go |
//! | `neighbors` | next hop and MAC of every underlay destination, kept fresh |
//! | `listings`, `nat_usage` | services, flows and source NAT, for those who ask |
//! | `latency` | how long packets were inside, for those who ask |
//! | `announce` | tells the underlay's link of the addresses that this node answers for |
//! | `host_port` | the veth between the node's own stack and its pods |

pub mod announce;
mod attach;
pub mod host_port;
mod host_sockets;
pub mod latency;
pub mod links;
pub mod listings;
mod nat_trend;
mod nat_usage;
pub mod neighbors;
pub mod netlink;
mod next_hops;
pub mod plan;
pub mod process;
pub mod routes;
pub mod settings;
pub mod socket;
mod status;
mod steering;
mod uplink;
pub mod workers;
