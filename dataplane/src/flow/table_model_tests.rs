//! The table against a plain list of flows.

use super::tests::{ACK, SYN_ACK, key, look_up, opening};
use super::*;
use crate::flow::timeouts::ticks;
use crate::packet::flow_key::FlowKey4;
use proptest::prelude::*;
use std::collections::HashMap;

/// A plain model of the table: a list of flows, and when each was last seen.
#[derive(Debug, Default)]
struct Model {
    flows: HashMap<FlowId, Known>,
    keys: HashMap<FlowKey4, HalfId>,
}

#[derive(Debug)]
struct Known {
    opening: Opening<u32>,
    last_seen: u32,
    answered: bool,
}

impl Known {
    fn over_at(&self) -> u32 {
        let seconds = match (self.opening.key.protocol, self.answered) {
            (6, false) => 240,
            (6, true) => 7440,
            (17, false) => 120,
            (17, true) => 300,
            _ => 60,
        };
        self.last_seen + ticks(seconds)
    }
}

impl Model {
    fn gone(&mut self, removed: &Removed<u32>, now: u32, full: bool) {
        let known = self.flows.remove(&removed.flow).unwrap();
        assert_eq!(removed.forward.key(), known.opening.key);
        assert_eq!(removed.reverse.key(), known.opening.leaving_as.reversed());
        assert_eq!(removed.last_seen(), known.last_seen);
        match removed.why {
            Gone::Expired => assert!(known.over_at() <= now),
            Gone::Evicted => assert!(full && !known.answered && known.last_seen < now),
            Gone::Removed => {}
        }
        self.keys.remove(&removed.forward.key()).unwrap();
        self.keys.remove(&removed.reverse.key()).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Protocol, the opener's port, the external port.
    Insert(u8, u16, u16),
    /// The answer's packet or the opener's, of the flow with this opener.
    Packet(u8, u16, bool),
    Remove(u8, u16),
    Wait(u32),
    Expire(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let protocol = || prop_oneof![Just(6_u8), Just(17), Just(1)];
    let port = || 0..60_u16;
    let step = prop_oneof![
        6 => (protocol(), port(), port()).prop_map(|(p, a, b)| Step::Insert(p, a, b)),
        6 => (protocol(), port(), any::<bool>()).prop_map(|(p, a, answer)| Step::Packet(p, a, answer)),
        2 => (protocol(), port()).prop_map(|(p, a)| Step::Remove(p, a)),
        2 => prop_oneof![0..3_u32, 0..2000_u32, Just(ticks(240))].prop_map(Step::Wait),
        2 => prop_oneof![0..100_u32, Just(u32::MAX)].prop_map(Step::Expire),
    ];
    prop::collection::vec(step, 0..600)
}

struct Run {
    table: FlowTable4,
    model: Model,
    now: u32,
}

impl Run {
    fn insert(&mut self, opening: Opening<u32>) {
        let Self { table, model, now } = self;
        let now = *now;
        let before = table.len();
        let reserve = if opening.key.protocol == 6 { 0 } else { table.capacity() / 20 };
        let full = table.capacity() - before <= reserve;
        let answer = opening.leaving_as.reversed();
        // In a table of few buckets, two can be full before the table is.
        let crowded = table.index.buckets() < 8;
        let mut removed = Vec::new();
        let hash = table.hash(&opening.key);
        let inserted = table.insert(hash, &opening, now, &mut |gone| removed.push(*gone));
        for gone in &removed {
            model.gone(gone, now, full || crowded);
        }
        match inserted {
            Ok(flow) => {
                let forward = HalfId::new(flow, Direction::Forward);
                assert_eq!(model.keys.insert(opening.key, forward), None);
                assert_eq!(model.keys.insert(answer, forward.other()), None);
                let known = Known { opening, last_seen: now, answered: false };
                assert!(model.flows.insert(flow, known).is_none());
            }
            Err(InsertError::Exists(half)) => assert_eq!(model.keys[&opening.key], half),
            Err(InsertError::Taken(half)) => assert_eq!(model.keys[&answer], half),
            Err(InsertError::OwnAnswer) => assert_eq!(answer, opening.key),
            Err(InsertError::Full) => assert!(full || crowded),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Insert(protocol, port, external) => {
                let mut opening = opening(protocol, port, external);
                if external % 4 == 0 {
                    opening.leaving_as = opening.key;
                }
                self.insert(opening);
            }
            Step::Packet(protocol, port, answer) => {
                let Some(half) = self.model.keys.get(&key(protocol, port)).copied() else { return };
                let known = self.model.flows.get_mut(&half.flow()).unwrap();
                let half = if answer { half.other() } else { half };
                known.answered |= answer;
                known.last_seen = self.now;
                // Both have shaken hands after the first answer.
                let flags = if protocol == 6 { SYN_ACK } else { 0 };
                self.table.half_mut(half).record(flags, 100, self.now);
                if answer && protocol == 6 {
                    self.table.half_mut(half.other()).record(ACK, 100, self.now);
                }
            }
            Step::Remove(protocol, port) => {
                let half = self.model.keys.get(&key(protocol, port)).copied();
                if let Some(removed) = half.and_then(|half| self.table.remove(half.flow())) {
                    self.model.gone(&removed, self.now, false);
                }
            }
            Step::Wait(ticks) => self.now += ticks,
            Step::Expire(budget) => {
                let Self { table, model, now } = self;
                let removed = table.expire(*now, budget, &mut |gone| model.gone(gone, *now, false));
                if budget == u32::MAX {
                    assert!(model.flows.values().all(|known| known.over_at() > *now));
                }
                // A line of 16 is finished once begun.
                assert!(removed <= budget.div_ceil(17) + 16);
            }
        }
        assert_eq!(self.table.len() as usize, self.model.flows.len());
    }

    fn check(&self) {
        for protocol in [1, 6, 17] {
            for port in 0..60 {
                let key = key(protocol, port);
                for key in
                    [key, key.reversed(), opening(protocol, port, port).leaving_as.reversed()]
                {
                    assert_eq!(look_up(&self.table, &key), self.model.keys.get(&key).copied());
                }
            }
        }
        let listed: Vec<_> = self.table.iter().map(|(flow, ..)| flow).collect();
        assert_eq!(listed.len(), self.model.flows.len());
        assert!(listed.iter().all(|flow| self.model.flows.contains_key(flow)));
    }
}

proptest! {
    #[test]
    fn it_agrees_with_a_plain_list(
        steps in steps(),
        capacity in prop_oneof![1..10_u32, 20..60_u32, Just(200_u32)],
        seed in any::<u64>(),
    ) {
        let table = FlowTable4::new(capacity, seed).unwrap();
        let mut run = Run { table, model: Model::default(), now: 0 };
        for step in &steps {
            run.step(step);
        }
        run.check();
    }
}
