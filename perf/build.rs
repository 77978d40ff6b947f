//! Remembers which compiler this is built with: instruction counts of different ones say nothing
//! about each other.

use std::env;
use std::process::Command;

fn main() {
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
    println!("cargo:rerun-if-changed=build.rs");
}
