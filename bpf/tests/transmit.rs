//! Bursts through the program that sends, between two network namespaces of the test's own.
//!
//! ```text
//!   namespace ovlbpf-tx-PID-N-a: near0  <== veth ==>  far0 :namespace ...-b
//!             the program here   near1  <== veth ==>  far1
//! ```
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use overlane_bpf::{Transmitted, Transmitter};

/// EtherType of the test's frames: for local experiments.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}: {status} (these tests need root)");
}

/// Two namespaces, gone when dropped.
struct Bed {
    near: String,
    far: String,
}

impl Bed {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ovlbpf-tx-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bed = Self { near: format!("{name}-a"), far: format!("{name}-b") };
        let Self { near, far } = &bed;
        for name in [near, far] {
            run(&format!("ip netns add {name}"));
            run(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.default.disable_ipv6=1"));
        }
        for pair in 0..2 {
            let peer = format!("peer name far{pair} netns {far}");
            run(&format!("ip -n {near} link add near{pair} type veth {peer}"));
            run(&format!("ip -n {near} link set near{pair} up"));
            run(&format!("ip -n {far} link set far{pair} up"));
        }
        bed
    }

    /// Runs `work` on a thread inside the namespace.
    fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        thread::scope(|scope| {
            let inside = || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    fn index(name: &str, interface: &str) -> u32 {
        Self::inside(name, || nix::net::if_::if_nametoindex(interface).unwrap())
    }

    /// Receives from all interfaces of the far namespace.
    fn receiver(&self) -> OwnedFd {
        let open = || {
            let (raw, flags) = (SockType::Raw, SockFlag::SOCK_NONBLOCK);
            let socket = socket(AddressFamily::Packet, raw, flags, SockProtocol::EthAll).unwrap();
            // A burst arrives at once.
            setsockopt(&socket, RcvBufForce, &(4 << 20)).unwrap();
            socket
        };
        Self::inside(&self.far, open)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// The test's frames that arrive, with the interface's number, until there are `count` of them.
fn arrived(receiver: &OwnedFd, count: usize) -> Vec<(usize, Vec<u8>)> {
    let (mut frames, mut buffer) = (Vec::new(), [0; 4096]);
    let give_up = Instant::now() + Duration::from_secs(5);
    while frames.len() < count {
        match recvfrom::<LinkAddr>(receiver.as_raw_fd(), &mut buffer) {
            Ok((length, from)) if buffer[12..14] == ETHER_TYPE => {
                frames.push((from.unwrap().ifindex(), buffer[..length].to_vec()));
            }
            // What the kernel says by itself.
            Ok(_) => {}
            Err(Errno::EAGAIN) => {
                assert!(Instant::now() < give_up, "{} of {count} arrived", frames.len());
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    frames
}

fn frame(mark: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    frame.extend(ETHER_TYPE);
    frame.resize(length, mark);
    frame
}

#[test]
#[ignore = "needs root"]
fn a_burst_leaves_by_the_interfaces_that_it_names_whole_and_in_order() {
    let bed = Bed::new();
    let receiver = bed.receiver();
    let near = [0, 1].map(|pair| Bed::index(&bed.near, &format!("near{pair}")));
    let far = [0, 1].map(|pair| Bed::index(&bed.far, &format!("far{pair}")) as usize);
    // Long behind short and short behind long, so that no frame shows what another one left.
    let length = |number: usize| [60, 1514, 61, 14, 700][number % 5];
    let burst = |turn: usize| {
        (0..Transmitter::BURST).map(move |number| {
            let pair = (number + turn) % 3 % 2;
            (pair, frame((number + turn) as u8, length(number)))
        })
    };
    Bed::inside(&bed.near, || {
        let mut transmitter = Transmitter::load().unwrap();
        for turn in 0..3 {
            for (pair, bytes) in burst(turn) {
                assert!(transmitter.stage(near[pair], &bytes));
            }
            assert!(!transmitter.stage(near[0], &frame(0, 60)), "there is no room for more");
            transmitter.send().unwrap();
            assert_eq!(transmitter.staged(), 0);
            let seen = arrived(&receiver, Transmitter::BURST);
            for (pair, far) in far.iter().enumerate() {
                let seen = seen.iter().filter(|(index, _)| index == far);
                let sent = burst(turn).filter(|(to, _)| *to == pair);
                assert!(
                    seen.map(|(_, bytes)| bytes.clone()).eq(sent.map(|(_, bytes)| bytes)),
                    "turn {turn}, pair {pair}"
                );
            }
        }
        let sent = 3 * Transmitter::BURST as u64;
        assert_eq!(transmitter.transmitted(), Transmitted { sent, refused: 0 });
    });
}

#[test]
#[ignore = "needs root"]
fn what_no_interface_takes_is_counted_and_the_others_leave() {
    let bed = Bed::new();
    let receiver = bed.receiver();
    let (up, down) = (Bed::index(&bed.near, "near0"), Bed::index(&bed.near, "near1"));
    run(&format!("ip -n {} link set near1 down", bed.near));
    Bed::inside(&bed.near, || {
        let mut transmitter = Transmitter::load().unwrap();
        assert!(!transmitter.stage(up, &frame(0, 13)[..13]) && !transmitter.stage(up, &[0; 2041]));
        transmitter.send().unwrap();
        assert_eq!(transmitter.transmitted(), Transmitted::default(), "nothing was staged");
        let too_long = frame(9, 1800);
        let burst =
            [(up, frame(1, 60)), (down, frame(2, 60)), (9999, frame(3, 60)), (up, too_long)];
        for (index, bytes) in burst.iter().chain([&(up, frame(4, 60))]) {
            assert!(transmitter.stage(*index, bytes));
        }
        assert_eq!(transmitter.send().unwrap(), 3);
        assert_eq!(transmitter.transmitted(), Transmitted { sent: 2, refused: 3 });
        let asked = [up, down, 9999, up, 1].map(|index| transmitter.take_refused(index));
        assert_eq!(asked, [1, 1, 1, 0, 0], "each is told once, of its own interface");
        assert!(transmitter.stage(down, &frame(5, 60)) && transmitter.stage(up, &frame(6, 60)));
        assert_eq!((transmitter.send().unwrap(), transmitter.take_refused(up)), (1, 0));
        assert_eq!(transmitter.send().unwrap(), 0);
        assert_eq!(transmitter.take_refused(down), 0, "that was the send before");
        let marks: Vec<u8> = arrived(&receiver, 3).iter().map(|(_, bytes)| bytes[59]).collect();
        assert_eq!(marks, [1, 4, 6]);
    });
}
