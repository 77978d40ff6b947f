//! How many flows with an external port each pod has (RFC 6888 REQ-4): one pod must not take all ports.
//!
//! Counted only while there is a limit, so that who sets none pays nothing.

use std::collections::HashMap;

use crate::packet::flow_key::Address;

#[derive(Debug)]
pub(super) struct Quota<A> {
    limit: Option<u32>,
    held: HashMap<A, u32>,
}

impl<A: Address> Quota<A> {
    pub(super) fn new() -> Self {
        Self { limit: None, held: HashMap::new() }
    }

    /// Another limit. When there was none before, `holders` are the pods of all flows that have a port.
    pub(super) fn set(&mut self, limit: Option<u32>, holders: impl Iterator<Item = A>) {
        if limit.is_none() {
            self.held = HashMap::new();
        } else if self.limit.is_none() {
            for pod in holders {
                *self.held.entry(pod).or_default() += 1;
            }
        }
        self.limit = limit;
    }

    /// Does the pod have its most?
    pub(super) fn is_reached(&self, pod: A) -> bool {
        let Some(limit) = self.limit else { return false };
        self.held.get(&pod).is_some_and(|held| *held >= limit)
    }

    /// The pod has one more.
    pub(super) fn take(&mut self, pod: A) {
        if self.limit.is_some() {
            *self.held.entry(pod).or_default() += 1;
        }
    }

    /// The pod has one less. Who was never counted is not now.
    pub(super) fn give(&mut self, pod: A) {
        if let Some(held) = self.held.get_mut(&pod) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_before_there_was_a_limit_counts() {
        let mut quota = Quota::<u32>::new();
        quota.take(1);
        assert!(!quota.is_reached(1), "no limit");
        quota.set(Some(2), [1, 1, 2].into_iter());
        assert!(quota.is_reached(1) && !quota.is_reached(2) && !quota.is_reached(3));
        quota.take(2);
        assert!(quota.is_reached(2));
        quota.set(Some(3), [1, 1, 1, 1].into_iter());
        assert!(!quota.is_reached(1), "it was counted before");
        quota.give(1);
        quota.give(1);
        quota.give(1);
        quota.give(9);
        quota.take(1);
        assert!(!quota.is_reached(1));
        quota.set(None, [1, 1, 1].into_iter());
        assert!(!quota.is_reached(1));
    }
}
