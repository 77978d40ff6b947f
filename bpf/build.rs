//! Compiles the BPF programs and generates the Rust code that opens them.

use std::error::Error;

#[path = "clang.rs"]
mod clang;

/// Program names (stems of `src/NAME.bpf.c`).
const PROGRAMS: [&str; 3] = ["steer", "port", "transmit"];
/// Headers the programs share.
const HEADERS: [&str; 2] = ["src/maps.h", "src/parse.h"];

fn main() -> Result<(), Box<dyn Error>> {
    for header in HEADERS {
        println!("cargo:rerun-if-changed={header}");
    }
    clang::compile("src", &PROGRAMS)
}
