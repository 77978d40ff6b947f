//! L1: what is counted. One block per worker, one writer each; summed when somebody asks.

pub mod counters;
pub mod dwell;
