//! Multiple Loss Ratio Search, RFC 9971: one search for several loss ratios, with several trials for a
//! load.
//!
//! What a load is, is the RFC's ([`super::load`]). Which load comes next is left to implementations
//! (their "Controller"); this one, for each goal in turn, twice:
//!
//! ```text
//! coarse: trials of the initial duration, one for a load, bounds four widths apart
//! fine:   trials of the final duration, until the duration sum is reached or cannot change anything
//!
//! nothing known          the highest load, then what came out of it
//! only a lower bound     above it, by steps that double
//! only an upper bound    below it, by steps that double
//! both                   half way between them
//! ```
//!
//! The fine pass begins where the coarse one ended. All trials count for all goals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::load::{Class, Goal};
use super::{Outcome, Range};
use crate::error::PerfError;
use crate::trial::{Measurer, Trial};

/// The coarse pass ends when its bounds are so many widths apart.
const COARSE: f64 = 4.0;

/// Trials at one load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Load {
    /// Packets a second.
    pub load_pps: f64,
    /// What became of them, in their order.
    pub trials: Vec<Trial>,
}

/// A finished search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// For each goal its end, in the order of the goals.
    pub outcomes: Vec<Outcome>,
    /// All loads that were tried, the lowest first.
    pub loads: Vec<Load>,
}

/// The RFC's "controller": decides what is tried next.
#[derive(Debug)]
pub struct Controller {
    goals: Vec<Goal>,
    range: Range,
    /// Trials by load; loads are whole packets a second.
    loads: BTreeMap<u64, Vec<Trial>>,
}

/// The bounds of one goal so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Bounds {
    lower: Option<u64>,
    upper: Option<u64>,
}

impl Controller {
    /// A search for `goals` within `range`.
    #[must_use]
    pub fn new(goals: Vec<Goal>, range: Range) -> Self {
        Self { goals, range, loads: BTreeMap::new() }
    }

    /// The next trial: packets a second, and how long. None: all goals are reached.
    #[must_use]
    pub fn next(&self) -> Option<(f64, Duration)> {
        self.goals.iter().find_map(|goal| {
            let coarse = coarse(goal);
            let hint = self.bounds(&coarse);
            let (load, goal) = self
                .wanted(&coarse, Bounds::default())
                .map(|load| (load, &coarse))
                .or_else(|| self.wanted(goal, hint).map(|load| (load, goal)))?;
            Some((load as f64, Duration::from_secs_f64(goal.final_seconds)))
        })
    }

    /// What became of the packets that [`Controller::next`] asked for.
    pub fn record(&mut self, trial: Trial) {
        self.loads.entry(trial.load_pps.round() as u64).or_default().push(trial);
    }

    /// Trials so far.
    #[must_use]
    pub fn trials(&self) -> usize {
        self.loads.values().map(Vec::len).sum()
    }

    /// How the search ended.
    #[must_use]
    pub fn found(&self) -> Found {
        let outcomes = self.goals.iter().map(|goal| self.outcome(goal)).collect();
        let loads = self
            .loads
            .iter()
            .map(|(load, trials)| Load { load_pps: *load as f64, trials: trials.clone() })
            .collect();
        Found { outcomes, loads }
    }

    fn outcome(&self, goal: &Goal) -> Outcome {
        let bounds = self.bounds(goal);
        let (least, most) = self.ends();
        let throughput = |load: u64| {
            let trials = self.loads.get(&load).map_or(&[][..], Vec::as_slice);
            goal.conditional_throughput(load as f64, trials)
        };
        match (bounds.lower, bounds.upper) {
            (Some(lower), Some(upper)) if is_narrow(goal, lower, upper) => Outcome::Bounded {
                lower_pps: lower as f64,
                upper_pps: upper as f64,
                throughput_pps: throughput(lower),
            },
            (Some(lower), None) if lower == most => {
                Outcome::GeneratorLimit { most_pps: most as f64, throughput_pps: throughput(most) }
            }
            (None, Some(upper)) if upper == least => {
                Outcome::BelowLeast { least_pps: least as f64 }
            }
            (lower, upper) => Outcome::GaveUp {
                lower_pps: lower.map(|load| load as f64),
                upper_pps: upper.map(|load| load as f64),
            },
        }
    }

