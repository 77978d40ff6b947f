//! What of each result is shown.

use std::collections::BTreeMap;

use maud::{Markup, PreEscaped, html};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::charts::{self, Axis, Bar, Line};
use crate::compare::{Comparison, Row};
use crate::error::PerfError;
use crate::latency;
use crate::measure::Spread;
use crate::ndr;
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
        "compare" => compare(&view(result)?),
        "ndr" => ndr(&view(result)?),
        "latency" => latency(&view(result)?),
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
    let mut head = vec![
        "scenario",
        "flows",
        "size",
        "ns a packet",
        "ports alone",
        "target",
        "Mpps",
        "instructions",
    ];
    let counted = report.rows.iter().any(|row| row.cycles.is_some());
    if counted {
        head.push("cycles");
    }
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let instructions = row.instructions.map_or("-".to_owned(), |(all, _)| whole(all));
            let mut cells = vec![
                cell(&row.scenario),
                cell(count(row.flows as f64)),
                cell(&row.size),
                cell(spread(&row.cost.total_ns)),
                cell(spread(&row.cost.ports_ns)),
                bound(row.cost.total_ns.median, row.target_ns),
                cell(format!("{:.1}", row.cost.mpps)),
                cell(instructions),
            ];
            if counted {
                let cycles = row.cycles.map(|cycles| whole(cycles.total.median));
                cells.push(cell(cycles.unwrap_or_else(|| "-".to_owned())));
            }
            cells
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

fn kilo(value: f64) -> String {
    format!("{:.0} k", value / 1e3)
}

fn compare(comparison: &Comparison) -> Result<Markup, PerfError> {
    let mut works: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in &comparison.rows {
        let work = format!("{}, {} flows", row.job, count(f64::from(row.flows)));
        match works.iter_mut().find(|(name, _)| *name == work) {
            Some((_, rows)) => rows.push(row),
            None => works.push((work, vec![row])),
        }
    }
    let mut parts = Vec::new();
    for (work, rows) in &works {
        parts.push((work, throughput(rows)?, processor_time(rows)?, compare_table(rows)));
    }
    Ok(html! {
        p.note {
            "Under overload, on one bed of veths, 64-byte frames; medians of " (comparison.rounds)
            " interleaved rounds with their ranges. The raw forwarders move frames and do nothing else: "
            "they are the ceiling."
        }
        @for (work, throughput, time, table) in &parts {
            h3 { (work) }
            (throughput)
            (time)
            (table)
        }
        @if !comparison.skipped.is_empty() {
            p.note { "Not compared: " }
            ul { @for skipped in &comparison.skipped { li { (skipped.to_string()) } } }
        }
        @if !comparison.proofs.is_empty() {
            details {
                summary { "what came out of each, before it was measured" }
                @for proof in &comparison.proofs {
                    p { (proof.peer) ", " (proof.job) }
                    pre { (proof.seen) }
                }
            }
        }
    })
}

fn throughput(rows: &[&Row]) -> Result<Markup, PerfError> {
    let bars = rows.iter().map(|row| Bar {
        label: row.peer.clone(),
        parts: vec![row.pps.median],
        range: Some((row.pps.least, row.pps.most)),
    });
    let unit = Axis { label: "packets a second".into(), format: kilo };
    let svg = charts::bars(&unit, &[], &bars.collect::<Vec<_>>())?;
    Ok(figure(
        &svg,
        "What gets through under overload, on one core: median and range of the rounds.",
    ))
}

fn processor_time(rows: &[&Row]) -> Result<Markup, PerfError> {
    let names = ["forwarder".to_owned(), "receiving, on the sender's processor".to_owned()];
    let bars = rows.iter().map(|row| Bar {
        label: row.peer.clone(),
        parts: vec![row.worker_ns.median, row.receive_ns.median],
        range: None,
    });
    let unit = Axis { label: "ns of processor time a packet".into(), format: whole };
    let svg = charts::bars(&unit, &names, &bars.collect::<Vec<_>>())?;
    Ok(figure(&svg, "What a packet costs, everything included."))
}

