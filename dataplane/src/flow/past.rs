//! What flows that have gone had carried, summed by their tag: with those that are still there, all
//! that a service ever had. And the packets that should have been of a flow of theirs, but opened none.

use bytemuck::AnyBitPattern;

use super::half::Half;
use crate::packet::drop::DropReason;
use crate::packet::flow_key::Address;
use crate::packet::region::{Region, RegionError};

/// Tags that are summed: 0, which is nobody's, and one for each of 2^16 services.
pub const TAGS: usize = (1 << 16) + 1;

/// What flows have carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, AnyBitPattern)]
#[repr(C)]
pub struct Carried {
    /// Flows.
    pub flows: u64,
    /// Packets of their openers.
    pub forward_packets: u64,
    /// Bytes of these IP packets.
    pub forward_bytes: u64,
    /// Packets to their openers.
    pub reverse_packets: u64,
    /// Bytes of these IP packets.
    pub reverse_bytes: u64,
    /// Packets that opened none: no backend exists, and the client was told.
    pub rejected: u64,
    /// No backend is where they may go.
    pub no_local_backend: u64,
    /// Their sender may not use the address.
    pub source_range: u64,
    /// They came from outside to an address for the inside.
    pub from_outside: u64,
}

impl Carried {
    /// What one flow has carried.
    #[must_use]
    pub fn by<A: Address>(forward: &Half<A>, reverse: &Half<A>) -> Self {
        Self {
            flows: 1,
            forward_packets: forward.packets(),
            forward_bytes: forward.bytes(),
            reverse_packets: reverse.packets(),
            reverse_bytes: reverse.bytes(),
            ..Self::default()
        }
    }

    /// Packets that were dropped, by reason.
    #[must_use]
    pub const fn dropped(&self) -> [(DropReason, u64); 3] {
        [
            (DropReason::ServiceNoLocalBackend, self.no_local_backend),
            (DropReason::ServiceSourceRange, self.source_range),
            (DropReason::ServiceFromOutside, self.from_outside),
        ]
    }
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, more: Self) {
        self.flows += more.flows;
        self.forward_packets += more.forward_packets;
        self.forward_bytes += more.forward_bytes;
        self.reverse_packets += more.reverse_packets;
        self.reverse_bytes += more.reverse_bytes;
        self.rejected += more.rejected;
        self.no_local_backend += more.no_local_backend;
        self.source_range += more.source_range;
        self.from_outside += more.from_outside;
    }
}

/// The sums of one table. A flow that outlives the object that its tag names is summed for whoever
/// has the tag when it goes.
#[derive(Debug)]
pub struct Past(Region<Carried>);

impl Past {
    pub(super) fn new() -> Result<Self, RegionError> {
        Ok(Self(Region::new(TAGS)?))
    }

    /// A flow goes. Without a tag it is nobody's.
    pub(super) fn add<A: Address>(&mut self, forward: &Half<A>, reverse: &Half<A>) {
        if forward.tag() != 0
            && let Some(sum) = self.0.get_mut(forward.tag() as usize)
        {
            *sum += Carried::by(forward, reverse);
        }
    }

    /// A packet opened no flow, for a reason that is its service's.
    pub(super) fn refuse(&mut self, tag: u32, reason: DropReason) {
        let Some(sum) = self.0.get_mut(tag as usize) else { return };
        match reason {
            DropReason::ServiceNoBackend => sum.rejected += 1,
            DropReason::ServiceNoLocalBackend => sum.no_local_backend += 1,
            DropReason::ServiceSourceRange => sum.source_range += 1,
            DropReason::ServiceFromOutside => sum.from_outside += 1,
            _ => {}
        }
    }

    /// The sum of a tag.
    #[must_use]
    pub fn of(&self, tag: u32) -> Carried {
        self.0.get(tag as usize).copied().unwrap_or_default()
    }

    /// The tag is somebody else's from now on.
    pub fn forget(&mut self, tag: u32) {
        if let Some(sum) = self.0.get_mut(tag as usize) {
            *sum = Carried::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::half::{Rewrite, Way};
    use crate::packet::flow_key::FlowKey4;

    #[test]
    fn flows_are_summed_by_tag_until_it_is_somebody_elses() {
        let half = |tag, lengths: &[u16]| {
            let key = FlowKey4::default();
            let way = Way { tag, ..Way::default() };
            let mut half = Half::new(&key, &Rewrite::between(&key, &key), &way, 0);
            lengths.iter().for_each(|length| half.record(0, *length, 1));
            half
        };
        let mut past = Past::new().unwrap();
        for tag in [0, 7, 7, 65_536, u32::MAX] {
            past.add(&half(tag, &[100, 50]), &half(tag, &[1000]));
        }
        let one = Carried {
            flows: 1,
            forward_packets: 2,
            forward_bytes: 150,
            reverse_packets: 1,
            reverse_bytes: 1000,
            ..Carried::default()
        };
        let mut two = one;
        two += one;
        assert_eq!((past.of(7), past.of(65_536)), (two, one));
        assert_eq!((past.of(0), past.of(u32::MAX)), Default::default());
        past.forget(7);
        assert_eq!((past.of(7), past.of(65_536)), (Carried::default(), one));
    }
}
