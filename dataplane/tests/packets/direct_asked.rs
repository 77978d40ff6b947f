//! Direct server return by every address that a client outside may ask, and of every protocol: a load
//! balancer's, which all nodes know, and a node port, which is the port of the node that was asked.
//!
//! ```text
//! client 203.0.113.10 --> 10.0.1.4:30080 at a == Geneve, {10.0.1.4, 30080} ==> b --> pod :8080
//!        ^---------------------- from 10.0.1.4:30080 ----------------------'
//! ```
//! As in `direct`, the node under test is a: it is asked in the first half, and has the backend in the
//! second, where b is asked.

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{Forwarding, Frontend, FrontendKind, Mode, Object, Protocol, Service, Underlay};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, family_of, flow_of, inner_of, node_ip, packet, pod_ip,
    up,
};
use super::direct::{NODE_PORT, balancer, bed, client, direct, naming};
use super::egress::{OUT, outside};
use super::fragments::reassemble;
use super::icmp_error::{error, names, told};

const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];
const NO_PORT: [(u8, u8); 2] = [(3, 3), (1, 4)];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const HANDED_OVER: &[(&str, i64)] = &[("received", 2), ("sent", 2), ("handed_over", 1)];

/// What is asked, at which node's address when it is a node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Balancer,
    NodePort,
}

/// One way in.
#[derive(Debug, Clone, Copy)]
struct Case {
    tunnel: (Mode, Underlay),
    family: usize,
    protocol: Protocol,
    at: At,
}

impl Case {
    /// All of them.
    fn each(test: impl Fn(Self)) {
        for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
            for family in 0..2 {
                for protocol in PROTOCOLS {
                    for at in [At::Balancer, At::NodePort] {
                        test(Self { tunnel: (Mode::Geneve, underlay), family, protocol, at });
                    }
                }
            }
        }
    }

    /// The address that the client asks, if it is a node port at that node.
    fn asked(&self, node: u8) -> (IpAddr, u16) {
        match self.at {
            At::Balancer => (balancer(0, self.family), 80),
            At::NodePort => (node_ip(node, self.family), NODE_PORT),
        }
    }

    fn bed(&self, workers: u8, backend: (u8, u8)) -> Bed {
        bed(self.tunnel, workers, vec![direct(0, self.protocol, &[backend])])
    }

    /// Packet number `number` of a connection: is it one that names the service?
    fn body(&self, number: usize, to: u16) -> (Body, bool) {
        let from = client(self.family).1;
        match self.protocol {
            Protocol::Tcp => {
                let flags = [2, 16, 16, 17][number.min(3)];
                (Body::Segment(from, to, flags, b"segment"[..number * 2].to_vec()), number == 0)
            }
            Protocol::Udp => (Body::Udp(from, to, b"datagram"[..number * 2].to_vec()), true),
            Protocol::Sctp => {
                let (chunk, value) =
                    [(1, &[1; 16][..]), (10, b"cookie"), (0, b"data"), (7, b"1234")][number.min(3)];
                (Body::Sctp(from, to, chunk, value.to_vec()), number == 0)
            }
        }
    }

    /// What the client sends to the node under test.
    fn asks(&self, number: usize) -> (Packet, bool) {
        let (address, port) = self.asked(0);
        let (body, names) = self.body(number, port);
        (packet(client(self.family).0, address, body), names)
    }

    /// The same as pod number `backend` of `node` sees it.
    fn seen(&self, sent: &Packet, (node, backend): (u8, u8)) -> Packet {
        sent.between(client(self.family), (pod_ip(node, backend, self.family), 8080)).ttl(63)
    }

    /// A packet for the pod here, as b sends it on.
    fn by_b(&self, vip: Option<(IpAddr, u16)>, inner: &Packet) -> Vec<u8> {
        let outer = Tunnel::from_peer(1, self.tunnel.0, self.tunnel.1);
        let outer = vip.map_or(outer.clone(), |vip| naming(outer, vip));
        outer.wrap(&inner.frame(between(1, 0)))
    }

    /// Packet number `number` of a connection to pod `backend` here, as b sends it on.
    fn sent_on(&self, number: usize, backend: u8) -> (Packet, bool) {
        let (body, names) = self.body(number, 8080);
        (packet(outside(self.family), pod_ip(0, backend, self.family), body).ttl(63), names)
    }

    fn router(&self) -> IpAddr {
        ["198.18.0.1", "2001:db8:ffff::1"][self.family].parse().unwrap()
    }
}

