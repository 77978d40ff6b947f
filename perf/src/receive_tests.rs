//! Streams that were dropped from, doubled, reordered and corrupted on purpose.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::traffic::Traffic;
use crate::writer::FrameWriter;
use crate::writer_samples::samples;

/// Frames of `traffic`, each sent 100 ns after the other.
fn frames(traffic: &Traffic, count: u64) -> Vec<Vec<u8>> {
    let mut writer = FrameWriter::new(traffic).unwrap();
    let mut next = |at| {
        let mut frame = vec![0; 2048];
        let len = writer.next(&mut frame, 1_000_000 + at * 100).unwrap();
        frame.truncate(len);
        frame
    };
    (0..count).map(&mut next).collect()
}

fn plain() -> Traffic {
    samples().remove(0)
}

fn seen<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Received {
    let mut analysis = Analysis::new(true).unwrap();
    frames.into_iter().for_each(|frame| analysis.see(frame, 2_000_000));
    analysis.report(KernelDrops::default())
}

fn losses(received: &Received) -> [u64; 4] {
    [received.lost, received.duplicates, received.reordered, received.corrupt]
}

#[test]
fn a_whole_stream_has_nothing_wrong_with_it() {
    for traffic in samples() {
        let sent = frames(&traffic, 500);
        let received = seen(&sent);
        assert_eq!((received.frames, losses(&received)), (500, [0; 4]), "{traffic:?}");
        let stamped = sent.iter().filter(|frame| Stamp::read(frame).is_some()).count() as u64;
        assert_eq!((received.stamped, received.other), (stamped, 500 - stamped));
        assert_eq!(received.bytes, sent.iter().map(|frame| frame.len() as u64).sum::<u64>());
    }
}

#[test]
fn latency_is_from_the_stamp_to_the_arrival() {
    let sent = frames(&plain(), 1001);
    let mut analysis = Analysis::new(true).unwrap();
    // The first takes 1 us, each of the others 1 us more.
    for (at, frame) in (0..).zip(&sent) {
        analysis.see(frame, 1_000_000 + at * 100 + (at + 1) * 1000);
    }
    let latency = analysis.report(KernelDrops::default()).latency;
    let near = |value: u64, wanted: u64| value.abs_diff(wanted) <= wanted / 1000;
    assert!(near(latency.min, 1000) && near(latency.max, 1_001_000), "{latency:?}");
    assert!(near(latency.p50, 501_000) && near(latency.p99, 991_000), "{latency:?}");
}

#[test]
fn drops_and_duplicates_and_moves_are_counted_one_by_one() {
    let mut sent = frames(&plain(), 100);
    // Numbers 10, 11 and 50 never come.
    sent.remove(50);
    sent.drain(10..12);
    assert_eq!(losses(&seen(&sent)), [3, 0, 0, 0]);
    // 20 (now at 18) comes three times.
    let again = sent[18].clone();
    sent.splice(30..30, [again.clone(), again]);
    assert_eq!(losses(&seen(&sent)), [3, 2, 0, 0]);
    // One comes five places late.
    let late = sent.remove(60);
    sent.insert(65, late);
    assert_eq!(losses(&seen(&sent)), [3, 2, 1, 0]);
    // Ends are not seen.
    assert_eq!(losses(&seen(&sent[5..90])), [3, 2, 1, 0]);
}

#[test]
fn what_comes_very_late_is_called_stale() {
    let sent = frames(&plain(), 10);
    let mut analysis = Analysis::new(true).unwrap();
    analysis.see(&sent[0], 1);
    analysis.sequences.add(WINDOW + 5);
    for frame in &sent {
        analysis.see(frame, 1);
    }
    let received = analysis.report(KernelDrops::default());
    // Numbers 0 to 5 are out of the window of 2^20; 6 to 9 are in it and late.
    assert_eq!((received.stale, received.reordered, received.duplicates), (6, 4, 0));
    assert_eq!(received.lost, WINDOW + 6 - 2 - 4);
}

#[test]
fn a_changed_bit_anywhere_is_corruption_or_makes_it_another_packet() {
    for traffic in samples() {
        let sent = frames(&traffic, 3);
        let frame = &sent[1];
        let innermost = layers(frame).last().copied().unwrap();
        // Of a packet without a stamp, the header tells whether it is one at all.
        let is_stamped = Stamp::read(frame).is_some();
        let from = if is_stamped { innermost.ip } else { innermost.transport };
        for at in from..innermost.end {
            let mut changed = sent.clone();
            changed[1][at] ^= 0x10;
            let received = seen(&changed);
            let noticed = received.corrupt == 1 || received.other > seen(&sent).other;
            // Traffic class and flow label of IPv6 have no checksum, nor has the hop limit.
            let place = at - innermost.ip;
            let unchecked = innermost.is_v6 && (place < 4 || place == 7);
            assert!(noticed || unchecked, "byte {place}: {received:?} of {traffic:?}");
            assert_eq!(received.frames, 3);
        }
    }
}

#[test]
fn a_changed_payload_is_seen_though_the_checksum_is_right() {
    let traffic = samples().into_iter().find(|t| t.largest() == 333 - 4).unwrap();
    let mut sent = frames(&traffic, 3);
    // Two 16-bit words that change places leave the checksum as it is.
    for at in 0..2 {
        sent[1].swap(100 + at, 110 + at);
    }
    assert_eq!(losses(&seen(&sent)), [1, 0, 0, 1]);
    // Not looked at, it goes unnoticed.
    let mut analysis = Analysis::new(false).unwrap();
    sent.iter().for_each(|frame| analysis.see(frame, 2_000_000));
    assert_eq!(losses(&analysis.report(KernelDrops::default())), [0; 4]);
}

/// The same, slowly: sets and a list.
fn slowly(sequences: &[u64]) -> [u64; 3] {
    let (mut came, mut duplicates, mut reordered) = (HashSet::new(), 0, 0);
    let mut next = 0;
    for &sequence in sequences {
        if !came.insert(sequence) {
            duplicates += 1;
        } else if sequence < next {
            reordered += 1;
        }
        next = next.max(sequence + 1);
    }
    let span = came.iter().max().unwrap() - came.iter().min().unwrap() + 1;
    [span - came.len() as u64, duplicates, reordered]
}

proptest! {
    #[test]
    fn sequences_are_counted_as_a_slow_count_does(
        start in 0..3_000_000_u64,
        steps in proptest::collection::vec((0..2000_u64, 0..3_u64), 1..500),
    ) {
        let mut stream = Vec::new();
        let mut at = start;
        for (back, forward) in steps {
            stream.push(at.saturating_sub(back / 40));
            at += forward * back / 10;
        }
        let mut sequences = Sequences::new();
        stream.iter().for_each(|&sequence| sequences.add(sequence));
        let lost = sequences.next - sequences.first - sequences.unique;
        prop_assert_eq!([lost, sequences.duplicates, sequences.reordered], slowly(&stream));
        prop_assert_eq!(sequences.stale, 0);
    }

    #[test]
    fn noise_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut analysis = Analysis::new(true).unwrap();
        analysis.see(&frame, 5);
        prop_assert_eq!(analysis.report(KernelDrops::default()).frames, 1);
    }
}
