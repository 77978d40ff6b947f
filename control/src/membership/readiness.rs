//! When a node is ready for announced addresses and gateways.
//!
//! ```text
//!              forwards              1 s without any ready node, or
//!   +------+ ------------> +---------+    forwarded long enough     +-------+
//!   | Away |               | Standby | ---------------------------> | Ready |
//!   +------+ <------------ +---------+ <--------------------------- +-------+
//!        does not forward         declared dead by mistake
//! ```

use std::time::{Duration, Instant};

use super::identity::Duty;

/// How long a node listens for others that are ready before it takes what nobody has.
const LISTEN: Duration = Duration::from_secs(1);

/// How long after its readiness was told one of `nodes` nodes begins to answer: whoever answered
/// until then has heard of it and stopped. News goes from node to node, in time that grows as the
/// logarithm of their number does.
pub(super) fn grace(nodes: usize) -> Duration {
    const OF_TWO: Duration = Duration::from_millis(500);
    const OF_TWICE_AS_MANY: Duration = Duration::from_millis(150);
    OF_TWO + OF_TWICE_AS_MANY * (nodes / 2).checked_ilog2().unwrap_or_default()
}

/// One node's own readiness.
#[derive(Debug)]
pub(super) struct Readiness {
    take_back_after: Duration,
    grace: Duration,
    duty: Duty,
    since: Instant,
}

impl Readiness {
    pub(super) fn new(take_back_after: Duration, now: Instant) -> Self {
        Self { take_back_after, grace: grace(1), duty: Duty::Away, since: now }
    }

    /// There are so many nodes, this one included.
    pub(super) fn set_nodes(&mut self, nodes: usize) {
        self.grace = grace(nodes);
    }

    pub(super) const fn duty(&self) -> Duty {
        self.duty
    }

    /// What the duty is at `now`, when the own dataplane is `forwarding`, and some other live node
    /// is ready or not.
    pub(super) fn update(&mut self, forwarding: bool, others_ready: bool, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        let next = match self.duty {
            _ if !forwarding => Duty::Away,
            Duty::Away => Duty::Standby,
            Duty::Standby if age >= self.take_back_after => Duty::Ready,
            Duty::Standby if !others_ready && age >= LISTEN => Duty::Ready,
            same => same,
        };
        self.set(next, now);
    }

    /// Others were told of this duty.
    pub(super) fn set(&mut self, duty: Duty, now: Instant) {
        if self.duty != duty {
            (self.duty, self.since) = (duty, now);
        }
    }

    /// May this node answer for what is its turn?
    pub(super) fn may_answer(&self, now: Instant) -> bool {
        self.duty == Duty::Ready && now.saturating_duration_since(self.since) >= self.grace
    }

    /// When [`Self::update`] and [`Self::may_answer`] may say something else without any news.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.duty {
            Duty::Away => None,
            Duty::Standby => Some(self.since + LISTEN.min(self.take_back_after)),
            Duty::Ready => Some(self.since + self.grace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness() -> (Readiness, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let at = move |ms| start + Duration::from_millis(ms);
        (Readiness::new(Duration::from_secs(5), start), at)
    }

    #[test]
    fn a_node_takes_at_once_what_nobody_has() {
        let (mut node, at) = readiness();
        node.update(false, false, at(0));
        assert_eq!(node.duty(), Duty::Away);
        node.update(true, false, at(100));
        node.update(true, false, at(1099));
        assert_eq!((node.duty(), node.may_answer(at(1099))), (Duty::Standby, false));
        node.update(true, false, at(1100));
        assert_eq!((node.duty(), node.may_answer(at(1599))), (Duty::Ready, false));
        assert!(node.may_answer(at(1600)));
    }

    #[test]
    fn of_many_nodes_one_waits_longer_before_it_answers() {
        let graces = [0, 1, 2, 3, 4, 10, 100].map(|nodes| grace(nodes).as_millis());
        assert_eq!(graces, [500, 500, 500, 500, 650, 800, 1250]);
        let (mut node, at) = readiness();
        node.set_nodes(10);
        node.update(true, false, at(0));
        node.update(true, false, at(1000));
        assert_eq!((node.duty(), node.deadline()), (Duty::Ready, Some(at(1800))));
        assert_eq!((node.may_answer(at(1799)), node.may_answer(at(1800))), (false, true));
    }

    #[test]
    fn a_node_that_returns_leaves_to_others_what_they_have_for_a_while() {
        let (mut node, at) = readiness();
        node.update(true, true, at(0));
        for ms in [1000, 2000, 4999] {
            node.update(true, true, at(ms));
            assert_eq!(node.duty(), Duty::Standby);
        }
        node.update(true, true, at(5000));
        assert_eq!(node.duty(), Duty::Ready);
        // And when they go while it waits, it is there.
        let (mut node, at) = readiness();
        node.update(true, true, at(0));
        node.update(true, false, at(3000));
        assert_eq!(node.duty(), Duty::Ready);
    }

    #[test]
    fn a_node_that_stops_forwarding_begins_anew() {
        let (mut node, at) = readiness();
        node.update(true, false, at(0));
        node.update(true, false, at(1000));
        assert!(node.may_answer(at(2000)));
        node.update(false, false, at(2000));
        assert!(!node.may_answer(at(2000)));
        node.update(true, true, at(2001));
        node.update(true, true, at(7000));
        assert_eq!(node.duty(), Duty::Standby);
        node.update(true, true, at(7001));
        assert_eq!(node.duty(), Duty::Ready);
        // Declared dead by mistake: others have taken over.
        node.set(Duty::Standby, at(9000));
        node.update(true, true, at(13_999));
        assert_eq!((node.duty(), node.may_answer(at(13_999))), (Duty::Standby, false));
    }
}
