//! What the raw forwarder costs, sent with and received at the far end in one way or another.
//!
//! Nearly all of a forwarder's time on veths is the kernel's sending, and the far end's receiving that
//! happens inside of it. Here are the settings that could make either cheaper, each measured as
//! `compare` measures a peer under overload, side by side with the dataplane's own settings:
//!
//! ```text
//! round: the generator alone, then for each variant: dataplane, variant; in every other round: variant,
//! dataplane
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};

use crate::bed::{Bed, Job, Reserved, Scripts, on_a_thread};
use crate::compare::Window;
use crate::compare::window::{self, Overload, Stream};
use crate::error::PerfError;
use crate::measure::Spread;
use crate::progress::steps;
use crate::text::listing;

/// The forwarder's script.
const PEER: &str = "raw";
/// Flows; the forwarder does not look at them.
const FLOWS: u32 = 1000;

/// A way to send, or to receive at the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    name: &'static str,
    /// More options of `overlane-perf raw`.
    options: &'static str,
    /// Settings of the interface behind the forwarder, as `perf/peers/raw.sh` knows them.
    far_end: &'static str,
}

impl Variant {
    const fn sending(name: &'static str, options: &'static str) -> Self {
        Self { name, options, far_end: "" }
    }

    const fn receiving(name: &'static str, far_end: &'static str) -> Self {
        Self { name, options: "", far_end }
    }
}

/// The dataplane's settings, which all others are compared with.
const DATAPLANE: Variant = Variant::sending("dataplane", "");

/// The others.
const VARIANTS: [Variant; 16] = [
    Variant::sending("tx-budget-32", "--tx-budget 32"),
    Variant::sending("tx-budget-64", "--tx-budget 64"),
    Variant::sending("tx-budget-512", "--tx-budget 512"),
    Variant::sending("collect-128", "--collect 128"),
    Variant::sending("collect-192", "--collect 192"),
    Variant::sending("send-buffer-208k", "--send-buffer 106496"),
    Variant::sending("send-buffer-32m", "--send-buffer 16777216"),
    Variant::sending("busy-poll", "--busy-poll 20"),
    Variant::sending("prefetch", "--prefetch"),
    Variant::sending("program", "--program"),
    Variant::sending("program-128", "--program --collect 128 --prefetch"),
    Variant::receiving("far-gro", "gro"),
    Variant::receiving("far-deferred", "gro deferred=50000"),
    Variant::receiving("far-threaded-same", "gro threaded=1"),
    Variant::receiving("far-threaded-other", "gro threaded=0"),
    Variant::receiving("far-rps-other", "rps=0"),
];

fn names() -> impl Iterator<Item = &'static str> {
    VARIANTS.iter().map(|variant| variant.name)
}

/// Arguments of `overlane-perf raw-costs`.
#[derive(Debug, Clone, Args)]
pub struct RawCostsArguments {
    /// Variants, separated by commas; all, when left out.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(names()))]
    variants: Vec<String>,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of a window.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

impl RawCostsArguments {
    /// What is to be measured.
    ///
    /// # Errors
    /// [`PerfError::Arguments`]
    pub fn plan(&self) -> Result<Plan, PerfError> {
        if !(0.05..=60.0).contains(&self.seconds) {
            let text = format!("--seconds {} is not within 0.05 and 60", self.seconds);
            return Err(PerfError::Arguments(text));
        }
        let wanted = |variant: &&Variant| {
            self.variants.is_empty() || self.variants.iter().any(|name| name == variant.name)
        };
        Ok(Plan {
            variants: VARIANTS.iter().filter(wanted).copied().collect(),
            rounds: self.rounds.into(),
            window: Duration::from_secs_f64(self.seconds),
        })
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    variants: Vec<Variant>,
    rounds: usize,
    window: Duration,
}

/// What was measured of one variant in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Round, from 0.
    pub round: usize,
    /// Variant.
    pub variant: String,
    /// Under overload.
    pub window: Window,
    /// The dataplane's settings, right before it or right after it.
    pub dataplane: Window,
    /// Load average of the last minute, after both.
    pub load: f64,
}

/// A variant, or the dataplane's settings: medians, and ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Variant.
    pub variant: String,
    /// Packets a second under overload.
    pub pps: Spread,
    /// Nanoseconds of the forwarder's thread, and of the far end's, for a packet.
    pub worker_ns: Spread,
    /// With the receiving on the sender's CPU.
    pub all_in_ns: Spread,
    /// Worker's nanoseconds for each of the dataplane's beside it.
    pub worker_ratio: Spread,
    /// The same, all in.
    pub all_in_ratio: Spread,
}

