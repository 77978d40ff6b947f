//! Instructions a packet, by scenario: `cargo bench --bench instructions` (needs valgrind). The
//! same on every machine for the same build, so a change of the code shows and noise does not.
#![allow(missing_docs)]

use std::process::ExitCode;

use clap::Parser;
use overlane_perf::callgrind::count;
use overlane_perf::child::Forward;
use overlane_perf::error::PerfError;
use overlane_perf::scenario::{Load, Scenario};

fn main() -> ExitCode {
    // Under valgrind this program is started again and told what to forward.
    let mut arguments = std::env::args();
    let done = match arguments.nth(1).as_deref() {
        Some("forward") => forward(),
        _ => count_all(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn forward() -> Result<(), PerfError> {
    let packets = Forward::parse_from(std::env::args().skip(1)).run()?;
    println!("{packets}");
    Ok(())
}

fn count_all() -> Result<(), PerfError> {
    println!("{:<16}{:>12}{:>12}", "scenario", "in all", "ports alone");
    let load = Load::default();
    for scenario in Scenario::ALL {
        let all = count(scenario, &load, false)?.per_packet();
        let ports = count(scenario, &load, true)?.per_packet();
        println!("{:<16}{all:>12.1}{ports:>12.1}", scenario.name);
    }
    Ok(())
}
