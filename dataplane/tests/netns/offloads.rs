//! What pods' kernels must not leave undone.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use etherparse::SlicedPacket;
use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::interface::{Interface, XdpSupport, xdp_support};
use overlane_dataplane::io::af_xdp::offload::prepare_veth;
use overlane_dataplane::packet::pool::FramePool;

use super::harness::*;

/// A named network namespace; removed even when the test fails.
struct NamedNamespace(String);

impl NamedNamespace {
    fn new(role: &str) -> Self {
        let name = format!("ovl-io-{}-{role}", std::process::id());
        run(&format!("ip netns add {name}"));
        Self(name)
    }
}

impl Drop for NamedNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A process in a network namespace that has no name.
fn sleeper() -> Process {
    let process = Process::start("unshare --net sleep 60");
    // Until it is the sleeper, it may still be in our namespace.
    let comm = format!("/proc/{}/comm", process.0.id());
    while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
        std::thread::yield_now();
    }
    process
}

/// A namespace that is mounted where nobody looks.
struct HiddenNamespace(PathBuf);

impl HiddenNamespace {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ovl-io-{}-hidden", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let hidden = Self(path);
        run(&format!("unshare --net={} true", hidden.0.display()));
        hidden
    }
}

impl Drop for HiddenNamespace {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Lines of `ethtool -k` for what must be off.
fn offloads(ethtool: &str) -> Vec<&str> {
    let wanted = [
        "tx-checksumming:",
        "tcp-segmentation-offload:",
        "generic-segmentation-offload:",
        "tx-udp-segmentation:",
    ];
    ethtool.lines().map(str::trim).filter(|l| wanted.iter().any(|w| l.starts_with(w))).collect()
}

#[test]
#[ignore = "needs root"]
fn offloads_of_a_peer_in_a_named_namespace_are_switched_off() {
    private_namespace();
    let pod = NamedNamespace::new("named");
    run(&format!("ip link add pod1 mtu 1500 type veth peer name eth0 netns {}", pod.0));
    let show = format!("ip netns exec {} ethtool -k eth0", pod.0);
    assert!(run(&show).contains("tx-checksumming: on"), "otherwise this test proves nothing");
    let report = prepare_veth("pod1", Some(1414)).unwrap();
    let peer = report.peer.expect("the namespace has a name");
    assert_eq!((peer.name.as_str(), peer.mtu), ("eth0", 1414));
    for name in ["tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-udp-segmentation"] {
        assert!(peer.switched_off.iter().any(|f| f == name), "{name}: {:?}", peer.switched_off);
    }
    assert!(peer.still_on.is_empty(), "{:?}", peer.still_on);
    let after = run(&show);
    let after = offloads(&after);
    assert!(after.len() == 4 && after.iter().all(|l| l.contains(": off")), "{after:?}");
    let address = run(&format!("ip -n {} link show eth0", pod.0));
    assert!(address.contains(&peer.mac.to_string()) && address.contains("mtu 1414"), "{address}");
    // Again: nothing is left to be done.
    let again = prepare_veth("pod1", Some(1414)).unwrap().peer.unwrap();
    assert!(again.switched_off.is_empty() && again.mac == peer.mac);
}

#[test]
#[ignore = "needs root"]
fn a_peer_is_found_by_a_process_in_its_namespace_and_not_by_magic() {
    private_namespace();
    let sleeper = sleeper();
    run(&format!("ip link add pod1 type veth peer name eth0 netns {}", sleeper.0.id()));
    let peer = prepare_veth("pod1", None).unwrap().peer.expect("the process shows it");
    assert_eq!(peer.mtu, 1500);
    let hidden = HiddenNamespace::new();
    run("ip link add pod2 type veth peer name tmp0");
    run(&format!("ip link set tmp0 netns {}", hidden.0.display()));
    assert_eq!(prepare_veth("pod2", None).unwrap().peer, None);
    let no_veth = prepare_veth("lo", None).unwrap_err().to_string();
    assert!(no_veth.contains("lo has no other end"), "{no_veth}");
}

#[test]
#[ignore = "needs root"]
fn checksums_are_whole_once_the_pair_is_prepared() {
    private_namespace();
    veth("pod1", "eth0");
    run("ip addr add 10.9.0.2/24 dev eth0");
    run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0");
    let umem = umem(256);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut port = Steered::veth(&umem, "pod1");
    port.port.recycle(&mut pool);
    let socket = UdpSocket::bind("10.9.0.2:5000").unwrap();
    let mut is_valid = |port: &mut Steered| {
        socket.send_to(b"a datagram of an odd length", "10.9.0.1:7").unwrap();
        let frame = port.receive(&mut pool, 1).remove(0);
        let bytes = frame.bytes().to_vec();
        pool.give(frame);
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let etherparse::NetSlice::Ipv4(ip) = packet.net.unwrap() else { panic!("no IPv4") };
        let etherparse::TransportSlice::Udp(udp) = packet.transport.unwrap() else {
            panic!("no UDP")
        };
        let expected =
            udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
        udp.checksum() == expected
    };
    assert!(!is_valid(&mut port), "a veth leaves checksums to the other end");
    let report = prepare_veth("pod1", Some(1400)).unwrap();
    assert_eq!(report.peer.unwrap().name, "eth0");
    assert!(is_valid(&mut port));
    close_all(&umem, pool, vec![port.port]);
}

#[test]
#[ignore = "needs root"]
fn devices_are_described_as_iproute2_describes_them() {
    private_namespace();
    run("ip link add pod1 mtu 1450 address 02:aa:00:00:00:01 numrxqueues 4 numtxqueues 4 \
         type veth peer name eth0 numrxqueues 4 numtxqueues 4");
    let found = Interface::find("pod1").unwrap();
    assert_eq!((found.name.as_str(), found.mtu, found.is_up), ("pod1", 1450, false));
    assert_eq!(found.mac.to_string(), "02:aa:00:00:00:01");
    assert_eq!((found.queues.rx, found.queues.tx), (4, 4));
    assert_eq!(found.driver.as_deref(), Some("veth"));
    let other = Interface::find("eth0").unwrap();
    assert_eq!(found.peer.unwrap().index, other.index);
    assert_eq!(found.peer.unwrap().namespace, None);
    run("ethtool -L pod1 rx 2");
    run("ip link set pod1 up");
    let found = Interface::find("pod1").unwrap();
    assert_eq!((found.queues.rx, found.is_up), (2, true));
    let support = |name| xdp_support(name).unwrap().expect("this kernel is 6.3 or later");
    assert!(!support("pod1").native, "the pod sends on more queues than this end receives on");
    run("ethtool -L eth0 tx 2");
    let native = XdpSupport { native: true, redirect_target: false, zero_copy: false };
    assert_eq!(support("pod1"), native);
    run("ip link set eth0 up");
    run("ethtool -K eth0 gro on");
    assert_eq!(support("pod1"), XdpSupport { redirect_target: true, ..native });
    assert!(!support("lo").native);
    let missing = Interface::find("nosuch").unwrap_err().to_string();
    assert!(missing.contains("nosuch"), "{missing}");
    assert!(xdp_support("nosuch").is_err());
}
