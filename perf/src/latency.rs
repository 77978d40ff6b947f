//! `overlane-perf latency`: how long packets take through a forwarder on the bed, at parts of its
//! no-drop rate.

use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hdrhistogram::Histogram;
use overlane_api::hgrm;
use serde::{Deserialize, Serialize};

use crate::bed::{Aim, Reserved, Scripts};
use crate::ends;
use crate::error::PerfError;
use crate::ndr;
use crate::path::{Path, Subject, Timed};
use crate::progress::spinner;
use crate::receive::Latency;
use crate::text::listing;

/// Points of a curve for each halving of what is left to 100 %.
const TICKS: u32 = 3;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The forwarder and its traffic.
    pub subject: Subject,
    /// Parts of the no-drop rate, 0 to 1.
    pub parts: Vec<f64>,
    /// Seconds at each.
    pub seconds: f64,
    /// The no-drop rate, packets a second; none: it is searched first.
    pub ndr_pps: Option<f64>,
    /// Where files of percentiles go.
    pub folder: Option<PathBuf>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The forwarder and its traffic.
    #[serde(flatten)]
    pub subject: Subject,
    /// The rate that the parts are of, packets a second through the forwarder.
    pub ndr_pps: f64,
    /// Was it searched in this run?
    pub ndr_searched: bool,
    /// One for each part, one way and round trip.
    pub points: Vec<Point>,
}

/// Latency at one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Part of the no-drop rate.
    pub part: f64,
    /// From the pod and back; else only to the wire.
    pub round_trip: bool,
    /// Packets a second from the pod; of round trips half of what the forwarder forwards.
    pub load_pps: f64,
    /// Packets sent.
    pub sent: u64,
    /// Of those, packets that arrived.
    pub received: u64,
    /// Of those, packets behind one that was sent later.
    pub reordered: u64,
    /// How far behind its schedule the generator was at most, nanoseconds; it is in the latencies.
    pub generator_late_ns: u64,
    /// From when a packet was due until it arrived, nanoseconds.
    pub latency: Latency,
    /// Percentiles (0 to 1) with their latencies, nanoseconds.
    pub curve: Vec<(f64, u64)>,
}

/// Measures.
///
/// # Errors
/// [`PerfError`]
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, PerfError> {
    if let Some(folder) = &plan.folder {
        std::fs::create_dir_all(folder)
            .map_err(|source| PerfError::File { path: folder.clone(), source })?;
    }
    let scripts = Scripts::find()?;
    let _reserved = Reserved::wait()?;
    let memory = ends::packet_memory()?;
    let bar = spinner();
    bar.set_message(format!("{} comes up", plan.subject.peer));
    let path = Path::open(&scripts, plan.subject.clone(), Aim::Throughput, &memory, stop)?;
    let (ndr_pps, path) = match plan.ndr_pps {
        Some(pps) => (pps, path),
        None => no_drop_rate(plan, path, &bar)?,
    };
    let duration = Duration::from_secs_f64(plan.seconds);
    let say = |part: f64, what: &str| {
        bar.set_message(format!("{what} at {} % of {:.0} kpps", part * 100.0, ndr_pps / 1e3));
    };
    let mut points = Vec::new();
    for &part in &plan.parts {
        say(part, "one way");
        points.push(plan.point(part, false, &path.one_way(ndr_pps * part, duration)?)?);
    }
    for &part in &plan.parts {
        say(part, "round trips");
        // The forwarder has each packet twice.
        let timed = path.round_trips(ndr_pps * part / 2.0, duration)?;
        points.push(plan.point(part, true, &timed)?);
    }
    bar.finish_and_clear();
    path.close()?;
    let (subject, ndr_searched) = (plan.subject.clone(), plan.ndr_pps.is_none());
    Ok(Report { subject, ndr_pps, ndr_searched, points })
}

/// A short search for it.
fn no_drop_rate<'a>(
    plan: &Plan,
    path: Path<'a>,
    bar: &indicatif::ProgressBar,
) -> Result<(f64, Path<'a>), PerfError> {
    let search = ndr::Plan {
        subject: plan.subject.clone(),
        method: ndr::Method::Mlr,
        loss_ratios: vec![0.0],
        trial_seconds: 0.5,
        sum_seconds: 2.5,
        repeats: 1,
        width: 0.02,
    };
    let (report, path) = ndr::search(&search, path, bar)?;
    let found = report.rates.first().and_then(|rate| rate.pps);
    found.map(|pps| (pps, path)).ok_or_else(|| {
        PerfError::Missed(format!(
            "no no-drop rate of {} was found; give the rate to take parts of with --ndr\n{}",
            plan.subject.peer,
            report.table()
        ))
    })
}

impl Plan {
    fn point(&self, part: f64, round_trip: bool, timed: &Timed) -> Result<Point, PerfError> {
        if let Some(folder) = &self.folder {
            let way = if round_trip { "round-trip" } else { "one-way" };
            let Subject { peer, job, .. } = &self.subject;
            let name = format!("{peer}-{job}-{way}-{:.0}.hgrm", part * 100.0);
            write(&timed.times, &folder.join(name))?;
        }
        let curve = timed.times.iter_quantiles(TICKS);
        Ok(Point {
            part,
            round_trip,
            load_pps: timed.trial.load_pps,
            sent: timed.trial.sent,
            received: timed.trial.received,
            reordered: timed.reordered,
            generator_late_ns: timed.generator_late_ns,
            latency: Latency::of(&timed.times),
            curve: curve.map(|at| (at.quantile_iterated_to(), at.value_iterated_to())).collect(),
        })
    }
}

fn write(times: &Histogram<u64>, path: &FilePath) -> Result<(), PerfError> {
    let failed = |source| PerfError::File { path: path.to_owned(), source };
    let mut text = Vec::new();
    hgrm::write(times, &mut text).map_err(failed)?;
    std::fs::write(path, text).map_err(failed)
}

impl Report {
    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing([
            "WAY",
            "LOAD",
            "KPPS",
            "LOST",
            "P50 US",
            "P90",
            "P99",
            "P99.9",
            "P99.99",
            "MAX",
            "GENERATOR LATE",
        ]);
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
        for point in &self.points {
            let Latency { p50, p90, p99, p99_9, p99_99, max, .. } = point.latency;
            table.add_row([
                if point.round_trip { "round trip" } else { "one way" }.to_owned(),
                format!("{} %", point.part * 100.0),
                format!("{:.1}", point.load_pps / 1e3),
                point.sent.saturating_sub(point.received).to_string(),
                us(p50),
                us(p90),
                us(p99),
                us(p99_9),
                us(p99_99),
                us(max),
                us(point.generator_late_ns),
            ]);
        }
        let searched = if self.ndr_searched { "found in this run" } else { "given" };
        format!(
            "{table}\n{}; no-drop rate {:.1} kpps, {searched}",
            self.subject,
            self.ndr_pps / 1e3
        )
    }
}
