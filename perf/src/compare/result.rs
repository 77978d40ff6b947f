//! What is made of the samples: medians, and ratios within each round.

use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::window::{Limits, Window};
use crate::bed::Job;
use crate::measure::Spread;
use crate::text::listing;

/// Who all others are compared with.
const SUBJECT: &str = "overlane";
/// The ceilings: forwarders that do nothing else.
const RAW: &str = "raw";
const TESTPMD: &str = "testpmd";

/// Round trips from the pod through the forwarder to the other end and back, at low load and one at
/// a time; microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// Half of them took no longer.
    pub p50_us: f64,
    /// 90 of 100 took no longer.
    pub p90_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1000 took no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Answers.
    pub answered: u64,
    /// Questions without an answer.
    pub lost: u64,
}

impl RoundTrips {
    /// Of nanoseconds.
    #[must_use]
    pub fn of(times: &Histogram<u64>, lost: u64) -> Self {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: times.max() as f64 / 1e3,
            answered: times.len(),
            lost,
        }
    }
}

/// What was measured of one peer in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Round, from 0.
    pub round: usize,
    /// Peer.
    pub peer: String,
    /// Job.
    pub job: Job,
    /// Flows.
    pub flows: u32,
    /// Under overload.
    pub window: Window,
    /// At low load; with the first number of flows only.
    pub round_trips: Option<RoundTrips>,
}

/// A peer that was not compared, or not in all rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Peer.
    pub peer: String,
    /// Job.
    pub job: Job,
    /// Flows; none: with all.
    pub flows: Option<u32>,
    /// Why.
    pub why: String,
}

impl Skipped {
    /// Who is skipped for all numbers of flows for one reason is so once.
    #[must_use]
    pub fn merge(skipped: Vec<Self>, flows: &[u32]) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::new();
        for one in &skipped {
            let alike = |other: &&Self| (&other.peer, other.job) == (&one.peer, one.job);
            let all = skipped.iter().filter(alike).filter(|other| other.why == one.why).count();
            let whole = all == flows.len();
            let one = Self { flows: one.flows.filter(|_| !whole), ..one.clone() };
            if !merged.contains(&one) {
                merged.push(one);
            }
        }
        merged
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.peer, self.job)?;
        if let Some(flows) = self.flows {
            write!(f, ", {flows} flows")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// That a peer does its job: a packet and its answer, as they were seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Peer.
    pub peer: String,
    /// Job.
    pub job: Job,
    /// What came out, a line each.
    pub seen: String,
}

/// One peer doing one job with one number of flows: medians of the rounds, and their ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Peer.
    pub peer: String,
    /// Job.
    pub job: Job,
    /// Flows.
    pub flows: u32,
    /// Rounds.
    pub rounds: usize,
    /// Of those, rounds without a window that counts ([`Limits::ALL`]): their figures are in here all
    /// the same.
    pub disturbed: usize,
    /// Windows that were repeated.
    pub repeated: u32,
    /// Packets a second under overload.
    pub pps: Spread,
    /// Nanoseconds of the forwarder's threads for a packet.
    pub worker_ns: Spread,
    /// Nanoseconds of receiving on the sender's CPU for a packet; 0 for the kernel, which receives on
    /// its own.
    pub receive_ns: Spread,
    /// Both.
    pub all_in_ns: Spread,
    /// Worker's nanoseconds above those of the built-in raw forwarder in the same round.
    pub above_raw_ns: Option<Spread>,
    /// The same, of testpmd.
    pub above_testpmd_ns: Option<Spread>,
    /// Overlane's packets a second for each of this peer's, in the same round.
    pub overlane_pps_ratio: Option<Spread>,
    /// Overlane's all-in nanoseconds for each of this peer's, in the same round.
    pub overlane_all_in_ratio: Option<Spread>,
    /// Round trips, of all rounds the median.
    pub round_trips: Option<RoundTrips>,
    /// Overlane's median round trip for this peer's, in the same round.
    pub overlane_p50_ratio: Option<Spread>,
    /// The same, of 99 in 100.
    pub overlane_p99_ratio: Option<Spread>,
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Rounds that were made.
    pub rounds: usize,
    /// Rounds that were planned.
    pub planned_rounds: usize,
    /// Length of a window, seconds.
    pub window_seconds: f64,
    /// When a window counts.
    pub limits: Limits,
    /// What a frame costs the generator alone, nanoseconds.
    pub generator_ns: Spread,
    /// One for each peer, job and number of flows.
    pub rows: Vec<Row>,
    /// Who was not compared, and why.
    pub skipped: Vec<Skipped>,
    /// That those who were do their jobs.
    pub proofs: Vec<Proof>,
    /// All that was measured.
    pub samples: Vec<Sample>,
}

