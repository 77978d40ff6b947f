//! `overlane-perf pipeline`: what a packet costs from port to port, in memory.

use serde::{Deserialize, Serialize};

use crate::callgrind::{self, Stage};
use crate::error::PerfError;
use crate::machine::Latencies;
use crate::measure::{Cost, measure};
use crate::scenario::{Load, Scenario};
use crate::text::listing;
use crate::traffic::{Order, Size};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Scenarios.
    pub scenarios: Vec<Scenario>,
    /// Numbers of flows.
    pub flows: Vec<usize>,
    /// Sizes of frames.
    pub sizes: Vec<Size>,
    /// All else about the packets.
    pub load: Load,
    /// Workers, each with its own packets, on a core of its own as far as there are.
    pub workers: usize,
    /// How long each measurement takes, seconds.
    pub seconds: f64,
    /// Count instructions too?
    pub instructions: bool,
    /// Count them by stage?
    pub stages: bool,
}

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The machine's memory in this run.
    pub memory: Latencies,
    /// One for each scenario and number of flows.
    pub rows: Vec<Row>,
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// Flows.
    pub flows: usize,
    /// Bytes on the wire, check sequence included, or `imix`.
    pub size: String,
    /// In which order the flows' packets came.
    pub order: Order,
    /// Workers.
    pub workers: usize,
    /// Time.
    pub cost: Cost,
    /// What it may cost, ports included, where that is laid down.
    pub target_ns: Option<f64>,
    /// Instructions a packet, ports included, and of the ports alone.
    pub instructions: Option<(f64, f64)>,
    /// Instructions a packet by stage.
    pub stages: Vec<Stage>,
}

/// Carries out the plan.
///
/// # Errors
/// [`PerfError`]
pub fn run(plan: &Plan) -> Result<Report, PerfError> {
    let mut rows = Vec::new();
    for scenario in &plan.scenarios {
        for flows in &plan.flows {
            for size in &plan.sizes {
                let load = Load { flows: *flows, size: *size, ..plan.load };
                rows.push(row(plan, *scenario, load)?);
            }
        }
    }
    Ok(Report { memory: Latencies::measure()?, rows })
}

fn row(plan: &Plan, scenario: Scenario, load: Load) -> Result<Row, PerfError> {
    let cost = measure(scenario, &load, plan.workers, plan.seconds)?;
    let mut instructions = None;
    let mut stages = Vec::new();
    if plan.instructions || plan.stages {
        let forward = callgrind::count(scenario, &load, false)?;
        let ports = callgrind::count(scenario, &load, true)?;
        instructions = Some((forward.per_packet(), ports.per_packet()));
        if plan.stages {
            stages = forward.stages();
        }
    }
    Ok(Row {
        scenario: scenario.name.to_owned(),
        flows: load.flows,
        size: load.size.to_string(),
        order: load.order,
        workers: plan.workers,
        cost,
        target_ns: scenario.target_ns(load.flows),
        instructions,
        stages,
    })
}

impl Report {
    /// As tables for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing([
            "SCENARIO",
            "FLOWS",
            "SIZE",
            "ORDER",
            "WORKERS",
            "NS/PACKET (RANGE)",
            "PORTS ALONE (RANGE)",
            "PIPELINE",
            "TARGET",
            "MPPS",
            "INSTRUCTIONS (PORTS)",
        ]);
        for row in &self.rows {
            let spread = |s: &crate::measure::Spread| {
                format!("{:.1} ({:.1}-{:.1})", s.median, s.least, s.most)
            };
            table.add_row([
                row.scenario.clone(),
                row.flows.to_string(),
                row.size.clone(),
                row.order.to_string(),
                row.workers.to_string(),
                spread(&row.cost.total_ns),
                spread(&row.cost.ports_ns),
                format!("{:.1}", row.cost.pipeline_ns()),
                row.target_ns.map_or("-".into(), |ns| format!("{ns:.0}")),
                format!("{:.1}", row.cost.mpps),
                row.instructions
                    .map_or("-".into(), |(all, ports)| format!("{all:.0} ({ports:.0})")),
            ]);
        }
        let mut text = format!("{}\n{table}\n", self.memory);
        for row in self.rows.iter().filter(|row| !row.stages.is_empty()) {
            let mut table = listing(["STAGE", "INSTRUCTIONS/PACKET", "SHARE"]);
            for stage in &row.stages {
                table.add_row([
                    stage.name.clone(),
                    format!("{:.1}", stage.instructions),
                    format!("{:.0} %", stage.share * 100.0),
                ]);
            }
            text += &format!("\n{} ({} flows)\n{table}\n", row.scenario, row.flows);
        }
        text
    }
}
