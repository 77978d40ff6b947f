//! Generator, receiver and reflector on veth pairs of this machine's kernel.
//!
//! Needs root: `cargo test -p overlane-perf --test wire -- --ignored --test-threads 1`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_wrap, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlane_api::{MacAddr, Mode, Vni};
use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BindMode, OpenPort, RingSizes, Umem, UmemOptions};
use overlane_dataplane::packet::pool::{FramePool, UmemId};
use overlane_perf::generate::Generator;
use overlane_perf::live::LiveFrames;
use overlane_perf::progress::Progress;
use overlane_perf::receive::{Analysis, Received};
use overlane_perf::sent::Sent;
use overlane_perf::station::{Station, Until};
use overlane_perf::traffic::{Order, Protocol, Side, Size, Traffic, Tunnel};
use overlane_perf::writer::FrameWriter;

mod common;
use common::{pair, run};

/// 1,000 flows at a rate that one core sends and receives many times over.
fn modest() -> Traffic {
    let side = |last: u8| Side::any_port(MacAddr([2, 0, 0, 0, 0, last]), [10, 0, 0, last]);
    let traffic = Traffic::new(side(1), Side { ports: 1, ..side(2) });
    Traffic { flows: 1000, rate: Some(20_000.0), ..traffic }
}

fn v6(traffic: Traffic) -> Traffic {
    let address = |last: u16| [0xfd00, 1, 2, 3, 4, 5, 6, last].into();
    let source = Side { address: address(1), ..traffic.source };
    let destination = Side { address: address(2), ..traffic.destination };
    Traffic { source, destination, size: Size::Bytes(128), ..traffic }
}

fn geneve(traffic: Traffic) -> Traffic {
    let tunnel = Tunnel {
        mode: Mode::Geneve,
        vni: Vni::new(5).unwrap(),
        macs: (MacAddr([6; 6]), MacAddr([8; 6])),
        addresses: ([10, 9, 0, 1].into(), [10, 9, 0, 2].into()),
        port: 6081,
    };
    Traffic { tunnel: Some(tunnel), ..traffic }
}

/// Fewer than a receiver has free frames for, so that none is lost while it waits for its CPU.
const PACKETS: u64 = 4000;

/// How long a receiver may take to look at all that is there; it ends when it has.
const DRAIN: Duration = Duration::from_secs(20);

/// Ends the others when a test fails, which would go on for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends from `out` to `far`.
fn one_way(traffic: &Traffic) -> (Sent, Received) {
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    let until = Until { linger: DRAIN, ..Until::stopped(&stop) };
    let mut receiver = Station::receiver("far", false).unwrap();
    let mut sender = Station::sender("out").unwrap();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut analysis = Analysis::new(true).unwrap();
            receiver.run(None, Some(&mut analysis), &until, &Progress::default()).unwrap();
            analysis.report(receiver.kernel_drops())
        });
        let guard = Stop(&stop);
        let generator = Generator::new(traffic, Some(PACKETS)).unwrap();
        let sent = sender.run(Some(generator), None, &until, &progress).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(guard);
        (sent, receiving.join().unwrap())
    })
}

