//! What each fuzz target does with its bytes. The bodies are plain functions, so that a test can
//! replay an input without a fuzzer.
//!
//! A body panics when a promise is broken, and only then.

mod geneve_options;
mod wire_parsers;

pub use geneve_options::geneve_options;
pub use wire_parsers::wire_parsers;
