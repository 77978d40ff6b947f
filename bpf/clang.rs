//! How the BPF programs are compiled; the build scripts of this crate and of `overlane-perf` share it.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;

/// Compiles each `folder/NAME.bpf.c` to `OUT_DIR/NAME.skel.rs`, the Rust code that opens it.
pub fn compile(folder: &str, names: &[&str]) -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    for name in names {
        let source = format!("{folder}/{name}.bpf.c");
        println!("cargo:rerun-if-changed={source}");
        SkeletonBuilder::new()
            .source(&source)
            .clang_args(arguments())
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .map_err(|source_error| format!("{source}: {source_error:#}"))?;
    }
    Ok(())
}

/// Warnings are errors; `asm/types.h` is where the host's C library keeps it, which clang does
/// not look for when it compiles for another machine.
fn arguments() -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["-Wall", "-Wextra", "-Werror", "-mcpu=v3"].map(Into::into).into();
    if let Some(dir) = asm_headers() {
        args.push("-idirafter".into());
        args.push(dir.into());
    }
    args
}

/// The folder that holds `asm/types.h`: `/usr/include` itself, or the one for this architecture
/// below it (Debian, Ubuntu).
fn asm_headers() -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed=OVERLANE_KERNEL_HEADERS");
    let has_types = |dir: &Path| dir.join("asm/types.h").is_file();
    if let Some(dir) = env::var_os("OVERLANE_KERNEL_HEADERS").map(PathBuf::from) {
        return Some(dir);
    }
    let usr = PathBuf::from("/usr/include");
    if has_types(&usr) {
        return Some(usr);
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let mut found: Vec<PathBuf> = fs::read_dir(&usr)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| has_types(path))
        .collect();
    found.sort_by_key(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        (!name.unwrap_or_default().starts_with(&arch), path.clone())
    });
    found.into_iter().next()
}
