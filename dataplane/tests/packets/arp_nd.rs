//! ARP and neighbour discovery: everything is behind the gateway; nothing is carried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation};
use overlane_api::{Announcement, Change, MacAddr, Mode, Object, ObjectKey, Underlay, WorkerId};
use overlane_dataplane::node::announce::announcements;
use overlane_dataplane::packet::verdict::PortId;
use overlane_dataplane::testing::{Place, node, objects};
use overlane_dataplane::worker::Command;

use super::bed::{Bed, FORWARDED, TO_HOST, UPLINK, pod};
use super::build::{
    Body, Packet, down, ethernet, from_host, gateway_ip, node_ip, packet, pod_ip, to_host, udp, up,
};

const BROADCAST: MacAddr = MacAddr([0xff; 6]);
const NOBODY: MacAddr = MacAddr([0; 6]);

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("IPv4") };
    address
}

fn v6(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(address) = address else { panic!("IPv6") };
    address
}

/// An ARP message from `(MAC, address)` about `(MAC, address)`, in a frame to `to`.
fn arp(
    operation: ArpOperation,
    to: MacAddr,
    (sender_mac, sender): (MacAddr, IpAddr),
    (target_mac, target): (MacAddr, IpAddr),
) -> Vec<u8> {
    let message = ArpEthIpv4Packet {
        operation,
        sender_mac: sender_mac.0,
        sender_ipv4: v4(sender).octets(),
        target_mac: target_mac.0,
        target_ipv4: v4(target).octets(),
    };
    ethernet((sender_mac, to), 0x0806, &message.to_bytes())
}

/// A neighbour solicitation.
fn solicit((mac, source): (MacAddr, Ipv6Addr), target: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let mut octets = target.octets();
    let group = Ipv6Addr::from({
        let [.., a, b, c] = octets;
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]
    });
    let mut quoted = std::mem::take(&mut octets).to_vec();
    if !source.is_unspecified() {
        quoted.extend([1, 1]);
        quoted.extend(mac.0);
    }
    let to =
        MacAddr([0x33, 0x33, 0xff, target.octets()[13], target.octets()[14], target.octets()[15]]);
    packet(source.into(), group.into(), Body::Error(135, 0, 0, quoted))
        .ttl(hop_limit)
        .frame((mac, to))
}

/// The advertisement that answers it: router, solicited, override.
fn advertise(macs: (MacAddr, MacAddr), target: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    advertise_with(0xe000_0000, macs, target, to)
}

fn advertise_with(flags: u32, macs: (MacAddr, MacAddr), target: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(macs.0.0);
    packet(target.into(), to.into(), Body::Error(136, 0, flags, body)).ttl(255).frame(macs)
}

#[test]
fn a_pods_questions_are_answered_with_the_gateways_mac() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let me = (objects::pod_mac(0, 0), pod_ip(0, 0, 0));
    let gateway = objects::gateway_mac(0);
    let outside = "203.0.113.1".parse().unwrap();
    for target in [gateway_ip(0), pod_ip(0, 1, 0), pod_ip(1, 0, 0), node_ip(0, 0), outside] {
        for to in [BROADCAST, gateway] {
            let request = arp(ArpOperation::REQUEST, to, me, (NOBODY, target));
            let reply = arp(ArpOperation::REPLY, me.0, (gateway, target), me);
            // Padding to 60 bytes is legal and changes nothing that matters.
            let padded = [request.clone(), vec![0; 18]].concat();
            bed.step(&pod(0), &request, &[(pod(0), reply.clone())], FORWARDED);
            let answer = bed.one(&pod(0), &padded, &pod(0), FORWARDED);
            assert_eq!(answer[..42], reply);
        }
    }
    let (mac, source) = (me.0, v6(pod_ip(0, 0, 1)));
    let link_local: Ipv6Addr = "fe80::858:ff:fe00:0".parse().unwrap();
    for source in [source, link_local] {
        for target in [gateway_ip(1), pod_ip(0, 1, 1), pod_ip(1, 0, 1), node_ip(0, 1)] {
            let answer = advertise((gateway, mac), v6(target), source);
            let question = solicit((mac, source), v6(target), 255);
            bed.step(&pod(0), &question, &[(pod(0), answer)], FORWARDED);
        }
    }
    bed.close();
}