impl Comparison {
    /// Makes rows of the samples; `rounds`: made, and planned.
    #[must_use]
    pub fn new(
        rounds: (usize, usize),
        window_seconds: f64,
        generator_ns: &[f64],
        samples: Vec<Sample>,
        proofs: Vec<Proof>,
        skipped: Vec<Skipped>,
    ) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for sample in &samples {
            let known = |row: &Row| is_of(sample, &row.peer, row.job, row.flows);
            if !rows.iter().any(known) {
                rows.push(Row::of(&samples, &sample.peer, sample.job, sample.flows));
            }
        }
        // Stable: peers stay in the order of the round.
        rows.sort_by_key(|row| (row.job.name(), row.flows));
        Self {
            rounds: rounds.0,
            planned_rounds: rounds.1,
            window_seconds,
            limits: Limits::ALL,
            generator_ns: Spread::of(generator_ns.to_vec()),
            rows,
            skipped,
            proofs,
            samples,
        }
    }
}

fn is_of(sample: &Sample, peer: &str, job: Job, flows: u32) -> bool {
    sample.peer == peer && sample.job == job && sample.flows == flows
}

/// `value` of the sample and of another peer's in the same round, in each round that has both.
fn paired(
    samples: &[Sample],
    own: &[&Sample],
    other: &str,
    value: impl Fn(&Sample, &Sample) -> Option<f64>,
) -> Option<Spread> {
    let values: Vec<f64> = own
        .iter()
        .filter_map(|sample| {
            let same_round = |other_sample: &&Sample| {
                other_sample.round == sample.round
                    && is_of(other_sample, other, sample.job, sample.flows)
            };
            value(sample, samples.iter().find(same_round)?)
        })
        .collect();
    (!values.is_empty()).then(|| Spread::of(values))
}

impl Row {
    fn of(samples: &[Sample], peer: &str, job: Job, flows: u32) -> Self {
        let own: Vec<&Sample> =
            samples.iter().filter(|sample| is_of(sample, peer, job, flows)).collect();
        let of = |value: fn(&Window) -> f64| {
            Spread::of(own.iter().map(|sample| value(&sample.window)).collect())
        };
        let above = |other: &str| {
            let difference = |sample: &Sample, other: &Sample| {
                let own = sample.window.worker_ns_per_packet();
                Some(own - other.window.worker_ns_per_packet())
            };
            (peer != other).then(|| paired(samples, &own, other, difference)).flatten()
        };
        let ratio = |value: fn(&Sample) -> Option<f64>| {
            let quotient =
                |sample: &Sample, subject: &Sample| Some(value(subject)? / value(sample)?);
            (peer != SUBJECT).then(|| paired(samples, &own, SUBJECT, quotient)).flatten()
        };
        Self {
            peer: peer.to_owned(),
            job,
            flows,
            rounds: own.len(),
            disturbed: own.iter().filter(|sample| !sample.window.counts(&Limits::ALL)).count(),
            repeated: own.iter().map(|sample| sample.window.repeated).sum(),
            pps: of(Window::pps),
            worker_ns: of(Window::worker_ns_per_packet),
            receive_ns: of(Window::receive_ns_per_packet),
            all_in_ns: of(Window::all_in_ns_per_packet),
            above_raw_ns: above(RAW),
            above_testpmd_ns: above(TESTPMD),
            overlane_pps_ratio: ratio(|sample| Some(sample.window.pps())),
            overlane_all_in_ratio: ratio(|sample| Some(sample.window.all_in_ns_per_packet())),
            round_trips: median_of(&own),
            overlane_p50_ratio: ratio(|sample| Some(sample.round_trips?.p50_us)),
            overlane_p99_ratio: ratio(|sample| Some(sample.round_trips?.p99_us)),
        }
    }
}

