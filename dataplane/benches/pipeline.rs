//! What a packet costs from port to port, a glance: `cargo bench --bench pipeline`. For more, with
//! options: `overlane-perf pipeline`.
#![allow(missing_docs)]

use std::process::ExitCode;

use overlane_perf::pipeline::{Plan, run};
use overlane_perf::scenario::{Load, Scenario};
use overlane_perf::traffic::Size;

/// Seconds for each scenario.
const SECONDS: f64 = 0.5;

fn main() -> ExitCode {
    let plan = Plan {
        scenarios: Scenario::ALL.to_vec(),
        flows: vec![1000],
        sizes: vec![Size::Bytes(64)],
        load: Load::default(),
        workers: 1,
        seconds: SECONDS,
        instructions: false,
        stages: false,
    };
    match run(&plan) {
        Ok(report) => {
            println!("{}", report.table());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pipeline: {error}");
            ExitCode::FAILURE
        }
    }
}
