#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use super::*;
use proptest::prelude::*;

/// Candidates `10.244.0.0 + n`, all of weight 1.
fn candidates(numbers: impl IntoIterator<Item = u16>) -> Vec<Candidate> {
    numbers
        .into_iter()
        .map(|n| Candidate {
            identity: (0xffff_0af4_0000 + u128::from(n) * 7, 8080),
            weight: 1,
            index: n,
        })
        .collect()
}

fn slots(candidates: &[Candidate]) -> Vec<u16> {
    Maglev::new(candidates).unwrap().slots().collect()
}

fn counts(slots: &[u16], backends: usize) -> Vec<usize> {
    let mut counts = vec![0; backends];
    for slot in slots {
        counts[usize::from(*slot)] += 1;
    }
    counts
}

/// Largest share over the fair one.
fn imbalance(slots: &[u16], backends: usize) -> f64 {
    let most = counts(slots, backends).into_iter().max().unwrap();
    most as f64 * backends as f64 / slots.len() as f64
}

/// Percent of all slots that went from one surviving backend to another when `gone` went.
fn others_moved(before: &[u16], after: &[u16], gone: u16) -> f64 {
    let moved = before.iter().zip(after).filter(|(a, b)| **a != gone && a != b).count();
    moved as f64 * 100.0 / before.len() as f64
}

#[test]
fn balance_and_disruption_are_as_published() {
    // Slots, backends, largest share, others moved by one that goes, all moved by one that comes.
    for (size, n, share, moved, added) in [
        (8191, 10, 1.002, 2.0, 10.5),
        (8191, 16, 1.002, 2.0, f64::MAX),
        (16_381, 50, 1.002, 2.0, 3.5),
        (16_381, 100, 1.002, 2.0, 2.8),
        (16_381, 163, 1.006, 2.0, f64::MAX),
        (65_537, 165, 1.01, 1.0, 1.5),
        (65_537, 300, 1.01, 1.0, 1.2),
        (65_537, 655, 1.01, 1.0, 1.0),
    ] {
        let before = slots(&candidates(0..n));
        assert_eq!(before.len(), size, "{n} backends");
        let imbalance = imbalance(&before, usize::from(n));
        assert!(imbalance <= share, "{n} backends: {imbalance}");
        let mut sum = 0.0;
        let removed: Vec<u16> = (0..n).step_by(usize::from((n / 12).max(1))).collect();
        for gone in &removed {
            let after = slots(&candidates((0..n).filter(|other| other != gone)));
            let others = others_moved(&before, &after, *gone);
            assert!(others <= moved, "{n} backends without {gone}: {others} %");
            assert!(!after.contains(gone));
            sum += others;
        }
        let mean = sum / removed.len() as f64;
        assert!(mean > 0.1, "{n} backends: nothing moved, {mean} %");
        // One more than these have a table of another size, in which nothing is where it was.
        if ![16, 163].contains(&n) {
            let after = slots(&candidates(0..=n));
            let all = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let all = all as f64 * 100.0 / size as f64;
            assert!(all <= added, "{n} backends and one more: {all} %");
        }
    }
}

#[test]
fn the_mean_disruption_is_that_of_the_algorithm() {
    // Slots, backends, and percent moved on average, by whatever implementation.
    for (size, n, anchor) in
        [(16_381, 10, 0.45), (16_381, 50, 1.0), (16_381, 100, 1.3), (16_381, 163, 1.7)]
    {
        let (mut sum, mut removed) = (0.0, 0.0);
        for set in 0..4_u16 {
            let of = |numbers: &mut dyn Iterator<Item = u16>| {
                let all = candidates(numbers.map(|number| number + set * 1000));
                let places = fill_in_turn(&all, size);
                places.iter().map(|place| all[usize::from(*place)].index).collect::<Vec<_>>()
            };
            let before = of(&mut (0..n));
            for gone in (0..n).step_by(usize::from((n / 10).max(1))) {
                let after = of(&mut (0..n).filter(|other| *other != gone));
                sum += others_moved(&before, &after, gone + set * 1000);
                removed += 1.0;
            }
        }
        let mean = sum / removed;
        assert!((mean - anchor).abs() < 0.2, "{n} backends: {mean} %, expected {anchor} %");
    }
}

#[test]
fn few_backends_have_narrow_slots() {
    let bytes = |n| Maglev::new(&candidates(0..n)).unwrap().bytes();
    // With what a place in huge pages has besides.
    assert_eq!([1, 2, 16].map(bytes), [0, 4288, 4288]);
    assert_eq!([17, 163].map(bytes), [16_448; 2]);
    assert_eq!([164, 256].map(bytes), [65_600; 2]);
    assert_eq!(bytes(257), 131_136);
}