/// The median of each percentile; the longest of all, and all lost.
fn median_of(samples: &[&Sample]) -> Option<RoundTrips> {
    let all: Vec<RoundTrips> = samples.iter().filter_map(|sample| sample.round_trips).collect();
    let median = |value: fn(&RoundTrips) -> f64| Spread::of(all.iter().map(value).collect()).median;
    (!all.is_empty()).then(|| RoundTrips {
        p50_us: median(|trips| trips.p50_us),
        p90_us: median(|trips| trips.p90_us),
        p99_us: median(|trips| trips.p99_us),
        p999_us: median(|trips| trips.p999_us),
        max_us: all.iter().map(|trips| trips.max_us).fold(0.0, f64::max),
        answered: all.iter().map(|trips| trips.answered).sum(),
        lost: all.iter().map(|trips| trips.lost).sum(),
    })
}

impl Comparison {
    /// As text for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing([
            "JOB",
            "FLOWS",
            "PEER",
            "KPPS",
            "WORKER NS",
            "ALL-IN NS",
            "ABOVE RAW",
            "OVERLANE/PEER: PPS",
            "ALL-IN",
            "RTT P50",
            "P99",
            "P99.9 US",
            "",
        ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        let mut text = format!("{table}\n\n{}", self.reading());
        for skipped in &self.skipped {
            text += &format!("\nskipped: {skipped}");
        }
        text
    }

    fn reading(&self) -> String {
        let Limits { others, overload } = self.limits;
        format!(
            "Medians of {} rounds (of {} planned) and their range; ratios and differences within a \
             round.\nThe generator costs {:.0} ns a frame alone. A window counts when others took at \
             most {:.0} % of the\nforwarder's CPU and the offer was {:.0} % above what came out.",
            self.rounds,
            self.planned_rounds,
            self.generator_ns.median,
            others * 100.0,
            (overload - 1.0) * 100.0,
        )
    }
}

