//! `overlane-perf steady`: a worker that has packets allocates nothing, takes no lock, makes no
//! system call and executes no atomic read-modify-write for a packet. Four witnesses:
//!
//! - the global allocator counts what is allocated while a million packets are forwarded;
//! - `strace` counts system calls of two runs, one with twice as many packets: what both runs
//!   make alike belongs to starting and ending;
//! - callgrind names every instruction executed below the worker's `poll`, `objdump` says what it
//!   is: `lock`-prefixed instructions, `xchg` with memory (which locks without saying so) and
//!   `syscall` are counted. A lock cannot be taken without one of the first two. Valgrind hides
//!   the kernel's vDSO from the program, so the clock, read once a vector, shows here as a system
//!   call; `strace` shows that it is none.

use std::collections::HashMap;
use std::process::Command;

use serde::Serialize;
use stats_alloc::{Region, StatsAlloc};

use crate::callgrind::{self, Place, Profile, child_arguments, printed_packets};
use crate::error::PerfError;
use crate::measure::forward;
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};
use crate::text::listing;

/// Vectors of 64 packets: a million packets.
const VECTORS: usize = 15_625;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// By scenario.
    pub rows: Vec<Row>,
}

/// What a scenario's packets cost besides time.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The scenario.
    pub scenario: &'static str,
    /// Packets forwarded while allocations were counted.
    pub packets: u64,
    /// Allocations, reallocations and releases meanwhile.
    pub allocations: usize,
    /// System calls that as many packets more make.
    pub system_calls: i64,
    /// Atomic read-modify-write instructions a packet.
    pub atomics: f64,
    /// Where they are, at most ten places.
    pub atomic_places: Vec<String>,
    /// System call instructions a vector under valgrind; the clock is one.
    pub system_calls_without_vdso: f64,
}

impl Row {
    /// Less than one in ten vectors counts as none for each packet: magazines of frames change
    /// hands by an atomic, 64 at once.
    fn is_steady(&self) -> bool {
        self.allocations == 0 && self.system_calls == 0 && self.atomics < 0.1 / 64.0
    }
}

/// Looks at `scenarios`. `allocator` is the program's global allocator.
///
/// # Errors
/// [`PerfError`]
pub fn run(
    scenarios: &[Scenario],
    allocator: &StatsAlloc<std::alloc::System>,
) -> Result<Report, PerfError> {
    let load = Load::default();
    let mut kinds = HashMap::new();
    let mut rows = Vec::new();
    for scenario in scenarios {
        let (packets, allocations) = allocations(*scenario, &load, allocator)?;
        let once = system_calls(*scenario, &load, VECTORS)?;
        let twice = system_calls(*scenario, &load, 2 * VECTORS)?;
        let profile = callgrind::count(*scenario, &load, false)?;
        let found = instructions(&profile, &mut kinds)?;
        let vectors = callgrind::VECTORS as f64;
        rows.push(Row {
            scenario: scenario.name,
            packets,
            allocations,
            system_calls: twice - once,
            atomics: found.atomics as f64 / profile.packets as f64,
            atomic_places: found.places,
            system_calls_without_vdso: found.system_calls as f64 / vectors,
        });
    }
    Ok(Report { rows })
}

fn allocations(
    scenario: Scenario,
    load: &Load,
    allocator: &StatsAlloc<std::alloc::System>,
) -> Result<(u64, usize), PerfError> {
    let mut rig = Rig::new(scenario, load, 1)?;
    let Some(worker) = rig.bench.workers.first_mut() else { return Err(PerfError::Thread) };
    forward(worker, 1000);
    let region = Region::new(allocator);
    let packets = forward(worker, VECTORS) as u64;
    let change = region.change();
    rig.check()?;
    Ok((packets, change.allocations + change.reallocations + change.deallocations))
}