#[test]
fn what_asks_nothing_of_us_is_not_answered() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let me = (objects::pod_mac(0, 0), pod_ip(0, 0, 0));
    let unspecified: IpAddr = "0.0.0.0".parse().unwrap();
    let gateway = (objects::gateway_mac(0), gateway_ip(0));
    for (name, frame) in [
        ("gratuitous", arp(ArpOperation::REQUEST, BROADCAST, me, (NOBODY, me.1))),
        ("announced by a reply", arp(ArpOperation::REPLY, BROADCAST, me, me)),
        (
            "probe for its own",
            arp(ArpOperation::REQUEST, BROADCAST, (me.0, unspecified), (NOBODY, me.1)),
        ),
        (
            "probe for another's",
            arp(ArpOperation::REQUEST, BROADCAST, (me.0, unspecified), (NOBODY, gateway.1)),
        ),
        ("a reply", arp(ArpOperation::REPLY, gateway.0, me, gateway)),
    ] {
        println!("{name}");
        bed.drops(&pod(0), &frame, "neighbor_ignored");
    }
    let (mac, source) = (me.0, v6(pod_ip(0, 0, 1)));
    let link_local: Ipv6Addr = "fe80::858:ff:fe00:0".parse().unwrap();
    let gateway = v6(gateway_ip(1));
    for (name, frame) in [
        ("duplicate address detection", solicit((mac, Ipv6Addr::UNSPECIFIED), source, 255)),
        ("the same, link-local", solicit((mac, Ipv6Addr::UNSPECIFIED), link_local, 255)),
        ("for its own", solicit((mac, source), source, 255)),
        ("from beyond the link", solicit((mac, source), gateway, 254)),
        ("an advertisement", advertise((mac, objects::gateway_mac(0)), source, gateway)),
    ] {
        println!("{name}");
        bed.drops(&pod(0), &frame, "neighbor_ignored");
    }
    // Router solicitation: pods have their routes from elsewhere.
    let all_routers = "ff02::2".parse().unwrap();
    let question = packet(link_local.into(), all_routers, Body::Error(133, 0, 0, vec![])).ttl(255);
    bed.drops(
        &pod(0),
        &question.frame((mac, MacAddr([0x33, 0x33, 0, 0, 0, 2]))),
        "neighbor_ignored",
    );
    bed.close();
}

#[test]
fn a_pod_asks_in_its_own_name_only() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let (mac, other_mac) = (objects::pod_mac(0, 0), objects::pod_mac(0, 1));
    let target = (NOBODY, gateway_ip(0));
    let spoofed = arp(ArpOperation::REQUEST, BROADCAST, (mac, pod_ip(0, 1, 0)), target);
    bed.drops(&pod(0), &spoofed, "spoofed_source");
    let spoofed = arp(ArpOperation::REPLY, BROADCAST, (mac, gateway_ip(0)), target);
    bed.drops(&pod(0), &spoofed, "spoofed_source");
    let foreign = arp(ArpOperation::REQUEST, BROADCAST, (other_mac, pod_ip(0, 0, 0)), target);
    bed.drops(&pod(0), &foreign, "spoofed_mac");
    // The frame's source is right, the message's is not.
    let mut inside = arp(ArpOperation::REQUEST, BROADCAST, (mac, pod_ip(0, 0, 0)), target);
    inside[14 + 8..14 + 14].copy_from_slice(&other_mac.0);
    bed.drops(&pod(0), &inside, "spoofed_source");

    let gateway = v6(gateway_ip(1));
    bed.drops(&pod(0), &solicit((mac, v6(pod_ip(0, 1, 1))), gateway, 255), "spoofed_source");
    bed.drops(&pod(0), &solicit((other_mac, v6(pod_ip(0, 0, 1))), gateway, 255), "spoofed_mac");
    bed.close();
}

#[test]
fn a_message_cut_anywhere_is_dropped_by_name() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let me = (objects::pod_mac(0, 0), pod_ip(0, 0, 0));
    let request = arp(ArpOperation::REQUEST, BROADCAST, me, (NOBODY, gateway_ip(0)));
    for len in 1..request.len() {
        bed.drops(&pod(0), &request[..len], "frame_truncated");
    }
    // Another kind of hardware or protocol.
    for at in [0, 2, 4, 5] {
        let mut strange = request.clone();
        strange[14 + at] ^= 0x40;
        let got = bed.send(&pod(0), &strange, &[("received", 1), ("dropped.frame_truncated", 1)]);
        assert!(got.is_empty());
    }
    bed.close();
}

