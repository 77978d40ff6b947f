//! Searches for the highest load with little enough loss: the throughput.
//!
//! - [`binary`]: RFC 2544 section 26.1, by bisection: one trial says yes or no to a load.
//! - [`mlr`]: RFC 9971 (Multiple Loss Ratio Search): several loss ratios in one search, several
//!   trials for a load, some of which may fail, because a software forwarder is sometimes disturbed.
//! - [`load`]: what trials at one load say about it (RFC 9971 appendices A and B).

pub mod binary;
pub mod load;
pub mod mlr;

use serde::{Deserialize, Serialize};

/// Bounds within which loads are searched, packets a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// Lowest load worth a trial.
    pub least_pps: f64,
    /// Highest load: what the generator can do.
    pub most_pps: f64,
}

/// How a search for one loss ratio ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum Outcome {
    /// The throughput lies between two loads.
    Bounded {
        /// The highest load that is good, below every load that is not.
        lower_pps: f64,
        /// The lowest load that is not.
        upper_pps: f64,
        /// What typically came out at the lower one (RFC 9971, "Conditional Throughput").
        throughput_pps: f64,
    },
    /// The highest load is good: the generator is the limit.
    GeneratorLimit {
        /// That load.
        most_pps: f64,
        /// What typically came out.
        throughput_pps: f64,
    },
    /// Not even the lowest load is good.
    BelowLeast {
        /// That load.
        least_pps: f64,
    },
    /// More trials were needed than are allowed: the results contradict each other too much.
    GaveUp {
        /// The highest load that is good, below every one that is not.
        lower_pps: Option<f64>,
        /// The lowest load that is not.
        upper_pps: Option<f64>,
    },
}

impl Outcome {
    /// The throughput, packets a second; none where it was not found.
    #[must_use]
    pub fn throughput_pps(&self) -> Option<f64> {
        match self {
            Self::Bounded { throughput_pps, .. } | Self::GeneratorLimit { throughput_pps, .. } => {
                Some(*throughput_pps)
            }
            Self::BelowLeast { .. } | Self::GaveUp { .. } => None,
        }
    }

    /// The load that was found good, packets a second.
    #[must_use]
    pub fn load_pps(&self) -> Option<f64> {
        match self {
            Self::Bounded { lower_pps, .. } => Some(*lower_pps),
            Self::GeneratorLimit { most_pps, .. } => Some(*most_pps),
            Self::BelowLeast { .. } => None,
            Self::GaveUp { lower_pps, .. } => *lower_pps,
        }
    }
}

/// Systems under test that are formulas.
#[cfg(test)]
pub(crate) mod systems {
    use std::time::Duration;

    use crate::error::PerfError;
    use crate::trial::Trial;

    /// Forwards up to `capacity` packets a second and loses the rest; with probability `disturbed` a
    /// trial of a second loses a thousandth more, at any load.
    pub fn forwarder(
        capacity: f64,
        disturbed: f64,
        seed: u64,
    ) -> impl FnMut(f64, Duration) -> Result<Trial, PerfError> {
        let mut random = fastrand::Rng::with_seed(seed);
        move |load_pps, duration| {
            let seconds = duration.as_secs_f64();
            let sent = (load_pps * seconds) as u64;
            let quiet = (1.0 - disturbed).powf(seconds);
            let noise = if random.f64() < quiet { 1.0 } else { 0.999 };
            let received = (sent as f64 * (capacity / load_pps).min(1.0) * noise).ceil() as u64;
            let received = received.min(sent);
            Ok(Trial { load_pps, offered_pps: load_pps, seconds, sent, received })
        }
    }
}
