//! Frames of several ports that leave in one call.

use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::burst::Burst;
use overlane_dataplane::io::af_xdp::{AfXdpPort, OpenPort};
use overlane_dataplane::packet::pool::FramePool;

use super::harness::*;

fn bursting<'a>(interface: &'a str) -> OpenPort<'a> {
    OpenPort { fill_min: 0, in_bursts: true, ..OpenPort::veth(interface, 0) }
}

#[test]
#[ignore = "needs root"]
fn frames_of_all_ports_leave_together_in_order_and_their_chunks_are_back_at_once() {
    private_namespace();
    veth("a0", "a1");
    veth("b0", "b1");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 256);
    let mut burst = Burst::load().unwrap();
    let mut receivers = ["a0", "b0"].map(|name| {
        let options = OpenPort { fill_min: 64, ..OpenPort::veth(name, 0) };
        let mut receiver = Steered::open(&umem, &options);
        receiver.port.recycle(&mut pool);
        receiver
    });
    let mut senders = ["a1", "b1"].map(|name| AfXdpPort::open(&umem, &bursting(name)).unwrap());
    for round in 0..3 {
        // By each port's socket first: those are not overtaken.
        for (sender, port) in senders.iter_mut().zip(0..) {
            send(sender, &mut pool, &packet(100, port));
            sender.recycle(&mut pool);
        }
        let free = pool.len();
        for mark in 0..40 {
            let len = 60 + (mark as usize * 37) % 1400;
            let frame = frame_with(&mut pool, &packet(len, 1000 * round + mark));
            senders[mark as usize % 2].send(frame).unwrap();
        }
        assert_eq!(senders.each_ref().map(AfXdpPort::waiting), [20, 20]);
        assert!(burst.is_worth(40) && burst.has_room(40) && !burst.is_worth(3));
        senders.iter_mut().for_each(|sender| sender.stage(&mut burst, &mut pool));
        assert_eq!(senders.each_ref().map(AfXdpPort::waiting), [0, 0]);
        assert_eq!((pool.len(), senders[0].held()), (free, 0), "the frames were copied");
        assert_eq!(burst.send(), 0);
        for (receiver, port) in receivers.iter_mut().zip(0..) {
            let frames = receiver.receive(&mut pool, 21);
            assert_eq!(frames[0].bytes(), packet(100, port));
            for (frame, mark) in frames[1..].iter().zip((port..40).step_by(2)) {
                let len = 60 + (mark as usize * 37) % 1400;
                assert_eq!(frame.bytes(), packet(len, 1000 * round + mark));
            }
            frames.into_iter().for_each(|frame| pool.give(frame));
        }
    }
    // What is not staged leaves by a flush, as ever.
    let frame = frame_with(&mut pool, &packet(90, 5));
    senders[0].send(frame).unwrap();
    senders[0].flush();
    let frame = receivers[0].receive(&mut pool, 1).remove(0);
    assert_eq!(frame.bytes(), packet(90, 5));
    pool.give(frame);
    // A device that is gone loses what was for it, and nothing else.
    run("ip link set a1 down");
    for sender in &mut senders {
        let frame = frame_with(&mut pool, &packet(80, 6));
        sender.send(frame).unwrap();
        sender.stage(&mut burst, &mut pool);
    }
    assert_eq!(burst.send(), 1);
    senders.iter_mut().for_each(|sender| sender.learn_refused(&mut burst));
    assert_eq!(senders.each_ref().map(|sender| sender.kernel_drops().tx_dropped), [1, 0]);
    let frame = receivers[1].receive(&mut pool, 1).remove(0);
    assert_eq!(frame.bytes(), packet(80, 6));
    pool.give(frame);
    let ports = senders.into_iter().chain(receivers.map(|receiver| receiver.port)).collect();
    close_all(&umem, pool, ports);
}

#[test]
#[ignore = "needs root"]
fn a_port_that_is_not_told_to_keeps_its_frames() {
    private_namespace();
    veth("a0", "a1");
    let umem = umem(64);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut burst = Burst::load().unwrap();
    let mut port = sender(&umem, "a1");
    port.send(frame_with(&mut pool, &packet(70, 1))).unwrap();
    assert_eq!(port.waiting(), 0);
    port.stage(&mut burst, &mut pool);
    assert_eq!(port.held(), 1);
    port.flush();
    close_all(&umem, pool, vec![port]);
}
