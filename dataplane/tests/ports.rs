//! AF_XDP ports on veth pairs of this machine's kernel: `io::af_xdp`.
//!
//! Needs root: `cargo test -p overlane-dataplane --test ports -- --ignored`. Each test makes a
//! network namespace for its own thread; the kernel removes it, and all devices in it, when the
//! thread and its sockets end, however the test went.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "netns/burst.rs"]
mod burst;
#[allow(clippy::cast_possible_truncation, reason = "lengths of frames, and bytes of a pattern")]
#[path = "netns/gso.rs"]
mod gso;
#[path = "netns/harness.rs"]
mod harness;
#[path = "netns/offloads.rs"]
mod offloads;
#[path = "netns/ports.rs"]
mod ports;
