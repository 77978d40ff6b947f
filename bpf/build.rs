//! Compiles the BPF programs and generates the Rust code that opens them.

use std::path::PathBuf;
use std::{env, error};

use libbpf_cargo::SkeletonBuilder;

#[path = "clang.rs"]
mod clang;

/// Program name (the stem of `src/NAME.bpf.c`); the output is `OUT_DIR/NAME.skel.rs`.
const PROGRAMS: [&str; 3] = ["steer", "port", "transmit"];
/// Headers the programs share.
const HEADERS: [&str; 2] = ["src/maps.h", "src/parse.h"];

fn main() -> Result<(), Box<dyn error::Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    for header in HEADERS {
        println!("cargo:rerun-if-changed={header}");
    }
    for program in PROGRAMS {
        let source = format!("src/{program}.bpf.c");
        println!("cargo:rerun-if-changed={source}");
        SkeletonBuilder::new()
            .source(&source)
            .clang_args(clang::arguments())
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .map_err(|source_error| format!("{source}: {source_error:#}"))?;
    }
    Ok(())
}
