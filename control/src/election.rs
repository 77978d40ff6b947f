//! Who answers for an address: rendezvous hashing (Thaler and Ravishankar, 1998). All nodes that
//! know the same candidates choose the same one; when one comes or goes, only addresses that are
//! or were its own move.

use std::net::IpAddr;

use overlane_api::object::Fnv;

/// The candidate that has `address`; none of none. A candidate that occurs twice is one.
#[must_use]
pub fn elect<'a>(address: IpAddr, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let address = match address {
        IpAddr::V4(address) => Fnv::hash(&address.octets()),
        IpAddr::V6(address) => Fnv::hash(&address.octets()),
    };
    candidates.max_by_key(|name| (mix(address ^ mix(Fnv::hash(name.as_bytes()))), *name))
}

/// Every bit of the result depends on every bit of `value` (the finalizer of SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Iterator<Item = IpAddr> {
        (0..1000).map(|number| Ipv4Addr::from_bits(0x0a00_0200 + number).into())
    }

    fn winner(address: IpAddr, names: &BTreeSet<String>) -> Option<String> {
        elect(address, names.iter().map(String::as_str)).map(str::to_owned)
    }

    proptest! {
        #[test]
        fn one_candidate_wins_whatever_their_order(
            names in proptest::collection::btree_set("[a-z0-9-]{1,12}", 1..30),
            address in any::<u32>(),
        ) {
            let address = Ipv4Addr::from_bits(address).into();
            let all: Vec<&str> = names.iter().map(String::as_str).collect();
            let one = elect(address, all.iter().copied()).unwrap();
            prop_assert!(names.contains(one));
            prop_assert_eq!(elect(address, all.iter().rev().copied()), Some(one));
            prop_assert_eq!(elect(address, all.iter().chain(&all).copied()), Some(one));
        }

        #[test]
        fn only_what_the_one_that_goes_has_moves(
            names in proptest::collection::btree_set("[a-z]{1,6}", 2..12),
            gone in any::<prop::sample::Index>(),
        ) {
            let gone = gone.get(&names.iter().collect::<Vec<_>>()).to_string();
            let mut rest = names.clone();
            rest.remove(&gone);
            for address in addresses() {
                let before = winner(address, &names);
                let after = winner(address, &rest);
                if before.as_deref() != Some(gone.as_str()) {
                    prop_assert_eq!(before, after);
                }
            }
        }
    }

    #[test]
    fn addresses_are_spread_evenly() {
        let names: BTreeSet<String> = (0..10).map(|n| format!("node-{n}")).collect();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for address in addresses() {
            *counts.entry(winner(address, &names).unwrap()).or_default() += 1;
        }
        assert_eq!(counts.len(), 10);
        // 100 each; the standard deviation of a fair choice is 9.5.
        assert!(counts.values().all(|count| (65..=135).contains(count)), "{counts:?}");
        assert_eq!(elect(Ipv4Addr::LOCALHOST.into(), std::iter::empty()), None);
    }
}
