//! What the process says about how long packets are inside of it.

use std::collections::HashMap;
use std::time::Instant;

use overlane_api::latency::{LatencyBucket, LatencyHistogram, LatencyReport, PacketSource};
use overlane_api::{WorkerId, buckets};

use super::process::Process;
use crate::stats::dwell::{Dwell, Side};

/// What was counted when the report was begun anew: workers only count up.
#[derive(Debug)]
pub struct Latency {
    before: HashMap<(WorkerId, PacketSource), Box<[u64]>>,
    since: Instant,
}

impl Default for Latency {
    fn default() -> Self {
        Self { before: HashMap::new(), since: Instant::now() }
    }
}

fn source(side: Side) -> PacketSource {
    match side {
        Side::Inside => PacketSource::Pods,
        Side::Uplink => PacketSource::Uplink,
        Side::Worker => PacketSource::Worker,
    }
}

impl Latency {
    /// What `workers`, which time one vector in `sampled`, have counted. With `reset` the next report
    /// begins where this one ends.
    pub fn report<'a>(
        &mut self,
        sampled: u32,
        workers: impl Iterator<Item = (WorkerId, &'a Dwell)>,
        reset: bool,
    ) -> LatencyReport {
        let since_s = self.since.elapsed().as_secs();
        let mut histograms = Vec::new();
        for (worker, dwell) in workers {
            for side in Side::ALL {
                let (from, counts) = (source(side), dwell.of(side).read());
                let before = self.before.get(&(worker, from));
                let buckets: Vec<_> = counts
                    .iter()
                    .enumerate()
                    .map(|(bucket, count)| {
                        let old = before.and_then(|old| old.get(bucket)).copied().unwrap_or(0);
                        let packets = count.wrapping_sub(old);
                        LatencyBucket { up_to_ns: buckets::longest_of(bucket), packets }
                    })
                    .filter(|bucket| bucket.packets > 0)
                    .collect();
                if !buckets.is_empty() {
                    histograms.push(LatencyHistogram { worker, from, buckets });
                }
                if reset {
                    self.before.insert((worker, from), counts);
                }
            }
        }
        if reset {
            self.since = Instant::now();
        }
        LatencyReport { sampled, since_s, histograms }
    }
}

impl Process {
    pub(super) fn latency_report(&mut self, reset: bool) -> LatencyReport {
        self.latency.report(self.settings.time_every, self.workers.dwell(), reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_begins_where_the_last_one_was_ended() {
        let (dwell, mut latency) = (Dwell::new(), Latency::default());
        let mut ask = |reset| latency.report(16, std::iter::once((WorkerId(3), &dwell)), reset);
        assert_eq!(ask(true).histograms, []);
        dwell.of(Side::Uplink).record(1000, 5);
        dwell.of(Side::Uplink).record(90, 2);
        let counted = |packets: [u64; 2]| {
            let times = [90, 1007].into_iter().zip(packets).filter(|(_, packets)| *packets > 0);
            let buckets =
                times.map(|(up_to_ns, packets)| LatencyBucket { up_to_ns, packets }).collect();
            [LatencyHistogram { worker: WorkerId(3), from: PacketSource::Uplink, buckets }]
        };
        assert_eq!(ask(false).histograms, counted([2, 5]));
        assert_eq!(ask(true).histograms, counted([2, 5]));
        assert_eq!(ask(false).histograms, []);
        dwell.of(Side::Uplink).record(1001, 4);
        assert_eq!(ask(false).histograms, counted([0, 4]));
        assert_eq!(ask(false).sampled, 16);
    }
}