#[test]
#[ignore = "needs root"]
fn all_that_is_sent_at_a_modest_rate_arrives_whole_and_in_order() {
    pair();
    for traffic in [
        modest(),
        Traffic { size: Size::Imix, order: Order::Zipf, ..modest() },
        v6(modest()),
        Traffic { vlan: Some(12), size: Size::Bytes(68), ..modest() },
        Traffic { protocol: Protocol::TcpSyn, order: Order::InOrder, ..modest() },
        geneve(modest()),
        Traffic { size: Size::Bytes(1518), ..v6(modest()) },
    ] {
        let (sent, received) = one_way(&traffic);
        assert_eq!((sent.frames, sent.refused), (PACKETS, 0), "{traffic:?}");
        assert_eq!(received.frames, PACKETS, "{traffic:?}: {received:?}");
        assert_eq!(received.bytes, sent.bytes);
        let is_udp = traffic.protocol == Protocol::Udp;
        assert_eq!(received.stamped, if is_udp { PACKETS } else { 0 }, "{traffic:?}");
        assert_eq!(received.stamped, sent.stamped);
        assert_eq!(received.other, PACKETS - received.stamped);
        let wrong = [received.lost, received.reordered, received.duplicates, received.corrupt];
        assert_eq!((wrong, received.stale, received.kernel_dropped), ([0; 4], 0, 0));
        // 4,000 packets at 20,000 a second take a fifth of a second, and never less.
        assert!(sent.seconds > 0.199, "{sent:?}");
        if is_udp {
            let latency = received.latency;
            assert!(latency.min > 0 && latency.p50 >= latency.min, "{latency:?}");
            // Latency counts from the time at which a packet should have left.
            assert!(latency.max + 1000 >= sent.late_ns, "{latency:?} {sent:?}");
        }
    }
}

/// Sends these frames out of `out`, whatever they are.
fn send(frames: &[Vec<u8>]) {
    let rings = RingSizes::default();
    let (id, mode) = (UmemId(3), BindMode::Copy);
    let umem = Umem::create(UmemOptions { id, chunks: 512, fill_extra: 0, rings, mode }).unwrap();
    let options = OpenPort { fill_min: 0, ..OpenPort::veth("out", 0) };
    let mut port = AfXdpPort::open(&umem, &options).unwrap();
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    for burst in frames.chunks(32) {
        for bytes in burst {
            let mut frame = pool.take().unwrap();
            frame.fill(bytes).unwrap();
            port.send(frame).unwrap();
        }
        while port.sending() > 0 {
            port.flush();
            port.recycle(&mut pool);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_stream_that_was_tampered_with_is_counted_exactly() {
    pair();
    let mut writer = FrameWriter::new(&modest()).unwrap();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for _ in 0..1000 {
        let mut frame = vec![0; writer.next_len()];
        writer.next(&mut frame, 1).unwrap();
        frames.push(frame);
    }
    // 900 is corrupt (and so lost as well), 700 comes 50 places late, 500 comes three times, 100 to
    // 109 never, and one is somebody else's.
    frames[900][45] ^= 1;
    let late = frames.remove(700);
    frames.insert(750, late);
    let again = frames[500].clone();
    frames.splice(600..600, [again.clone(), again]);
    frames.drain(100..110);
    frames.push(vec![0xff; 60]);
    let stop = AtomicBool::new(false);
    let mut receiver = Station::receiver("far", false).unwrap();
    let received = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut analysis = Analysis::new(true).unwrap();
            let until = Until { linger: DRAIN, ..Until::stopped(&stop) };
            receiver.run(None, Some(&mut analysis), &until, &Progress::default()).unwrap();
            analysis.report(receiver.kernel_drops())
        });
        let guard = Stop(&stop);
        send(&frames);
        std::thread::sleep(Duration::from_millis(200));
        drop(guard);
        receiving.join().unwrap()
    });
    assert_eq!((received.frames, received.kernel_dropped), (1000 + 2 - 10 + 1, 0));
    assert_eq!((received.stamped, received.other, received.corrupt), (991, 1, 1));
    assert_eq!([received.lost, received.duplicates, received.reordered], [11, 2, 1]);
}

#[test]
#[ignore = "needs root"]
fn what_the_interface_does_not_take_is_not_counted_as_sent() {
    pair();
    run("ip link set far down");
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    let mut sender = Station::sender("out").unwrap();
    let generator = Generator::new(&modest(), Some(100)).unwrap();
    let sent = sender.run(Some(generator), None, &Until::stopped(&stop), &progress).unwrap();
    assert_eq!((sent.frames, sent.refused, sent.stamped), (0, 100, 100), "{sent:?}");
}

