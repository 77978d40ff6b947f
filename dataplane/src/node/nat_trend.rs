//! How fast the external addresses fill, and when the first remote will have none of their ports left.
//!
//! A port serves every remote once, so an address is exhausted towards one remote at a time: the one with
//! the most bindings. The slow thread notes the bindings of each address every five seconds; what they
//! grew by within the last minute is taken to go on, and to go to the remotes as the bindings there are.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::tables::external::ExternalAddress;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);

/// Samples of a minute, and the one before.
const SAMPLES: usize = 13;

/// Bindings of each address over the last minute.
#[derive(Debug, Default)]
pub struct Trend {
    samples: HashMap<IpAddr, VecDeque<(Instant, u64)>>,
    sampled_at: Option<Instant>,
}

impl Trend {
    /// Is it time for another sample?
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.sampled_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// Notes how many bindings the addresses have. Those that are not among them are forgotten.
    pub(super) fn sample(
        &mut self,
        addresses: impl Iterator<Item = ExternalAddress>,
        now: Instant,
    ) {
        self.sampled_at = Some(now);
        let mut before = std::mem::take(&mut self.samples);
        for external in addresses {
            let mut samples = before.remove(&external.address).unwrap_or_default();
            if samples.len() == SAMPLES {
                samples.pop_front();
            }
            samples.push_back((now, external.ports.bindings()));
            self.samples.insert(external.address, samples);
        }
    }

    /// By how many bindings the address grew per second, over the last minute or as long as it is
    /// known; negative when it emptied. None: not known for long enough.
    pub(super) fn growth(&self, address: IpAddr) -> Option<f64> {
        let samples = self.samples.get(&address)?;
        let ((first, before), (last, after)) = (*samples.front()?, *samples.back()?);
        let seconds = last.saturating_duration_since(first).as_secs_f64();
        let count = |bindings: u64| f64::from(u32::try_from(bindings).unwrap_or(u32::MAX));
        (seconds >= INTERVAL.as_secs_f64()).then(|| (count(after) - count(before)) / seconds)
    }
}

/// Seconds until the remote that has `busiest` of all `bindings` of an address has the `free` ports that
/// are left towards it as well, if the address goes on growing by `growth` bindings per second. None: it
/// does not grow.
pub(super) fn forecast(free: u32, busiest: u64, bindings: u64, growth: f64) -> Option<u64> {
    let count = |bindings: u64| f64::from(u32::try_from(bindings).unwrap_or(u32::MAX));
    if free == 0 {
        return Some(0);
    }
    let rate = growth * count(busiest) / count(bindings.max(1));
    if rate <= 0.0 {
        return None;
    }
    Some(Duration::try_from_secs_f64(f64::from(free) / rate).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overlane_api::{PortRange, WorkerId};

    use super::*;
    use crate::packet::blocks::BlockTable;

    #[test]
    fn the_growth_is_that_of_the_last_minute() {
        let address: IpAddr = "10.0.1.4".parse().unwrap();
        let ports = Arc::new(BlockTable::new(PortRange::new(10_240, 29_999).unwrap()));
        let all = || std::iter::once(ExternalAddress { address, ports: ports.clone() });
        let start = Instant::now();
        let mut trend = Trend::default();
        assert!(trend.is_due(start));
        for second in (0..=200_u32).step_by(5) {
            let now = start + Duration::from_secs(second.into());
            assert!(trend.is_due(now));
            // Two workers; nothing for 100 seconds, then 3 and 1 a second.
            ports.note_bindings(WorkerId(0), u64::from(second.saturating_sub(100)) * 3);
            ports.note_bindings(WorkerId(7), 50 + u64::from(second.saturating_sub(100)));
            trend.sample(all(), now);
            assert!(!trend.is_due(now + Duration::from_secs(4)));
            let growth = trend.growth(address);
            match second {
                0 => assert_eq!(growth, None),
                5..=100 => assert_eq!(growth, Some(0.0)),
                160.. => assert_eq!(growth, Some(4.0)),
                _ => assert!(growth.is_some_and(|growth| growth > 0.0 && growth < 4.0)),
            }
        }
        trend.sample(std::iter::empty(), start + Duration::from_secs(300));
        assert_eq!(trend.growth(address), None);
    }

    #[test]
    fn the_forecast_is_for_the_busiest_remote() {
        // 4 a second, three quarters of them to one remote that has 1000 ports left.
        assert_eq!(forecast(1000, 750, 1000, 4.0), Some(333));
        assert_eq!(forecast(1000, 750, 1000, 0.0), None);
        assert_eq!(forecast(1000, 750, 1000, -2.0), None);
        assert_eq!(forecast(0, 750, 1000, -2.0), Some(0));
        assert_eq!(forecast(1000, 0, 0, 4.0), None);
    }
}
