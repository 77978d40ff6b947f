//! Identifications of IPv4 packets that leave with an address that is not their sender's alone: what two
//! pods choose may be the same, and their fragments would be put together as one packet (RFC 6864
//! section 5.3.1, RFC 7857 section 10).

use overlane_api::WorkerId;

use super::random::Random;
use crate::packet::flow_key::{FlowHash, FlowKey};

/// Counters, among which the receivers are spread.
const COUNTERS: usize = 1024;

/// The next identification for each receiver, or for some that share a counter: one comes again after
/// as many packets as there are numbers, and no worker gives those of another.
#[derive(Debug)]
pub struct Identifications {
    next: Box<[u16; COUNTERS]>,
    hash: FlowHash,
    worker: u8,
    /// Low bits of a number, that say whose it is.
    bits: u32,
}

impl Identifications {
    /// Those of `worker`. `key` is to be random and secret.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "16 bits of 64 are meant")]
    pub fn new(worker: WorkerId, key: [u64; 2]) -> Self {
        let mut random = Random::new(key);
        let mut next = Box::new([0; COUNTERS]);
        next.fill_with(|| random.number() as u16);
        Self { next, hash: FlowHash::new(random.number()), worker: worker.0, bits: 0 }
    }

    /// Says how many workers give numbers.
    pub fn set_workers(&mut self, workers: u32) {
        self.bits = workers.max(1).next_power_of_two().trailing_zeros();
    }

    /// One for a packet to `destination` (host order) that carries `protocol`.
    #[must_use]
    pub fn next(&mut self, destination: u32, protocol: u8) -> u16 {
        let key = FlowKey { destination, protocol, ..FlowKey::default() };
        let place = self.hash.of(&key) as usize % COUNTERS;
        let Some(counter) = self.next.get_mut(place) else { return 0 };
        *counter = counter.wrapping_add(1);
        *counter << self.bits | u16::from(self.worker) & ((1 << self.bits) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_come_again_only_when_all_were_used_and_workers_have_their_own() {
        for workers in 1..=5_u8 {
            let of_each = 65_536 >> u32::from(workers).next_power_of_two().trailing_zeros();
            let mut seen = HashSet::new();
            for worker in 0..workers {
                let mut own = Identifications::new(WorkerId(worker), [7, u64::from(worker)]);
                own.set_workers(workers.into());
                for _ in 0..of_each {
                    assert!(seen.insert(own.next(0xcb00_710a, 17)), "{workers} workers");
                }
                assert!(!seen.insert(own.next(0xcb00_710a, 17)));
            }
        }
    }

    #[test]
    fn receivers_have_counters_of_their_own() {
        let mut ids = Identifications::new(WorkerId(0), [1, 2]);
        let first = ids.next(1, 17);
        for destination in 2..100 {
            let _ = ids.next(destination, 17);
        }
        // A few of a hundred share one of 1,024 counters.
        assert!(ids.next(1, 17).wrapping_sub(first) <= 3);
    }
}
