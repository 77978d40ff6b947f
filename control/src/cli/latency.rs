//! `overlane latency`: how long packets are inside of the dataplane.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use overlane_api::latency::{LatencyBucket, LatencyHistogram, LatencyReport, PacketSource};
use overlane_api::protocol::{Op, Reply};
use overlane_api::{WorkerId, hgrm};
use serde::Serialize;

use super::{Answer, Cli, CliError, table};

/// Longest time that is told from longer ones: more than the dataplane has, nanoseconds.
const LONGEST_NS: u64 = 1 << 37;

/// Significant digits; the dataplane's buckets are 1.6 % wide.
const DIGITS: u8 = 3;

/// What is asked.
#[derive(Debug, Args)]
pub struct Latency {
    /// Packets that left by this worker only
    #[arg(long, value_name = "NUMBER")]
    worker: Option<u8>,
    /// Packets that came in this way only
    #[arg(long, value_enum)]
    from: Option<Source>,
    /// Begin anew after this answer
    #[arg(long)]
    reset: bool,
    /// Write all percentiles of the chosen packets together, in microseconds, in HdrHistogram's text
    /// format; - for standard output, in place of the table
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
}

/// [`PacketSource`], as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// A pod's port or the host's
    Pods,
    /// The uplink
    Uplink,
    /// Another worker
    Worker,
}

impl Source {
    fn of(from: PacketSource) -> Self {
        match from {
            PacketSource::Pods => Self::Pods,
            PacketSource::Uplink => Self::Uplink,
            PacketSource::Worker => Self::Worker,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Uplink => "uplink",
            Self::Worker => "another worker",
        }
    }
}

/// As JSON.
#[derive(Debug, Serialize)]
struct Screen {
    /// One vector in so many is timed.
    sampled: u32,
    since_s: u64,
    histograms: Vec<Row>,
}

/// Percentiles in microseconds. Those of one histogram; or, without worker and source, of all.
#[derive(Debug, Serialize)]
struct Row {
    worker: Option<WorkerId>,
    from: Option<PacketSource>,
    packets: u64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    p9999_us: f64,
    max_us: f64,
    buckets: Vec<LatencyBucket>,
}

/// Shows them.
///
/// # Errors
/// When the dataplane does not answer, or the file cannot be written.
pub fn run(cli: &Cli, asked: &Latency) -> Result<Answer, CliError> {
    let Reply::Latency(report) = cli.dataplane()?.call(Op::Latency { reset: asked.reset })? else {
        return Err(CliError::Unexpected("latency"));
    };
    let LatencyReport { sampled, since_s, mut histograms } = report;
    histograms.retain(|histogram| {
        asked.worker.is_none_or(|worker| histogram.worker == WorkerId(worker))
            && asked.from.is_none_or(|from| Source::of(histogram.from) == from)
    });
    let all = histograms.iter().flat_map(|histogram| &histogram.buckets);
    let sum = collect(all)?;
    if let Some(path) = &asked.hgrm {
        let mut text = Vec::new();
        hgrm::write(&sum, &mut text)?;
        if path == Path::new("-") {
            let text = String::from_utf8_lossy(&text).into_owned();
            return Ok(Answer { text, worked: true });
        }
        std::fs::write(path, text).map_err(|error| {
            CliError::Refused(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    let mut rows = histograms.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    if rows.len() > 1 {
        rows.push(percentiles(None, None, &sum, Vec::new()));
    }
    let screen = Screen { sampled, since_s, histograms: rows };
    cli.answer(&screen, || show(&screen))
}

/// Adds buckets up.
fn collect<'a>(
    buckets: impl Iterator<Item = &'a LatencyBucket>,
) -> Result<Histogram<u64>, CliError> {
    let refused = |error: &dyn std::fmt::Display| {
        CliError::Refused(format!("the dataplane answered times that make no histogram: {error}"))
    };
    let mut sum = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).map_err(|e| refused(&e))?;
    for bucket in buckets {
        sum.record_n(bucket.up_to_ns, bucket.packets).map_err(|e| refused(&e))?;
    }
    Ok(sum)
}

fn row(histogram: &LatencyHistogram) -> Result<Row, CliError> {
    let sum = collect(histogram.buckets.iter())?;
    let buckets = histogram.buckets.clone();
    Ok(percentiles(Some(histogram.worker), Some(histogram.from), &sum, buckets))
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

fn percentiles(
    worker: Option<WorkerId>,
    from: Option<PacketSource>,
    times: &Histogram<u64>,
    buckets: Vec<LatencyBucket>,
) -> Row {
    let at = |quantile| us(times.value_at_quantile(quantile));
    Row {
        worker,
        from,
        packets: times.len(),
        mean_us: times.mean() / 1e3,
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        p9999_us: at(0.9999),
        max_us: us(times.max()),
        buckets,
    }
}

fn show(screen: &Screen) -> String {
    if screen.sampled == 0 {
        return "No vector is timed: start the dataplane without --time-vectors 0.\n".into();
    }
    let heads =
        ["worker", "from", "packets", "p50 us", "p90", "p99", "p99.9", "p99.99", "max", "mean"];
    let mut rows = table(&heads);
    for row in &screen.histograms {
        let time = |us: f64| format!("{us:.1}");
        let from = row.from.map_or("all", |from| Source::of(from).name());
        rows.add_row([
            row.worker.map_or_else(|| "all".to_owned(), |worker| worker.to_string()),
            from.to_owned(),
            row.packets.to_string(),
            time(row.p50_us),
            time(row.p90_us),
            time(row.p99_us),
            time(row.p999_us),
            time(row.p9999_us),
            time(row.max_us),
            time(row.mean_us),
        ]);
    }
    let (since, every) = (screen.since_s, screen.sampled);
    format!(
        "{rows}\nFrom a port's RX ring to the kernel's hands; of 1 vector in {every}, for {since} s.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_packets() {
        let bucket = |up_to_ns, packets| LatencyBucket { up_to_ns, packets };
        let buckets = [bucket(1000, 9_990), bucket(50_000, 9), bucket(4_000_000, 1)];
        let row = percentiles(None, None, &collect(buckets.iter()).unwrap(), Vec::new());
        assert_eq!(row.packets, 10_000);
        let near = |a: f64, b: f64| assert!((a - b).abs() < b / 500.0, "{a} is not {b}");
        near(row.p50_us, 1.0);
        near(row.p999_us, 1.0);
        near(row.p9999_us, 50.0);
        near(row.max_us, 4000.0);
    }
}
