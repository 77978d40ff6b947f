//! What of each result is shown.

use std::collections::BTreeMap;

use maud::{Markup, PreEscaped, html};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::charts::{self, Axis, Bar, Line};
use crate::error::PerfError;
use crate::measure::Spread;
use crate::pipeline;
use crate::traffic::Order;

/// Heading of the results of a command.
pub fn title(kind: &str) -> String {
    match kind {
        "pipeline" => "Cost of a packet, in memory".to_owned(),
        "compare" => "Side by side with its peers".to_owned(),
        "ndr" => "No-drop rate".to_owned(),
        "latency" => "Latency".to_owned(),
        "connections" => "Connections".to_owned(),
        other => other.to_owned(),
    }
}

/// The section of a result.
///
/// # Errors
/// [`PerfError::Missed`] where it lacks what is shown.
pub fn section(result: &super::Result) -> Result<Markup, PerfError> {
    match result.kind.as_str() {
        "pipeline" => pipeline(&view(result)?),
        _ => Ok(raw(&result.result)),
    }
}

fn view<T: DeserializeOwned>(result: &super::Result) -> Result<T, PerfError> {
    T::deserialize(&result.result).map_err(|error| {
        let kind = &result.kind;
        PerfError::Missed(format!("a result of {kind} is of another version: {error}"))
    })
}

/// A result without plots: as it was written.
fn raw(result: &Value) -> Markup {
    let text = serde_json::to_string_pretty(result).unwrap_or_default();
    html! { details { summary { "all figures" } pre { (text) } } }
}

fn figure(svg: &str, caption: &str) -> Markup {
    html! { figure { (PreEscaped(svg)) figcaption { (caption) } } }
}

fn table(head: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        div.wide { table {
            thead { tr { @for name in head { th { (name) } } } }
            tbody { @for row in rows { tr { @for cell in row { (cell) } } } }
        } }
    }
}

fn cell(text: impl AsRef<str>) -> Markup {
    html! { td { (text.as_ref()) } }
}

/// A bound, and whether `value` keeps it.
fn bound(value: f64, most: Option<f64>) -> Markup {
    match most {
        Some(most) if value <= most => html! { td.met { "≤ " (format!("{most:.0}")) } },
        Some(most) => html! { td.missed { "≤ " (format!("{most:.0}")) } },
        None => cell("-"),
    }
}

fn spread(values: &Spread) -> String {
    format!("{:.1} ({:.1}-{:.1})", values.median, values.least, values.most)
}

fn count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.0} M", v / 1e6),
        v if v >= 1e3 => format!("{:.0} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn pipeline(report: &pipeline::Report) -> Result<Markup, PerfError> {
    let head = [
        "scenario",
        "flows",
        "size",
        "ns a packet",
        "ports alone",
        "target",
        "Mpps",
        "instructions",
    ];
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let instructions = row.instructions.map_or("-".to_owned(), |(all, _)| whole(all));
            vec![
                cell(&row.scenario),
                cell(count(row.flows as f64)),
                cell(&row.size),
                cell(spread(&row.cost.total_ns)),
                cell(spread(&row.cost.ports_ns)),
                bound(row.cost.total_ns.median, row.target_ns),
                cell(format!("{:.1}", row.cost.mpps)),
                cell(instructions),
            ]
        })
        .collect();
    Ok(html! {
        p.note {
            "From port to port, ports in memory included. " (report.memory.to_string()) "."
        }
        (cost_by_flows(report)?)
        (cost_by_stage(report)?)
        (table(&head, &rows))
    })
}

fn cost_by_flows(report: &pipeline::Report) -> Result<Markup, PerfError> {
    let mut by_name: BTreeMap<String, Vec<(f64, Spread)>> = BTreeMap::new();
    for row in &report.rows {
        let mut name = row.scenario.clone();
        if report.rows.iter().any(|other| other.size != row.size) {
            name += &format!(", {} bytes", row.size);
        }
        if row.order != Order::Random {
            name += &format!(", {}", row.order);
        }
        by_name.entry(name).or_default().push((row.flows as f64, row.cost.total_ns));
    }
    let lines: Vec<_> = by_name
        .into_iter()
        .filter(|(_, points)| points.len() > 1)
        .map(|(name, points)| Line { name, points })
        .collect();
    if lines.is_empty() {
        return Ok(html! {});
    }
    let x = Axis { label: "flows".into(), format: count };
    let y = Axis { label: "ns a packet, ports included".into(), format: whole };
    let svg = charts::lines(&x, &y, false, &lines)?;
    Ok(figure(
        &svg,
        "What a packet costs, by the number of flows: median round, and the range of all rounds.",
    ))
}

fn cost_by_stage(report: &pipeline::Report) -> Result<Markup, PerfError> {
    let mut names: Vec<String> = Vec::new();
    for stage in report.rows.iter().flat_map(|row| &row.stages) {
        if !names.contains(&stage.name) {
            names.push(stage.name.clone());
        }
    }
    if names.is_empty() {
        return Ok(html! {});
    }
    let counted = report.rows.iter().filter(|row| !row.stages.is_empty());
    let bars: Vec<_> = counted
        .map(|row| Bar {
            label: format!("{}, {} flows", row.scenario, count(row.flows as f64)),
            parts: names
                .iter()
                .map(|name| {
                    let stage = row.stages.iter().find(|stage| stage.name == *name);
                    stage.map_or(0.0, |stage| stage.instructions)
                })
                .collect(),
            range: None,
        })
        .collect();
    let unit = Axis { label: "instructions a packet".into(), format: whole };
    let svg = charts::bars(&unit, &names, &bars)?;
    Ok(figure(&svg, "What each stage executes for a packet (callgrind)."))
}
