//! L1: what one packet is while it is inside: its frame, its metadata, its verdict.

pub mod frame;
pub mod pool;