/// What node b was sent: the packet inside, and whether the service was named.
#[track_caller]
fn to_b(case: &Case, frame: &[u8], seen: &Packet, vip: Option<(IpAddr, u16)>) {
    let mut outer = Tunnel::to_peer(1, case.tunnel.0, case.tunnel.1, flow_of(frame));
    if let Some(vip) = vip {
        outer = naming(outer, vip);
    }
    assert_eq!(frame, outer.wrap(&seen.frame(between(0, 1))), "{case:?}");
}

#[test]
fn the_node_that_is_asked_names_the_address_that_was_asked() {
    Case::each(|case| {
        for workers in [1, 2] {
            let mut bed = case.bed(workers, (1, 0));
            for number in 0..4 {
                let (sent, names) = case.asks(number);
                let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
                let vip = names.then_some(case.asked(0));
                to_b(&case, &frame, &case.seen(&sent, (1, 0)), vip);
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    });
}

#[test]
fn the_backends_node_answers_as_the_address_that_was_asked() {
    Case::each(|case| {
        for workers in [1, 2] {
            let last = workers - 1;
            let mut bed = case.bed(workers, (0, last));
            for number in 0..3 {
                let (inner, names) = case.sent_on(number, last);
                for queue in 0..usize::from(workers) {
                    let moved = if queue == usize::from(last) { FORWARDED } else { HANDED_OVER };
                    let frame = case.by_b(names.then_some(case.asked(1)), &inner);
                    let seen = inner.clone().ttl(62).frame(down(last));
                    bed.step(&Place::Uplink(queue), &frame, &[(pod(last), seen)], moved);
                }
                let reply = inner.reply(b"answer");
                let seen = reply.between(case.asked(1), client(case.family)).ttl(63);
                let out = (Place::Uplink(usize::from(last)), seen.frame(OUT));
                bed.step(&pod(last), &reply.frame(up(last)), &[out], FORWARDED);
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    });
}

#[test]
fn errors_about_the_answers_come_to_the_node_that_was_asked_and_go_on_to_the_backend() {
    Case::each(|case| {
        for workers in [1, 2] {
            let mut bed = case.bed(workers, (1, 0));
            let (sent, _) = case.asks(0);
            bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            let told = error(case.router(), &sent.reply(b"answer").ttl(9), TOO_BIG, 1300);
            let answer = case.seen(&sent, (1, 0)).reply(b"answer").ttl(9);
            let seen = error(case.router(), &answer, TOO_BIG, 1300).ttl(63);
            for queue in 0..usize::from(workers) {
                let moved = if queue == 0 { FORWARDED } else { HANDED_OVER };
                let frame = bed.one(&Place::Uplink(queue), &told.frame(IN), &UPLINK, moved);
                to_b(&case, &frame, &seen, None);
            }
            bed.close();
        }
    });
}

#[test]
fn errors_at_the_backends_node_go_both_ways() {
    Case::each(|case| {
        let mut bed = case.bed(1, (0, 0));
        let (inner, _) = case.sent_on(0, 0);
        let seen = inner.clone().ttl(62);
        let frame = case.by_b(Some(case.asked(1)), &inner);
        bed.step(&UPLINK, &frame, &[(pod(0), seen.frame(down(0)))], FORWARDED);
        // The pod's own, to the client, as the address that was asked.
        let about = error(pod_ip(0, 0, case.family), &seen, NO_PORT, 0);
        let asked = seen.between(client(case.family), case.asked(1));
        let out = error(case.asked(1).0, &asked, NO_PORT, 0).ttl(63);
        bed.step(&pod(0), &about.frame(up(0)), &[(UPLINK, out.frame(OUT))], FORWARDED);
        // A router's, which b sends on.
        let about = error(case.router(), &inner.reply(b"answer"), TOO_BIG, 1300).ttl(63);
        let seen = about.clone().ttl(62).frame(down(0));
        bed.step(&UPLINK, &case.by_b(None, &about), &[(pod(0), seen)], FORWARDED);
        bed.close();
    });
}

#[test]
fn the_option_takes_its_bytes_of_the_mtu_of_what_has_it() {
    Case::each(|case| {
        let mut bed = case.bed(1, (1, 0));
        let (first, _) = case.asks(0);
        bed.one(&UPLINK, &first.frame(IN), &UPLINK, FORWARDED);
        let (address, port) = case.asked(0);
        let whole = [1450, 1430][family_of(case.tunnel.1)];
        let sized = |len: usize| {
            let bytes = |header: usize| vec![5; len - [20, 40][case.family] - header];
            let body = match case.protocol {
                Protocol::Udp => Body::Udp(50_000, port, bytes(8)),
                Protocol::Tcp => Body::Segment(50_000, port, 16, bytes(20)),
                Protocol::Sctp => Body::Sctp(50_000, port, 0, bytes(16)),
            };
            packet(client(case.family).0, address, body)
        };
        let names = case.protocol == Protocol::Udp;
        // SCTP packets are a multiple of four bytes long.
        let mtu = (if names { whole - [12, 24][case.family] } else { whole }) & !3;
        let frame = bed.one(&UPLINK, &sized(mtu).frame(IN), &UPLINK, FORWARDED);
        let vip = names.then_some(case.asked(0));
        to_b(&case, &frame, &case.seen(&sized(mtu), (1, 0)), vip);
        let big = sized(mtu + 4);
        let limit = if names { whole - [12, 24][case.family] } else { whole };
        let answer = error(node_ip(0, case.family), &big, TOO_BIG, limit as u32);
        let moved = told("packet_too_big");
        bed.step(&UPLINK, &big.frame(IN), &[(UPLINK, answer.frame(OUT))], &names_of(&moved));
        bed.close();
    });
}

fn names_of(moved: &[(String, i64)]) -> Vec<(&str, i64)> {
    names(moved)
}

/// The packet leaves with this node's address as its source, and the answer comes back through here.
#[track_caller]
fn goes_by_source_nat(bed: &mut Bed, case: &Case, sent: &Packet) {
    let got = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
    let inner = inner_of(&got);
    let at = [34, 54][case.family];
    let own = (node_ip(0, case.family), u16::from_be_bytes([inner[at], inner[at + 1]]));
    let left = sent.between(own, (pod_ip(1, 0, case.family), 8080)).ttl(63);
    assert_eq!(inner, left.frame(between(0, 1)), "{case:?}");
}

#[test]
fn what_another_node_sends_in_person_is_not_from_outside() {
    Case::each(|case| {
        let mut bed = case.bed(1, (1, 0));
        let (sent, _) = case.asks(0);
        let sent = sent.between((node_ip(2, case.family), 50_000), case.asked(0));
        goes_by_source_nat(&mut bed, &case, &sent);
        bed.close();
    });
}

/// A node port at another address of this node's, of which the other nodes know nothing.
#[test]
fn a_node_port_that_only_this_node_knows_goes_by_source_nat() {
    Case::each(|case| {
        let other: IpAddr = ["10.0.9.4", "fd00:10:0:9::4"][case.family].parse().unwrap();
        let mut service = direct(0, case.protocol, &[(1, 0)]);
        let kind = FrontendKind::NodePort;
        service.frontends.push(Frontend { address: other, port: NODE_PORT, kind });
        service.frontends.sort();
        let mut bed = bed(case.tunnel, 1, vec![service]);
        let (sent, _) = case.asks(0);
        let sent = sent.between(client(case.family), (other, NODE_PORT));
        goes_by_source_nat(&mut bed, &case, &sent);
        bed.close();
    });
}

#[test]
fn a_node_without_an_address_of_the_family_has_no_node_port_to_know() {
    Case::each(|case| {
        let mut bed = case.bed(1, (1, 0));
        let mut peer = objects::peer(1, Mode::Geneve);
        peer.addresses.retain(|address| usize::from(address.is_ipv6()) != case.family);
        if family_of(case.tunnel.1) == case.family {
            // No tunnel leads there, then.
            return bed.close();
        }
        bed.node.set(Object::Peer(peer)).unwrap();
        let (sent, names) = case.asks(0);
        if case.at == At::NodePort {
            goes_by_source_nat(&mut bed, &case, &sent);
        } else {
            let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            assert!(names);
            to_b(&case, &frame, &case.seen(&sent, (1, 0)), Some(case.asked(0)));
        }
        bed.close();
    });
}

#[test]
fn a_node_port_is_believed_of_the_node_whose_address_it_is() {
    Case::each(|case| {
        let with = |number: u8, forwarding| Service {
            forwarding,
            ..direct(number, case.protocol, &[(0, 0), (1, 0)])
        };
        let services = vec![with(0, Forwarding::Dsr), with(1, Forwarding::Snat)];
        let mut bed = bed(case.tunnel, 1, services);
        let (inner, _) = case.sent_on(0, 0);
        let address = |number| node_ip(number, case.family);
        for vip in [
            // Of another node, of this one, of none; another port, and one that is not forwarded so.
            (address(2), NODE_PORT),
            (address(0), NODE_PORT),
            (address(9), NODE_PORT),
            (address(1), NODE_PORT + 7),
            (address(1), NODE_PORT + 1),
            (address(1), 80),
        ] {
            bed.drops(&UPLINK, &case.by_b(Some(vip), &inner), "service_return_unknown");
        }
        let good = case.by_b(Some((address(1), NODE_PORT)), &inner);
        let seen = inner.clone().ttl(62).frame(down(0));
        bed.step(&UPLINK, &good, &[(pod(0), seen)], FORWARDED);
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    });
}

/// A change of something else is noticed by every flow, and ends none that it does not touch.
#[test]
fn a_flow_goes_on_through_changes_of_others_and_ends_with_its_own_service() {
    Case::each(|case| {
        let mut bed = case.bed(1, (0, 0));
        let (first, _) = case.sent_on(0, 0);
        let arrives = |packet: &Packet| vec![(pod(0), packet.clone().ttl(62).frame(down(0)))];
        let frame = case.by_b(Some(case.asked(1)), &first);
        bed.step(&UPLINK, &frame, &arrives(&first), FORWARDED);
        bed.node.set(Object::Service(direct(1, case.protocol, &[(0, 1)]))).unwrap();
        // The answer first: a datagram that names its service would open the flow again.
        let reply = first.reply(b"answer");
        let seen = reply.between(case.asked(1), client(case.family)).ttl(63);
        bed.step(&pod(0), &reply.frame(up(0)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
        let (more, names) = case.sent_on(1, 0);
        let again = case.by_b(names.then_some(case.asked(1)), &more);
        bed.step(&UPLINK, &again, &arrives(&more), FORWARDED);
        assert_eq!(bed.node.flows(), 1);
        // Its backend is somewhere else now.
        bed.node.set(Object::Service(direct(0, case.protocol, &[(0, 1)]))).unwrap();
        if case.protocol == Protocol::Udp {
            bed.drops(&UPLINK, &again, "service_return_unknown");
            assert_eq!(bed.node.flows(), 0);
        } else {
            // A connection stays with its backend until it is over.
            bed.step(&UPLINK, &again, &arrives(&more), FORWARDED);
        }
        bed.close();
    });
}

#[test]
fn a_node_port_goes_another_way_when_the_backends_node_is_told_no_more() {
    Case::each(|case| {
        let mut bed = case.bed(1, (1, 0));
        let (sent, _) = case.asks(0);
        bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
        bed.node.set(Object::Peer(objects::peer(1, Mode::Vxlan))).unwrap();
        let (sent, _) = case.asks(0);
        goes_by_source_nat(&mut bed, &case, &sent);
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    });
}

/// Of what the backend answers nothing is seen here: what the client does tells how far it is.
#[test]
fn an_association_of_which_one_side_is_seen_lives_as_long_as_its_state_says() {
    let case = Case {
        tunnel: (Mode::Geneve, Underlay::Ipv4),
        family: 0,
        protocol: Protocol::Sctp,
        at: At::NodePort,
    };
    // INIT alone; with COOKIE ECHO, and data; with SHUTDOWN.
    for (packets, lives) in [(1, 240), (2, 7440), (3, 7440), (4, 240)] {
        let mut bed = case.bed(1, (1, 0));
        for number in 0..packets {
            let (sent, _) = case.asks(number);
            bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
        }
        bed.node.wait(Duration::from_secs(lives - 5));
        bed.node.run();
        assert_eq!(bed.node.flows(), 1, "{packets} packets");
        bed.node.wait(Duration::from_secs(10));
        bed.node.run();
        assert_eq!(bed.node.flows(), 0, "{packets} packets");
        bed.close();
    }
}

/// Without a flow nothing says which service an association is of.
#[test]
fn in_the_middle_of_an_association_that_was_forgotten_nothing_comes_in() {
    for family in 0..2 {
        let tunnel = (Mode::Geneve, Underlay::Ipv4);
        let case = Case { tunnel, family, protocol: Protocol::Sctp, at: At::NodePort };
        let mut bed = case.bed(1, (0, 0));
        for number in 1..4 {
            let (inner, _) = case.sent_on(number, 0);
            bed.drops(&UPLINK, &case.by_b(None, &inner), "flow_unknown");
        }
        bed.close();
    }
}

/// Too large for the tunnel and cut here: the CRC of the whole is right, though its pieces are translated
/// one by one.
#[test]
fn an_sctp_packet_that_is_cut_here_has_a_right_crc() {
    let case = Case {
        tunnel: (Mode::Geneve, Underlay::Ipv4),
        family: 0,
        protocol: Protocol::Sctp,
        at: At::Balancer,
    };
    let mut bed = case.bed(1, (1, 0));
    let (first, _) = case.asks(0);
    bed.one(&UPLINK, &first.frame(IN), &UPLINK, FORWARDED);
    let (address, port) = case.asked(0);
    let body = Body::Sctp(50_000, port, 0, vec![3; 1460]);
    let sent = Packet { dont_fragment: false, ..packet(client(0).0, address, body) };
    assert!(bed.node.inject(&UPLINK, &sent.frame(IN)));
    bed.node.run();
    bed.node.check_books().unwrap();
    let pieces: Vec<_> =
        bed.node.collect().iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()).collect();
    assert_eq!(pieces.len(), 2);
    assert_eq!(reassemble(&pieces), case.seen(&sent, (1, 0)).ip());
    bed.close();
}

/// A connection that began so goes on so, though new ones do not and no service is left that does.
#[test]
fn a_connection_goes_on_when_its_service_is_forwarded_otherwise() {
    Case::each(|case| {
        let otherwise = |backend| Service {
            forwarding: Forwarding::Snat,
            ..direct(0, case.protocol, &[backend])
        };
        if case.protocol == Protocol::Udp {
            // Each datagram would name the service, which other nodes do not know so any more.
            let mut bed = case.bed(1, (1, 0));
            let (sent, _) = case.asks(0);
            bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            bed.node.set(Object::Service(otherwise((1, 0)))).unwrap();
            goes_by_source_nat(&mut bed, &case, &sent);
            assert_eq!(bed.node.flows(), 1);
            return bed.close();
        }
        let mut bed = case.bed(1, (1, 0));
        for number in 0..3 {
            let (sent, names) = case.asks(number);
            let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            let vip = names.then_some(case.asked(0));
            to_b(&case, &frame, &case.seen(&sent, (1, 0)), vip);
            bed.node.set(Object::Service(otherwise((1, 0)))).unwrap();
        }
        bed.close();

        let mut bed = case.bed(1, (0, 0));
        for number in 0..3 {
            let (inner, names) = case.sent_on(number, 0);
            let frame = case.by_b(names.then_some(case.asked(1)), &inner);
            let seen = inner.clone().ttl(62).frame(down(0));
            bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
            let reply = inner.reply(b"answer");
            let seen = reply.between(case.asked(1), client(case.family)).ttl(63);
            bed.step(&pod(0), &reply.frame(up(0)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
            bed.node.set(Object::Service(otherwise((0, 0)))).unwrap();
        }
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    });
}
