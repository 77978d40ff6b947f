//! A whole node in memory, for tests, fuzzing and benchmarks: the compiler, the tables and the
//! workers are the real ones; the ports are memory.
#![allow(clippy::cast_possible_truncation, reason = "for tests, of a few workers")]

pub mod fuzz;
pub mod node;
pub mod objects;

pub use node::{Bench, MemoryNode, Place};
