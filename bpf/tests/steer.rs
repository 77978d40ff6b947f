//! Packet in, decision out, through the kernel's own test run of the loaded program.
//!
//! Every frame of the tables in `samples` must leave with its one reason, counted once, and so
//! must everything that is left of it when its end is cut off.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

#[path = "steer/connections.rs"]
mod connections;
#[path = "steer/samples.rs"]
mod samples;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use overlane_bpf::{Action, BpfError, Reason, SteerCounters, UplinkSettings, UplinkSteering};
use samples::{Sample, for_the_dataplane, for_the_kernel};

/// The program with its tables filled, and a socket that keeps its slot while it lives.
struct Uplink {
    steering: UplinkSteering,
    _socket: Option<OwnedFd>,
}

impl Uplink {
    fn without_socket() -> Self {
        let mut steering = UplinkSteering::load(1).expect("loading needs root");
        steering.configure(&settings()).unwrap();
        steering.set_node_addresses(&samples::node_addresses()).unwrap();
        steering.set_prefixes(&samples::prefixes()).unwrap();
        steering.set_snat_ports(Some(samples::SNAT_PORTS)).unwrap();
        steering.set_egress_addresses(&samples::egress_addresses()).unwrap();
        steering.set_service_addresses(&samples::service_addresses()).unwrap();
        steering.set_announced_addresses(&samples::service_addresses()).unwrap();
        steering.set_node_ports(&samples::node_ports()).unwrap();
        Self { steering, _socket: None }
    }

    fn new() -> Self {
        let mut uplink = Self::without_socket();
        let socket = xdp_socket();
        uplink.steering.register_socket(0, socket.as_raw_fd()).unwrap();
        uplink._socket = Some(socket);
        uplink
    }

    fn counts(&self) -> SteerCounters {
        self.steering.counters().unwrap()
    }

    /// The decision and its reason; fails unless exactly one reason was counted, once.
    fn decide(&self, frame: &[u8]) -> (Action, Reason) {
        let before = self.counts();
        let action = self.steering.decide(frame).unwrap();
        let after = self.counts();
        let moved: Vec<(Reason, u64)> = Reason::ALL
            .into_iter()
            .map(|reason| (reason, after.reason(reason) - before.reason(reason)))
            .filter(|(_, delta)| *delta != 0)
            .collect();
        let [(reason, 1)] = moved[..] else { panic!("counted {moved:?}") };
        (action, reason)
    }

    fn check(&self, sample: &Sample) {
        let action =
            if sample.reason.is_steered() { Action::ToDataplane } else { Action::ToKernel };
        assert_eq!(self.decide(&sample.frame), (action, sample.reason), "{}", sample.name);
    }
}

fn settings() -> UplinkSettings {
    UplinkSettings {
        geneve_port: Some(6081),
        vxlan_port: Some(4789),
        answer_neighbors: true,
        take_fragments: false,
    }
}

