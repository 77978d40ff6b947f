//! Namespaces, veth pairs and steered ports.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use overlane_bpf::PortSteering;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BindMode, OpenPort, RingSizes, Umem, UmemOptions};
use overlane_dataplane::io::{Port, VECTOR};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};

/// Runs a command line in the calling thread's namespace.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A running program; killed when the test is done with it, or fails.
pub struct Process(pub Child);

impl Process {
    pub fn start(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self(Command::new(words.next().unwrap()).args(words).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Moves the calling thread to a network namespace of its own, where no kernel speaks IPv6
/// unasked.
pub fn private_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    run("ip link set lo up");
}

/// A veth pair, both ends up.
pub fn veth(one: &str, other: &str) {
    run(&format!("ip link add {one} type veth peer name {other}"));
    run(&format!("ip link set {one} up"));
    run(&format!("ip link set {other} up"));
}

/// A UMEM for copies with a number of its own.
pub fn umem(chunks: u32) -> Umem {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let id = UmemId(NEXT.fetch_add(1, Ordering::Relaxed));
    let rings = RingSizes { fill: 2048, completion: 2048, ..RingSizes::default() };
    let mode = BindMode::Copy;
    Umem::create(UmemOptions { id, chunks, fill_extra: chunks / 2, rings, mode }).unwrap()
}

/// A port that gets all frames of its device.
pub struct Steered {
    pub port: AfXdpPort,
    _steering: PortSteering,
}

impl Steered {
    pub fn open(umem: &Umem, options: &OpenPort<'_>) -> Self {
        let steering = PortSteering::attach(options.interface, 1).unwrap();
        let port = AfXdpPort::open(umem, options).unwrap();
        steering.register_socket(options.queue, port.fd()).unwrap();
        Self { port, _steering: steering }
    }

    pub fn veth(umem: &Umem, interface: &str) -> Self {
        Self::open(umem, &OpenPort::veth(interface, 0))
    }

    /// Receives until there are `count` frames; fails after two seconds.
    pub fn receive(&mut self, pool: &mut FramePool, count: usize) -> Vec<Frame> {
        let give_up = Instant::now() + Duration::from_secs(2);
        let mut frames = Vec::new();
        while frames.len() < count {
            let mut out: ArrayVec<Frame, VECTOR> = ArrayVec::new();
            self.port.receive(&mut out);
            frames.extend(out);
            self.port.recycle(pool);
            assert!(Instant::now() < give_up, "{} of {count} frames arrived", frames.len());
        }
        frames
    }
}

/// A port that only sends.
pub fn sender(umem: &Umem, interface: &str) -> AfXdpPort {
    let options = OpenPort { fill_min: 0, ..OpenPort::veth(interface, 0) };
    AfXdpPort::open(umem, &options).unwrap()
}

/// An Ethernet frame of `len` bytes between two made-up stations, with `mark` in its payload.
pub fn packet(len: usize, mark: u32) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5];
    bytes.extend(mark.to_be_bytes());
    bytes.extend((14..251).cycle().take(len - bytes.len()));
    bytes
}

/// A free frame with that packet.
pub fn frame_with(pool: &mut FramePool, bytes: &[u8]) -> Frame {
    let mut frame = pool.take().expect("a free frame");
    frame.fill(bytes).unwrap();
    frame
}

/// Sends one packet now.
pub fn send(port: &mut AfXdpPort, pool: &mut FramePool, bytes: &[u8]) {
    port.recycle(pool);
    let frame = frame_with(pool, bytes);
    port.send(frame).unwrap();
    port.flush();
}

/// Closes the ports and asserts that every chunk of the UMEM is free soon.
pub fn close_all(umem: &Umem, mut pool: FramePool, ports: Vec<AfXdpPort>) {
    for port in ports {
        assert_eq!(port.tx_counters().foreign_addresses, 0);
        let drops = port.kernel_drops();
        assert_eq!((drops.rx_invalid, drops.tx_invalid), (0, 0));
        let sleeps = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches();
        let before = sleeps();
        port.close(&mut pool);
        assert_eq!(sleeps(), before, "a worker must not wait for the kernel");
    }
    pool.drain();
    let give_up = Instant::now() + Duration::from_secs(5);
    while umem.depot().free() != umem.depot().chunks() {
        let free = umem.depot().free();
        assert!(Instant::now() < give_up, "{free} of {} chunks came back", umem.depot().chunks());
        std::thread::sleep(Duration::from_millis(5));
    }
}
