//! A node and what is expected of it: everything that leaves, and exactly the counters that move.

use overlane_api::{Change, Mode, Underlay};
use overlane_dataplane::packet::drop::DropReason;
use overlane_dataplane::stats::counters::Counters;
use overlane_dataplane::testing::{MemoryNode, Place, objects};

/// A packet came and left.
pub const FORWARDED: &[(&str, i64)] = &[("received", 1), ("sent", 1)];

/// A packet came and was given to the host.
pub const TO_HOST: &[(&str, i64)] = &[("received", 1), ("to_host", 1)];

/// Every combination of tunnel and underlay.
pub const TUNNELS: [(Mode, Underlay); 4] = [
    (Mode::Geneve, Underlay::Ipv4),
    (Mode::Geneve, Underlay::Ipv6),
    (Mode::Vxlan, Underlay::Ipv4),
    (Mode::Vxlan, Underlay::Ipv6),
];

/// Queue 0 of the uplink.
pub const UPLINK: Place = Place::Uplink(0);

/// Local pod number `pod`.
pub fn pod(pod: u8) -> Place {
    Place::Pod(objects::pod_name(0, pod))
}

/// A node under test.
pub struct Bed {
    pub node: MemoryNode,
}

impl Bed {
    /// The usual cluster in one mode, on one worker.
    pub fn new(mode: Mode, underlay: Underlay) -> Self {
        Self::with(1, objects::cluster(mode, underlay, 1))
    }

    /// A cluster of one's own.
    pub fn with(workers: u8, changes: Vec<Change>) -> Self {
        Self { node: MemoryNode::new(workers, changes) }
    }

    /// The frame goes in at `from`; what comes out is returned. Exactly `moved` must move.
    #[track_caller]
    pub fn send(
        &mut self,
        from: &Place,
        frame: &[u8],
        moved: &[(&str, i64)],
    ) -> Vec<(Place, Vec<u8>)> {
        let before = self.node.counters();
        assert!(self.node.inject(from, frame), "the port at {from:?} takes the frame");
        self.node.run();
        expect(&self.node, &before, moved);
        self.node.collect()
    }

    /// The frame goes in at `from`; exactly `out` comes out, and exactly `moved` moves.
    #[track_caller]
    pub fn step(
        &mut self,
        from: &Place,
        frame: &[u8],
        out: &[(Place, Vec<u8>)],
        moved: &[(&str, i64)],
    ) {
        let got = self.send(from, frame, moved);
        assert_frames(&got, out);
    }

    /// The frame goes in at `from`; one frame comes out at `to` and is returned.
    #[track_caller]
    pub fn one(
        &mut self,
        from: &Place,
        frame: &[u8],
        to: &Place,
        moved: &[(&str, i64)],
    ) -> Vec<u8> {
        let mut got = self.send(from, frame, moved);
        assert_eq!(got.len(), 1, "one frame; drops: {:?}", self.node.drops());
        let (place, frame) = got.remove(0);
        assert_eq!(&place, to);
        frame
    }

    /// The frame goes in at `from` and is dropped for one reason; nothing comes out.
    #[track_caller]
    pub fn drops(&mut self, from: &Place, frame: &[u8], reason: &str) {
        self.step(from, frame, &[], &[("received", 1), (&format!("dropped.{reason}"), 1)]);
    }

    /// All frames are back and the books are closed.
    #[track_caller]
    pub fn close(self) {
        self.node.close().unwrap();
    }
}

#[track_caller]
pub fn assert_frames(got: &[(Place, Vec<u8>)], expected: &[(Place, Vec<u8>)]) {
    let show = |frames: &[(Place, Vec<u8>)]| {
        let line = |(place, frame): &(Place, Vec<u8>)| format!("{place:?}: {frame:02x?}");
        frames.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    assert!(got == expected, "came out:\n{}\nexpected:\n{}", show(got), show(expected));
}

/// Counters by name. Vectors and naps are left out: they say how the work was done, not what
/// became of a packet.
fn named(counters: &Counters) -> Vec<(String, u64)> {
    let scalars = [
        ("received", counters.received),
        ("generated", counters.generated),
        ("sent", counters.sent),
        ("handed_over", counters.handed_over),
        ("to_host", counters.to_host),
        ("held", counters.held),
        ("copied", counters.copied),
        ("coalesced", counters.coalesced),
    ];
    let scalars = scalars.into_iter().map(|(name, value)| (name.to_owned(), value));
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (format!("dropped.{}", reason.name()), counters.dropped[*reason as usize]));
    scalars.chain(drops).collect()
}

/// Exactly `moved` has moved since `before`, by so much; and the books are closed.
#[track_caller]
pub fn expect(node: &MemoryNode, before: &Counters, moved: &[(&str, i64)]) {
    let after = named(&node.counters());
    for (name, _) in moved {
        assert!(after.iter().any(|(known, _)| known == name), "there is no counter {name}");
    }
    let mut wrong = Vec::new();
    for ((name, after), (_, before)) in after.iter().zip(named(before)) {
        let change = after.wrapping_sub(before).cast_signed();
        let expected = moved.iter().find(|(n, _)| n == name).map_or(0, |(_, by)| *by);
        if change != expected {
            wrong.push(format!("{name} moved by {change}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
    node.check_books().unwrap();
}

#[test]
fn a_counter_that_moved_unnoticed_fails() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let before = bed.node.counters();
    assert!(bed.node.from_pod(&objects::pod_name(0, 0), b"short"));
    bed.node.run();
    expect(&bed.node, &before, &[("received", 1), ("dropped.frame_truncated", 1)]);
    for too_little_or_wrong in [
        &[][..],
        &[("received", 1)],
        &[("received", 1), ("dropped.no_route", 1)],
        &[("received", 2), ("dropped.frame_truncated", 1)],
        &[("received", 1), ("dropped.frame_truncated", 1), ("no such counter", 0)],
    ] {
        let check =
            std::panic::AssertUnwindSafe(|| expect(&bed.node, &before, too_little_or_wrong));
        assert!(std::panic::catch_unwind(check).is_err(), "{too_little_or_wrong:?}");
    }
    bed.close();
}
