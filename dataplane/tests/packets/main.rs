//! Packet in, packet out: a whole node in memory. One file per behaviour; each test says what goes
//! in, what must come out, and which counters move. etherparse is the witness: it builds what goes
//! in and reads what comes out.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod build;
mod overlay;
