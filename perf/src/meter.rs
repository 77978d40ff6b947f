//! What processor time a forwarder takes.
//!
//! Read from `/proc/PID/task/TID/schedstat`: nanoseconds that a thread has run. Where the kernel does
//! not account for interrupts by themselves, that includes whatever interrupted it, and so the
//! receiving side's softirq of each frame that it sent.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::PerfError;

/// A thread of any process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its process.
    pub pid: u32,
    /// Its own number.
    pub tid: u32,
    /// Its name.
    pub name: String,
}

impl Task {
    /// From a line `PID/TID NAME`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (numbers, name) = line.trim().split_once(' ')?;
        let (pid, tid) = numbers.split_once('/')?;
        Some(Self { pid: pid.parse().ok()?, tid: tid.parse().ok()?, name: name.to_owned() })
    }

    /// The thread of this process that has that name.
    ///
    /// # Errors
    /// [`PerfError::File`]: there is none, or more than one.
    pub fn of_this_process(name: &str) -> Result<Self, PerfError> {
        let folder = PathBuf::from("/proc/self/task");
        let failed = |source| PerfError::File { path: folder.clone(), source };
        let mut found = None;
        for entry in std::fs::read_dir(&folder).map_err(failed)?.flatten() {
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.trim() == name {
                let tid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
                found = Some(Self { pid: std::process::id(), tid, name: name.to_owned() });
            }
        }
        found.ok_or_else(|| failed(std::io::Error::other(format!("no thread {name}"))))
    }

    /// The kernel's thread that does the softirqs of a CPU when there are too many.
    #[must_use]
    pub fn ksoftirqd(cpu: usize) -> Option<Self> {
        let name = format!("ksoftirqd/{cpu}");
        std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            (comm.trim() == name).then(|| Self { pid, tid: pid, name: name.clone() })
        })
    }

    /// Nanoseconds that it has run so far.
    ///
    /// # Errors
    /// [`PerfError::File`]: it has ended.
    pub fn run_ns(&self) -> Result<u64, PerfError> {
        let path = PathBuf::from(format!("/proc/{}/task/{}/schedstat", self.pid, self.tid));
        let failed = |source| PerfError::File { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        parse_schedstat(&text).ok_or_else(|| failed(std::io::Error::other("no time in it")))
    }
}

/// Nanoseconds that all of them have run so far.
///
/// # Errors
/// [`PerfError::File`]: one has ended.
pub fn run_ns(tasks: &[Task]) -> Result<u64, PerfError> {
    tasks.iter().map(Task::run_ns).sum()
}

/// The first of three numbers: running, waiting, time slices.
fn parse_schedstat(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let run = words.next()?.parse().ok()?;
    // Another format is not guessed at.
    (words.count() == 2).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_thread_has_run_is_the_first_number() {
        assert_eq!(parse_schedstat("1234567 89 10\n"), Some(1_234_567));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("12"), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn a_line_of_a_script_names_a_thread() {
        let task = Task::parse("12/34 pmd-c01/id:8").unwrap();
        assert_eq!((task.pid, task.tid, task.name.as_str()), (12, 34, "pmd-c01/id:8"));
        assert_eq!(Task::parse("nobody"), None);
        assert_eq!(Task::parse("1/x y"), None);
    }

    #[test]
    fn a_thread_that_works_takes_time() {
        let work = std::thread::Builder::new().name("meter-test".into()).spawn(|| {
            let task = Task::of_this_process("meter-test").unwrap();
            let before = task.run_ns().unwrap();
            let start = crate::measure::thread_time().unwrap();
            while (crate::measure::thread_time().unwrap() - start).as_millis() < 30 {}
            task.run_ns().unwrap() - before
        });
        let ran = work.unwrap().join().unwrap();
        assert!((20_000_000..300_000_000).contains(&ran), "{ran} ns");
        assert!(Task::of_this_process("meter-none").is_err());
    }
}
