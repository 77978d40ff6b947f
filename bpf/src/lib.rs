//! Which frames go to AF_XDP and which to the kernel.
//!
//! Two XDP programs: [`UplinkSteering`] takes from a shared uplink only what is the overlay's
//! (`steer.bpf.c`), [`PortSteering`] takes everything from a pod's port (`port.bpf.c`). Both are
//! attached in native mode by a BPF link, so they leave the interface when their owner does,
//! however it ends. A frame's place on the path is before the first receive ring; what happens
//! to it after that is the dataplane's.
//!
//! A third program is no filter: [`Transmitter`] sends bursts by it (`transmit.bpf.c`), where the
//! dataplane is asked to, and for measurements.

mod attach;
mod diagnose;
mod interface;
mod port;
mod program;
mod tables;
mod transmit;
mod uplink;

pub use diagnose::{BpfError, VETH_MTU_LIMIT};
pub use port::PortSteering;
pub use tables::{Reason, SteerCounters, UplinkSettings};
pub use transmit::{Transmitted, Transmitter};
pub use uplink::{Action, UplinkSteering};

/// Code generated from the BPF programs at build time.
#[allow(
    warnings,
    unsafe_code,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used
)]
mod skeleton {
    pub(crate) mod steer {
        include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
    }
    pub(crate) mod port {
        include!(concat!(env!("OUT_DIR"), "/port.skel.rs"));
    }
    pub(crate) mod transmit {
        include!(concat!(env!("OUT_DIR"), "/transmit.skel.rs"));
    }
}
