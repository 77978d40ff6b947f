//! External ports whose connection has just ended: not to be used towards the same remote yet.
//!
//! The remote may still be in `TIME_WAIT`, and would answer a new SYN as if it belonged to the old
//! connection. Mostly the flow itself stays in the table for longer than that; this is for those that
//! leave early, and for short timeouts.
//!
//! Two queues, one after FINs and one after RSTs, each in order of time, and a set of hashes to tell
//! whether a port is in one of them. When a queue is full the oldest is let go early.

use std::collections::VecDeque;

use super::PoolId;
use crate::packet::flow_key::{Address, FlowHash, FlowKey};

/// Bindings that one queue holds.
const CAPACITY: usize = 4096;
/// Hashes in one cache line.
const WAYS: usize = 16;
/// Sets of hashes: twice as many places as there are bindings in both queues.
const SETS: usize = 2 * 2 * CAPACITY / WAYS;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both sides closed.
    Fin,
    /// One side reset it.
    Rst,
    /// Nobody said so, or there was no connection.
    Quiet,
}

/// A binding that cools down: its address's pool, and the key of its answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cooling<A> {
    pub(super) pool: PoolId,
    pub(super) answer: FlowKey<A>,
    until: u32,
}

#[derive(Debug)]
pub(super) struct Cooldown<A> {
    /// After FINs, after RSTs.
    queues: [VecDeque<Cooling<A>>; 2],
    /// Hashes of what is in the queues; 0: none.
    hashes: Box<[[u32; WAYS]]>,
    hash: FlowHash,
}

impl<A: Address> Cooldown<A> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            queues: std::array::from_fn(|_| VecDeque::with_capacity(CAPACITY)),
            hashes: vec![[0; WAYS]; SETS].into_boxed_slice(),
            hash: FlowHash::new(seed),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    fn set(&self, answer: &FlowKey<A>) -> (usize, u32) {
        // 0 says that there is none.
        let hash = self.hash.of(answer).max(1);
        (hash as usize % SETS, hash)
    }

    /// Is this binding cooling down? Once in some 100 million times it is another one that is.
    pub(super) fn has(&self, answer: &FlowKey<A>) -> bool {
        if self.is_empty() {
            return false;
        }
        let (set, hash) = self.set(answer);
        self.hashes[set].contains(&hash)
    }

    /// Lets a binding cool down until a tick, or until the one before it in the queue is done. Returns one
    /// that is done early when the queue was full, and whether there was a place for the new one.
    pub(super) fn push(
        &mut self,
        ending: Ending,
        pool: PoolId,
        answer: &FlowKey<A>,
        until: u32,
    ) -> (Option<Cooling<A>>, bool) {
        let queue = match ending {
            Ending::Fin => 0,
            Ending::Rst => 1,
            Ending::Quiet => return (None, false),
        };
        let early = if self.queues[queue].len() >= CAPACITY { self.pop_from(queue) } else { None };
        let (set, hash) = self.set(answer);
        let Some(place) = self.hashes[set].iter_mut().find(|place| **place == 0) else {
            return (early, false);
        };
        *place = hash;
        let last = self.queues[queue].back().map_or(0, |last| last.until);
        self.queues[queue].push_back(Cooling { pool, answer: *answer, until: until.max(last) });
        (early, true)
    }

    /// A binding that is done.
    pub(super) fn pop(&mut self, now: u32) -> Option<Cooling<A>> {
        let done = self
            .queues
            .iter()
            .position(|queue| queue.front().is_some_and(|first| first.until <= now))?;
        self.pop_from(done)
    }

    fn pop_from(&mut self, queue: usize) -> Option<Cooling<A>> {
        let done = self.queues[queue].pop_front()?;
        let (set, hash) = self.set(&done.answer);
        if let Some(place) = self.hashes[set].iter_mut().find(|place| **place == hash) {
            *place = 0;
        }
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(port: u16) -> FlowKey<u32> {
        FlowKey { source: 1, destination: 2, source_port: 443, destination_port: port, protocol: 6 }
    }

    #[test]
    fn bindings_cool_down_in_order() {
        let mut cooldown = Cooldown::new(1);
        assert!(cooldown.is_empty() && !cooldown.has(&answer(1)));
        cooldown.push(Ending::Fin, PoolId(0), &answer(1), 65);
        cooldown.push(Ending::Rst, PoolId(0), &answer(2), 16);
        // Ends before the one before it, and waits for it.
        cooldown.push(Ending::Fin, PoolId(0), &answer(3), 60);
        assert!(!cooldown.push(Ending::Quiet, PoolId(0), &answer(4), 60).1);
        assert_eq!(cooldown.len(), 3);
        assert!([1, 2, 3].iter().all(|port| cooldown.has(&answer(*port))));
        assert!(!cooldown.has(&answer(4)));
        assert!(cooldown.pop(15).is_none());
        assert_eq!(cooldown.pop(16).unwrap().answer, answer(2));
        assert!(cooldown.pop(64).is_none());
        assert_eq!(cooldown.pop(65).unwrap().answer, answer(1));
        assert_eq!(cooldown.pop(65).unwrap().answer, answer(3));
        assert!(cooldown.is_empty() && !cooldown.has(&answer(1)));
    }

    #[test]
    fn a_full_queue_lets_the_oldest_go() {
        let mut cooldown = Cooldown::new(1);
        let mut early = Vec::new();
        let mut refused = 0;
        for port in 0..10_000 {
            let (gone, taken) = cooldown.push(Ending::Fin, PoolId(0), &answer(port), 65);
            early.extend(gone.map(|gone| gone.answer.destination_port));
            refused += usize::from(!taken);
        }
        assert_eq!(cooldown.len(), CAPACITY);
        assert_eq!(early.len(), 10_000 - CAPACITY - refused);
        assert!(early.is_sorted());
        assert!(!cooldown.has(&answer(0)) && cooldown.has(&answer(9_999)));
        assert!(refused < 10, "{refused} found no place");
        while cooldown.pop(65).is_some() {}
        assert!(cooldown.hashes.iter().all(|set| *set == [0; WAYS]));
    }
}