    /// Lowest and highest load.
    fn ends(&self) -> (u64, u64) {
        (self.range.least_pps.round() as u64, self.range.most_pps.round() as u64)
    }

    /// RFC 9971, "Relevant Lower Bound", "Relevant Upper Bound".
    fn bounds(&self, goal: &Goal) -> Bounds {
        let mut bounds = Bounds::default();
        for (load, trials) in &self.loads {
            match goal.classify(trials) {
                Class::Lower => bounds.lower = Some(*load),
                Class::Upper => {
                    bounds.upper = Some(*load);
                    break;
                }
                Class::Undecided => {}
            }
        }
        bounds
    }

    /// The load that `goal` wants tried next; none when it is reached. `hint` are the bounds of the
    /// pass before.
    fn wanted(&self, goal: &Goal, hint: Bounds) -> Option<u64> {
        let (least, most) = self.ends();
        let bounds = self.bounds(goal);
        let within = |load: &u64| {
            bounds.lower.is_none_or(|lower| *load > lower)
                && bounds.upper.is_none_or(|upper| *load < upper)
        };
        // A load that was begun is finished first.
        let begun = |(load, trials): (&u64, &Vec<Trial>)| {
            let full = trials.iter().any(|trial| trial.seconds >= goal.final_seconds);
            (full && within(load) && goal.classify(trials) == Class::Undecided).then_some(*load)
        };
        if let Some(load) = self.loads.iter().find_map(begun) {
            return Some(load);
        }
        match (bounds.lower, bounds.upper) {
            (Some(lower), Some(upper)) if is_narrow(goal, lower, upper) => None,
            (Some(lower), None) if lower >= most => None,
            (None, Some(upper)) if upper <= least => None,
            (None, None) => Some(hint.lower.or(hint.upper).unwrap_or(most)),
            (Some(lower), None) => {
                let step = self.step(goal, Class::Lower, lower);
                Some(hint.upper.filter(within).unwrap_or(lower + step).min(most))
            }
            (None, Some(upper)) => {
                let step = self.step(goal, Class::Upper, upper);
                let below = upper.saturating_sub(step).max(least);
                let hinted = hint.lower.or_else(|| self.forwarded(upper)).filter(within);
                Some(hinted.map_or(below, |load| load.clamp(least, upper - 1)))
            }
            (Some(lower), Some(upper)) => {
                let hinted = [hint.lower, hint.upper].into_iter().flatten().find(within);
                Some(hinted.unwrap_or(u64::midpoint(lower, upper)))
            }
        }
    }

    /// What came out of `load`, if it was the first that was tried and so says where to look.
    fn forwarded(&self, load: u64) -> Option<u64> {
        if self.loads.len() > 1 {
            return None;
        }
        let trial = self.loads.get(&load)?.first()?;
        Some(trial.forwarded_pps() as u64)
    }

    /// How far beyond the bound at `load` to look: a width, or twice the step before.
    fn step(&self, goal: &Goal, class: Class, load: u64) -> u64 {
        let width = (load as f64 * goal.width).max(1.0);
        let is_same = |trials: &&Vec<Trial>| goal.classify(trials) == class;
        let before = match class {
            Class::Upper => {
                let mut above = self.loads.range(load + 1..);
                above.find(|(_, trials)| is_same(trials)).map(|(at, _)| at - load)
            }
            _ => {
                let mut below = self.loads.range(..load).rev();
                below.find(|(_, trials)| is_same(trials)).map(|(at, _)| load - at)
            }
        };
        // What lies far away is of another time of the search.
        let before = before.filter(|gap| *gap < load / 4).unwrap_or(0);
        (width.ceil() as u64).max(2 * before)
    }
}

/// The goal of the first pass.
fn coarse(goal: &Goal) -> Goal {
    Goal {
        final_seconds: goal.initial_seconds,
        sum_seconds: goal.initial_seconds,
        width: goal.width * COARSE,
        ..*goal
    }
}

fn is_narrow(goal: &Goal, lower: u64, upper: u64) -> bool {
    upper - lower <= 1 || (upper - lower) as f64 / upper as f64 <= goal.width
}