fn xdp_socket() -> OwnedFd {
    // SAFETY: no pointers are passed; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "AF_XDP socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
#[ignore = "needs root"]
fn overlay_frames_go_to_the_dataplane() {
    let uplink = Uplink::new();
    for sample in for_the_dataplane() {
        uplink.check(&sample);
    }
}

#[test]
#[ignore = "needs root"]
fn host_frames_go_to_the_kernel() {
    let uplink = Uplink::new();
    for sample in for_the_kernel() {
        uplink.check(&sample);
    }
}

#[test]
#[ignore = "needs root"]
fn cut_off_frames_are_steered_only_while_their_headers_are_whole() {
    let uplink = Uplink::new();
    for sample in for_the_dataplane() {
        for length in 14..sample.frame.len() {
            let (action, reason) = uplink.decide(&sample.frame[..length]);
            if length >= sample.headers {
                assert_eq!(
                    (action, reason),
                    (Action::ToDataplane, sample.reason),
                    "{}",
                    sample.name
                );
            } else {
                assert_eq!(action, Action::ToKernel, "{} cut to {length}", sample.name);
                assert!(!reason.is_steered());
            }
        }
    }
    for sample in for_the_kernel() {
        for length in 14..sample.frame.len() {
            let (action, _) = uplink.decide(&sample.frame[..length]);
            assert_eq!(action, Action::ToKernel, "{} cut to {length}", sample.name);
        }
    }
}

/// Each byte of each sample changed, one at a time: the program ends with one reason, and the
/// action is that reason's.
#[test]
#[ignore = "needs root"]
fn damaged_frames_have_one_reason_and_its_action() {
    let uplink = Uplink::new();
    for sample in for_the_dataplane() {
        for position in 0..sample.headers {
            for damage in [0x01, 0x10, 0xff] {
                let mut frame = sample.frame.clone();
                frame[position] ^= damage;
                let (action, reason) = uplink.decide(&frame);
                let steered = action == Action::ToDataplane;
                assert_eq!(steered, reason.is_steered(), "{} byte {position}", sample.name);
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn without_a_socket_the_kernel_gets_everything() {
    let uplink = Uplink::without_socket();
    let samples = for_the_dataplane();
    for sample in &samples {
        assert_eq!(uplink.steering.decide(&sample.frame).unwrap(), Action::ToKernel);
    }
    let counts = uplink.counts();
    let all = u64::try_from(samples.len()).unwrap();
    assert_eq!((counts.to_dataplane, counts.to_kernel, counts.fallback), (0, 0, all));
}

#[test]
#[ignore = "needs root"]
fn a_closed_socket_gives_the_queue_back_to_the_kernel() {
    let mut uplink = Uplink::new();
    let frame = &for_the_dataplane()[0].frame;
    assert_eq!(uplink.steering.decide(frame).unwrap(), Action::ToDataplane);
    uplink._socket = None;
    assert_eq!(uplink.steering.decide(frame).unwrap(), Action::ToKernel);
    let counts = uplink.counts();
    assert_eq!((counts.to_dataplane, counts.fallback), (1, 1));
}

#[test]
#[ignore = "needs root"]
fn nothing_is_steered_before_it_is_configured() {
    let steering = UplinkSteering::load(1).unwrap();
    let socket = xdp_socket();
    steering.register_socket(0, socket.as_raw_fd()).unwrap();
    for sample in for_the_dataplane() {
        assert_eq!(steering.decide(&sample.frame).unwrap(), Action::ToKernel, "{}", sample.name);
    }
    assert_eq!(steering.counters().unwrap().fallback, 0);
}

#[test]
#[ignore = "needs root"]
fn each_setting_switches_its_own_rule() {
    let mut uplink = Uplink::new();
    let only_vxlan = UplinkSettings { geneve_port: None, answer_neighbors: false, ..settings() };
    uplink.steering.configure(&only_vxlan).unwrap();
    let reason = |frame: Vec<u8>| uplink.decide(&frame).1;
    assert_eq!(reason(samples::tunnel_v4(4789)), Reason::Tunnel);
    assert_eq!(reason(samples::tunnel_v4(6081)), Reason::Other);
    assert_eq!(reason(samples::tunnel_v4(0)), Reason::Other, "0 is off, not a port");
    assert_eq!(reason(samples::arp(1, samples::POD_V4)), Reason::Other);
    assert_eq!(reason(samples::solicitation(samples::POD_V6, 255, 0)), Reason::Group);
}

#[test]
#[ignore = "needs root"]
fn a_neighbor_probe_sent_to_the_pod_itself_is_answered_too() {
    let mut uplink = Uplink::new();
    let probe = samples::probe(samples::POD_V6);
    assert_eq!(uplink.decide(&probe), (Action::ToDataplane, Reason::Neighbor));
    uplink.steering.configure(&UplinkSettings { answer_neighbors: false, ..settings() }).unwrap();
    assert_eq!(uplink.decide(&probe).1, Reason::Prefix, "still a packet to a pod");
}

#[test]
#[ignore = "needs root"]
fn tables_are_replaced_not_added_to() {
    let mut uplink = Uplink::new();
    uplink.steering.set_egress_addresses(&[]).unwrap();
    let to_pod = samples::udp_v4(samples::POD_V4, 80);
    let to_pod_v6 = samples::udp_v6(samples::POD_V6, 80);
    let tunnel = samples::tunnel_v4(6081);

    uplink.steering.set_prefixes(&["10.244.1.0/25".parse().unwrap()]).unwrap();
    assert_eq!(uplink.decide(&to_pod).1, Reason::Prefix, "the narrower prefix holds it too");
    assert_eq!(uplink.decide(&to_pod_v6).1, Reason::Other);
    uplink.steering.set_prefixes(&["0.0.0.0/0".parse().unwrap()]).unwrap();
    assert_eq!(uplink.decide(&to_pod).1, Reason::Prefix);
    uplink.steering.set_prefixes(&[]).unwrap();
    assert_eq!(uplink.decide(&to_pod).1, Reason::Other);

    uplink.steering.set_node_addresses(&["10.0.9.9".parse().unwrap()]).unwrap();
    assert_eq!(uplink.decide(&tunnel).1, Reason::Other);
    uplink.steering.set_node_addresses(&["::ffff:10.0.1.4".parse().unwrap()]).unwrap();
    assert_eq!(uplink.decide(&tunnel).1, Reason::Tunnel);
}

#[test]
#[ignore = "needs root"]
fn what_does_not_fit_changes_nothing() {
    let mut uplink = Uplink::new();
    let many: Vec<_> = (0..65_537_u32).map(|n| std::net::Ipv4Addr::from(n + 1).into()).collect();
    let refusal = uplink.steering.set_node_addresses(&many).unwrap_err();
    assert!(matches!(refusal, BpfError::TableFull { limit: 65_536, .. }), "{refusal}");
    assert_eq!(uplink.decide(&samples::tunnel_v4(6081)).1, Reason::Tunnel);
    assert_eq!(uplink.decide(&samples::udp_v4("0.0.0.1".parse().unwrap(), 6081)).1, Reason::Other);
}

#[test]
#[ignore = "needs root"]
fn snat_ports_are_a_range_with_both_ends_and_can_be_off() {
    let mut uplink = Uplink::new();
    let reason = |uplink: &Uplink, port| uplink.decide(&connections::answer_v4(port)).1;
    for (port, expected) in [
        (10_239, Reason::Other),
        (10_240, Reason::Egress),
        (29_999, Reason::Egress),
        (30_000, Reason::Other),
    ] {
        assert_eq!(reason(&uplink, port), expected, "{port}");
    }
    uplink.steering.configure(&settings()).unwrap();
    assert_eq!(reason(&uplink, 20_000), Reason::Egress, "other settings leave it as it is");
    uplink.steering.set_snat_ports(Some(20_000..=20_000)).unwrap();
    assert_eq!(reason(&uplink, 20_000), Reason::Egress);
    assert_eq!(reason(&uplink, 20_001), Reason::Other);
    uplink.steering.set_snat_ports(Some(0..=65_535)).unwrap();
    assert_eq!(reason(&uplink, 0), Reason::Other, "0 is no port");
    assert_eq!(reason(&uplink, 65_535), Reason::Egress);
    #[allow(clippy::reversed_empty_ranges)]
    for off in [None, Some(0..=0), Some(9..=8)] {
        uplink.steering.set_snat_ports(off).unwrap();
        for port in [0, 1, 9, 20_000] {
            assert_eq!(reason(&uplink, port), Reason::Other);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn fragments_are_taken_when_asked_for() {
    let mut uplink = Uplink::new();
    let fragments = connections::fragments();
    for sample in &fragments {
        assert!(!uplink.decide(&sample.frame).1.is_steered(), "{}", sample.name);
    }
    let asked = UplinkSettings { take_fragments: true, ..settings() };
    uplink.steering.configure(&asked).unwrap();
    for sample in &fragments {
        uplink.check(sample);
    }
    uplink.steering.set_snat_ports(None).unwrap();
    for sample in &fragments {
        // NodePorts are still there.
        let is_steered = uplink.decide(&sample.frame).1.is_steered();
        assert_eq!(is_steered, !sample.name.ends_with("pool"), "{} without ports", sample.name);
    }
    for sample in &connections::other_fragments() {
        uplink.check(sample);
    }
}

#[test]
#[ignore = "needs root"]
fn an_address_can_be_several_things_and_stop_being_one() {
    let mut uplink = Uplink::new();
    let node: std::net::IpAddr = "10.0.1.4".parse().unwrap();
    let answer = connections::answer_v4(20_000);
    let tunnel = samples::tunnel_v4(6081);
    let node_port = connections::to_node_port_v4();
    let reasons =
        |uplink: &Uplink| [&tunnel, &answer, &node_port].map(|frame| uplink.decide(frame).1);
    assert_eq!(reasons(&uplink), [Reason::Tunnel, Reason::Egress, Reason::NodePort]);
    // A service's address as well: the host keeps what is its own.
    uplink.steering.set_service_addresses(&[node]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Tunnel, Reason::Egress, Reason::NodePort]);
    assert_eq!(uplink.decide(&connections::ssh_v4()).1, Reason::Other);
    uplink.steering.set_egress_addresses(&[]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Tunnel, Reason::Other, Reason::NodePort]);
    uplink.steering.set_egress_addresses(&[node]).unwrap();
    uplink.steering.set_node_ports(&[(17, 30_080)]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Tunnel, Reason::Egress, Reason::Other]);
    // No longer the node's: now it is the service's alone.
    uplink.steering.set_node_addresses(&[]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Service; 3]);
    uplink.steering.set_service_addresses(&[]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Other, Reason::Egress, Reason::Other]);
    uplink.steering.set_egress_addresses(&[]).unwrap();
    assert_eq!(reasons(&uplink), [Reason::Other; 3]);
}

#[test]
#[ignore = "needs root"]
fn announced_addresses_are_answered_for_whatever_the_settings() {
    let mut uplink = Uplink::new();
    uplink.steering.configure(&UplinkSettings::default()).unwrap();
    let vips = samples::service_addresses();
    for (announced, expected) in [(&vips[..], Reason::Neighbor), (&[], Reason::Other)] {
        uplink.steering.set_announced_addresses(announced).unwrap();
        for frame in connections::questions_for(samples::VIP_V4, samples::VIP_V6) {
            let (action, reason) = uplink.decide(&frame);
            match reason {
                // A packet to a service, whatever it asks: the dataplane gives it back.
                Reason::Service => assert_eq!(announced.len(), 0),
                Reason::Group => assert_eq!((action, announced.len()), (Action::ToKernel, 0)),
                reason => assert_eq!(reason, expected),
            }
        }
    }
    // Not only services': those of NAT gateways are announced as well.
    let pool = || connections::questions_for(samples::POOL_V4, samples::POOL_V6);
    for frame in pool() {
        assert_eq!(uplink.decide(&frame).0, Action::ToKernel);
    }
    let addresses = [samples::POOL_V4.into(), samples::POOL_V6.into()];
    uplink.steering.set_announced_addresses(&addresses).unwrap();
    for frame in pool() {
        assert_eq!(uplink.decide(&frame), (Action::ToDataplane, Reason::Neighbor));
    }
    for frame in connections::questions_for(samples::PEER_V4, samples::PEER_V6) {
        assert_eq!(uplink.decide(&frame).0, Action::ToKernel, "another's");
    }
    // The host answers for what is its own, whoever announces it.
    uplink.steering.set_announced_addresses(&samples::node_addresses()).unwrap();
    for frame in connections::questions_for(samples::NODE_V4, samples::NODE_V6) {
        assert_eq!(uplink.decide(&frame).0, Action::ToKernel, "the host's");
    }
}

#[test]
#[ignore = "needs root"]
fn only_xdp_sockets_on_known_queues_are_registered() {
    let steering = UplinkSteering::load(2).unwrap();
    let socket = xdp_socket();
    steering.register_socket(1, socket.as_raw_fd()).unwrap();
    let refusal = steering.register_socket(2, socket.as_raw_fd()).unwrap_err();
    assert!(matches!(refusal, BpfError::NoSuchQueue { queue: 2, queues: 2 }), "{refusal}");
    let file = File::open("/dev/null").unwrap();
    let not_sockets: [RawFd; 2] = [file.as_raw_fd(), -1];
    for fd in not_sockets {
        let refusal = steering.register_socket(0, fd).unwrap_err();
        assert!(refusal.to_string().contains("AF_XDP"), "{refusal}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_frame_without_an_ethernet_header_cannot_be_asked_about() {
    let refusal = UplinkSteering::load(1).unwrap().decide(&[0; 13]).unwrap_err();
    assert!(matches!(refusal, BpfError::TestRun { length: 13, .. }), "{refusal}");
}
