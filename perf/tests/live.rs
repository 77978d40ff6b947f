//! Live frames into the counting sink, on veth pairs of this machine's kernel.
//!
//! Needs root: `cargo test -p overlane-perf --test live -- --ignored --test-threads 1`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use overlane_api::MacAddr;
use overlane_bpf::PortSteering;
use overlane_perf::device::Device;
use overlane_perf::live::{LiveFrames, Running};
use overlane_perf::sink::Sink;
use overlane_perf::traffic::{Order, Protocol, Side, Size, Traffic};

mod common;
use common::run;

/// A veth pair whose `far` takes redirected frames.
fn pair() {
    common::pair();
    run("ethtool -K far gro on");
}

fn traffic() -> Traffic {
    let side = |last: u8| Side::any_port(MacAddr([2, 0, 0, 0, 0, last]), [10, 0, 0, last]);
    Traffic { flows: 1000, ..Traffic::new(side(1), Side { ports: 1, ..side(2) }) }
}

/// To 16 addresses, so that there can be a million flows.
fn many() -> Traffic {
    let traffic = traffic();
    Traffic { destination: Side { addresses: 16, ..traffic.destination }, ..traffic }
}

fn wait_for(running: &Running) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !running.is_done() {
        assert!(Instant::now() < give_up, "{:?}", running.sent());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[ignore = "needs root"]
fn every_frame_that_is_counted_as_sent_arrives_at_the_sink() {
    pair();
    let base = traffic();
    let kinds = [
        base.clone(),
        Traffic { size: Size::Imix, order: Order::Zipf, ..base.clone() },
        Traffic { protocol: Protocol::TcpSyn, order: Order::InOrder, ..base.clone() },
        Traffic { size: Size::Bytes(1518), vlan: Some(7), stamp: false, ..base.clone() },
    ];
    let sink = Sink::attach("far").unwrap();
    for kind in kinds {
        let before = sink.counters().unwrap();
        let running = LiveFrames::start(&kind, "out", None, Some(200_000)).unwrap();
        wait_for(&running);
        let sent = running.stop().unwrap();
        let arrived = sink.counters().unwrap().since(&before);
        assert_eq!(sent.frames + sent.refused, 200_000, "{kind:?}");
        assert_eq!(arrived.frames, sent.frames, "{kind:?}");
        if sent.refused == 0 {
            // The kernel takes the tag out of the frame.
            let tags = kind.vlan.map_or(0, |_| 4 * sent.frames);
            assert_eq!(arrived.bytes, sent.bytes - tags, "{kind:?}");
        }
        let stamped = kind.stamp && kind.protocol == Protocol::Udp;
        assert_eq!(sent.stamped, if stamped { 200_000 } else { 0 });
    }
}

#[test]
#[ignore = "needs root"]
fn a_rate_is_kept() {
    pair();
    let sink = Sink::attach("far").unwrap();
    let paced = Traffic { rate: Some(50_000.0), ..traffic() };
    let running = LiveFrames::start(&paced, "out", None, Some(25_000)).unwrap();
    wait_for(&running);
    let sent = running.stop().unwrap();
    assert_eq!(sink.counters().unwrap().frames, sent.frames);
    assert_eq!(sent.frames + sent.refused, 25_000);
    // Behind at times, on a machine that others use, but never ahead.
    assert!(sent.seconds > 0.4999, "{sent:?}");
    let behind = sent.late_ns as f64 / 1e9;
    assert!(sent.seconds < 0.5001 + behind, "{sent:?}");
}

#[test]
#[ignore = "needs root"]
fn the_generator_ends_when_it_is_dropped_and_leaves_nothing() {
    pair();
    let running = LiveFrames::start(&traffic(), "out", None, None).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(running);
    let device = Device::open("far").unwrap();
    let before = device.counters().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(device.counters().unwrap(), before);
    assert!(before.rx_frames > 0);
    assert!(!run("ip link show out").contains("xdp"));
    drop(Sink::attach("far").unwrap());
    assert!(!run("tc qdisc show dev far").contains("clsact"));
    // A clsact that was there before stays, and so do others' filters.
    run("tc qdisc add dev far clsact");
    drop(Sink::attach("far").unwrap());
    assert!(run("tc qdisc show dev far").contains("clsact"));
    assert!(!run("tc filter show dev far ingress").contains("ovl_sink"));
    let _sink = Sink::attach("far").unwrap();
    let refused = Sink::attach("far").unwrap_err().to_string();
    assert!(refused.contains("another filter"), "{refused}");
}

#[test]
#[ignore = "needs root"]
fn an_interface_that_takes_no_frames_is_refused_with_what_to_do() {
    pair();
    run("ethtool -K far gro off");
    // Kernels before 6.3 do not say so beforehand.
    let refused = |name| match LiveFrames::start(&traffic(), name, None, None) {
        Err(error) => error.to_string(),
        Ok(running) => {
            std::thread::sleep(Duration::from_millis(50));
            running.stop().unwrap_err().to_string()
        }
    };
    assert!(refused("out").contains("gro on"), "{}", refused("out"));
    assert!(refused("nosuch").contains("nosuch"), "{}", refused("nosuch"));
    run("ethtool -K far gro on");
    run("ip link set out down");
    assert!(refused("out").contains("ip link set out up"), "{}", refused("out"));
    run("ip link set out up mtu 1000");
    let large = Traffic { size: Size::Bytes(1518), ..traffic() };
    let error = LiveFrames::start(&large, "out", None, None).unwrap_err().to_string();
    assert!(error.contains("MTU is 1000"), "{error}");
    let error = LiveFrames::start(&traffic(), "out", Some(5000), None).unwrap_err().to_string();
    assert!(error.contains("CPU 5000"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn a_million_frames_of_a_million_flows_are_sent_at_once() {
    // The peer's XDP program drops, which is the least that a peer can do.
    pair();
    let _program = PortSteering::attach("far", 1).unwrap();
    for traffic in [traffic(), Traffic { flows: 1_000_000, stamp: false, ..many() }] {
        let running = LiveFrames::start(&traffic, "out", Some(0), Some(1_000_000)).unwrap();
        wait_for(&running);
        let sent = running.stop().unwrap();
        println!("{} flows: {:.2} Mpps", traffic.flows, sent.pps() / 1e6);
        assert_eq!(sent.frames + sent.refused, 1_000_000);
        assert!(sent.frames > 500_000, "{sent:?}");
    }
}
