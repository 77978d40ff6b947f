//! The measurements that a page is made of when no results are given.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::PerfError;

/// What is measured: a name for the result, and the command's words. The bed needs root.
const MEASUREMENTS: [(&str, &str); 4] = [
    (
        "pipeline",
        "pipeline --scenario geneve-encap,geneve-decap,dnat-geneve,dnat-reply,snat-out,snat-in \
         --flows 1,1000,100000,1000000 --seconds 0.5",
    ),
    (
        "stages",
        "pipeline --scenario geneve-encap,geneve-decap,dnat-geneve,dnat-reply,snat-out,snat-in \
         --seconds 0.2 --stages",
    ),
    ("compare", "compare --quick"),
    ("latency", "latency --seconds 3"),
];

/// Makes the measurements one after the other, with this very program; their results go into
/// `folder`. A measurement that fails is told on standard error, and the others are made.
///
/// # Errors
/// [`PerfError::Stopped`]: the person has had enough. [`PerfError::Missed`]: all of them failed.
pub fn measure(folder: &Path, stop: &AtomicBool) -> Result<Vec<PathBuf>, PerfError> {
    std::fs::create_dir_all(folder)
        .map_err(|source| PerfError::File { path: folder.into(), source })?;
    let mut results = Vec::new();
    for (number, (name, words)) in MEASUREMENTS.iter().enumerate() {
        let path = folder.join(name).with_extension("json");
        eprintln!("[{}/{}] overlane-perf {words}", number + 1, MEASUREMENTS.len());
        match run(words, &path)? {
            status if status.success() => results.push(path),
            status => eprintln!("overlane-perf: left out ({status}): {name}"),
        }
        if stop.load(Ordering::Relaxed) {
            return Err(PerfError::Stopped);
        }
    }
    if results.is_empty() {
        return Err(PerfError::Missed("nothing could be measured, see above".to_owned()));
    }
    Ok(results)
}

fn run(words: &str, path: &Path) -> Result<ExitStatus, PerfError> {
    let failed = |source| PerfError::File { path: path.into(), source };
    let result = std::fs::File::create(path).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    Command::new(program)
        .args(words.split_whitespace())
        .args(["-o", "json"])
        .stdout(result)
        .stdin(Stdio::null())
        .status()
        .map_err(failed)
}
