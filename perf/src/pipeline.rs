//! `overlane-perf pipeline`: what a packet costs from port to port, in memory.

use serde::{Deserialize, Serialize};

use crate::callgrind::{self, Stage};
use crate::counters::Cycles;
use crate::error::PerfError;
use crate::machine::Latencies;
use crate::measure::{Cost, Spread, measure};
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
    /// Why cycles are not counted, and what to do; where they are, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cycles: Option<String>,
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
    /// Cycles, where the processor counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Cycles>,
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
    let mut no_cycles = None;
    for scenario in &plan.scenarios {
        for flows in &plan.flows {
            for size in &plan.sizes {
                let load = Load { flows: *flows, size: *size, ..plan.load };
                let measured = measure(*scenario, &load, plan.workers, plan.seconds)?;
                let cycles = measured.cycles.map_err(|error| no_cycles = Some(error.to_string()));
                rows.push(row(plan, (*scenario, load), measured.cost, cycles.ok())?);
            }
        }
    }
    Ok(Report { memory: Latencies::measure()?, rows, no_cycles })
}

/// A row of what was measured, with the instructions that are wanted too.
fn row(
    plan: &Plan,
    (scenario, load): (Scenario, Load),
    cost: Cost,
    cycles: Option<Cycles>,
) -> Result<Row, PerfError> {
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
        cycles,
        target_ns: scenario.target_ns(load.flows),
        instructions,
        stages,
    })
}

impl Report {
    /// As tables for people.
    #[must_use]
    pub fn table(&self) -> String {
        let counted = self.rows.iter().any(|row| row.cycles.is_some());
        let mut heads = vec![
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
        ];
        if counted {
            heads.extend(["CYCLES (PORTS)", "IPC"]);
        }
        let mut table = listing(heads);
        for row in &self.rows {
            let spread = |s: &Spread| format!("{:.1} ({:.1}-{:.1})", s.median, s.least, s.most);
            let mut cells = vec![
                row.scenario.clone(),
                row.flows.to_string(),
                row.size.clone(),
                row.order.to_string(),
                row.workers.to_string(),
                spread(&row.cost.total_ns),
                spread(&row.cost.ports_ns),
                format!("{:.1}", row.cost.pipeline_ns()),
                or_dash(row.target_ns.map(|ns| format!("{ns:.0}"))),
                format!("{:.1}", row.cost.mpps),
                or_dash(row.instructions.map(|(all, ports)| format!("{all:.0} ({ports:.0})"))),
            ];
            if counted {
                cells.push(or_dash(row.cycles.map(|cycles| {
                    format!("{:.0} ({:.0})", cycles.total.median, cycles.ports.median)
                })));
                let rate = row.cycles.and_then(|cycles| cycles.instructions_per_cycle);
                cells.push(or_dash(rate.map(|rate| format!("{rate:.2}"))));
            }
            table.add_row(cells);
        }
        let mut text = format!("{}\n", self.memory);
        if let Some(why) = &self.no_cycles {
            text += &format!("no cycle counter: {why}\n");
        }
        text += &format!("{table}\n");
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

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cycles: Option<Cycles>, no_cycles: Option<&str>) -> Report {
        let spread = |median| Spread { median, least: median - 1.0, most: median + 1.0 };
        let row = Row {
            scenario: "local".into(),
            flows: 1000,
            size: "64".into(),
            order: Order::Random,
            workers: 1,
            cost: Cost { total_ns: spread(40.0), ports_ns: spread(10.0), packets: 1, mpps: 25.0 },
            cycles,
            target_ns: None,
            instructions: None,
            stages: Vec::new(),
        };
        let memory = Latencies { l1_ns: 1.0, l2_ns: 3.0, l3_ns: 10.0, dram_ns: 100.0 };
        Report { memory, rows: vec![row], no_cycles: no_cycles.map(str::to_owned) }
    }

    #[test]
    fn cycles_have_columns_where_they_are_counted_only() {
        let spread = |median| Spread { median, least: median, most: median };
        let cycles = Cycles {
            total: spread(163.4),
            ports: spread(41.0),
            instructions_per_cycle: Some(3.456),
        };
        let text = report(Some(cycles), None).table();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].trim_end().ends_with("CYCLES (PORTS)  IPC"), "{text}");
        assert!(lines[2].contains("163 (41)") && lines[2].trim_end().ends_with("3.46"), "{text}");
        let json = serde_json::to_value(report(Some(cycles), None)).unwrap();
        assert_eq!(json["rows"][0]["cycles"]["total"]["median"], 163.4);
        assert_eq!(json.get("no_cycles"), None);

        let without = report(None, Some("there is none; get one"));
        let text = without.table();
        assert_eq!(text.lines().nth(1), Some("no cycle counter: there is none; get one"));
        assert!(!text.contains("CYCLES") && !text.contains("IPC"), "{text}");
        let json = serde_json::to_value(&without).unwrap();
        assert_eq!(json["rows"][0].get("cycles"), None);
        assert_eq!(json["no_cycles"], "there is none; get one");
        // What was written before cycles were counted can be read.
        let mut old = json;
        old.as_object_mut().unwrap().remove("no_cycles");
        let old: Report = serde_json::from_value(old).unwrap();
        assert!(old.rows[0].cycles.is_none() && old.no_cycles.is_none());
    }
}
