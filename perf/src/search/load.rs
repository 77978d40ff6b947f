//! What the trials at one load say about it: RFC 9971 appendix A (Load Classification) and appendix B
//! (Conditional Throughput), as of draft-ietf-bmwg-mlrsearch-11.

use serde::Serialize;

use crate::trial::Trial;

/// What is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// Highest loss ratio of a good trial, 0 for a no-drop rate ("Goal Loss Ratio").
    pub loss_ratio: f64,
    /// Part of the time, at most, in which trials at a good load may be bad ("Goal Exceed Ratio").
    pub exceed_ratio: f64,
    /// Seconds of a trial of full length ("Goal Final Trial Duration").
    pub final_seconds: f64,
    /// Seconds of trials of full length that decide about a load ("Goal Duration Sum").
    pub sum_seconds: f64,
    /// Seconds of the first, coarse trials ("Goal Initial Trial Duration").
    pub initial_seconds: f64,
    /// How close the two bounds must come, a fraction of the upper one ("Goal Width").
    pub width: f64,
}

/// What a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Whatever the missing trials say, the load is good.
    Lower,
    /// Whatever the missing trials say, it is not.
    Upper,
    /// Not enough trials yet.
    Undecided,
}

/// Seconds of trials, by length and loss.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    full_bad: f64,
    full_good: f64,
    short_bad: f64,
    short_good: f64,
}

impl Sums {
    fn of(goal: &Goal, trials: &[Trial]) -> Self {
        let mut sums = Self::default();
        for trial in trials {
            let bad = trial.loss_ratio() > goal.loss_ratio;
            let sum = match (is_full(goal, trial), bad) {
                (true, true) => &mut sums.full_bad,
                (true, false) => &mut sums.full_good,
                (false, true) => &mut sums.short_bad,
                (false, false) => &mut sums.short_good,
            };
            *sum += trial.seconds;
        }
        sums
    }
}

/// Sums of seconds are not exact in binary.
const GRAIN: f64 = 1e-9;

fn is_full(goal: &Goal, trial: &Trial) -> bool {
    trial.seconds >= goal.final_seconds - GRAIN
}

impl Goal {
    /// What `trials`, all at one load, make of it (RFC 9971 appendix A).
    #[must_use]
    pub fn classify(&self, trials: &[Trial]) -> Class {
        let sums = Sums::of(self, trials);
        // Short good trials make up for short bad ones, in the ratio that is allowed; nothing else.
        let balancing = sums.short_good * self.exceed_ratio / (1.0 - self.exceed_ratio);
        let bad = sums.full_bad + (sums.short_bad - balancing).max(0.0);
        let full = bad + sums.full_good;
        let whole = full.max(self.sum_seconds);
        let missing = whole - full;
        if bad / whole > self.exceed_ratio + GRAIN {
            Class::Upper
        } else if (bad + missing) / whole <= self.exceed_ratio + GRAIN {
            Class::Lower
        } else {
            Class::Undecided
        }
    }

    /// What typically comes out at `load_pps`, packets a second (RFC 9971 appendix B).
    #[must_use]
    pub fn conditional_throughput(&self, load_pps: f64, trials: &[Trial]) -> f64 {
        let mut full: Vec<_> = trials.iter().filter(|trial| is_full(self, trial)).collect();
        full.sort_by(|a, b| a.loss_ratio().total_cmp(&b.loss_ratio()));
        let sum: f64 = full.iter().map(|trial| trial.seconds).sum();
        let mut remaining = sum.max(self.sum_seconds) * (1.0 - self.exceed_ratio);
        let mut loss = None;
        for trial in full {
            if loss.is_some() && remaining <= GRAIN {
                break;
            }
            loss = Some(trial.loss_ratio());
            remaining -= trial.seconds;
        }
        // What was not tried counts as lost.
        let loss = loss.filter(|_| remaining <= GRAIN).unwrap_or(1.0);
        load_pps * (1.0 - loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: f64 = 1e6;

    fn goal(final_seconds: f64, sum_seconds: f64, loss_ratio: f64, exceed_ratio: f64) -> Goal {
        let initial_seconds = final_seconds;
        Goal { loss_ratio, exceed_ratio, final_seconds, sum_seconds, initial_seconds, width: 0.01 }
    }

    fn trials(count: usize, seconds: f64, loss: f64) -> Vec<Trial> {
        let sent = (LOAD * seconds) as u64;
        let received = (sent as f64 * (1.0 - loss)).round() as u64;
        vec![Trial { load_pps: LOAD, offered_pps: LOAD, seconds, sent, received }; count]
    }

    /// The RFC's example search: four goals at six points in time. Its last column calls the load a
    /// lower bound at points 5 and 6, with 42.9 % and 27.3 % of the time bad where 20 % may be;
    /// appendix A, which decides, makes it an upper bound.
    #[test]
    fn the_rfcs_example_comes_out_as_the_rfc_says() {
        let goals = [
            goal(60.0, 60.0, 0.0, 0.0),
            goal(60.0, 120.0, 0.0, 0.5),
            goal(1.0, 120.0, 0.005, 0.5),
            goal(60.0, 60.0, 0.005, 0.2),
        ];
        use Class::{Lower, Undecided, Upper};
        let points = [
            (trials(59, 1.0, 0.0), [Undecided; 4]),
            (trials(1, 1.0, 0.01), [Upper, Undecided, Undecided, Undecided]),
            (trials(59, 1.0, 0.01), [Upper, Undecided, Undecided, Upper]),
            (trials(1, 1.0, 0.0), [Upper, Undecided, Lower, Upper]),
            (trials(1, 60.0, 0.001), [Upper, Undecided, Lower, Upper]),
            (trials(1, 60.0, 0.0), [Upper, Lower, Lower, Upper]),
        ];
        let mut so_far = Vec::new();
        for (number, (added, expected)) in points.into_iter().enumerate() {
            so_far.extend(added);
            let classes = goals.map(|goal| goal.classify(&so_far));
            assert_eq!(classes, expected, "point {}", number + 1);
        }
        let throughput = goals.map(|goal| goal.conditional_throughput(LOAD, &so_far).round());
        assert_eq!(throughput[1..], [1e6, 1e6, 999e3]);
    }

    #[test]
    fn what_was_not_tried_counts_as_lost() {
        let goal = goal(1.0, 10.0, 0.0, 0.5);
        assert!(goal.conditional_throughput(LOAD, &trials(4, 1.0, 0.0)).abs() < 1e-9);
        assert!((goal.conditional_throughput(LOAD, &trials(5, 1.0, 0.0)) - LOAD).abs() < 1e-6);
    }

    #[test]
    fn a_load_without_trials_is_undecided_and_has_no_throughput() {
        let goal = goal(1.0, 5.0, 0.0, 0.5);
        assert_eq!(goal.classify(&[]), Class::Undecided);
        assert!(goal.conditional_throughput(LOAD, &[]).abs() < 1e-9);
    }
}