#[test]
#[ignore = "needs root"]
fn reflected_packets_all_come_back_also_in_a_tunnel() {
    pair();
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    let mut near = Station::receiver("out", false).unwrap();
    let mut far = Station::receiver("far", false).unwrap();
    let round_trips = std::thread::scope(|scope| {
        let reflecting =
            scope.spawn(|| far.reflect(&Until::stopped(&stop), &Progress::default()).unwrap());
        let guard = Stop(&stop);
        let kinds = [modest(), v6(modest()), geneve(modest()), v6(geneve(modest()))];
        for traffic in &kinds {
            let until = Until { linger: Duration::from_secs(1), ..Until::stopped(&stop) };
            let mut analysis = Analysis::new(true).unwrap();
            let generator = Generator::new(traffic, Some(PACKETS)).unwrap();
            let sent = near.run(Some(generator), Some(&mut analysis), &until, &progress).unwrap();
            let back = analysis.report(near.kernel_drops());
            assert_eq!((sent.frames, back.frames, back.stamped), (PACKETS, PACKETS, PACKETS));
            assert_eq!([back.lost, back.reordered, back.duplicates, back.corrupt], [0; 4]);
        }
        drop(guard);
        (reflecting.join().unwrap(), kinds.len() as u64 * PACKETS)
    });
    let (reflected, all) = round_trips;
    assert_eq!((reflected.received, reflected.sent), (all, all));
    assert_eq!((reflected.other, reflected.full, reflected.kernel_dropped), (0, 0, 0));
}

#[test]
#[ignore = "needs root"]
fn live_frames_are_the_same_packets() {
    pair();
    let stop = AtomicBool::new(false);
    let mut receiver = Station::receiver("far", true).unwrap();
    for traffic in [modest(), Traffic { size: Size::Imix, ..modest() }, v6(geneve(modest()))] {
        stop.store(false, Ordering::Relaxed);
        let until = Until { linger: DRAIN, ..Until::stopped(&stop) };
        let (sent, received) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let mut analysis = Analysis::new(true).unwrap();
                receiver.run(None, Some(&mut analysis), &until, &Progress::default()).unwrap();
                analysis.report(receiver.kernel_drops())
            });
            let guard = Stop(&stop);
            let running = LiveFrames::start(&traffic, "out", None, Some(PACKETS)).unwrap();
            while !running.is_done() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let sent = running.stop().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            drop(guard);
            (sent, receiving.join().unwrap())
        });
        assert_eq!((sent.frames, sent.refused), (PACKETS, 0), "{traffic:?}");
        assert_eq!((received.frames, received.stamped), (PACKETS, PACKETS), "{received:?}");
        let wrong = [received.lost, received.reordered, received.duplicates, received.corrupt];
        assert_eq!((wrong, received.kernel_dropped), ([0; 4], 0), "{traffic:?}");
    }
}

/// Two namespaces by name with a veth pair between them; gone when dropped.
struct Named(String);

impl Named {
    fn new() -> Self {
        let (one, other) =
            (format!("ovq-w{}a", std::process::id()), format!("ovq-w{}b", std::process::id()));
        let named = Self(one.clone());
        run(&format!("ip netns add {one}"));
        run(&format!("ip netns add {other}"));
        for name in [&one, &other] {
            // So that the kernel does not speak unasked.
            let quiet = "sysctl -qw net.ipv6.conf.default.disable_ipv6=1";
            run(&format!("ip netns exec {name} {quiet}"));
        }
        run(&format!("ip -n {one} link add out type veth peer name far netns {other}"));
        run(&format!("ip -n {one} link set out up"));
        run(&format!("ip -n {other} link set far up"));
        named
    }