impl Row {
    /// Of windows, each with the one that it is compared with.
    fn of(variant: &str, windows: &[(Window, Window)]) -> Self {
        let spread = |value: fn(&Window) -> f64| {
            Spread::of(windows.iter().map(|(window, _)| value(window)).collect())
        };
        let ratio = |value: fn(&Window) -> f64| {
            Spread::of(windows.iter().map(|(own, other)| value(own) / value(other)).collect())
        };
        Self {
            variant: variant.to_owned(),
            pps: spread(Window::pps),
            worker_ns: spread(Window::worker_ns_per_packet),
            all_in_ns: spread(Window::all_in_ns_per_packet),
            worker_ratio: ratio(Window::worker_ns_per_packet),
            all_in_ratio: ratio(Window::all_in_ns_per_packet),
        }
    }
}

/// A variant that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Variant.
    pub variant: String,
    /// Why.
    pub why: String,
}

/// What all of them cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rounds.
    pub rounds: usize,
    /// Least and largest load average.
    pub load: (f64, f64),
    /// One for each variant.
    pub rows: Vec<Row>,
    /// Those without one.
    pub skipped: Vec<Skipped>,
    /// All that was measured.
    pub samples: Vec<Sample>,
}

impl Report {
    fn new(plan: &Plan, samples: Vec<Sample>, skipped: Vec<Skipped>) -> Self {
        let dataplane: Vec<_> =
            samples.iter().map(|sample| (sample.dataplane, sample.dataplane)).collect();
        let mut rows = vec![Row::of(DATAPLANE.name, &dataplane)];
        for variant in &plan.variants {
            let own: Vec<_> = samples
                .iter()
                .filter(|sample| sample.variant == variant.name)
                .map(|sample| (sample.window, sample.dataplane))
                .collect();
            if !own.is_empty() {
                rows.push(Row::of(variant.name, &own));
            }
        }
        let loads = || samples.iter().map(|sample| sample.load);
        let load = (loads().fold(f64::INFINITY, f64::min), loads().fold(0.0, f64::max));
        Self { rounds: plan.rounds, load, rows, skipped, samples }
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing(["VARIANT", "KPPS", "WORKER NS", "RATIO", "ALL-IN NS", "RATIO"]);
        let range = |spread: &Spread, digits: usize| {
            let Spread { median, least, most } = spread;
            format!("{median:.digits$} [{least:.digits$}-{most:.digits$}]")
        };
        for row in &self.rows {
            table.add_row([
                row.variant.clone(),
                format!("{:.0}", row.pps.median / 1e3),
                range(&row.worker_ns, 0),
                range(&row.worker_ratio, 2),
                range(&row.all_in_ns, 0),
                range(&row.all_in_ratio, 2),
            ]);
        }
        let mut text = format!(
            "{table}\n{} rounds, load average {:.1} to {:.1}; ratios to the dataplane's settings side by side",
            self.rounds, self.load.0, self.load.1
        );
        for skipped in &self.skipped {
            text += &format!("\nskipped {}: {}", skipped.variant, skipped.why);
        }
        text
    }
}

/// Measures.
///
/// # Errors
/// [`PerfError`]: nothing can be measured, or the person has had enough. A variant that fails alone is
/// named in the result.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, PerfError> {
    let scripts = Scripts::find()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(PerfError::Missed("measuring makes network namespaces: it needs root".into()));
    }
    let _reserved = Reserved::wait()?;
    let progress = steps(plan.rounds * plan.variants.len());
    let (mut samples, mut skipped) = (Vec::new(), Vec::<Skipped>::new());
    for round in 0..plan.rounds {
        let bed = Bed::bare(&scripts)?;
        let generator_ns = on_a_thread(|| window::generator_alone(stop))?;
        bed.down()?;
        for variant in &plan.variants {
            progress.set_message(format!("round {}, {}", round + 1, variant.name));
            if skipped.iter().any(|skipped| skipped.variant == variant.name) {
                continue;
            }
            let measure = |variant| measure(plan, variant, &scripts, generator_ns, stop);
            let both = if round % 2 == 0 {
                measure(&DATAPLANE).and_then(|dataplane| Ok((measure(variant)?, dataplane)))
            } else {
                measure(variant).and_then(|window| Ok((window, measure(&DATAPLANE)?)))
            };
            match both {
                Ok((window, dataplane)) => {
                    let (variant, load) = (variant.name.to_owned(), load_average());
                    samples.push(Sample { round, variant, window, dataplane, load });
                }
                Err(PerfError::Stopped) => return Err(PerfError::Stopped),
                Err(error) => {
                    let (variant, why) = (variant.name.to_owned(), error.to_string());
                    skipped.push(Skipped { variant, why });
                }
            }
            progress.inc(1);
            if stop.load(Ordering::Relaxed) {
                return Err(PerfError::Stopped);
            }
        }
    }
    progress.finish_and_clear();
    if samples.is_empty() {
        let why: Vec<_> = skipped.iter().map(|skipped| skipped.why.clone()).collect();
        return Err(PerfError::Missed(format!("nothing could be measured: {}", why.join("; "))));
    }
    Ok(Report::new(plan, samples, skipped))
}

