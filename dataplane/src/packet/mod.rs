//! L1: what one packet is while it is inside: its frame, what is known about it, its verdict.

pub mod blocks;
pub mod drop;
pub mod flow_key;
pub mod frame;
pub mod lanes;
pub mod meta;
pub mod pool;
pub mod prefetch;
pub mod region;
pub mod segments;
pub mod vector;
pub mod verdict;
