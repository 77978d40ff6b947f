//! What a result was measured on and with: without it a number says nothing.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::baseline::COMPILER;

/// The commit that this program was built from; "unknown" outside a git tree.
const COMMIT: &str = env!("OVERLANE_COMMIT");

/// A result as it is written, with all that is needed to read it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document<T> {
    /// What was measured on, and how.
    pub about: About,
    /// The command whose result this is: `pipeline`, `compare`, `latency`, ...
    pub kind: String,
    /// Its result.
    pub result: T,
}

/// The machine, and the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The command line.
    pub command: String,
    /// Seconds since 1970 at which the result was written.
    pub unix_seconds: u64,
    /// Model of the processor.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Is this a guest of a hypervisor? Its processors may be taken away at any time.
    pub virtual_machine: bool,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Load averages over 1, 5 and 15 minutes, when the result was written.
    pub load_average: String,
    /// The commit that the program was built from.
    pub commit: String,
    /// The compiler, and how it was told to optimise.
    pub compiler: String,
}

impl About {
    /// Of this machine, now. What cannot be found out is called unknown.
    #[must_use]
    pub fn now() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            command: std::env::args().enumerate().map(word).collect::<Vec<_>>().join(" "),
            unix_seconds: since.map_or(0, |since| since.as_secs()),
            processor: value(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine: value(&cpuinfo, "flags").is_some_and(is_guest),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            kernel: or_unknown(&read("/proc/sys/kernel/osrelease")),
            load_average: first_words(&read("/proc/loadavg"), 3),
            commit: COMMIT.to_owned(),
            compiler: COMPILER.to_owned(),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A word of the command line; the program without the folder that it lies in.
fn word((number, word): (usize, String)) -> String {
    let name = if number == 0 { word.rsplit('/').next().unwrap_or(&word).to_owned() } else { word };
    if name.contains(char::is_whitespace) { format!("'{name}'") } else { name }
}

/// The value of the first line `name : value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then_some(value.trim())
    })
}

fn is_guest(flags: &str) -> bool {
    flags.split_whitespace().any(|flag| flag == "hypervisor")
}

/// `MemTotal` is in KiB.
fn memory_bytes(meminfo: &str) -> u64 {
    let kib = value(meminfo, "MemTotal").and_then(|value| value.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn first_words(text: &str, count: usize) -> String {
    or_unknown(&text.split_whitespace().take(count).collect::<Vec<_>>().join(" "))
}

fn or_unknown(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { "unknown".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let about = About::now();
        assert!(about.memory_bytes > 1 << 20 && about.processors > 0);
        assert_ne!(about.kernel, "unknown");
        assert_eq!(about.load_average.split(' ').count(), 3);
    }

    #[test]
    fn a_guest_says_so_in_its_flags() {
        let text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(value(text, "model name"), Some("A CPU"));
        assert!(value(text, "flags").is_some_and(is_guest));
        assert!(!is_guest("fpu hypervisors"));
        assert_eq!(memory_bytes("MemFree: 1 kB\nMemTotal:       2048 kB\n"), 2 << 20);
    }

    #[test]
    fn the_programs_folder_is_left_out_of_the_command() {
        assert_eq!(word((0, "/a/b/overlane-perf".into())), "overlane-perf");
        assert_eq!(word((1, "/a/b".into())), "/a/b");
        assert_eq!(word((1, "a b".into())), "'a b'");
    }
}