/// Searches; gives up after `most_trials`.
///
/// # Errors
/// What the measurer says.
pub fn search(
    goals: Vec<Goal>,
    range: Range,
    most_trials: usize,
    measurer: &mut dyn Measurer,
) -> Result<Found, PerfError> {
    let mut controller = Controller::new(goals, range);
    while let Some((load, duration)) = controller.next() {
        if controller.trials() >= most_trials {
            break;
        }
        let trial = measurer.trial(load, duration)?;
        // The time that was asked for is what counts; a clock is never exact.
        let seconds = duration.as_secs_f64();
        controller.record(Trial { load_pps: load, seconds, ..trial });
    }
    Ok(controller.found())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::systems::forwarder;

    const RANGE: Range = Range { least_pps: 1e4, most_pps: 4e6 };

    fn goals() -> Vec<Goal> {
        let goal = Goal {
            loss_ratio: 0.0,
            exceed_ratio: 0.5,
            final_seconds: 1.0,
            sum_seconds: 5.0,
            initial_seconds: 0.2,
            width: 0.005,
        };
        vec![goal, Goal { loss_ratio: 0.005, ..goal }]
    }

    #[test]
    fn it_finds_both_rates_of_a_quiet_forwarder() {
        for capacity in [50e3, 123_456.0, 970e3, 3.5e6] {
            let found = search(goals(), RANGE, 500, &mut forwarder(capacity, 0.0, 1)).unwrap();
            for (outcome, expected) in found.outcomes.iter().zip([capacity, capacity / 0.995]) {
                let Outcome::Bounded { lower_pps, upper_pps, throughput_pps } = *outcome else {
                    panic!("{capacity}: {found:?}")
                };
                assert!(lower_pps <= expected && expected < upper_pps + 1.0, "{found:?}");
                assert!((upper_pps - lower_pps) / upper_pps <= 0.005);
                assert!(throughput_pps <= capacity * 1.0001, "{throughput_pps}");
            }
            let trials: usize = found.loads.iter().map(|load| load.trials.len()).sum();
            assert!(trials < 60, "{capacity}: {trials} trials");
        }
    }

    /// A forwarder that is disturbed in a fifth of the seconds: bisection is led astray, this is not.
    #[test]
    fn disturbances_do_not_lead_it_astray() {
        for seed in 0..20 {
            let found = search(goals(), RANGE, 500, &mut forwarder(1e6, 0.2, seed)).unwrap();
            let load = found.outcomes[0].load_pps().unwrap();
            assert!((0.98e6..=1.0001e6).contains(&load), "seed {seed}: {load}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_named() {
        let found = search(goals(), RANGE, 500, &mut forwarder(1e8, 0.0, 1)).unwrap();
        assert!(matches!(found.outcomes[0], Outcome::GeneratorLimit { .. }), "{found:?}");
        let found = search(goals(), RANGE, 500, &mut forwarder(10.0, 0.0, 1)).unwrap();
        assert!(matches!(found.outcomes[0], Outcome::BelowLeast { .. }), "{found:?}");
    }

    #[test]
    fn it_gives_up_and_says_what_it_knows() {
        let found = search(goals(), RANGE, 3, &mut forwarder(1e6, 0.0, 1)).unwrap();
        assert!(matches!(found.outcomes[1], Outcome::GaveUp { .. }), "{found:?}");
        assert_eq!(found.loads.iter().map(|load| load.trials.len()).sum::<usize>(), 3);
    }

    /// Whatever the trials say: it ends, and its bounds are classified as it says.
    #[test]
    fn noise_does_not_make_it_run_for_ever() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut noise = |load_pps: f64, duration: Duration| {
                assert!((RANGE.least_pps..=RANGE.most_pps).contains(&load_pps), "{load_pps}");
                let (sent, seconds) = (1000, duration.as_secs_f64());
                let received = if random.bool() { sent } else { random.u64(..sent) };
                Ok(Trial { load_pps, offered_pps: load_pps, seconds, sent, received })
            };
            let found = search(goals(), RANGE, 2000, &mut noise).unwrap();
            for (goal, outcome) in goals().iter().zip(&found.outcomes) {
                let class = |pps: f64| {
                    let load = found.loads.iter().find(|load| load.load_pps == pps).unwrap();
                    goal.classify(&load.trials)
                };
                if let Outcome::Bounded { lower_pps, upper_pps, .. } = *outcome {
                    assert_eq!(class(lower_pps), Class::Lower);
                    assert_eq!(class(upper_pps), Class::Upper);
                    assert!(lower_pps < upper_pps);
                }
            }
        }
    }
}