/// System calls of a process that forwards `vectors` vectors.
fn system_calls(scenario: Scenario, load: &Load, vectors: usize) -> Result<i64, PerfError> {
    let folder = tempfile::tempdir()
        .map_err(|source| PerfError::File { path: std::env::temp_dir(), source })?;
    let out = folder.path().join("strace.out");
    let program = std::env::current_exe()
        .map_err(|source| PerfError::File { path: "/proc/self/exe".into(), source })?;
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&out)
        .arg(program)
        .args(child_arguments(scenario, load, vectors, false))
        .output()
        .map_err(|source| PerfError::Missing { program: "strace", source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(PerfError::Failed { program: "strace", output: text });
    }
    printed_packets(&output.stdout, "strace")?;
    let text = std::fs::read_to_string(&out)
        .map_err(|source| PerfError::File { path: out.clone(), source })?;
    Ok(i64::try_from(text.lines().count()).unwrap_or(i64::MAX))
}

/// Instructions that must not occur for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Atomic,
    SystemCall,
}

#[derive(Debug, Default)]
struct Found {
    atomics: u64,
    system_calls: u64,
    places: Vec<String>,
}

/// Addresses of such instructions by object, kept from scenario to scenario.
type Kinds = HashMap<String, HashMap<u64, (Kind, String)>>;

fn instructions(profile: &Profile, kinds: &mut Kinds) -> Result<Found, PerfError> {
    let mut found = Found::default();
    for (Place { object, address }, count) in &profile.executed {
        if !object.starts_with('/') {
            continue;
        }
        if !kinds.contains_key(object) {
            kinds.insert(object.clone(), disassemble(object)?);
        }
        match kinds.get(object).and_then(|of| of.get(address)) {
            Some((Kind::Atomic, text)) => {
                found.atomics += count;
                if found.places.len() < 10 {
                    let rate = *count as f64 / profile.packets as f64;
                    found.places.push(format!("{object} {address:#x} {text}: {rate:.4} a packet"));
                }
            }
            Some((Kind::SystemCall, _)) => found.system_calls += count,
            None => {}
        }
    }
    Ok(found)
}

fn disassemble(object: &str) -> Result<HashMap<u64, (Kind, String)>, PerfError> {
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn", "--wide", object])
        .output()
        .map_err(|source| PerfError::Missing { program: "binutils", source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(PerfError::Failed { program: "objdump", output: text });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(kind_of_line).collect())
}

/// `  4a10:\tlock cmpxchg %rcx,(%rdi)` and the like.
fn kind_of_line(line: &str) -> Option<(u64, (Kind, String))> {
    let (address, text) = line.split_once(":\t")?;
    let address = u64::from_str_radix(address.trim(), 16).ok()?;
    let text = text.trim();
    let kind = if text.starts_with("lock ") || text.starts_with("xchg ") && text.contains('(') {
        Kind::Atomic
    } else if text.starts_with("syscall") {
        Kind::SystemCall
    } else {
        return None;
    };
    Some((address, (kind, text.to_owned())))
}

impl Report {
    /// Is nothing there that must not be?
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.rows.iter().all(Row::is_steady)
    }

    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing([
            "SCENARIO",
            "PACKETS",
            "ALLOCATIONS",
            "SYSTEM CALLS",
            "ATOMIC RMW/PACKET",
            "CLOCK READS/VECTOR",
            "STEADY",
        ]);
        for row in &self.rows {
            table.add_row([
                row.scenario.to_owned(),
                row.packets.to_string(),
                row.allocations.to_string(),
                row.system_calls.to_string(),
                format!("{:.4}", row.atomics),
                format!("{:.2}", row.system_calls_without_vdso),
                if row.is_steady() { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        let mut text = table.to_string();
        for row in &self.rows {
            for place in &row.atomic_places {
                text += &format!("\n{}: {place}", row.scenario);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_instructions_are_told_from_others() {
        let kind = |line| kind_of_line(line).map(|(address, (kind, _))| (address, kind));
        assert_eq!(kind("    4a10:\tlock xadd %eax,(%rdi)"), Some((0x4a10, Kind::Atomic)));
        assert_eq!(kind("    4a14:\txchg   %eax,(%rdi)"), Some((0x4a14, Kind::Atomic)));
        assert_eq!(kind("    4a14:\txchg   %ax,%ax"), None);
        assert_eq!(kind("    4a18:\tsyscall"), Some((0x4a18, Kind::SystemCall)));
        assert_eq!(kind("    4a1a:\tmov    %eax,(%rdi)"), None);
        assert_eq!(kind("0000000000004a10 <lock>:"), None);
    }
}
