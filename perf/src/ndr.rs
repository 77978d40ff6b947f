//! `overlane-perf ndr`: the no-drop rate and the partial-drop rate of a forwarder on the bed.

use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::bed::{Aim, Reserved, Scripts};
use crate::ends;
use crate::error::PerfError;
use crate::path::{Path, Subject};
use crate::progress::spinner;
use crate::search::binary::{self, Repeated};
use crate::search::load::Goal;
use crate::search::{Outcome, Range, mlr};
use crate::text::listing;
use crate::trial::{Measurer, Trial};

/// Lowest load worth a trial, packets a second.
const LEAST_PPS: f64 = 1000.0;
/// Of what the generator does flat out, so much it does by schedule.
const SCHEDULED: f64 = 0.9;
/// Trials after which a search gives up.
const MOST_TRIALS: usize = 400;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// RFC 2544 section 26.1, by bisection: one trial decides about a load.
    Binary,
    /// RFC 9971, Multiple Loss Ratio Search: several trials for a load, half of which may fail.
    Mlr,
}

/// What to search for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The forwarder and its traffic.
    pub subject: Subject,
    /// How.
    pub method: Method,
    /// Loss ratios: 0 is the no-drop rate.
    pub loss_ratios: Vec<f64>,
    /// Seconds of a trial.
    pub trial_seconds: f64,
    /// MLR: seconds of trials that decide about a load.
    pub sum_seconds: f64,
    /// Bisection: how often it is done.
    pub repeats: usize,
    /// How close the bounds must come, a fraction of the load.
    pub width: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The forwarder and its traffic.
    #[serde(flatten)]
    pub subject: Subject,
    /// How it was searched.
    pub method: Method,
    /// Seconds of a trial; of MLR, of one of full length.
    pub trial_seconds: f64,
    /// MLR: seconds of trials that decide about a load.
    pub sum_seconds: Option<f64>,
    /// How close the bounds had to come, a fraction of the load.
    pub width: f64,
    /// What the generator does flat out, packets a second.
    pub generator_pps: f64,
    /// For each loss ratio, in the order in which they were asked for.
    pub rates: Vec<Rate>,
    /// All trials, in the order of their loads.
    pub trials: Vec<Trial>,
}

/// The rate of one loss ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// The highest loss ratio of a good trial.
    pub loss_ratio: f64,
    /// Packets a second that came out; of repeated searches the median. None: not found.
    pub pps: Option<f64>,
    /// Of repeated searches the lowest and the highest; of MLR the two bounds.
    pub range_pps: Option<(f64, f64)>,
    /// Of repeated searches half of the 95 % confidence interval of their mean.
    pub confidence_pps: Option<f64>,
    /// How each search ended.
    pub outcomes: Vec<Outcome>,
}

/// Searches.
///
/// # Errors
/// [`PerfError`]
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, PerfError> {
    let scripts = Scripts::find()?;
    let _reserved = Reserved::wait()?;
    let memory = ends::packet_memory()?;
    let bar = spinner();
    bar.set_message(format!("{} comes up", plan.subject.peer));
    let path = Path::open(&scripts, plan.subject.clone(), Aim::Throughput, &memory, stop)?;
    let (report, path) = search(plan, path, &bar)?;
    bar.finish_and_clear();
    path.close()?;
    Ok(report)
}

/// A measurer that says on a terminal what it does.
struct Shown<'a, M> {
    measurer: M,
    bar: &'a ProgressBar,
    trials: usize,
}

impl<M: Measurer> Measurer for Shown<'_, M> {
    fn trial(&mut self, load_pps: f64, duration: std::time::Duration) -> Result<Trial, PerfError> {
        self.trials += 1;
        self.bar.set_message(format!(
            "trial {}: {:.1} kpps for {:.1} s",
            self.trials,
            load_pps / 1e3,
            duration.as_secs_f64()
        ));
        self.measurer.trial(load_pps, duration)
    }
}

/// Searches on a path that is open, and gives it back.
///
/// # Errors
/// [`PerfError`]
pub fn search<'a>(
    plan: &Plan,
    path: Path<'a>,
    bar: &ProgressBar,
) -> Result<(Report, Path<'a>), PerfError> {
    bar.set_message("the generator alone");
    let generator_pps = path.generator_pps()?;
    let range = Range { least_pps: LEAST_PPS, most_pps: generator_pps * SCHEDULED };
    let mut shown = Shown { measurer: path, bar, trials: 0 };
    let (rates, trials) = match plan.method {
        Method::Binary => by_bisection(plan, range, &mut shown)?,
        Method::Mlr => by_mlr(plan, range, &mut shown)?,
    };
    let report = Report {
        subject: plan.subject.clone(),
        method: plan.method,
        trial_seconds: plan.trial_seconds,
        sum_seconds: (plan.method == Method::Mlr).then_some(plan.sum_seconds),
        width: plan.width,
        generator_pps,
        rates,
        trials,
    };
    Ok((report, shown.measurer))
}

