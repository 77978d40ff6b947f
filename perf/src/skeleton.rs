//! Code generated from the BPF programs at build time.
#![allow(
    warnings,
    unsafe_code,
    missing_docs,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used
)]

pub(crate) mod live {
    include!(concat!(env!("OUT_DIR"), "/live.skel.rs"));
}
pub(crate) mod sink {
    include!(concat!(env!("OUT_DIR"), "/sink.skel.rs"));
}
