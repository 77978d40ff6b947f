//! L2: what one worker remembers of its flows. Nobody else reads or writes it.
//!
//! ```text
//!  packet --hash--> index: one line of 8 (tag, half) --> half: key, rewrite, route, what was seen
//!
//!  flow 7:  half 14 (forward, as the opener sends)     half 15 (reverse, as the answers arrive)
//!           10.244.1.10:40000 > 203.0.113.10:443       203.0.113.10:443 > 10.0.1.4:20017
//!           leaves as 10.0.1.4:20017 > ...:443         leaves as ...:443 > 10.244.1.10:40000
//! ```
//!
//! A packet reads one line of the index and one half, and writes that half only. What takes both
//! halves, such as the state of a connection, is derived by those who are not in a hurry: expiry,
//! listings, the first packet of another flow.
//!
//! Time is a `u32` of [`TICK_NS`] since the start, given by the caller; nothing here reads a clock.
//! All memory is taken when a table is made. It is plain data, indices instead of pointers, with
//! its layout in a versioned header, so that a later process can take it over.
//!
//! | file | |
//! |---|---|
//! | [`half`] | one direction: key, rewrite, counters |
//! | [`index`] | from a key's hash to its half |
//! | [`table`] | the table: find, insert, remove, list |
//! | [`tcp_state`] | state, from what both directions have shown |
//! | [`flows`] | the tables of both families, and what goes with them |
//! | [`timeouts`], [`expiry`] | when a flow is forgotten; who makes room in a full table |
//! | [`ports`] | external ports of source NAT; which worker owns which is in `packet/blocks.rs` |
//! | [`past`] | what flows that have gone had carried, by service |
//! | [`affinity`] | the backends that clients are to stay with |
//! | [`fragments`], [`identification`] | ports of fragmented packets, and what names their fragments |

pub mod affinity;
pub mod expiry;
pub mod flows;
pub mod fragments;
pub mod half;
pub mod identification;
pub mod index;
pub mod past;
pub mod ports;
pub mod random;
pub mod table;
pub mod tcp_state;
pub mod timeouts;

/// Nanoseconds of one tick of coarse time: 2^26, about 67 ms. A `u32` of them lasts nine years.
pub const TICK_NS: u64 = 1 << 26;

/// Number of a flow in its table. Numbers are used again: one is valid as long as the flow is, and
/// a flow that a packet was recorded for stays at least until the next tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u32);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the opener of the flow sends.
    Forward,
    /// As the opener is answered.
    Reverse,
}

/// Number of one direction of a flow in its table; valid as long as the [`FlowId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HalfId(u32);

impl HalfId {
    /// The half of a flow in a direction.
    #[inline]
    #[must_use]
    pub const fn new(flow: FlowId, direction: Direction) -> Self {
        Self(flow.0 << 1 | direction as u32)
    }

    /// As a number other than 0, to be kept where 0 says "none".
    #[inline]
    #[must_use]
    pub const fn to_number(self) -> u32 {
        self.0 + 1
    }

    /// Read back; none for 0.
    #[inline]
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number.checked_sub(1) {
            Some(half) => Some(Self(half)),
            None => None,
        }
    }

    /// The flow it is a half of.
    #[inline]
    #[must_use]
    pub const fn flow(self) -> FlowId {
        FlowId(self.0 >> 1)
    }

    /// Which half.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        if self.0 & 1 == 0 { Direction::Forward } else { Direction::Reverse }
    }

    /// The other half of the same flow.
    #[inline]
    #[must_use]
    pub const fn other(self) -> Self {
        Self(self.0 ^ 1)
    }

    /// Place in the table's halves.
    #[inline]
    const fn place(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_know_their_flow_and_each_other() {
        let forward = HalfId::new(FlowId(7), Direction::Forward);
        let reverse = HalfId::new(FlowId(7), Direction::Reverse);
        assert_eq!((forward.place(), reverse.place()), (14, 15));
        assert_eq!((forward.other(), reverse.other()), (reverse, forward));
        assert_eq!((forward.flow(), reverse.flow()), (FlowId(7), FlowId(7)));
        assert_eq!(reverse.direction(), Direction::Reverse);
        assert_eq!(forward.direction(), Direction::Forward);
    }
}