#[test]
fn the_hosts_questions_are_answered_too() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let gateway = objects::gateway_mac(0);
    let me = (node::HOST_MAC, node_ip(0, 0));
    for target in [gateway_ip(0), pod_ip(0, 0, 0)] {
        let request = arp(ArpOperation::REQUEST, BROADCAST, me, (NOBODY, target));
        let reply = arp(ArpOperation::REPLY, me.0, (gateway, target), me);
        bed.step(&Place::Host, &request, &[(Place::Host, reply)], FORWARDED);
    }
    let source = v6(node_ip(0, 1));
    let question = solicit((me.0, source), v6(gateway_ip(1)), 255);
    let answer = advertise((gateway, me.0), v6(gateway_ip(1)), source);
    bed.step(&Place::Host, &question, &[(Place::Host, answer)], FORWARDED);
    bed.close();
}

#[test]
fn the_gateway_answers_pings() {
    let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv6);
    for family in 0..2 {
        for (place, source, macs, back) in [
            (pod(0), pod_ip(0, 0, family), up(0), down(0)),
            (pod(1), pod_ip(0, 1, family), up(1), down(1)),
            (Place::Host, node_ip(0, family), from_host(), to_host()),
        ] {
            for payload in [&b""[..], b"odd", &[9; 1200]] {
                let body = Body::Echo(false, 77, 3, payload.to_vec());
                let ping = packet(source, gateway_ip(family), body);
                let pong = ping.reply(payload).frame(back);
                bed.step(&place, &ping.frame(macs), &[(place.clone(), pong)], FORWARDED);
            }
        }
        // Nothing else is there: a datagram, an answer that nobody asked for.
        let to_gateway = udp(pod_ip(0, 0, family), gateway_ip(family), b"x");
        bed.drops(&pod(0), &to_gateway.frame(up(0)), "no_route");
        let body = Body::Echo(true, 1, 1, vec![]);
        let pong = Packet { body, ..to_gateway.clone() };
        bed.drops(&pod(0), &pong.frame(up(0)), "no_route");
    }
    bed.close();
}

#[test]
fn a_gateway_is_pinged_from_its_own_link_only() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let ping = packet(pod_ip(1, 0, 0), gateway_ip(0), Body::Echo(false, 1, 1, vec![]));
    let tunnel = super::build::Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
    bed.drops(&UPLINK, &tunnel.wrap(&ping.frame(super::build::between(1, 0))), "no_route");
    bed.close();
}

#[test]
fn on_the_uplink_only_flat_mode_answers_and_only_for_pods() {
    for mode in [Mode::Geneve, Mode::Native, Mode::Flat] {
        let mut bed = Bed::new(mode, Underlay::Ipv4);
        let router = (node::NEXT_HOP_MAC, "10.0.0.1".parse().unwrap());
        let uplink = node::UPLINK_MAC;
        for (target, is_pod) in [
            (pod_ip(0, 0, 0), true),
            (pod_ip(0, 1, 0), true),
            (node_ip(0, 0), false),
            (pod_ip(1, 0, 0), false),
            (gateway_ip(0), false),
        ] {
            let request = arp(ArpOperation::REQUEST, BROADCAST, router, (NOBODY, target));
            if mode == Mode::Flat && is_pod {
                let reply = arp(ArpOperation::REPLY, router.0, (uplink, target), router);
                bed.step(&UPLINK, &request, &[(UPLINK, reply)], FORWARDED);
            } else {
                bed.step(&UPLINK, &request, &[(Place::Host, request.clone())], TO_HOST);
            }
        }
        let source: Ipv6Addr = "fd00:10::1".parse().unwrap();
        for (target, is_pod) in
            [(pod_ip(0, 0, 1), true), (node_ip(0, 1), false), (pod_ip(1, 0, 1), false)]
        {
            let question = solicit((router.0, source), v6(target), 255);
            if mode == Mode::Flat && is_pod {
                let answer = advertise((uplink, router.0), v6(target), source);
                bed.step(&UPLINK, &question, &[(UPLINK, answer)], FORWARDED);
            } else {
                bed.step(&UPLINK, &question, &[(Place::Host, question.clone())], TO_HOST);
            }
        }
        // Announcements and answers are for the host.
        let announced = arp(ArpOperation::REQUEST, BROADCAST, router, (NOBODY, router.1));
        bed.step(&UPLINK, &announced, &[(Place::Host, announced.clone())], TO_HOST);
        bed.close();
    }
}