#[test]
fn slots_of_every_size_and_width_are_read_back() {
    assert_eq!(size_of::<Maglev>(), 16);
    // The last of a list too long for a byte, of which few take flows of the scope.
    for size in [8191, 16_381, 65_537] {
        for most in [15, 16, 255, 256, u16::MAX] {
            let slots: Vec<u16> =
                (0..size).map(|n| (n * 7919 % (u32::from(most) + 1)) as u16).collect();
            let packed = Maglev(Slots::pack(&slots));
            assert!(packed.slots().eq(slots.iter().copied()), "{size} slots up to {most}");
        }
    }
}

#[test]
fn one_backend_gets_everything_and_none_nothing() {
    let only = Maglev::new(&candidates([5])).unwrap();
    assert_eq!([0, 1 << 31, u32::MAX].map(|hash| only.pick(hash)), [5; 3]);
    assert_eq!(Maglev::new(&[]), None);
    let draining = candidates(0..3).into_iter().map(|c| Candidate { weight: 0, ..c });
    assert_eq!(Maglev::new(&draining.collect::<Vec<_>>()), None);
}

#[test]
fn a_draining_backend_is_as_good_as_gone() {
    let mut some = candidates(0..20);
    some[7].weight = 0;
    assert_eq!(slots(&some), slots(&candidates((0..20).filter(|n| *n != 7))));
}

#[test]
fn every_hash_has_its_slot() {
    let table = Maglev::new(&candidates(0..300)).unwrap();
    let slots: Vec<u16> = table.slots().collect();
    for hash in [0, 1, 65_535, 65_536, 1 << 30, u32::MAX - 1, u32::MAX] {
        let slot = (u64::from(hash) * slots.len() as u64) >> 32;
        assert_eq!(table.pick(hash), slots[slot as usize]);
    }
}

/// The same on every node and after every restart: a change of these is a change of every
/// cluster's connections.
#[test]
fn the_table_is_what_it_has_always_been() {
    let digest = |n: u16, weights: fn(u16) -> u16| {
        let mut all = candidates(0..n);
        for candidate in &mut all {
            candidate.weight = weights(candidate.index);
        }
        let text: Vec<u8> = slots(&all).into_iter().flat_map(u16::to_be_bytes).collect();
        overlane_api::object::Fnv::hash(&text)
    };
    assert_eq!(
        [digest(10, |_| 1), digest(200, |_| 1), digest(10, |n| n + 1)],
        [15_602_434_785_685_454_194, 17_695_840_287_202_710_357, 11_215_754_897_254_152_085]
    );
}

fn weighted() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::btree_map((any::<u128>(), any::<u16>()), 0_u16..=20, 1..40).prop_map(|all| {
        all.into_iter()
            .zip(0..)
            .map(|((identity, weight), index)| Candidate { identity, weight, index })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_gets_its_share(candidates in weighted()) {
        let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
        let table = Maglev::new(&candidates);
        prop_assert_eq!(table.is_none(), total == 0);
        if let Some(table) = table {
            let slots: Vec<u16> = table.slots().collect();
            let counts = counts(&slots, candidates.len());
            for (candidate, count) in candidates.iter().zip(counts) {
                let share = slots.len() as f64 * f64::from(candidate.weight) / total as f64;
                // Sainte-Laguë stays within a slot or two of the exact share.
                prop_assert!((count as f64 - share).abs() < 2.0, "{} slots of {}", count, share);
            }
        }
    }

    #[test]
    fn equal_weights_are_taken_in_turn(candidates in weighted(), weight in 1_u16..) {
        let of = |weight| {
            let all = candidates.iter().map(|c| Candidate { weight, ..*c });
            all.collect::<Vec<_>>()
        };
        prop_assert_eq!(Maglev::new(&of(weight)), Maglev::new(&of(1)));
        let (turns, weights) = (fill_in_turn(&of(1), 16_381), fill_by_weight(&of(weight), 16_381));
        prop_assert!(turns == weights);
    }

    /// The definition, spelled out: permutations written down, then turns.
    #[test]
    fn agrees_with_the_definition(candidates in weighted()) {
        let mut equal = candidates;
        for candidate in &mut equal {
            candidate.weight = 1;
        }
        let size = if equal.len() <= 16 { 8191 } else { 16_381 };
        let ways: Vec<Vec<usize>> = equal
            .iter()
            .map(|candidate| {
                let Permutation { first, skip, .. } = Permutation::new(candidate.identity, size);
                let at = |j: u64| ((u64::from(first) + j * u64::from(skip)) % u64::from(size)) as usize;
                (0..u64::from(size)).map(at).collect()
            })
            .collect();
        let mut entries = vec![None; size as usize];
        let mut next = vec![0; equal.len()];
        let mut free = size;
        'turns: loop {
            for (backend, way) in ways.iter().enumerate() {
                while entries[way[next[backend]]].is_some() {
                    next[backend] += 1;
                }
                entries[way[next[backend]]] = Some(equal[backend].index);
                free -= 1;
                if free == 0 {
                    break 'turns;
                }
            }
        }
        let expected: Vec<u16> = entries.into_iter().flatten().collect();
        prop_assert!(equal.len() == 1 || slots(&equal) == expected);
    }
}
