//! Remembers which compiler this is built with, because instruction counts of different ones say
//! nothing about each other, and from which commit. Compiles the BPF programs of generator and sink.

use std::process::Command;
use std::{env, error};

#[path = "../bpf/clang.rs"]
mod clang;

/// Program names (stems of `bpf/NAME.bpf.c`).
const PROGRAMS: [&str; 2] = ["live", "sink"];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=../bpf/clang.rs");
    clang::compile("bpf", &PROGRAMS)?;
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = version.as_deref().map_or("unknown compiler", str::trim);
    let level = env::var("OPT_LEVEL").unwrap_or_default();
    let target = env::var("TARGET").unwrap_or_default();
    // Separated by a unit separator each.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\u{1f}', " ");
    println!(
        "cargo:rustc-env=OVERLANE_COMPILER={}",
        format!("{version}, {target}, opt-level {level} {flags}").trim_end()
    );
    println!("cargo:rustc-env=OVERLANE_COMMIT={}", commit().as_deref().unwrap_or("unknown"));
    println!("cargo:rerun-if-changed=build.rs");
    Ok(())
}

/// The commit, with "-dirty" when files differ from it as the program is built; none outside a git
/// tree.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    // Every commit writes here, wherever the tree's git directory is.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["describe", "--always", "--dirty", "--abbrev=10"])
}