const VIP: &str = "10.0.1.50";
const VIP_V6: &str = "fd00:10:0:1::50";

fn announcement(address: &str) -> Change {
    Change::Set(Object::Announcement(Announcement { address: address.parse().unwrap() }))
}

/// A node that is told to answer for an address of each family.
fn announcing(mode: Mode) -> Bed {
    let mut changes = objects::cluster(mode, Underlay::Ipv4, 1);
    changes.extend([VIP, VIP_V6].map(announcement));
    Bed::with(1, changes)
}

fn lease(bed: &mut Bed, is_leased: bool) {
    assert!(bed.node.bench().compiler.set_leased(is_leased));
    bed.node.publish();
}

/// Questions for an address, and the answers of a node that announces it.
fn questions(v4_target: &str, v6_target: &str) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let (uplink, asker) = (node::UPLINK_MAC, node::NEXT_HOP_MAC);
    let (target, target_v6) = (v4_target.parse().unwrap(), v6_target.parse().unwrap());
    let router = (asker, "10.0.0.1".parse().unwrap());
    let nobody = (asker, "0.0.0.0".parse().unwrap());
    let source: Ipv6Addr = "fd00:10::1".parse().unwrap();
    let (all_nodes, all_nodes_mac) =
        ("ff02::1".parse().unwrap(), MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    let mut unicast = solicit((asker, source), target_v6, 255);
    unicast[..6].copy_from_slice(&uplink.0);
    // The checksum covers the destination.
    let to_target = packet(source.into(), target_v6.into(), {
        let body = [&target_v6.octets()[..], &[1, 1], &asker.0].concat();
        Body::Error(135, 0, 0, body)
    });
    let unicast = [&unicast[..14], &to_target.ttl(255).frame((asker, uplink))[14..]].concat();
    vec![
        (
            "who has it",
            arp(ArpOperation::REQUEST, BROADCAST, router, (NOBODY, target)),
            arp(ArpOperation::REPLY, asker, (uplink, target), router),
        ),
        (
            "do you still have it",
            arp(ArpOperation::REQUEST, uplink, router, (NOBODY, target)),
            arp(ArpOperation::REPLY, asker, (uplink, target), router),
        ),
        (
            "may I have it (RFC 5227 section 2.1.1)",
            arp(ArpOperation::REQUEST, BROADCAST, nobody, (NOBODY, target)),
            arp(ArpOperation::REPLY, asker, (uplink, target), nobody),
        ),
        (
            "solicited: not a router, override",
            solicit((asker, source), target_v6, 255),
            advertise_with(0x6000_0000, (uplink, asker), target_v6, source),
        ),
        (
            "solicited at the address itself",
            unicast,
            advertise_with(0x6000_0000, (uplink, asker), target_v6, source),
        ),
        (
            "duplicate address detection: to all nodes, not solicited (RFC 4861 section 7.2.4)",
            solicit((asker, Ipv6Addr::UNSPECIFIED), target_v6, 255),
            advertise_with(0x2000_0000, (uplink, all_nodes_mac), target_v6, all_nodes),
        ),
    ]
}

/// The question is left to the host; one that was sent to the uplink is addressed to it.
#[track_caller]
fn hosts(bed: &mut Bed, question: &[u8]) {
    let mut given = question.to_vec();
    if given.starts_with(&node::UPLINK_MAC.0) {
        let (from, to) = to_host();
        given[..12].copy_from_slice(&[to.0, from.0].concat());
    }
    bed.step(&UPLINK, question, &[(Place::Host, given)], TO_HOST);
}

#[test]
fn announced_addresses_are_answered_for_on_the_uplink_in_every_mode() {
    for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native, Mode::Flat] {
        let mut bed = announcing(mode);
        lease(&mut bed, true);
        for (name, question, answer) in questions(VIP, VIP_V6) {
            println!("{mode}: {name}");
            bed.step(&UPLINK, &question, &[(UPLINK, answer)], FORWARDED);
        }
        for (name, question, _) in questions("10.0.1.51", "fd00:10:0:1::51") {
            println!("{mode}: another's: {name}");
            hosts(&mut bed, &question);
        }
        bed.close();
    }
}