    fn other(&self) -> String {
        format!("{}b", self.0.trim_end_matches('a'))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        for name in [self.0.clone(), self.other()] {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn perf(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlane-perf"));
    command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a command and waits until it says that it is ready.
fn started(line: &str) -> Child {
    let mut child = perf(line).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("ing at "), "{said}");
    child
}

fn result(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    document["result"].clone()
}

fn interrupted(child: Child) -> serde_json::Value {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    result(&child.wait_with_output().unwrap())
}

const TO: &str = "--from 10.0.0.1 --to 10.0.0.2 --to-mac 02:00:00:00:00:02";

#[test]
#[ignore = "needs root"]
fn the_commands_work_in_their_namespaces_and_leave_nothing_behind() {
    let named = Named::new();
    let (one, other) = (&named.0, named.other());
    let receiver = started(&format!("receive far --netns {other} -o json"));
    let line =
        format!("generate out --netns {one} {TO} --flows 100 --rate 20k --packets 4000 -o json");
    let sent = result(&perf(&line).output().unwrap());
    assert_eq!(sent["sent"]["frames"], 4000, "{sent}");
    assert_eq!(sent["generator"], "af-xdp");
    std::thread::sleep(Duration::from_millis(200));
    let received = interrupted(receiver);
    assert_eq!((&received["frames"], &received["lost"]), (&4000.into(), &0.into()), "{received}");

    run(&format!("ip netns exec {other} ethtool -K far gro on"));
    let sink = started(&format!("receive far --sink --netns {other} -o json"));
    let line = format!("generate out --live --netns {one} {TO} --packets 50000 --cpu 0 -o json");
    let sent = result(&perf(&line).output().unwrap());
    let frames = sent["sent"]["frames"].as_u64().unwrap();
    assert_eq!(frames + sent["sent"]["refused"].as_u64().unwrap(), 50_000, "{sent}");
    assert_eq!(interrupted(sink)["frames"].as_u64(), Some(frames));

    for live in ["--live", ""] {
        let child = started(&format!("generate out {live} --netns {one} {TO} -o json"));
        std::thread::sleep(Duration::from_millis(700));
        let sent = interrupted(child);
        assert!(sent["sent"]["frames"].as_u64().unwrap() > 0, "{sent}");
    }

    let reflector = started(&format!("reflect far --netns {other} -o json"));
    result(
        &perf(&format!("generate out --netns {one} {TO} --packets 500 --rate 5k -o json"))
            .output()
            .unwrap(),
    );
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(interrupted(reflector)["sent"], 500);

    let left = run(&format!("ip -n {other} -d link show far"))
        + &run(&format!("tc -n {other} qdisc show dev far"));
    assert!(!left.contains("xdp") && !left.contains("clsact"), "{left}");
}

#[test]
#[ignore = "needs root"]
fn wrong_interfaces_are_named() {
    let named = Named::new();
    let failed = |line: &str| {
        let output = perf(line).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = failed(&format!("generate nosuch --netns {} {TO} --packets 1", named.0));
    assert!(code == Some(1) && text.contains("nosuch") && text.contains("--netns"), "{text}");
    let (code, text) = failed("receive far --netns ovq-nowhere --seconds 1");
    assert!(code == Some(1) && text.contains("ovq-nowhere"), "{text}");
    let mut holder = started(&format!("receive far --netns {} --seconds 5", named.other()));
    let (code, text) = failed(&format!("reflect far --netns {} --seconds 1", named.other()));
    assert!(code == Some(1) && text.contains("far"), "{text}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn wrong_arguments_are_refused_with_2() {
    let failed = |line: &str| {
        let output = perf(line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = failed(&format!("generate out {TO} --flows 70000"));
    assert!(text.contains("70000 flows") && text.contains("64512"), "{text}");
    assert!(failed(&format!("generate out {TO} --size 2000")).contains("2000"));
    assert!(failed(&format!("generate out {TO} --rate fast")).contains("500k"));
    assert!(failed(&format!("generate out {TO} --tunnel geneve")).contains("--tunnel-to"));
    assert!(
        failed("generate out --to 10.0.0.2 --from fd00::1 --to-mac 02:00:00:00:00:02")
            .contains("family")
    );
    assert!(failed("receive far --seconds -1").contains("-1"));
    assert!(failed("receive far --sink --busy").contains("--busy"));
}