type Rates = (Vec<Rate>, Vec<Trial>);

fn by_bisection(
    plan: &Plan,
    range: Range,
    measurer: &mut dyn Measurer,
) -> Result<Rates, PerfError> {
    let (mut rates, mut trials) = (Vec::new(), Vec::new());
    for &loss_ratio in &plan.loss_ratios {
        let (trial_seconds, width) = (plan.trial_seconds, plan.width);
        let settings = binary::Settings { loss_ratio, trial_seconds, width };
        let repeated = binary::repeat(&settings, range, plan.repeats, measurer)?;
        let Repeated { searches, median_pps, range_pps, confidence_pps } = repeated;
        let outcomes = searches.iter().map(|search| search.outcome).collect();
        trials.extend(searches.into_iter().flat_map(|search| search.trials));
        rates.push(Rate { loss_ratio, pps: median_pps, range_pps, confidence_pps, outcomes });
    }
    trials.sort_by(|a, b| a.load_pps.total_cmp(&b.load_pps));
    Ok((rates, trials))
}

/// The goals of a plan: half of the time of a load's trials may be bad, the RFC's recommendation.
#[must_use]
pub fn goals(plan: &Plan) -> Vec<Goal> {
    let goal = |loss_ratio: &f64| Goal {
        loss_ratio: *loss_ratio,
        exceed_ratio: 0.5,
        final_seconds: plan.trial_seconds,
        sum_seconds: plan.sum_seconds,
        initial_seconds: (plan.trial_seconds / 4.0).max(0.1).min(plan.trial_seconds),
        width: plan.width,
    };
    plan.loss_ratios.iter().map(goal).collect()
}

fn by_mlr(plan: &Plan, range: Range, measurer: &mut dyn Measurer) -> Result<Rates, PerfError> {
    let found = mlr::search(goals(plan), range, MOST_TRIALS, measurer)?;
    let rates = plan.loss_ratios.iter().zip(&found.outcomes).map(|(loss_ratio, outcome)| Rate {
        loss_ratio: *loss_ratio,
        pps: outcome.throughput_pps(),
        range_pps: match *outcome {
            Outcome::Bounded { lower_pps, upper_pps, .. } => Some((lower_pps, upper_pps)),
            _ => None,
        },
        confidence_pps: None,
        outcomes: vec![*outcome],
    });
    let rates = rates.collect();
    Ok((rates, found.loads.into_iter().flat_map(|load| load.trials).collect()))
}

impl Report {
    /// Was every rate found?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rates.iter().all(|rate| rate.pps.is_some())
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table =
            listing(["PEER", "JOB", "FLOWS", "SIZE", "LOSS", "KPPS", "RANGE", "+-", "END"]);
        let kpps = |pps: f64| format!("{:.1}", pps / 1e3);
        let Subject { peer, job, flows, size } = &self.subject;
        for rate in &self.rates {
            table.add_row([
                peer.clone(),
                job.to_string(),
                flows.to_string(),
                size.to_string(),
                name_of(rate.loss_ratio),
                rate.pps.map_or("-".into(), kpps),
                rate.range_pps.map_or("-".into(), |(a, b)| format!("{}-{}", kpps(a), kpps(b))),
                rate.confidence_pps.map_or("-".into(), kpps),
                rate.outcomes.first().map_or("-".into(), |outcome| words(outcome).to_owned()),
            ]);
        }
        let how = match (self.method, self.sum_seconds) {
            (Method::Mlr, Some(sum)) => format!(
                "RFC 9971: trials of {} s, {sum} s of them for a load, half may be bad",
                self.trial_seconds
            ),
            _ => format!("RFC 2544 by bisection: one trial of {} s a load", self.trial_seconds),
        };
        let (trials, generator) = (self.trials.len(), kpps(self.generator_pps));
        let width = self.width * 100.0;
        format!(
            "{table}\n{how}; bounds within {width} %; {trials} trials; the generator does {generator} kpps"
        )
    }
}

/// As people call them.
fn name_of(loss_ratio: f64) -> String {
    if loss_ratio == 0.0 {
        "none (NDR)".to_owned()
    } else {
        format!("{} % (PDR)", loss_ratio * 100.0)
    }
}

fn words(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Bounded { .. } => "found",
        Outcome::GeneratorLimit { .. } => "the generator is the limit",
        Outcome::BelowLeast { .. } => "loses packets even at 1 kpps",
        Outcome::GaveUp { .. } => "gave up: trials contradict each other",
    }
}
