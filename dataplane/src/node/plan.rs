//! Which queue belongs to which worker, and how the memory is divided.

use overlane_api::WorkerId;

use crate::io::af_xdp::RingSizes;
use crate::io::af_xdp::plan::{BudgetTooSmall, MemoryPlan, plan_chunks};
use crate::packet::verdict::PortId;

/// Sockets that the memory is planned for: one for each endpoint, one for each uplink queue (a
/// worker has one), the host port.
///
/// # Errors
/// [`BudgetTooSmall`]
pub fn memory(
    max_endpoints: usize,
    workers: usize,
    budget: u64,
) -> Result<MemoryPlan, BudgetTooSmall> {
    let sockets = u32::try_from(max_endpoints + workers + 1).unwrap_or(u32::MAX);
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    plan_chunks(sockets, workers, budget, RingSizes::default())
}

/// The worker that serves an uplink queue: queues go round the workers, so that receive-side
/// scaling spreads the load evenly.
#[must_use]
pub fn uplink_worker(queue: u32, workers: usize) -> WorkerId {
    let workers = u32::try_from(workers.max(1)).unwrap_or(1);
    WorkerId(u8::try_from(queue % workers).unwrap_or(0))
}

/// The worker with the fewest endpoints; the lowest of several.
#[must_use]
pub fn least_loaded(homes: impl Iterator<Item = WorkerId>, workers: usize) -> WorkerId {
    let mut load = vec![0_usize; workers.max(1)];
    for home in homes {
        if let Some(load) = load.get_mut(home.index()) {
            *load += 1;
        }
    }
    let least = load.iter().enumerate().min_by_key(|(_, load)| **load);
    WorkerId(least.and_then(|(number, _)| u8::try_from(number).ok()).unwrap_or(0))
}

/// Port numbers: each is one device queue's as long as it is open.
#[derive(Debug, Default)]
pub struct PortNumbers {
    used: Vec<bool>,
}

impl PortNumbers {
    /// `count` numbers in a row, and the first of them; none when they have run out.
    pub fn take(&mut self, count: u16) -> Option<PortId> {
        let count = usize::from(count.max(1));
        let free = |start: usize| (start..start + count).all(|n| self.used.get(n) != Some(&true));
        let start = (0..=self.used.len()).find(|start| free(*start))?;
        let end = start + count;
        let id = u16::try_from(start).ok().filter(|_| end <= usize::from(u16::MAX))?;
        if self.used.len() < end {
            self.used.resize(end, false);
        }
        self.used[start..end].fill(true);
        Some(PortId(id))
    }

    /// Takes numbers back.
    pub fn give(&mut self, first: PortId, count: u16) {
        for number in first.index()..first.index() + usize::from(count.max(1)) {
            if let Some(used) = self.used.get_mut(number) {
                *used = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_go_round_the_workers() {
        let of = |queue| uplink_worker(queue, 3).0;
        assert_eq!([of(0), of(1), of(2), of(3), of(7)], [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_new_pod_goes_where_the_fewest_are() {
        let homes = |list: &[u8]| list.iter().map(|n| WorkerId(*n)).collect::<Vec<_>>();
        assert_eq!(least_loaded(homes(&[]).into_iter(), 2), WorkerId(0));
        assert_eq!(least_loaded(homes(&[0]).into_iter(), 2), WorkerId(1));
        assert_eq!(least_loaded(homes(&[0, 1, 1]).into_iter(), 2), WorkerId(0));
    }

    #[test]
    fn port_numbers_are_used_again_and_stand_in_a_row() {
        let mut numbers = PortNumbers::default();
        assert_eq!(numbers.take(1), Some(PortId(0)));
        assert_eq!(numbers.take(3), Some(PortId(1)));
        assert_eq!(numbers.take(1), Some(PortId(4)));
        numbers.give(PortId(1), 3);
        assert_eq!(numbers.take(2), Some(PortId(1)));
        assert_eq!(numbers.take(2), Some(PortId(5)));
        assert_eq!(numbers.take(1), Some(PortId(3)));
    }
}
