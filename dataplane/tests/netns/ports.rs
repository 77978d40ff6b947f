//! Receiving, sending, sharing and closing.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BusyPoll, OpenError, OpenPort, RingSizes};
use overlane_dataplane::packet::frame::HEADROOM;
use overlane_dataplane::packet::pool::FramePool;

use super::harness::*;

#[test]
#[ignore = "needs root"]
fn a_received_frame_leaves_another_device_50_bytes_longer_from_the_same_chunk() {
    private_namespace();
    veth("in0", "in1");
    veth("out0", "out1");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let (mut source, mut sink) = (sender(&umem, "in1"), Steered::veth(&umem, "out1"));
    let (mut inside, mut outside) = (Steered::veth(&umem, "in0"), sender(&umem, "out0"));
    inside.port.recycle(&mut pool);
    sink.port.recycle(&mut pool);

    let sent = packet(300, 7);
    send(&mut source, &mut pool, &sent);
    let mut frame = inside.receive(&mut pool, 1).remove(0);
    assert_eq!((frame.bytes(), frame.start()), (&sent[..], HEADROOM));
    let chunk = frame.chunk_address();
    frame.prepend(50).unwrap()[..50].fill(0x5a);
    assert_eq!(outside.held(), 0);
    outside.send(frame).unwrap();
    outside.flush();
    assert_eq!(outside.held(), 1);

    let arrived = sink.receive(&mut pool, 1).remove(0);
    assert_eq!(arrived.len(), 350);
    assert_eq!(arrived.bytes()[..50], [0x5a; 50]);
    assert_eq!(arrived.bytes()[50..], sent);
    // The completion named the shifted address; what comes back is the chunk.
    let mut back = FramePool::new(umem.depot().clone(), 64);
    outside.recycle(&mut back);
    assert_eq!((back.len(), outside.held()), (1, 0));
    let frame = back.take().unwrap();
    assert_eq!((frame.chunk_address(), frame.start()), (chunk, HEADROOM));
    pool.give(frame);
    pool.give(arrived);
    assert!(!outside.is_zero_copy() && !inside.port.is_zero_copy(), "veths have no zero-copy");
    close_all(&umem, pool, vec![source, inside.port, outside, sink.port]);
}

/// Sends 1000 marked frames with one flush for every `burst`; all must arrive, in order.
fn thousand_frames(burst: u32) -> AfXdpPort {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(4096);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let rings = RingSizes { rx: 2048, tx: 1024, ..RingSizes::default() };
    let options = OpenPort { rings, fill_min: 1200, ..OpenPort::veth("a0", 0) };
    let mut receiver = Steered::open(&umem, &options);
    receiver.port.recycle(&mut pool);
    let options =
        OpenPort { rings, burst, tx_budget: burst, fill_min: 0, ..OpenPort::veth("a1", 0) };
    let mut sender = AfXdpPort::open(&umem, &options).unwrap();
    for mark in 0..1000 {
        let mut frame = frame_with(&mut pool, &packet(60, mark));
        while let Err(back) = sender.send(frame) {
            assert_eq!(mark % burst, 0, "only a full burst is refused");
            frame = back;
            sender.recycle(&mut pool);
        }
    }
    let give_up = Instant::now() + Duration::from_secs(2);
    sender.flush();
    while sender.held() > 0 && Instant::now() < give_up {
        sender.flush();
        sender.recycle(&mut pool);
    }
    let frames = receiver.receive(&mut pool, 1000);
    for (mark, frame) in (0..).zip(&frames) {
        assert_eq!(frame.bytes(), packet(60, mark));
    }
    frames.into_iter().for_each(|f| pool.give(f));
    let counters = sender.tx_counters();
    assert_eq!((counters.dropped_by_device, counters.refused), (0, 0));
    close_all(&umem, pool, vec![receiver.port]);
    sender
}

#[test]
#[ignore = "needs root"]
fn a_thousand_frames_arrive_though_each_call_takes_only_some() {
    // 32 for each call is what kernels before 6.17 take, whatever the burst.
    let sender = thousand_frames(32);
    let counters = sender.tx_counters();
    assert!(counters.kicks >= 1000 / 32 && counters.again >= 1000 / 32, "{counters:?}");
}

#[test]
#[ignore = "needs root"]
fn a_burst_larger_than_a_veth_queue_loses_nothing() {
    thousand_frames(1024);
}

#[test]
#[ignore = "needs root"]
fn a_queue_can_be_opened_again_right_after_it_was_closed() {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(256);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut children = Vec::new();
    for round in 0..3 {
        let mut receiver = Steered::veth(&umem, "a0");
        receiver.port.recycle(&mut pool);
        let mut source = sender(&umem, "a1");
        // A program that is started now must not keep the queue.
        children.push(Process::start("sleep 60"));
        send(&mut source, &mut pool, &packet(64, round));
        let frame = receiver.receive(&mut pool, 1).remove(0);
        assert_eq!(frame.bytes(), packet(64, round));
        pool.give(frame);
        receiver.port.close(&mut pool);
        source.close(&mut pool);
    }
    close_all(&umem, pool, vec![]);
}

