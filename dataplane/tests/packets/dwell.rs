//! How long packets are inside, by a clock on which each reading is a microsecond after the one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use overlane_api::latency::{LatencyHistogram, PacketSource};
use overlane_api::{Mode, Underlay, WorkerId};
use overlane_dataplane::node::latency::Latency;
use overlane_dataplane::testing::{MemoryNode, Place, objects};

use super::bed::{Bed, UPLINK, pod};
use super::build::{Tunnel, between, pod_ip, udp, up};

/// A node whose workers time one vector in `every`.
fn timed(workers: u8, every: u32) -> Bed {
    let mut bed = Bed::with(workers, objects::cluster(Mode::Geneve, Underlay::Ipv4, workers));
    set_clocks(&mut bed, std::iter::repeat(every));
    bed
}

/// Each worker times one vector in so many.
fn set_clocks(bed: &mut Bed, every: impl IntoIterator<Item = u32>) {
    let now = Arc::new(AtomicU64::new(5_000_000_000));
    for (worker, every) in bed.node.bench().workers.iter_mut().zip(every) {
        let now = now.clone();
        worker.set_clock(Box::new(move || now.fetch_add(1000, Ordering::Relaxed)));
        worker.time_vectors(every);
    }
}

/// Worker, way in, packets and microseconds of all that was counted.
fn counted(bed: &mut Bed) -> Vec<(u8, PacketSource, u64, u64)> {
    let workers = bed.node.bench().workers.iter().map(overlane_dataplane::worker::Worker::dwell);
    let report = Latency::default().report(1, (0..).map(WorkerId).zip(workers), false);
    let rows = |histogram: &LatencyHistogram| {
        let (worker, from) = (histogram.worker.0, histogram.from);
        let buckets = histogram.buckets.clone();
        buckets.into_iter().map(move |b| (worker, from, b.packets, b.up_to_ns / 1000))
    };
    report.histograms.iter().flat_map(rows).collect()
}

fn outgoing() -> Vec<u8> {
    udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"out").frame(up(0))
}

fn incoming() -> Vec<u8> {
    let inner = udp(pod_ip(1, 0, 0), pod_ip(0, 0, 0), b"in").frame(between(1, 0));
    Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4).wrap(&inner)
}

#[test]
fn packets_are_counted_by_their_way_in_and_until_all_of_the_round_have_left() {
    let mut bed = timed(1, 1);
    for _ in 0..3 {
        assert!(bed.node.inject(&pod(0), &outgoing()));
    }
    for _ in 0..2 {
        assert!(bed.node.inject(&UPLINK, &incoming()));
    }
    bed.node.run();
    // Readings: when the pod's were received, when the uplink's were, when all had left.
    let expected = [(0, PacketSource::Pods, 3, 2), (0, PacketSource::Uplink, 2, 1)];
    assert_eq!(counted(&mut bed), expected);
    assert_eq!(bed.node.collect().len(), 5);
    bed.close();
}

#[test]
fn one_vector_in_so_many_is_timed() {
    let mut bed = timed(1, 4);
    // In turn, as of a flow and its answers: neither side may be the only one that is timed.
    for _ in 0..1000 {
        for _ in 0..2 {
            assert!(bed.node.inject(&pod(0), &outgoing()));
        }
        bed.node.run();
        assert!(bed.node.inject(&UPLINK, &incoming()));
        bed.node.run();
        let _ = bed.node.collect();
    }
    let rows = counted(&mut bed);
    let sides: Vec<_> = rows.iter().map(|(_, from, ..)| *from).collect();
    assert_eq!(sides, [PacketSource::Pods, PacketSource::Uplink]);
    for ((_, from, packets, _), each) in rows.iter().zip([2, 1]) {
        assert!((200..=300).contains(&(packets / each)), "{packets} {from:?}");
    }
    bed.close();

    let mut bed = timed(1, 0);
    assert!(bed.node.inject(&pod(0), &outgoing()));
    bed.node.run();
    assert_eq!(counted(&mut bed), []);
    assert_eq!(bed.node.collect().len(), 1);
    bed.close();
}

#[test]
fn what_does_not_leave_is_not_counted() {
    let mut bed = timed(1, 1);
    let spoofed = udp(pod_ip(0, 1, 0), pod_ip(1, 0, 0), b"not mine").frame(up(0));
    assert!(bed.node.inject(&pod(0), &spoofed));
    bed.node.run();
    assert_eq!(counted(&mut bed), []);
    // It leaves with the vector of another one that does.
    assert!(bed.node.inject(&pod(0), &spoofed));
    assert!(bed.node.inject(&pod(0), &outgoing()));
    bed.node.run();
    assert_eq!(counted(&mut bed), [(0, PacketSource::Pods, 1, 1)]);
    assert_eq!(bed.node.collect().len(), 1);
    bed.close();
}

#[test]
fn a_packet_that_is_handed_over_is_timed_from_its_arrival_at_the_first_worker() {
    let mut bed = timed(2, 1);
    // To a pod of the other worker, which has a packet of its own in between.
    let over = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"over").frame(up(0));
    let other = udp(pod_ip(0, 1, 0), pod_ip(1, 0, 0), b"out").frame(up(1));
    for _ in 0..2 {
        assert!(bed.node.inject(&pod(0), &over));
    }
    assert_eq!(bed.node.bench().workers[0].poll(), 2);
    // It has left to nowhere yet.
    assert_eq!(counted(&mut bed), []);
    assert!(bed.node.inject(&pod(1), &other));
    assert_eq!(bed.node.bench().workers[1].poll(), 3);
    // Readings: 0 their arrival, 1 that of the other, 2 when all had left.
    let expected = [(1, PacketSource::Pods, 1, 1), (1, PacketSource::Worker, 2, 2)];
    assert_eq!(counted(&mut bed), expected);
    assert_eq!(bed.node.collect().len(), 3);
    bed.close();
}

#[test]
fn what_is_passed_on_is_timed_from_its_arrival_and_apart_from_what_comes_to_the_worker_itself() {
    let to_other = |payload| {
        let inner = udp(pod_ip(1, 0, 0), pod_ip(0, 1, 0), payload).frame(between(1, 0));
        Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4).wrap(&inner)
    };
    for timed_too in [true, false] {
        let changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 2);
        let mut bed = Bed { node: MemoryNode::with_uplink_queues(2, 2, changes) };
        set_clocks(&mut bed, [1, u32::from(timed_too)]);
        for _ in 0..3 {
            assert!(bed.node.inject(&UPLINK, &to_other(b"passed on")));
        }
        assert!(bed.node.inject(&Place::Uplink(1), &to_other(b"its own")));
        // Reading 0: their arrival at the first worker.
        assert_eq!(bed.node.bench().workers[0].poll(), 3);
        assert_eq!(counted(&mut bed), []);
        assert_eq!(bed.node.bench().workers[1].poll(), 4);
        let expected = if timed_too {
            // 1 the arrival of its own, 2 when all had left.
            vec![(1, PacketSource::Uplink, 1, 1), (1, PacketSource::Worker, 3, 2)]
        } else {
            vec![(1, PacketSource::Worker, 3, 1)]
        };
        assert_eq!(counted(&mut bed), expected);
        assert_eq!(bed.node.bench().workers[1].counters().vectors, 2);
        assert_eq!(bed.node.collect().len(), 4);
        bed.close();
    }
}
