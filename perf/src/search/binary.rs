//! The throughput search of RFC 2544 section 26.1, by bisection.
//!
//! One trial decides about a load: it is good when no more than the allowed part of its packets was
//! lost. A good load raises the lower bound, any other lowers the upper one, and the next load is half
//! way between them. A single disturbed trial is never taken back, so the result of one search is a
//! lower estimate; [`repeat`] shows how far searches differ.

use std::time::Duration;

use serde::Serialize;

use super::{Outcome, Range};
use crate::error::PerfError;
use crate::trial::{Measurer, Trial};

/// What to search for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Highest loss ratio of a good trial: 0 is RFC 2544's throughput, the no-drop rate.
    pub loss_ratio: f64,
    /// How long a trial takes, seconds. (RFC 2544 section 24: at least 60 for the final one.)
    pub trial_seconds: f64,
    /// The search ends when the bounds are closer than this part of the upper one.
    pub width: f64,
}

/// One search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Its end.
    pub outcome: Outcome,
    /// All its trials, in their order.
    pub trials: Vec<Trial>,
}

/// Searches once.
///
/// # Errors
/// What the measurer says.
pub fn search(
    settings: &Settings,
    range: Range,
    measurer: &mut dyn Measurer,
) -> Result<Found, PerfError> {
    let duration = Duration::from_secs_f64(settings.trial_seconds);
    let mut trials = Vec::new();
    let mut measure = |load: f64| -> Result<Option<f64>, PerfError> {
        let trial = measurer.trial(load, duration)?;
        trials.push(trial);
        Ok((trial.loss_ratio() <= settings.loss_ratio).then(|| trial.forwarded_pps()))
    };
    if let Some(throughput_pps) = measure(range.most_pps)? {
        let outcome = Outcome::GeneratorLimit { most_pps: range.most_pps, throughput_pps };
        return Ok(Found { outcome, trials });
    }
    let Some(mut throughput_pps) = measure(range.least_pps)? else {
        let outcome = Outcome::BelowLeast { least_pps: range.least_pps };
        return Ok(Found { outcome, trials });
    };
    let (mut lower_pps, mut upper_pps) = (range.least_pps, range.most_pps);
    while (upper_pps - lower_pps) / upper_pps > settings.width {
        let middle = f64::midpoint(lower_pps, upper_pps);
        match measure(middle)? {
            Some(throughput) => (lower_pps, throughput_pps) = (middle, throughput),
            None => upper_pps = middle,
        }
    }
    Ok(Found { outcome: Outcome::Bounded { lower_pps, upper_pps, throughput_pps }, trials })
}

/// Several searches of the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Repeated {
    /// Each.
    pub searches: Vec<Found>,
    /// Median of the throughputs that were found, packets a second.
    pub median_pps: Option<f64>,
    /// The lowest and the highest.
    pub range_pps: Option<(f64, f64)>,
    /// Half of the 95 % confidence interval around their mean (Student's t); none below two.
    pub confidence_pps: Option<f64>,
}

/// Searches `times` times.
///
/// # Errors
/// What the measurer says.
pub fn repeat(
    settings: &Settings,
    range: Range,
    times: usize,
    measurer: &mut dyn Measurer,
) -> Result<Repeated, PerfError> {
    let mut searches = Vec::new();
    for _ in 0..times {
        searches.push(search(settings, range, measurer)?);
    }
    let mut found: Vec<f64> =
        searches.iter().filter_map(|search| search.outcome.throughput_pps()).collect();
    found.sort_by(f64::total_cmp);
    let median_pps = found.get(found.len() / 2).copied();
    let range_pps = found.first().copied().zip(found.last().copied());
    let confidence_pps = confidence(&found);
    Ok(Repeated { searches, median_pps, range_pps, confidence_pps })
}

/// Quantiles of Student's t distribution for 95 %, both sides, of 1 to 10 degrees of freedom. With more
/// it lies between 2.2 and 1.96: 2.2 is on the safe side.
const STUDENT: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];

/// Half of the 95 % confidence interval of the mean.
#[must_use]
pub fn confidence(values: &[f64]) -> Option<f64> {
    let count = values.len();
    if count < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / (count - 1) as f64).sqrt();
    let student = STUDENT.get(count - 2).copied().unwrap_or(2.2);
    Some(student * deviation / (count as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::systems::forwarder;

    const RANGE: Range = Range { least_pps: 1e4, most_pps: 4e6 };
    const SETTINGS: Settings = Settings { loss_ratio: 0.0, trial_seconds: 1.0, width: 0.005 };

    #[test]
    fn it_finds_what_the_forwarder_can_do() {
        for capacity in [50e3, 123_456.0, 970e3, 3.9e6] {
            let found = search(&SETTINGS, RANGE, &mut forwarder(capacity, 0.0, 1)).unwrap();
            let Outcome::Bounded { lower_pps, upper_pps, throughput_pps } = found.outcome else {
                panic!("{found:?}")
            };
            assert!(lower_pps <= capacity && capacity < upper_pps, "{capacity}: {found:?}");
            assert!((upper_pps - lower_pps) / upper_pps <= SETTINGS.width);
            assert!((throughput_pps - lower_pps).abs() < 1.0);
            // Each trial halves the distance.
            assert!(found.trials.len() <= 2 + 17, "{} trials", found.trials.len());
        }
    }

    #[test]
    fn loss_that_is_allowed_is_no_loss() {
        let settings = Settings { loss_ratio: 0.1, ..SETTINGS };
        let found = search(&settings, RANGE, &mut forwarder(900e3, 0.0, 1)).unwrap();
        let load = found.outcome.load_pps().unwrap();
        assert!((load - 1e6).abs() < 1e6 * 0.01, "{load}");
    }

    #[test]
    fn a_forwarder_better_than_the_generator_is_not_called_measured() {
        let found = search(&SETTINGS, RANGE, &mut forwarder(1e7, 0.0, 1)).unwrap();
        assert!(matches!(found.outcome, Outcome::GeneratorLimit { .. }), "{found:?}");
        let found = search(&SETTINGS, RANGE, &mut forwarder(100.0, 0.0, 1)).unwrap();
        assert!(matches!(found.outcome, Outcome::BelowLeast { .. }), "{found:?}");
        assert_eq!(found.outcome.throughput_pps(), None);
    }

    #[test]
    fn a_measurers_error_ends_the_search() {
        let mut broken = |_: f64, _: Duration| Err(PerfError::Thread);
        assert!(search(&SETTINGS, RANGE, &mut broken).is_err());
    }

    #[test]
    fn disturbed_searches_differ_and_say_how_far() {
        let repeated = repeat(&SETTINGS, RANGE, 9, &mut forwarder(1e6, 0.05, 3)).unwrap();
        let (least, most) = repeated.range_pps.unwrap();
        assert!(least < most && most <= 1e6, "{least} {most}");
        assert!(repeated.confidence_pps.unwrap() > 0.0);
        assert!((least..=most).contains(&repeated.median_pps.unwrap()));
    }

    #[test]
    fn the_confidence_interval_is_students() {
        assert_eq!(confidence(&[1.0]), None);
        // Standard deviation 1, three values: 4.30 / sqrt(3).
        assert!((confidence(&[1.0, 2.0, 3.0]).unwrap() - 2.4826).abs() < 1e-3);
        assert!(confidence(&[5.0; 6]).unwrap().abs() < 1e-12);
    }
}
