//! At which worker a local endpoint is at home, by its address: asked of each frame of the uplink where there are
//! several workers, before it is known to be good for anything. So it is one line, by the lowest bits of
//! the address, in which those of one pod range differ; and an address that shares them with another one may be
//! missing. Whoever finds nothing here asks the routes.

use overlane_api::WorkerId;

/// Most places of one family: low bits of so many addresses are looked at.
const MOST_PLACES: usize = 1 << 16;
/// Places at the start.
const FEWEST_PLACES: usize = 1 << 8;

/// In the place of a worker: nobody has the place.
const NOBODY: u8 = u8::MAX;

/// An address as a number.
pub trait Address: Copy + Eq + Default {
    /// Its lowest bits.
    fn low(self) -> usize;
}

impl Address for u32 {
    #[inline(always)]
    fn low(self) -> usize {
        self as usize
    }
}

impl Address for u128 {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lowest bits are meant")]
    fn low(self) -> usize {
        self as usize
    }
}

/// Of both families.
#[derive(Debug, Clone, Default)]
pub struct Homes {
    /// By IPv4 address, host order.
    pub v4: Places<u32>,
    /// By IPv6 address, host order.
    pub v6: Places<u128>,
}

/// Places of addresses.
#[derive(Debug, Clone)]
pub struct Places<A> {
    /// A power of two of them.
    places: Box<[(A, u8)]>,
}

impl<A: Address> Default for Places<A> {
    fn default() -> Self {
        Self::of(1)
    }
}

impl<A: Address> Places<A> {
    fn of(count: usize) -> Self {
        Self { places: vec![(A::default(), NOBODY); count.next_power_of_two()].into() }
    }

    #[inline(always)]
    fn place(&self, address: A) -> usize {
        address.low() & (self.places.len() - 1)
    }

    /// The home of the endpoint with this address; none: there is no such endpoint here, or it is not known here.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, address: A) -> Option<WorkerId> {
        let (of, home) = *self.places.get(self.place(address))?;
        (of == address && home != NOBODY).then_some(WorkerId(home))
    }

    /// The endpoint with this address is at home there.
    pub fn set(&mut self, address: A, home: WorkerId) {
        let mut places = self.places.len().max(FEWEST_PLACES);
        while places <= MOST_PLACES {
            if places > self.places.len() {
                self.grow(places);
            }
            let at = self.place(address);
            let Some(place) = self.places.get_mut(at) else { return };
            if place.1 == NOBODY || place.0 == address {
                *place = (address, home.0);
                return;
            }
            places = 2 * self.places.len();
        }
    }

    /// No endpoint has this address any more.
    pub fn remove(&mut self, address: A) {
        let at = self.place(address);
        if let Some(place) = self.places.get_mut(at).filter(|place| place.0 == address) {
            *place = (A::default(), NOBODY);
        }
    }

    /// What had a place of its own has one among more.
    fn grow(&mut self, count: usize) {
        let before = std::mem::replace(self, Self::of(count));
        for (address, home) in before.places.into_iter().filter(|place| place.1 != NOBODY) {
            let at = self.place(address);
            if let Some(place) = self.places.get_mut(at) {
                *place = (address, home);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const RANGE: u32 = 0x0af4_0300;

    #[test]
    fn a_pod_range_takes_a_place_for_each_address() {
        let mut homes = Places::default();
        assert_eq!(homes.get(0), None);
        let home = |pod: u32| WorkerId(pod.to_le_bytes()[0] % 4);
        for pod in 0..=255 {
            homes.set(RANGE + pod, home(pod));
        }
        assert_eq!(homes.places.len(), 256);
        for pod in 0..=255 {
            assert_eq!(homes.get(RANGE + pod), Some(home(pod)));
            assert_eq!(homes.get(RANGE + 256 + pod), None);
        }
        homes.set(RANGE + 7, WorkerId(9));
        homes.remove(RANGE + 8);
        homes.remove(RANGE + 256 + 9);
        assert_eq!(homes.get(RANGE + 7), Some(WorkerId(9)));
        assert_eq!(homes.get(RANGE + 8), None);
        assert_eq!(homes.get(RANGE + 9), Some(WorkerId(1)));
    }

    #[test]
    fn addresses_that_differ_in_high_bits_only_are_left_out_after_the_first() {
        let mut homes = Places::default();
        let first = 0xfd00_u128 << 112 | 5;
        homes.set(first, WorkerId(1));
        homes.set(first | 1 << 12, WorkerId(2));
        assert_eq!(
            (homes.get(first), homes.get(first | 1 << 12)),
            (Some(WorkerId(1)), Some(WorkerId(2)))
        );
        homes.set(first | 1 << 20, WorkerId(3));
        assert_eq!((homes.get(first | 1 << 20), homes.places.len()), (None, MOST_PLACES));
        homes.remove(first | 1 << 20);
        assert_eq!(homes.get(first), Some(WorkerId(1)));
    }

    proptest! {
        #[test]
        fn what_is_found_is_right(
            changes in prop::collection::vec((0..2000_u32, 0..5_u8), 0..300),
            asked in prop::collection::vec(0..2000_u32, 50),
        ) {
            let (mut homes, mut model) = (Places::default(), HashMap::new());
            for (address, home) in changes {
                // The higher bits of some are the same as others' lower ones.
                let address = address << 7 | address >> 4;
                if home == 4 {
                    homes.remove(address);
                    model.remove(&address);
                } else {
                    homes.set(address, WorkerId(home));
                    model.insert(address, home);
                }
            }
            for address in asked.into_iter().map(|a| a << 7 | a >> 4).chain(model.keys().copied().collect::<Vec<_>>()) {
                if let Some(home) = homes.get(address) {
                    prop_assert_eq!(Some(&home.0), model.get(&address));
                }
            }
            // Fewer than 65,536 addresses below 2^18: a quarter of them meets another one at the most.
            let found = model.keys().filter(|address| homes.get(**address).is_some()).count();
            prop_assert!(found * 4 >= model.len() * 3, "{} of {}", found, model.len());
        }
    }
}