fn compare_table(rows: &[&Row]) -> Markup {
    let head = [
        "peer",
        "kpps",
        "worker ns",
        "all-in ns",
        "above raw ns",
        "Overlane / peer",
        "p50 us",
        "p99",
        "p99.9",
    ];
    let or_none = |text: Option<String>| cell(text.unwrap_or_else(|| "-".into()));
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let times = row.round_trips;
            let us = |time: fn(&crate::compare::RoundTrips) -> f64| {
                or_none(times.as_ref().map(|times| format!("{:.1}", time(times))))
            };
            let ratio = |ratio: &Spread| {
                format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.least, ratio.most)
            };
            vec![
                cell(&row.peer),
                cell(format!("{:.0}", row.pps.median / 1e3)),
                cell(spread(&row.worker_ns)),
                cell(spread(&row.all_in_ns)),
                or_none(row.above_raw_ns.as_ref().map(spread)),
                or_none(row.overlane_pps_ratio.as_ref().map(ratio)),
                us(|times| times.p50_us),
                us(|times| times.p99_us),
                us(|times| times.p999_us),
            ]
        })
        .collect();
    table(&head, &rows)
}

fn ndr(report: &ndr::Report) -> Result<Markup, PerfError> {
    let bars: Vec<_> = report
        .rates
        .iter()
        .map(|rate| Bar {
            label: format!("loss up to {} %", rate.loss_ratio * 100.0),
            parts: vec![rate.pps.unwrap_or(0.0)],
            range: rate.range_pps,
        })
        .collect();
    let found = bars.iter().any(|bar| bar.parts.iter().any(|part| *part > 0.0));
    let unit = Axis { label: "packets a second".into(), format: kilo };
    let plot = if found { Some(charts::bars(&unit, &[], &bars)?) } else { None };
    Ok(html! {
        p.note {
            (report.subject) ". The generator alone does " (kilo(report.generator_pps)) " packets a second."
        }
        @if let Some(svg) = &plot { (figure(svg, "The rates that were found, with their bounds.")) }
        pre { (report.table()) }
    })
}

fn latency(report: &latency::Report) -> Result<Markup, PerfError> {
    // 1 in so many takes longer: what spreads the tail.
    let one_in = |quantile: f64| 1.0 / (1.0 - quantile).max(1e-7);
    let lines: Vec<_> = report
        .points
        .iter()
        .map(|point| {
            let way = if point.round_trip { "round trip" } else { "one way" };
            let last = point.received.max(2) as f64;
            let points = point
                .curve
                .iter()
                .map(|(quantile, ns)| (one_in(*quantile).min(last), *ns as f64 / 1e3))
                .filter(|(x, _)| *x >= 1.0);
            let exact = |y: f64| Spread { median: y, least: y, most: y };
            Line {
                name: format!("{way}, {} %", point.part * 100.0),
                points: points.map(|(x, y)| (x, exact(y))).collect(),
            }
        })
        .filter(|line| line.points.len() > 1)
        .collect();
    let x = Axis { label: "percentile".into(), format: percentile };
    let y = Axis { label: "us".into(), format: micros };
    let plot = if lines.is_empty() { None } else { Some(charts::lines(&x, &y, true, &lines)?) };
    Ok(html! {
        p.note {
            (report.subject) "; parts of " (kilo(report.ndr_pps)) " packets a second. From when a packet was due until it arrived."
        }
        @if let Some(svg) = &plot { (figure(svg, "Latency by percentile.")) }
        pre { (report.table()) }
    })
}

/// Of one in so many.
fn percentile(one_in: f64) -> String {
    let nines = one_in.log10().round().max(0.0) as usize;
    if nines == 0 {
        return "0 %".into();
    }
    format!("{:.*} %", nines.saturating_sub(2), 100.0 - 100.0 / one_in)
}

fn micros(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}