#[test]
fn an_announcement_out_of_force_is_answered_for_no_more_and_is_again_afterwards() {
    let mut bed = announcing(Mode::Geneve);
    let silent = |bed: &mut Bed| {
        for (_, question, _) in questions(VIP, VIP_V6) {
            hosts(bed, &question);
        }
    };
    let answers = |bed: &mut Bed| {
        for (_, question, answer) in questions(VIP, VIP_V6) {
            bed.step(&UPLINK, &question, &[(UPLINK, answer)], FORWARDED);
        }
    };
    silent(&mut bed);
    lease(&mut bed, true);
    answers(&mut bed);
    lease(&mut bed, false);
    silent(&mut bed);
    lease(&mut bed, true);
    answers(&mut bed);
    // Given to another node.
    let remove = [VIP, VIP_V6].map(|a| Change::Remove(ObjectKey::Announcement(a.parse().unwrap())));
    bed.node.apply(remove.to_vec()).unwrap();
    silent(&mut bed);
    bed.node.apply([VIP, VIP_V6].map(announcement).to_vec()).unwrap();
    answers(&mut bed);
    bed.close();
}

#[test]
fn what_asks_for_nothing_is_left_to_the_host_even_of_an_announced_address() {
    let mut bed = announcing(Mode::Geneve);
    lease(&mut bed, true);
    let (asker, target) = (node::NEXT_HOP_MAC, VIP.parse().unwrap());
    let own = (asker, target);
    let source: Ipv6Addr = VIP_V6.parse().unwrap();
    for (name, frame) in [
        ("another says it has it", arp(ArpOperation::REQUEST, BROADCAST, own, (NOBODY, target))),
        ("the same by a reply", arp(ArpOperation::REPLY, BROADCAST, own, own)),
        (
            "solicited from beyond the link",
            solicit((asker, "fd00:10::1".parse().unwrap()), source, 254),
        ),
        ("it asks for itself", solicit((asker, source), source, 255)),
    ] {
        println!("{name}");
        bed.step(&UPLINK, &frame, &[(Place::Host, frame.clone())], TO_HOST);
    }
    // A pod finds it behind the gateway as everything else.
    let me = (objects::pod_mac(0, 0), pod_ip(0, 0, 0));
    let gateway = objects::gateway_mac(0);
    let request = arp(ArpOperation::REQUEST, BROADCAST, me, (NOBODY, target));
    let reply = arp(ArpOperation::REPLY, me.0, (gateway, target), me);
    bed.step(&pod(0), &request, &[(pod(0), reply)], FORWARDED);
    bed.close();
}

#[test]
fn addresses_that_cannot_be_announced_are_refused_with_what_to_do() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let own = node_ip(0, 0).to_string();
    for (address, hint) in [
        (own.as_str(), "no node has"),
        ("0.0.0.0", "unicast"),
        ("224.0.0.1", "unicast"),
        ("::1", "unicast"),
        ("ff02::1", "unicast"),
    ] {
        let error = bed.node.apply(vec![announcement(VIP), announcement(address)]).unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
        assert!(error.to_string().contains(address), "{error}");
    }
    assert!(bed.node.bench().compiler.announced().is_empty(), "all of a list or none");
    bed.close();
}

#[test]
fn announcements_leave_by_the_uplink_and_are_accounted_for() {
    let mut bed = announcing(Mode::Geneve);
    let before = bed.node.counters();
    let mut expected = Vec::new();
    for address in [VIP, VIP_V6] {
        for frame in announcements(address.parse().unwrap(), node::UPLINK_MAC) {
            expected.push((UPLINK, frame.clone()));
            let command = Command::SendFrame { port: PortId(0), frame: frame.into() };
            bed.node.bench().tell(WorkerId(0), command);
        }
    }
    bed.node.run();
    super::bed::expect(&bed.node, &before, &[("received", 3), ("generated", 3), ("sent", 3)]);
    super::bed::assert_frames(&bed.node.collect(), &expected);
    // No such port any more: dropped by name.
    let before = bed.node.counters();
    let command = Command::SendFrame { port: PortId(77), frame: vec![0; 60].into() };
    bed.node.bench().tell(WorkerId(0), command);
    bed.node.run();
    let moved = [("received", 1), ("generated", 1), ("dropped.port_gone", 1)];
    super::bed::expect(&bed.node, &before, &moved);
    bed.close();
}