/// One variant, one window.
fn measure(
    plan: &Plan,
    variant: &Variant,
    scripts: &Scripts,
    generator_ns: f64,
    stop: &AtomicBool,
) -> Result<Window, PerfError> {
    let scripts = scripts
        .clone()
        .with("OVERLANE_RAW_OPTIONS", variant.options)
        .with("OVERLANE_FAR_END", variant.far_end);
    let bed = Bed::with(&scripts, PEER, Job::DnatGeneve, FLOWS)?;
    let overload = Overload { workers: bed.workers()?, window: plan.window, generator_ns };
    let traffic = Job::DnatGeneve.traffic(FLOWS);
    let window = on_a_thread(|| Stream::open(&traffic)?.overload(&overload, stop))?;
    bed.down()?;
    Ok(window)
}

/// Of the last minute; not a number where the kernel does not say.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(worker_ns: u64) -> Window {
        Window {
            seconds: 1.0,
            offered: 3000,
            taken: 2000,
            forwarded: 1000,
            worker_ns,
            generator_ns: 300_000,
            frame_ns: 100.0,
            dropped_frame_ns: Some(100.0),
            repeated: 0,
        }
    }

    fn sample(round: usize, variant: &str, worker_ns: u64, dataplane_ns: u64) -> Sample {
        let (window, dataplane) = (window(worker_ns), window(dataplane_ns));
        Sample { round, variant: variant.to_owned(), window, dataplane, load: 0.5 }
    }

    fn plan(variants: &[&str]) -> Plan {
        let variants = variants.iter().map(|name| (*name).to_owned()).collect();
        RawCostsArguments { variants, rounds: 3, seconds: 0.5 }.plan().unwrap()
    }

    #[test]
    fn ratios_are_those_of_windows_side_by_side_and_not_of_medians() {
        let samples = vec![
            sample(0, "program", 500_000, 1_000_000),
            sample(1, "program", 1_600_000, 2_000_000),
            sample(2, "program", 900_000, 1_500_000),
        ];
        let report = Report::new(&plan(&["program"]), samples, Vec::new());
        let [dataplane, program] = &report.rows[..] else { panic!("{:?}", report.rows) };
        assert!((dataplane.worker_ratio.most - 1.0).abs() < 1e-9);
        assert!((dataplane.worker_ns.median - 1500.0).abs() < 1e-9);
        assert!((program.worker_ns.median - 900.0).abs() < 1e-9);
        let Spread { least, median, most } = program.worker_ratio;
        assert!((least - 0.5).abs() < 1e-9 && (most - 0.8).abs() < 1e-9);
        assert!((median - 0.6).abs() < 1e-9);
        // 100 ns of receiving for each.
        assert!((program.all_in_ratio.least - 600.0 / 1100.0).abs() < 1e-9);
        assert!(report.table().contains("load average 0.5 to 0.5"));
    }

    #[test]
    fn variants_are_chosen_by_name() {
        let names = |plan: &Plan| plan.variants.iter().map(|v| v.name).collect::<Vec<_>>();
        assert_eq!(names(&plan(&["far-gro", "program"])), ["program", "far-gro"]);
        assert_eq!(plan(&[]).variants.len(), VARIANTS.len());
        let wrong = RawCostsArguments { variants: Vec::new(), rounds: 1, seconds: 0.0 };
        assert!(wrong.plan().unwrap_err().to_string().contains("0.05"));
    }
}