impl Row {
    fn cells(&self) -> [String; 13] {
        let whole = |s: &Spread| format!("{:.0} ({:.0}-{:.0})", s.median, s.least, s.most);
        let fine = |s: &Spread| format!("{:.2} ({:.2}-{:.2})", s.median, s.least, s.most);
        let kilo = Spread {
            median: self.pps.median / 1e3,
            least: self.pps.least / 1e3,
            most: self.pps.most / 1e3,
        };
        let or_dash = |s: &Option<Spread>, format: &dyn Fn(&Spread) -> String| {
            s.as_ref().map_or_else(|| "-".to_owned(), format)
        };
        let trips = |value: fn(&RoundTrips) -> f64| {
            self.round_trips.as_ref().map_or("-".to_owned(), |trips| format!("{:.1}", value(trips)))
        };
        let counted = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
        let notes = [
            counted(self.disturbed as u64, &format!("of {} disturbed", self.rounds)),
            counted(u64::from(self.repeated), "repeated"),
        ];
        let note = notes.into_iter().flatten().collect::<Vec<_>>().join(", ");
        [
            self.job.to_string(),
            self.flows.to_string(),
            self.peer.clone(),
            whole(&kilo),
            whole(&self.worker_ns),
            whole(&self.all_in_ns),
            or_dash(&self.above_raw_ns, &whole),
            or_dash(&self.overlane_pps_ratio, &fine),
            or_dash(&self.overlane_all_in_ratio, &fine),
            trips(|trips| trips.p50_us),
            trips(|trips| trips.p99_us),
            trips(|trips| trips.p999_us),
            note,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second in which a frame costs the worker `ns`.
    fn sample(round: usize, peer: &str, ns: u64, p50_us: f64) -> Sample {
        let window = Window {
            seconds: 1.0,
            offered: 5_000_000,
            taken: 5_000_000,
            forwarded: 1_000_000_000 / ns,
            worker_ns: 1_000_000_000,
            generator_ns: 1_000_000_000,
            frame_ns: 150.0,
            dropped_frame_ns: None,
            repeated: 0,
        };
        let round_trips = RoundTrips {
            p50_us,
            p90_us: p50_us,
            p99_us: 2.0 * p50_us,
            p999_us: 3.0 * p50_us,
            max_us: 4.0 * p50_us,
            answered: 100,
            lost: 1,
        };
        let (job, flows) = (Job::DnatVxlan, 1000);
        Sample { round, peer: peer.into(), job, flows, window, round_trips: Some(round_trips) }
    }

    /// The machine becomes twice as slow from one round to the next; ratios do not.
    fn comparison() -> Comparison {
        let mut samples = Vec::new();
        for round in 0..3 {
            let slower = 1 << round;
            samples.push(sample(round, "overlane", 1000 * slower, 10.0));
            samples.push(sample(round, "raw", 900 * slower, 9.0));
            samples.push(sample(round, "kernel-nft", 2500 * slower, 20.0));
        }
        Comparison::new((3, 5), 1.0, &[150.0, 160.0, 140.0], samples, vec![], vec![])
    }

    fn near(got: f64, wanted: f64) {
        assert!((got / wanted - 1.0).abs() < 0.001, "{got} is not {wanted}");
    }

    #[test]
    fn ratios_are_within_a_round() {
        let comparison = comparison();
        let [overlane, raw, kernel] = &comparison.rows[..] else { panic!("{comparison:?}") };
        let ratio = kernel.overlane_pps_ratio.unwrap();
        near(ratio.median, 2.5);
        near(ratio.most / ratio.least, 1.0);
        near(kernel.overlane_all_in_ratio.unwrap().median, 0.4);
        near(kernel.overlane_p50_ratio.unwrap().median, 0.5);
        near(raw.overlane_pps_ratio.unwrap().median, 0.9);
        assert_eq!(overlane.overlane_pps_ratio, None);
        let above = overlane.above_raw_ns.unwrap();
        near(above.median, 200.0);
        near(above.least, 100.0);
        near(above.most, 400.0);
        assert_eq!((raw.above_raw_ns, raw.above_testpmd_ns), (None, None));
    }

    #[test]
    fn figures_are_medians_with_their_range() {
        let comparison = comparison();
        let overlane = &comparison.rows[0];
        near(overlane.worker_ns.median, 2000.0);
        near(overlane.pps.least, 250_000.0);
        near(overlane.pps.most, 1_000_000.0);
        let trips = overlane.round_trips.unwrap();
        assert_eq!((trips.answered, trips.lost), (300, 3));
        near(comparison.generator_ns.median, 150.0);
    }

    #[test]
    fn a_round_that_one_of_them_missed_is_no_pair() {
        let samples = vec![
            sample(0, "overlane", 1000, 1.0),
            sample(0, "raw", 900, 1.0),
            sample(1, "overlane", 5000, 1.0),
        ];
        let comparison = Comparison::new((2, 2), 1.0, &[1.0], samples, vec![], vec![]);
        let above = comparison.rows[0].above_raw_ns.unwrap();
        near(above.median, 100.0);
        near(above.most, 100.0);
    }

    #[test]
    fn a_window_that_does_not_count_is_named() {
        let mut slow = sample(0, "overlane", 1000, 1.0);
        slow.window.worker_ns /= 2;
        slow.window.repeated = 2;
        let comparison = Comparison::new((1, 1), 1.0, &[1.0], vec![slow], vec![], vec![]);
        assert_eq!(comparison.rows[0].disturbed, 1);
        assert!(comparison.table().contains("1 of 1 disturbed, 2 repeated"));
    }

    #[test]
    fn a_reason_for_all_flows_is_said_once() {
        let skip = |flows, why: &str| Skipped {
            peer: "kernel-nft".into(),
            job: Job::DnatGeneve,
            flows: Some(flows),
            why: why.into(),
        };
        let skipped = vec![skip(1000, "no geneve"), skip(100_000, "no geneve")];
        let merged = Skipped::merge(skipped, &[1000, 100_000]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].to_string(), "kernel-nft, dnat-geneve: no geneve");
        let merged = Skipped::merge(vec![skip(100_000, "too many")], &[1000, 100_000]);
        assert_eq!(merged[0].to_string(), "kernel-nft, dnat-geneve, 100000 flows: too many");
    }

    #[test]
    fn a_result_is_read_back_as_it_was_written() {
        let comparison = comparison();
        let text = serde_json::to_string(&comparison).unwrap();
        assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), comparison);
    }
}
