//! Forgetting flows: those whose time is over, a little at every tick, and in a full table one that
//! can best be spared.
//!
//! Packets do not write deadlines. A compact array has for each flow a tick before which it cannot
//! expire; when that has passed, both halves are asked when they last saw a packet, and it is moved on.
//! It is never moved further than the shortest time that the flow could have once its state has
//! changed, so that a connection that closes is noticed in time.

use super::half::Half;
use super::table::{FlowTable, Gone, Removed};
use super::tcp_state::FlowState;
use super::{Direction, FlowId, HalfId};
use crate::packet::flow_key::{Address, Transport};
use crate::packet::prefetch::prefetch;

/// Deadlines in a cache line.
const LINE: u32 = 16;
/// What looking at the halves of a flow costs, in deadlines looked at.
const LOOK: u32 = 16;

/// Flows that made room for others, by what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evictions {
    /// Their time was over.
    pub expired: u64,
    /// TCP connections and SCTP associations without an answer.
    pub unanswered_tcp: u64,
    /// Others without an answer.
    pub unanswered: u64,
    /// TCP connections and SCTP associations, closed or reset.
    pub closed: u64,
}

/// Which flows can be spared, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spare {
    Expired,
    UnansweredTcp,
    Unanswered,
    Closed,
}

impl<A: Address> FlowTable<A> {
    /// Tick at which a flow's time is over.
    pub(super) fn deadline(&self, forward: &Half<A>, reverse: &Half<A>, state: FlowState) -> u32 {
        let last_seen = forward.last_seen().max(reverse.last_seen());
        last_seen.saturating_add(self.timeouts.of(forward, state))
    }

    /// Removes flows whose time is over. Looks at `budget` entries at most, where a flow whose halves
    /// must be asked counts as 16 more, and goes on there at the next call; `gone` is told of each flow
    /// removed. Returns how many those are.
    ///
    /// With a budget of 4096 at every tick, all entries of a table of 262144 are seen within five
    /// seconds.
    pub fn expire(&mut self, now: u32, budget: u32, gone: &mut dyn FnMut(&Removed<A>)) -> u32 {
        let used = self.header[0].used;
        let mut removed = 0;
        let mut spent = 0;
        // Once round at most.
        let mut left = used.min(budget);
        while left > 0 && spent < budget {
            let start = self.header[0].cursor.min(used);
            let end = start.saturating_add(LINE - start % LINE).min(used).min(start + left);
            for flow in (start..end).map(FlowId) {
                if self.is_due(flow, now) {
                    let forward = HalfId::new(flow, Direction::Forward);
                    prefetch(self.half(forward));
                    prefetch(self.half(forward.other()));
                }
            }
            for flow in (start..end).map(FlowId) {
                if self.is_due(flow, now) {
                    spent += LOOK;
                    removed += u32::from(self.look(flow, now, gone));
                }
            }
            let header = &mut self.header[0];
            header.distrusted = header.distrusted.saturating_sub(end - start);
            header.cursor = if end < used { end } else { 0 };
            left -= end - start;
            spent += end - start;
        }
        removed
    }

    #[inline]
    fn is_due(&self, flow: FlowId, now: u32) -> bool {
        let deadline = self.deadlines.get(flow.0 as usize).copied().unwrap_or(0);
        deadline != 0 && (deadline <= now || self.header[0].distrusted > 0)
    }

    /// Removes a flow when its time is over, else says when to look again.
    fn look(&mut self, flow: FlowId, now: u32, gone: &mut dyn FnMut(&Removed<A>)) -> bool {
        let Some((forward, reverse)) = self.flow(flow) else { return false };
        let deadline = self.deadline(forward, reverse, FlowState::of(forward, reverse));
        if deadline > now {
            let again = now.saturating_add(self.timeouts.revisit(forward));
            self.deadlines[flow.0 as usize] = deadline.min(again).max(1);
            return false;
        }
        if let Some(removed) = self.take(flow, Gone::Expired) {
            gone(&removed);
        }
        true
    }

    /// Throws out the flow that can best be spared among those in the buckets of `hashes`, of equal ones
    /// the one that has been quiet the longest. False when none can be.
    pub(super) fn evict(
        &mut self,
        hashes: &[u32],
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> bool {
        for half in hashes.iter().flat_map(|hash| self.index.window(*hash)) {
            prefetch(self.half(half));
            prefetch(self.half(half.other()));
        }
        let best = hashes
            .iter()
            .flat_map(|hash| self.index.window(*hash))
            .filter_map(|half| self.spare(half.flow(), now))
            .min();
        let Some((kind, _, flow)) = best else { return false };
        let count = match kind {
            Spare::Expired => &mut self.evictions.expired,
            Spare::UnansweredTcp => &mut self.evictions.unanswered_tcp,
            Spare::Unanswered => &mut self.evictions.unanswered,
            Spare::Closed => &mut self.evictions.closed,
        };
        *count += 1;
        let why = if kind == Spare::Expired { Gone::Expired } else { Gone::Evicted };
        match self.take(flow, why) {
            Some(removed) => gone(&removed),
            None => return false,
        }
        true
    }

    /// How well a flow can be spared, and when it was last seen. None when it must stay: also one that
    /// had a packet in this tick, as that packet may still be on its way and look at its half again.
    fn spare(&self, flow: FlowId, now: u32) -> Option<(Spare, u32, FlowId)> {
        let (forward, reverse) = self.flow(flow)?;
        let last_seen = forward.last_seen().max(reverse.last_seen());
        if last_seen >= now {
            return None;
        }
        let state = FlowState::of(forward, reverse);
        let kind = if self.deadline(forward, reverse, state) <= now {
            Spare::Expired
        } else {
            match state {
                FlowState::Syn => Spare::UnansweredTcp,
                FlowState::OneWay => Spare::Unanswered,
                FlowState::Closing | FlowState::Reset => Spare::Closed,
                _ => return None,
            }
        };
        debug_assert!(
            matches!(kind, Spare::Expired | Spare::Unanswered)
                || matches!(forward.key().transport(), Transport::Tcp | Transport::Sctp)
        );
        Some((kind, last_seen, flow))
    }
}