#[test]
#[ignore = "needs root"]
fn a_port_can_be_polled_busily_and_slept_on() {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(256);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let busy_poll = Some(BusyPoll { microseconds: 20, budget: 64 });
    let options = OpenPort { busy_poll, ..OpenPort::veth("a0", 0) };
    let mut receiver = Steered::open(&umem, &options);
    receiver.port.recycle(&mut pool);
    let mut source = sender(&umem, "a1");
    let readable = |port: &AfXdpPort| {
        let mut fds = [PollFd::new(port.poll_fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(50_u8)).unwrap() == 1
    };
    assert!(!readable(&receiver.port));
    send(&mut source, &mut pool, &packet(64, 0));
    assert!(readable(&receiver.port));
    let frame = receiver.receive(&mut pool, 1).remove(0);
    pool.give(frame);
    assert!(!readable(&receiver.port));
    close_all(&umem, pool, vec![receiver.port, source]);
}

#[test]
#[ignore = "needs root"]
fn a_queue_that_is_open_already_is_refused_with_its_name() {
    private_namespace();
    veth("a0", "a1");
    let (one, other) = (umem(64), umem(64));
    let port = AfXdpPort::open(&one, &OpenPort::veth("a0", 0)).unwrap();
    let refused = AfXdpPort::open(&one, &OpenPort::veth("a0", 0)).unwrap_err();
    assert!(matches!(&refused, OpenError::AlreadyOpen { .. } | OpenError::Bind { .. }));
    let refused = AfXdpPort::open(&other, &OpenPort::veth("a0", 0)).unwrap_err();
    assert!(refused.to_string().contains("queue 0 of a0"), "{refused}");
    assert!(refused.to_string().contains("another process has the queue"), "{refused}");
    let refused = AfXdpPort::open(&one, &OpenPort::veth("nosuch", 0)).unwrap_err();
    assert!(refused.to_string().contains("nosuch"), "{refused}");
    // The refusals have not hurt the port.
    let pool = FramePool::new(one.depot().clone(), 64);
    close_all(&one, pool, vec![port]);
}

#[test]
#[ignore = "needs root"]
fn a_frame_moves_along_three_devices_of_one_umem() {
    private_namespace();
    for (one, other) in [("a0", "a1"), ("b0", "b1"), ("c0", "c1")] {
        veth(one, other);
    }
    let umem = umem(1024);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut ends = ["a0", "b0", "c0"].map(|name| Steered::veth(&umem, name));
    let mut far = ["a1", "b1", "c1"].map(|name| Steered::veth(&umem, name));
    for port in ends.iter_mut().chain(&mut far) {
        port.port.recycle(&mut pool);
    }
    let mut chunks = Vec::new();
    send(&mut far[0].port, &mut pool, &packet(100, 1));
    for hop in 0..3 {
        // In at a, out at b; its far end sends it back in at b, out at c; and so on to a.
        let frame = ends[hop].receive(&mut pool, 1).remove(0);
        chunks.push(frame.chunk_address());
        let next = (hop + 1) % 3;
        ends[next].port.send(frame).unwrap();
        ends[next].port.flush();
        let back = far[next].receive(&mut pool, 1).remove(0);
        assert_eq!(back.bytes(), packet(100, 1));
        far[next].port.send(back).unwrap();
        far[next].port.flush();
    }
    let last = ends[0].receive(&mut pool, 1).remove(0);
    assert_eq!(last.bytes(), packet(100, 1));
    pool.give(last);
    close_all(&umem, pool, ends.into_iter().chain(far).map(|s| s.port).collect());
}

#[test]
#[ignore = "needs root"]
fn frames_on_every_ring_come_back_when_a_port_is_closed() {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut receiver = Steered::veth(&umem, "a0");
    let mut source = sender(&umem, "a1");
    receiver.port.recycle(&mut pool);
    let fill = receiver.port.held();
    assert_eq!(fill, 32);
    for mark in 0..10 {
        let frame = frame_with(&mut pool, &packet(64, mark));
        source.send(frame).unwrap();
    }
    source.flush();
    // On the completion ring, the RX ring, and on a TX ring that was never flushed.
    assert_eq!((source.held(), receiver.port.held()), (10, fill));
    for mark in 0..5 {
        let frame = frame_with(&mut pool, &packet(64, mark));
        source.send(frame).unwrap();
    }
    assert_eq!(source.held(), 15);
    // One is closed, the other one is only dropped.
    drop(receiver);
    close_all(&umem, pool, vec![source]);
}

#[test]
#[ignore = "needs root"]
fn a_device_that_goes_away_takes_no_frames_and_no_other_port_along() {
    private_namespace();
    veth("a0", "a1");
    veth("b0", "b1");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut first = Steered::veth(&umem, "a0");
    first.port.recycle(&mut pool);
    run("ip link del a0");
    let frame = frame_with(&mut pool, &packet(64, 0));
    first.port.send(frame).unwrap();
    first.port.flush();
    assert!(first.port.tx_counters().refused > 0);
    // The first port of the UMEM is gone; another device can still be opened on it.
    let mut receiver = Steered::veth(&umem, "b0");
    receiver.port.recycle(&mut pool);
    let mut source = sender(&umem, "b1");
    send(&mut source, &mut pool, &packet(64, 1));
    let frame = receiver.receive(&mut pool, 1).remove(0);
    pool.give(frame);
    close_all(&umem, pool, vec![first.port, receiver.port, source]);
}

#[test]
#[ignore = "needs root"]
fn frames_for_a_peer_that_is_down_are_counted_and_come_back() {
    private_namespace();
    veth("a0", "a1");
    run("ip link set a1 down");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut source = sender(&umem, "a0");
    for mark in 0..20 {
        send(&mut source, &mut pool, &packet(64, mark));
    }
    let give_up = Instant::now() + Duration::from_secs(2);
    while source.held() > 0 {
        source.flush();
        source.recycle(&mut pool);
        assert!(Instant::now() < give_up, "{} are stuck", source.held());
    }
    assert_eq!(source.tx_counters().dropped_by_device, 20);
    assert_eq!(source.kernel_drops().tx_dropped, 20);
    close_all(&umem, pool, vec![source]);
}

#[test]
#[ignore = "needs root"]
fn the_kernel_counts_what_a_starved_or_slow_port_loses() {
    private_namespace();
    veth("a0", "a1");
    veth("b0", "b1");
    let umem = umem(1024);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    // Never recycled: nothing is on its fill ring.
    let starved = Steered::veth(&umem, "a0");
    let mut source = sender(&umem, "a1");
    for mark in 0..10 {
        send(&mut source, &mut pool, &packet(64, mark));
    }
    let drops = starved.port.kernel_drops();
    assert_eq!((drops.rx_dropped, drops.rx_ring_full), (10, 0), "{drops:?}");
    assert!(drops.rx_fill_ring_empty > 0, "{drops:?}");
    // Never received from: its RX ring of 64 fills up.
    let rings = RingSizes { rx: 64, ..RingSizes::default() };
    let mut slow =
        Steered::open(&umem, &OpenPort { rings, fill_min: 256, ..OpenPort::veth("b0", 0) });
    slow.port.recycle(&mut pool);
    let mut other = sender(&umem, "b1");
    for mark in 0..100 {
        send(&mut other, &mut pool, &packet(64, mark));
    }
    let drops = slow.port.kernel_drops();
    assert_eq!(drops.rx_ring_full, 36, "{drops:?}");
    close_all(&umem, pool, vec![starved.port, source, slow.port, other]);
}

#[test]
#[ignore = "needs root"]
fn a_busy_port_gets_more_frames_and_an_idle_one_gives_them_back() {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(2048);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut receiver = Steered::veth(&umem, "a0");
    receiver.port.recycle(&mut pool);
    assert_eq!(receiver.port.held(), 32);
    // Most of the packet memory is free, so that an idle port is ready for a long burst.
    receiver.port.recycle(&mut pool);
    assert_eq!((receiver.port.fill_target(), receiver.port.held()), (256, 256));
    let mut source = sender(&umem, "a1");
    let mut burst = |receiver: &mut Steered, pool: &mut FramePool, count: u32| {
        source.recycle(pool);
        for mark in 0..count {
            let frame = frame_with(pool, &packet(64, mark));
            source.send(frame).unwrap();
        }
        source.flush();
        for frame in receiver.receive(pool, count as usize) {
            pool.give(frame);
        }
    };
    for _ in 0..5 {
        burst(&mut receiver, &mut pool, 32);
    }
    for _ in 0..40 {
        burst(&mut receiver, &mut pool, 64);
    }
    let busy = receiver.port.fill_target();
    assert!(busy >= 512, "{busy}");
    for _ in 0..200_000 {
        receiver.port.recycle(&mut pool);
    }
    assert_eq!(receiver.port.fill_target(), 32, "most of the memory is on its ring");
    // What is on the ring stays until it is used; then it is not replaced.
    for _ in 0..busy {
        burst(&mut receiver, &mut pool, 1);
    }
    assert!(receiver.port.held() <= 32 + 16, "{}", receiver.port.held());
    for _ in 0..200_000 {
        receiver.port.recycle(&mut pool);
    }
    assert_eq!(receiver.port.fill_target(), 256, "most of the memory is free again");
    close_all(&umem, pool, vec![receiver.port, source]);
}
