//! The raw forwarder on veth pairs of this machine's kernel.
//!
//! Needs root: `cargo test -p overlane-perf --test raw -- --ignored --test-threads 1`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlane_bpf::PortSteering;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BindMode, OpenPort, RingSizes, Umem, UmemOptions};
use overlane_dataplane::io::{Port, VECTOR};
use overlane_dataplane::packet::pool::{FramePool, UmemId};
use overlane_perf::forward::{self, Plan};

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two veth pairs in a namespace of the calling thread's own: pod -- podport, uplink -- wire.
fn testbed() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    for (one, other) in [("pod", "podport"), ("wire", "uplink")] {
        run(&format!("ip link add {one} type veth peer name {other}"));
        run(&format!("ip link set {one} up"));
        run(&format!("ip link set {other} up"));
    }
}

/// A station at the far end of a pair.
struct Station {
    port: AfXdpPort,
    pool: FramePool,
    _steering: PortSteering,
}

impl Station {
    fn open(umem: &Umem, interface: &str) -> Self {
        let steering = PortSteering::attach(interface, 1).unwrap();
        let options = OpenPort { fill_min: 512, ..OpenPort::veth(interface, 0) };
        let mut port = AfXdpPort::open(umem, &options).unwrap();
        steering.register_socket(0, port.fd()).unwrap();
        let mut pool = FramePool::new(umem.depot().clone(), 64);
        port.recycle(&mut pool);
        Self { port, pool, _steering: steering }
    }

    fn send(&mut self, frames: impl Iterator<Item = Vec<u8>>) {
        self.port.recycle(&mut self.pool);
        for bytes in frames {
            let mut frame = self.pool.take().unwrap();
            frame.fill(&bytes).unwrap();
            self.port.send(frame).unwrap();
        }
        self.port.flush();
    }

    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let give_up = Instant::now() + Duration::from_secs(5);
        let mut arrived = Vec::new();
        while arrived.len() < count {
            let mut frames: ArrayVec<_, VECTOR> = ArrayVec::new();
            self.port.receive(&mut frames);
            for frame in frames {
                arrived.push(frame.bytes().to_vec());
                self.pool.give(frame);
            }
            self.port.recycle(&mut self.pool);
            assert!(Instant::now() < give_up, "{} of {count} frames arrived", arrived.len());
        }
        arrived
    }
}

/// Frame `mark`, 60 bytes and more.
fn packet(mark: usize) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5];
    bytes.extend((mark as u32).to_be_bytes());
    bytes.resize(60 + mark % 1400, mark as u8);
    bytes
}

const BURSTS: usize = 80;
/// No more than an idle port has free frames for, so that none is lost while the forwarder waits for a
/// CPU.
const BURST: usize = 12;

#[test]
#[ignore = "needs root"]
fn frames_pass_both_ways_unchanged_and_all_chunks_come_back() {
    let report = forwarded(&[]);
    for interface in &report.interfaces {
        assert!(interface.kicks > 0, "{interface:?}");
    }
    assert_eq!(report.bursts, None);
}

#[test]
#[ignore = "needs root"]
fn a_program_forwards_the_same_and_without_the_tx_rings() {
    let report = forwarded(&["--program", "--collect", "64", "--prefetch"]);
    let bursts = report.bursts.unwrap();
    let all = (2 * BURSTS * BURST) as u64;
    assert_eq!((bursts.sent, bursts.refused, bursts.failed), (all, 0, 0));
    assert!(bursts.runs > 0 && bursts.runs <= all, "{bursts:?}");
    assert!(report.interfaces.iter().all(|interface| interface.kicks == 0), "{report:?}");
}

#[derive(Debug, clap::Parser)]
struct Options {
    #[command(flatten)]
    tuning: forward::Tuning,
}

/// What the forwarder says after frames went both ways unchanged, none was lost and all chunks came
/// back.
fn forwarded(options: &[&str]) -> forward::Report {
    testbed();
    let Options { tuning } =
        clap::Parser::try_parse_from(std::iter::once(&"raw").chain(options)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let plan = Plan {
        inside: "podport".into(),
        outside: "uplink".into(),
        cpu: Some(0),
        duration: Some(Duration::from_secs(60)),
        tuning,
    };
    let forwarder = {
        let stop = stop.clone();
        std::thread::spawn(move || forward::run(&plan, &stop, || ready.send(()).unwrap()))
    };
    let rings = RingSizes { fill: 1024, completion: 1024, ..RingSizes::default() };
    let options =
        UmemOptions { id: UmemId(7), chunks: 4096, fill_extra: 0, rings, mode: BindMode::Copy };
    let umem = Umem::create(options).unwrap();
    let (mut pod, mut wire) = (Station::open(&umem, "pod"), Station::open(&umem, "wire"));
    is_ready.recv_timeout(Duration::from_secs(10)).expect("the forwarder starts");
    for burst in 0..BURSTS {
        let sent = || (burst * BURST..(burst + 1) * BURST).map(packet);
        pod.send(sent());
        wire.send(sent());
        assert!(wire.receive(BURST).into_iter().eq(sent()), "burst {burst}, out");
        assert!(pod.receive(BURST).into_iter().eq(sent()), "burst {burst}, back");
    }
    stop.store(true, Ordering::Relaxed);
    let report = forwarder.join().unwrap().unwrap();
    for way in [report.out, report.back] {
        let all = (BURSTS * BURST) as u64;
        assert_eq!((way.received, way.sent, way.dropped), (all, all, 0));
    }
    for interface in &report.interfaces {
        assert_eq!((interface.rx_dropped, interface.rx_ring_full), (0, 0), "{interface:?}");
    }
    assert!(report.is_whole(), "{report:?}");
    report
}

/// A namespace by name, gone when dropped.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
#[ignore = "needs root"]
fn the_command_enters_a_namespace_and_ends_by_a_signal_with_its_counters() {
    let named = Named(format!("ovq-raw{}", std::process::id()));
    let name = &named.0;
    run(&format!("ip netns add {name}"));
    run(&format!("ip -n {name} link add podport up type veth peer name pod"));
    run(&format!("ip -n {name} link add up0 up type veth peer name wire"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_overlane-perf"))
        .args(["raw", "podport", "up0", "--cpu", "0", "-o", "json", "--netns", name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "overlane-perf: forwarding between podport and up0");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &document["result"];
    assert_eq!(report["frames"], report["frames_back"]);
    assert_eq!(report["interfaces"][1]["name"], "up0");
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_overlane-perf"))
        .args(["raw", "ovq-none0", "ovq-none1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    // Without root, memory is refused before an interface is looked for.
    assert!(text.contains("ovq-none0") || text.contains("CAP_"), "{text}");
}
